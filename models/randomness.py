"""Generators keyed by what they are for, so that no result depends on the order of work or on global state."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch


def keyed_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every word of `purpose`, stable across runs and machines."""
    digest = hashlib.sha256("\x1f".join([str(seed), *map(str, purpose)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for one purpose, e.g. ``keyed_generator(seed, "poison")``."""
    return np.random.default_rng(keyed_seed(seed, *purpose))


@contextlib.contextmanager
def torch_determinism(seed: int, threads: int) -> Iterator[None]:
    """Torch seeded, on `threads` CPU threads, with deterministic kernels; the caller's state comes back at the end.

    Dropout and other layers draw from torch's global generators and cannot be handed one, so they are seeded
    here, inside a fork of the caller's state.
    """
    before_threads = torch.get_num_threads()
    before_deterministic = torch.are_deterministic_algorithms_enabled()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        # A few CUDA kernels have no deterministic twin: there a warning, on the CPU bit for bit.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_num_threads(before_threads)
            torch.use_deterministic_algorithms(before_deterministic)
