"""Running a job on an untrusted file in a child process of its own, with limits; reading its results without trust.

The child (guard_child.py) locks itself in, works in a fresh folder, and leaves files there. Whatever becomes of it (a
crash of C++ code, a signal, too much memory or time, a lying result) the parent gets either the result or one
`OnnxspectError` that names the cause. The child may have been taken over by the file it read, so its results are read
like the file itself: no links, no FIFOs, bounded sizes, nothing unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import CLASSES, InternalError, MachineError, OnnxspectError, caused_by, writing
from onnxspect.converters.sandbox.child import (
    START_SECONDS,
    Here,
    Launcher,
    child_available,
    require_child,
    work_folder,
)
from onnxspect.converters.sandbox.guard_child import MEMORY, RESULT
from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.converters.stages import FILE as STAGE
from onnxspect.converters.text import printable, readable_bytes

_RESULT_LIMIT = 64 << 20
#: What a child gets at least: with less it could not say that it lacks memory.
_LEAST_MEMORY = 128 << 20
_BEFORE_THE_JOB = ("at the start", "in sandbox")


@dataclass(frozen=True)
class GuardLimits:
    """Limits of one child.

    Attributes:
        seconds: wall time.
        memory_bytes: address space on top of what the interpreter and the preloaded libraries map.
        output_bytes: the longest file it may write.
    """

    seconds: float
    memory_bytes: int
    output_bytes: int = (2 << 30) - 1


@dataclass(frozen=True)
class SandboxLevel:
    """How far a child was locked in.

    Attributes:
        applied: measures in force, such as "no_new_privs", "Landlock 7", "rlimits", "seccomp".
        missing: measures that this system does not have.
    """

    applied: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every measure was in force."""
        return bool(self.applied) and not self.missing

    def __str__(self) -> str:
        head = "full" if self.complete else "partial" if self.applied else "none"
        tail = f" (missing: {', '.join(self.missing)})" if self.missing else ""
        return f"{head}: {', '.join(self.applied) or 'no measure'}{tail}"


@dataclass(frozen=True)
class GuardedRun:
    """What a child left behind.

    Attributes:
        result: the job's result, as JSON values; to be checked by the caller, since the child may lie.
        folder: its work folder, gone when the context ends.
        sandbox: how far it was locked in.
        seconds: wall time of the job itself.
        peak_bytes: memory that the job took on top of its libraries.
        shown: the name of the file that it is about, for errors.
    """

    result: Mapping[str, Any]
    folder: Path
    sandbox: SandboxLevel
    seconds: float
    peak_bytes: int
    shown: str

    def read(self, name: str, limit: int = (2 << 30) - 1) -> bytes:
        """The content of a file that the child wrote into its folder."""
        try:
            return read_beneath(self.folder, name, limit).data
        except OnnxspectError as error:
            message = f"{self.shown}: the child left no {printable(name)}: {error.message}"
            raise caused_by(error, message) from None


@dataclass(frozen=True)
class Budget:
    """What is left for the children of this process, whatever their own limits are.

    Attributes:
        ends: the moment (time.monotonic) at which all must be over; None for no limit.
        memory_bytes: of this process and a child together; None for no limit.
        require_sandbox: refuse to run any where the system cannot lock it in completely.
    """

    ends: float | None = None
    memory_bytes: int | None = None
    require_sandbox: bool = False

    def within(self, limits: GuardLimits) -> GuardLimits:
        """The limits of a child that starts now."""
        seconds = limits.seconds if self.ends is None else min(limits.seconds, max(self.ends - time.monotonic(), 1.0))
        memory = limits.memory_bytes
        if self.memory_bytes is not None:
            memory = min(memory, max(self.memory_bytes - resident_bytes(), _LEAST_MEMORY))
        return replace(limits, seconds=seconds, memory_bytes=memory)


_budget = Budget()
_launcher: Launcher = Here()


def set_up(budget: Budget, launcher: Launcher) -> None:
    """For the command line's worker: the budget of all children from here on, and who starts them."""
    global _budget, _launcher
    _budget, _launcher = budget, launcher


@contextlib.contextmanager
def guarded(
    job: str,
    request: Mapping[str, Any],
    *,
    shown: str,
    limits: GuardLimits,
    files: Mapping[str, bytes | Iterable[bytes]] | None = None,
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    require_sandbox: bool = False,
) -> Iterator[GuardedRun]:
    """Run `job` in a child of its own.

    Args:
        job: a name in `guard_child.JOBS`.
        request: what the job needs, as JSON values.
        shown: the file's name as it is to appear in errors.
        limits: of time, memory and output.
        files: name -> content, whole or in pieces, put into the work folder before the start.
        readable: files and folders that the child may read besides Python's own.
        environment: variables to set in the child.
        require_sandbox: refuse to run where the system cannot lock the child in completely.

    Yields:
        The run, with its folder, which is removed at the end.

    Raises:
        OnnxspectError: naming the file and the cause: the job's own error, a crash, a limit.
    """
    limits = _budget.within(limits)
    # One that waits was started with neither of these.
    waiting = None if readable or environment else _waiting.pop(job, None)
    with waiting or _Child(job, environment or {}) as child:
        folder = child.folder
        put(files or {}, folder)
        message = full_request(job, request, folder, limits, readable, require_sandbox or _budget.require_sandbox)
        # The child's own alarm ends the job in time; this is for a job that undid it, with slack for the start.
        said = child.process.answer(message, limits.seconds + START_SECONDS)
        yield collect(folder, said.code, said.timed_out, said.errors, limits, shown)


