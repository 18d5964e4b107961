"""Patches: each a small, provable edit of the original file."""
