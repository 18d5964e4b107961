"""Starting a child for an untrusted file, asking it one thing, and ending it with all that it left.

A process that may start programs does it itself (`Here`). The command line's worker may not: it asks a process that was made for
that before the worker locked itself in (starter.py), which offers the same four calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from onnxspect.converters.errors import MachineError, writing
from onnxspect.converters.sandbox.forked import BROKEN, PIPE, Forked
from onnxspect.converters.sandbox.removal import remove_tree

#: Seconds for importing the largest framework on a slow disk.
START_SECONDS = 60.0
# What a child gets of the environment. Not the rest: it may hold tokens.
_KEPT_ENVIRONMENT = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "PATHEXT", "COMSPEC"),
)
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True)
class Answer:
    """What became of a child.

    Attributes:
        code: its exit code; negative for a signal.
        timed_out: whether it had to be ended.
        errors: the end of what it said on stderr.
    """

    code: int
    timed_out: bool
    errors: str


class Process(Protocol):
    """A started child."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a line, and leave the pipe open for the next."""

    def answer(self, message: Mapping[str, Any], seconds: float) -> Answer:
        """Send the last line and wait that long for its end."""

    def close(self) -> None:
        """End it if it is still there."""


class Launcher(Protocol):
    """Whoever starts children."""

    def start(self, job: str, folder: Path, environment: Mapping[str, str]) -> Process:
        """A child for that job, whose work folder that is."""


class Here:
    """Starts children from this process.

    Args:
        loaded: jobs whose libraries this process has loaded: their children are copies of it (forked.py); every other is a
            Python of its own.
    """

    def __init__(self, loaded: Collection[str] = ()) -> None:
        self._loaded = frozenset(loaded)

    def start(self, job: str, folder: Path, environment: Mapping[str, str]) -> Process:
        """A child for that job, whose work folder that is."""
        return _Local(folder, environment, copied=job in self._loaded)


class _Local:
    def __init__(self, folder: Path, environment: Mapping[str, str], copied: bool) -> None:
        with writing(Path(tempfile.gettempdir())):
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        start = _copy if copied else _anew
        try:
            self.process = start(folder, child_environment(folder, environment), self._errors.fileno())
        except BaseException:
            self._errors.close()
            raise

    def tell(self, message: Mapping[str, Any]) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self, message: Mapping[str, Any], seconds: float) -> Answer:
        timed_out = False
        try:
            self.process.communicate(json.dumps(message).encode() + b"\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            kill_tree(self.process)
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 4000, 0))
        code = self.process.returncode
        said = self._errors.read().decode("utf-8", "replace")
        return Answer(BROKEN if code is None else int(code), timed_out, said)

    def close(self) -> None:
        if self.process.returncode is None:
            kill_tree(self.process)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self._errors.close()


def _anew(folder: Path, environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes] | Forked:
    return subprocess.Popen(
        child_command(),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def _copy(folder: Path, environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes] | Forked:
    from onnxspect.converters.sandbox import guard_child

    return Forked(
        "onnxspect-child",
        guard_child.main,
        stdin=PIPE,
        stdout=output,
        stderr=output,
        environment=environment,
        cwd=folder,
    )


def child_available() -> bool:
    """Whether this interpreter can start itself (a frozen application may not)."""
    return bool(sys.executable)


def require_child() -> None:
    """Refuse where there can be no child.

    Raises:
        MachineError: this Python cannot start one.
    """
    if not child_available():
        raise MachineError("this Python cannot start a child process, so an untrusted file cannot be opened safely")


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A fresh folder that only this user can enter; removed with all that is in it.

    Raises:
        OnnxspectError: there is no room for it; names the place.
    """
    with writing(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="onnxspect-")).resolve()
    try:
        yield folder
    finally:
        remove_tree(folder)


def child_command() -> list[str]:
    """How a child is started: ``-P`` keeps its current folder, which holds untrusted files, off the import path."""
    return [sys.executable, "-P", "-m", "onnxspect.converters.sandbox.guard_child"]


def child_environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The child's environment: a short list, and every cache pointed into the work folder."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    here = str(folder)
    own = {
        "HOME": here,
        "USERPROFILE": here,
        "TMPDIR": here,
        "TEMP": here,
        "TMP": here,
        "XDG_CACHE_HOME": here,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    return {**kept, **_ONE_THREAD, **own, **(extra or {})}


def kill_tree(child: subprocess.Popen[bytes] | Forked) -> None:
    """End a child, and what it may have started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()
