"""A locked-in child that takes many mutants of one target, and tells its parent after each how it ended.

The parent reads no mutant: it forks a child, which makes them from seeds and numbers. A child that dies, or hangs, costs one mutant.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz_target import Target, attempt

from onnxspect.converters import stages
from onnxspect.converters.sandbox import linux, lock
from onnxspect.converters.sandbox.guard import stage_in
from onnxspect.converters.sandbox.removal import remove_tree

#: What a child may take of memory on top of its libraries, and one mutant of time.
MEMORY_BYTES, SECONDS = 1 << 30, 20.0
_OUTPUT_BYTES = 64 << 20


@dataclass(frozen=True)
class Ended:
    """How a mutant ended.

    Attributes:
        index: its number.
        outcome: in few words.
        problem: what promise it broke; "" for none.
        seconds: it took.
        died: whether its child did not outlive it.
    """

    index: int
    outcome: str
    problem: str = ""
    seconds: float = 0.0
    died: bool = False


class Children:
    """Starts one child after the other.

    Attributes:
        started: how many.
        peak_bytes: the most memory that any of them took, its libraries (which it shares with this process) included.
    """

    def __init__(self) -> None:
        self.started = 0
        self.peak_bytes = 0

    def run(self, target: Target, seeds: list[bytes], seed: int, numbers: range) -> Iterator[Ended]:
        """The outcomes of these mutants, in order."""
        left = numbers
        while left:
            for ended in self._one(target, seeds, seed, left):
                left = left[1:]
                yield ended

    def _one(self, target: Target, seeds: list[bytes], seed: int, numbers: range) -> Iterator[Ended]:
        folder = Path(tempfile.mkdtemp(prefix="onnxspect-fuzz-")).resolve()
        ours, theirs = os.pipe()
        self.started += 1
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            with contextlib.suppress(BaseException):
                _child(target, seeds, seed, numbers, folder, theirs)
                os._exit(0)
            traceback.print_exc()
            os._exit(70)
        os.close(theirs)
        done, before, rest = 0, time.monotonic(), b""
        try:
            while piece := _within(ours, SECONDS):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    outcome, problem = json.loads(line)
                    now = time.monotonic()
                    yield Ended(numbers[done], outcome, problem, now - before)
                    done, before = done + 1, now
            hung = piece is None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if hung else 0)
            code = self._gone(pid)
            pid = 0
            if done < len(numbers):
                yield Ended(numbers[done], _death(code, hung, folder), seconds=time.monotonic() - before, died=True)
        finally:
            os.close(ours)
            if pid:
                os.kill(pid, signal.SIGKILL)
                self._gone(pid)
            remove_tree(folder)

    def _gone(self, pid: int) -> int:
        _, status, usage = os.wait4(pid, 0)
        self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss << 10)
        return os.waitstatus_to_exitcode(status)


def _within(pipe: int, seconds: float) -> bytes | None:
    """What comes within that time: nothing at the end, None where it takes longer."""
    ready, _, _ = select.select([pipe], [], [], seconds)
    return os.read(pipe, 1 << 16) if ready else None


def _death(code: int, hung: bool, folder: Path) -> str:
    if hung:
        return f"child ended: took more than {SECONDS:.0f} s ({stage_in(folder)})"
    errors = (folder / "errors").read_bytes()[-4000:]
    if b"bad_alloc" in errors or b"MemoryError" in errors:
        return f"child ended: memory ({stage_in(folder)})"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"status {code}"
    return f"child ended: {name} ({stage_in(folder)})"


def _child(target: Target, seeds: list[bytes], seed: int, numbers: range, folder: Path, out: int) -> None:
    faulthandler.disable()  # of a test's process: how this one dies is for its parent to say
    linux.die_with_parent()
    tempfile.tempdir = str(folder)
    stages.record_in(folder)
    stages.stage("start")
    errors = os.open(folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    level = lock.Level()
    lock.files(level, (), [folder])
    lock.limits(level, MEMORY_BYTES, len(numbers) * SECONDS, _OUTPUT_BYTES)
    lock.calls(level)
    if level.missing and sys.platform == "linux":
        raise SystemExit(f"not locked in: {level.missing}")
    for i in numbers:
        outcome, error = attempt(target.check, target.mutate(seeds, seed, i))
        problem = "" if error is None else "".join(traceback.format_exception(error)[-4:])[-3000:]
        os.write(out, json.dumps([outcome, problem]).encode() + b"\n")
        os.ftruncate(errors, 0)
