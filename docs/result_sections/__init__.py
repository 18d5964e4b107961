"""Sections of docs/results.md, each a function of one JSON file of benchmarks/results (docs/make_results.py)."""
