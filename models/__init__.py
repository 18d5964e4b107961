"""Attacks, networks and recipes: the evidence that tests, benchmarks and the demo use."""
