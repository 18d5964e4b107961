"""Model files and data sets as other people ship them, made anew: what the second half of docs/compatibility.md is about.

A group is a module of its own (of_torch.py, of_keras.py ...), because frameworks do not go together in one process; it lists what it
makes without importing its framework. benchmarks/wild_files.py makes every file, opens it as a user's command does, and keeps what
became of it; the test suite makes a part of them again.
"""
