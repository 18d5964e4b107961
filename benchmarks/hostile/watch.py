"""A command as a process of its own, with all its descendants watched: what they take of memory, how they end, what they leave."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds between two looks.
_LOOK = 0.02
_PR_SET_CHILD_SUBREAPER = 36
_URL = re.compile(rb"(http://127\.0\.0\.1:\d+/)\s")
#: Pages that are asked for: the list, a run, its patch, a comparison, and what is not there.
_PAGES = ("", "run/0", "run/0/patch", "run/0/verify", "compare?a=0&b=0", "run/0/../../secret")


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: negative for a signal.
        seconds: of wall time.
        tree_bytes: the highest sum of resident memory over the command and all its descendants at one look; pages that they share
            (libraries; what a fork has not written to) count once for each.
        process_bytes: the highest peak of one process, as the kernel counts it (VmHWM), at its last look.
        left: names of processes that were still there when the command had ended.
        hung: it had to be killed.
    """

    status: int
    seconds: float
    tree_bytes: int
    process_bytes: int
    left: tuple[str, ...]
    hung: bool


def adopt() -> None:
    """Let what a command leaves behind become a child of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path, seconds: float, serves: bool
) -> Ended:
    """Run a command to its end.

    Args:
        command: its words.
        folder: it is started in.
        environment: all of it.
        out: gets `stdout`, `stderr`, and the pages of a command that serves some.
        seconds: after which it is killed.
        serves: it serves pages until SIGINT.
    """
    start = time.monotonic()
    with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    tree = highest = 0
    hung = asked = False
    while process.poll() is None:
        resident, peak = _memory(process.pid)
        tree, highest = max(tree, resident), max(highest, peak)
        if serves and not asked and (found := _URL.search((out / "stderr").read_bytes())):
            asked = True
            _ask(found[1].decode(), out)
            process.send_signal(signal.SIGINT)
        if time.monotonic() - start > seconds:
            hung = True
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(_LOOK)
    return Ended(process.returncode, time.monotonic() - start, tree, highest, _left(), hung)


def _ask(url: str, out: Path) -> None:
    for i, page in enumerate(_PAGES):
        with contextlib.suppress(OSError), urllib.request.urlopen(url + page, timeout=30) as answer:
            (out / f"page-{i}.html").write_bytes(answer.read())


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return []


def _memory(pid: int) -> tuple[int, int]:
    """Resident memory of a process and its descendants, added; the highest peak of one of them; in bytes."""
    waiting, resident, peak = [pid], 0, 0
    while waiting:
        one = waiting.pop()
        waiting += _children(one)
        with contextlib.suppress(OSError):
            facts = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{one}/status").read_text().splitlines()
                if line.startswith("Vm")
            )
            resident += int(facts.get("VmRSS", "0 kB").split()[0]) << 10
            peak = max(peak, int(facts.get("VmHWM", "0 kB").split()[0]) << 10)
    return resident, peak


def _left() -> tuple[str, ...]:
    """What has become a child of this process; it is ended."""
    names = []
    for pid in _children(os.getpid()):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return tuple(names)
