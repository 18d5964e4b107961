"""Whole jobs: what the commands do, as library calls."""
