"""Detectors: each supplies an objective to the one search and reads the result into Evidence."""
