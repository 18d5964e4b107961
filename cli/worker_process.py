"""A command's worker as its supervisor sees it: how it is started, what it gets of the environment, and how it is ended.

Usually it is a Python of its own. Where many models are scanned it is a copy of the supervisor, which is itself a copy of a process that
has the libraries loaded and has opened nothing (forkserver.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from onnxspect.converters.sandbox.environment import kept
from onnxspect.converters.sandbox.forked import DEVNULL, PIPE, Forked

#: What a worker that is a copy is called in lists of processes.
WORKER = "onnxspect-work"
#: Seconds that a worker has for its own end after a signal or at a limit; then it is killed.
GRACE = 3.0


class Worker(Protocol):
    """A started worker, in a process group of its own: what subprocess.Popen and Forked share."""

    pid: int
    returncode: int | Any
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None

    def poll(self) -> int | None:
        """Its status, where it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Its status, when it has ended."""


#: From its request, its environment and the file descriptors that it is given: its control socket first.
Start = Callable[[Mapping[str, Any], Mapping[str, str], Sequence[int]], Worker]


def anew(request: Mapping[str, Any], environment: Mapping[str, str], handed: Sequence[int]) -> Worker:
    """A Python of its own."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "onnxspect.cli.worker"],
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=environment,
        pass_fds=handed,
        process_group=0,  # a Ctrl-C in the terminal comes to its parent alone
    )
    if worker.stdin is not None:
        with contextlib.suppress(OSError):  # it ended at once: its end says why
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.close()
    return worker


def copied(request: Mapping[str, Any], environment: Mapping[str, str], handed: Sequence[int]) -> Worker:
    """A copy of this process, which has the libraries loaded."""
    from onnxspect.cli.worker import LOADED, serve

    return Forked(
        WORKER,
        lambda: serve(request, LOADED),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        environment=environment,
        keep=handed,
    )


def environment_in(folder: Path) -> dict[str, str]:
    """What a worker gets of this process's environment, with every place to write to in its own folder."""
    here = str(folder)
    own = {
        **dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), here),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "USER": os.environ.get("USER", "onnxspect"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JOBLIB_MULTIPROCESSING": "0",  # it would look for semaphores, and warn that it may have none
        "ONNXSPECT_TERMINAL": ",".join(n for n in ("stdout", "stderr") if getattr(sys, n).isatty()),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    if own["ONNXSPECT_TERMINAL"]:
        size = shutil.get_terminal_size()
        own |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    return {**kept(os.environ), **own}


def resident(pid: int) -> int:
    """Memory that a process uses now, in bytes; 0 where that is not known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def end(worker: Worker) -> None:
    """Kill the worker if it is still there, and whatever it left behind."""
    if worker.poll() is None:
        try:
            worker.wait(GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    for pipe in (worker.stdin, worker.stdout, worker.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    _end_orphans()


def _end_orphans() -> None:
    """Descendants that outlived the worker became children of this process."""
    if sys.platform != "linux":
        return
    for _ in range(100):
        try:
            own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        except OSError:
            return
        if not own:
            return
        for pid in map(int, own):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
