"""The command line: options in, exit status out. No logic of its own."""

import os

# Before torch brings OpenMP in: its threads wait for each other by spinning, and where something else needs the cores too
# they then spin on time slices. Measured on two busy cores, one gradient step of the shipped model: 236 ms of CPU time
# with two spinning threads, 10 ms with two that sleep, 9 ms with one. On idle cores sleeping costs next to nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
