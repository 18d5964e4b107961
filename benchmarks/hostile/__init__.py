"""The corpus of benchmarks/hostile_inputs.py, room by room, and what it watches."""