def start_ahead(job: str) -> None:
    """Start a child for the next `guarded` run of `job` now, so that its libraries load while this process does other things.

    It is locked in like any other, and sees no file before its request comes; unused, it ends with this process. Does
    nothing where one is waiting already, or where this interpreter cannot start itself.
    """
    if job in _waiting or not child_available():
        return
    child = _Child(job, {})
    with contextlib.suppress(OSError, MachineError):  # it ended at once: the run that takes it says why
        child.process.tell({"ahead": True, "job": job, "folder": str(child.folder), "readable": []})
    _waiting[job] = child


#: Job -> the child that was started ahead and has no request yet.
_waiting: dict[str, _Child] = {}


@atexit.register
def end_waiting() -> None:
    """End the children that were started ahead and not used."""
    while _waiting:
        _waiting.popitem()[1].close()


class _Child:
    """A started child and its work folder; a context that ends it and removes the folder."""

    def __init__(self, job: str, environment: Mapping[str, str]) -> None:
        require_child()
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(work_folder())
        try:
            self.process = _launcher.start(job, self.folder, environment)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process if it is still there, and remove the folder."""
        self.process.close()
        self._stack.close()


def put(files: Mapping[str, bytes | Iterable[bytes]], folder: Path) -> None:
    """Write files into a work folder."""
    for name, content in files.items():
        with writing(folder / name), (folder / name).open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)


def full_request(
    job: str,
    request: Mapping[str, Any],
    folder: Path,
    limits: GuardLimits,
    readable: Sequence[Path] = (),
    require_sandbox: bool = False,
) -> dict[str, Any]:
    """The line that the child reads."""
    return {
        **request,
        "job": job,
        "folder": str(folder),
        "limits": {
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_bytes,
            "output_bytes": limits.output_bytes,
        },
        "readable": [str(p) for p in readable],
        "require_sandbox": require_sandbox,
    }


def collect(folder: Path, code: int, timed_out: bool, errors: str, limits: GuardLimits, shown: str) -> GuardedRun:
    """Turn what a child left into a result or an error."""
    stage = stage_in(folder)
    if timed_out or (code < 0 and -code == getattr(signal, "SIGALRM", None)):
        raise OnnxspectError(
            f"{shown}: took more than {limits.seconds:.0f} s ({stage})", "raise the time limit if you trust the file"
        )
    if code != 0:
        raise _crash(code, stage, errors, limits, shown)
    try:
        outcome = json.loads(read_beneath(folder, RESULT, _RESULT_LIMIT).data)
        if not isinstance(outcome, dict):
            raise ValueError("not an object")
        sandbox = SandboxLevel(_strings(outcome.get("applied")), _strings(outcome.get("missing")))
        failure = outcome.get("error")
        if failure is None:
            result = outcome["result"]
            if not isinstance(result, dict):
                raise ValueError("not an object")
            return GuardedRun(result, folder, sandbox, float(outcome["seconds"]), int(outcome["peak_bytes"]), shown)
    except OnnxspectError as error:
        raise caused_by(error, f"{shown}: the child left no result ({stage}): {error.message}") from None
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise OnnxspectError(f"{shown}: the child left no readable result ({type(error).__name__}, {stage})") from None
    message, hint = str(failure), str(outcome.get("hint", ""))
    if outcome.get("kind") == MEMORY:
        message, hint = _memory(stage, limits)
    # The kind is a child's word, like all of it. It changes an exit status and nothing else.
    raised = {kind.value: cls for kind, cls in CLASSES.items()}.get(str(outcome.get("kind")), OnnxspectError)
    raise raised(f"{shown}: {printable(message, 2000)}", printable(hint, 400))


def resident_bytes() -> int:
    """Memory that this process uses now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def stage_in(folder: Path) -> str:
    """What the process whose folder that is noted last, for errors; it may lie."""
    try:
        return "in " + printable(read_beneath(folder, STAGE, 200).data.decode("utf-8", "replace"), 80)
    except OnnxspectError:
        return "at the start"


def _crash(code: int, stage: str, errors: str, limits: GuardLimits, shown: str) -> OnnxspectError:
    last = printable(errors.strip().splitlines()[-1], 200) if errors.strip() else ""
    if code >= 0:
        message = f"{shown}: the child process ended with status {code} {stage}" + (f": {last}" if last else "")
        if os.strerror(errno.ENOSPC) in last:  # it could not even write down what became of it
            return MachineError(message, f"make room in {tempfile.gettempdir()}, or set TMPDIR")
        # Before the job started it had read nothing of the file, which so is not to blame.
        return OnnxspectError(message) if stage not in _BEFORE_THE_JOB else InternalError(message)
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if "bad_alloc" in errors or "MemoryError" in errors or "llocat" in last:
        message, hint = _memory(stage, limits)
        return OnnxspectError(f"{shown}: {message}", hint)
    if name == "SIGXCPU":
        return OnnxspectError(f"{shown}: the child process ran out of processor time ({stage})")
    if name == "SIGKILL":
        return MachineError(f"{shown}: the child process was killed, as when memory runs out ({stage})")
    return OnnxspectError(
        f"{shown}: crashed the library that read it ({name} {stage})",
        "the file is damaged or made to do harm; it was only opened in a child process",
    )


def _memory(stage: str, limits: GuardLimits) -> tuple[str, str]:
    return (
        f"took more than {readable_bytes(limits.memory_bytes)} of memory ({stage})",
        "raise the memory limit if you trust the file",
    )


def _strings(value: object) -> tuple[str, ...]:
    return tuple(printable(str(v), 60) for v in value[:20]) if isinstance(value, list) else ()
