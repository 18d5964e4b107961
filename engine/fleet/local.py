"""How a machine is divided among commands, as many at a time as cores, GPUs and memory hold; and commands as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onnxspect.engine.fleet.executor import SAID, Ended, Job

#: Memory that one worker should have at least, libraries included: a GiB for these, and what a small network's search takes.
WORKER_BYTES = 2 << 30
#: The program that carries out one command.
PROGRAM = "onnxspect.cli.one_of_many"
#: Seconds that a command has to end after a signal; its own worker has three.
_GRACE = 10.0
_LOOK = 0.02


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(device: str) -> tuple[str, ...]:
    """The GPUs that commands are divided among, as CUDA_VISIBLE_DEVICES names them; none where a device was named, or none is there."""
    if device not in ("auto", "cuda"):
        return ()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(c for c in chosen.split(",") if c)
    return tuple(str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


@dataclass(frozen=True)
class Size:
    """How a machine is divided.

    Attributes:
        jobs: commands at a time.
        threads: of each.
        memory_bytes: of each, at most, beside its libraries.
        gpus: one of them for each command, in turn.
    """

    jobs: int
    threads: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def of(cls, memory: int, jobs: int | None = None, device: str = "auto") -> Size:
        """Of this machine.

        Args:
            memory: bytes for all together.
            jobs: how many the user wants; by default one a GPU, or one a core, as far as memory goes.
            device: that scans compute on.
        """
        cores, there = usable_cores(), gpus(device)
        fitting = max(1, memory // WORKER_BYTES)
        wanted = jobs or min(len(there) or cores, fitting)
        own = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(own) if own.isdecimal() and int(own) else max(1, cores // wanted)
        return cls(wanted, threads, max(256 << 20, memory // wanted), there)


def least_busy(there: Sequence[str], busy: Sequence[str | None]) -> str | None:
    """The GPU for the next command; None where there are none."""
    return min(there, key=busy.count) if there else None


def end_of(said: IO[bytes]) -> str:
    """The end of what a command said."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - SAID))
    return said.read().decode("utf-8", "replace")


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    since: float
    gpu: str | None


class LocalProcesses:
    """An executor (executor.py) on this machine, wherever there is no fork (forked.py)."""

    def __init__(self, size: Size, environment: Mapping[str, str] | None = None) -> None:
        self._size = size
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(size.threads), **(environment or {})}
        self._running: list[_Running] = []

    @property
    def slots(self) -> int:
        """Commands at a time."""
        return self._size.jobs

    def start(self, job: Job) -> None:
        """Start its process."""
        gpu = least_busy(self._size.gpus, [r.gpu for r in self._running])
        own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the process has ended
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**self._environment, **own},
            process_group=0,  # a Ctrl-C in the terminal comes to its parent alone
        )
        self._running.append(_Running(job, process, said, time.monotonic(), gpu))

    def wait(self, seconds: float) -> list[tuple[Job, Ended]]:
        """Those that have ended."""
        until = time.monotonic() + seconds
        while True:
            over = [r for r in self._running if r.process.poll() is not None]
            if over or time.monotonic() >= until:
                break
            time.sleep(_LOOK)
        self._running = [r for r in self._running if r not in over]
        return [(r.job, _ended(r)) for r in over]

    def stop(self) -> None:
        """End all."""
        for number, grace in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            for r in self._running:
                with contextlib.suppress(ProcessLookupError):
                    r.process.send_signal(number)
            until = time.monotonic() + grace
            while any(r.process.poll() is None for r in self._running) and time.monotonic() < until:
                time.sleep(_LOOK)
        for r in self._running:
            r.said.close()
        self._running = []


def _ended(running: _Running) -> Ended:
    with running.said as said:
        text = end_of(said)
    return Ended(int(running.process.returncode), text, time.monotonic() - running.since)
