"""What a run is made of besides its subject: seed, device, threads, and someone who watches.

Randomness comes from generators keyed by (seed, names...), never from global state and never from the order of the
work, so that a resumed run draws what the undisturbed one drew.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from onnxspect.engine.errors import OnnxspectError

#: glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


class Observer(Protocol):
    """Whom progress is reported to; the library does without one."""

    def notice(self, text: str) -> None:
        """Something worth knowing, once."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """`task` begins with `total` units of which `done` come from an earlier run."""

    def advance(self, task: str, detail: str = "") -> None:
        """One unit of `task` is finished; `detail` says what it gave."""

    def finish(self, task: str) -> None:
        """`task` is over."""


@runtime_checkable
class Forecasting(Observer, Protocol):
    """An observer that also wants to know how long the rest of a scan will take."""

    def time_left(self, seconds: float | None) -> None:
        """So long, as far as can be told now; said again before each event. None: that cannot be told, or the scan is over."""


class Silent:
    """The observer that says nothing."""

    def notice(self, text: str) -> None:
        """Ignored."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Ignored."""

    def advance(self, task: str, detail: str = "") -> None:
        """Ignored."""

    def finish(self, task: str) -> None:
        """Ignored."""


@dataclass(frozen=True)
class RunContext:
    """Seed, device and observer of one run.

    Attributes:
        seed: the one number that all generators derive from.
        device: "cpu", "cuda" or "cuda:N".
        observer: progress is reported to it.
    """

    seed: int = 0
    device: str = "cpu"
    observer: Observer = field(default_factory=Silent, compare=False)

    def key(self, *names: object) -> int:
        """A 63-bit number that depends on the seed and `names` and on nothing else."""
        text = "\x1f".join(map(str, (self.seed, *names)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def torch_generator(self, *names: object) -> torch.Generator:
        """A CPU generator keyed by (seed, names): the draws are the same whatever device then uses them."""
        return torch.Generator().manual_seed(self.key(*names))

    def numpy_generator(self, *names: object) -> np.random.Generator:
        """A numpy generator keyed by (seed, names)."""
        return np.random.default_rng(self.key(*names))


def choose_device(wanted: str) -> str:
    """ "cpu", "cuda" or "cuda:N" for "auto" or one of these.

    Raises:
        OnnxspectError: a GPU is asked for that torch does not see or cannot use.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", wanted, re.ASCII) is None:
        raise OnnxspectError(f"unknown device {wanted!r}", "one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise OnnxspectError("torch sees no CUDA device", "use --device cpu, or install a CUDA build of torch")
    device = "cuda" if wanted == "auto" else wanted
    count = torch.cuda.device_count()
    if torch.device(device).index is not None and torch.device(device).index >= count:
        raise OnnxspectError(f"there is no device {device}: torch sees {count}", f"cuda:0 to cuda:{count - 1}")
    try:
        torch.zeros(1, device=device).add_(1).item()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if wanted == "auto":
            return "cpu"
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise OnnxspectError(
            f"{device} cannot be used: {line}",
            "if other programs have taken its memory, wait or choose another; if it is too old for this torch, use --device cpu",
        ) from error
    return device


def prepare_process(device: str) -> None:
    """Settings of the whole process that have to be made before the first kernel: workspaces, and memory that is kept.

    cuBLAS gives the same bits every time only with a workspace of its own. On a CPU glibc hands large blocks back to the
    system when they are freed, so that every step pays for its activations' pages anew: a third of the time of a search on
    the shipped models (1.6 million page faults in 9 s), or none, as chance places the blocks. It is set to keep them. Gaps
    between blocks cost up to half as much memory again (memory.PEAK counts them in). Threads that search side by side (workers.py)
    take from the same place: one of their own would hold 64 MiB, and hand back every block that is larger.
    """
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not every C library has mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, 2**30)
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_ARENA_MAX, 1)


def device_name(device: str) -> str:
    """The device in words, for the report."""
    if device.startswith("cuda"):
        return f"{device}: {torch.cuda.get_device_name(torch.device(device))}"
    return f"cpu: {torch.get_num_threads()} threads"
