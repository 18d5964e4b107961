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
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from onnxspect.converters.errors import CLASSES, InternalError, MachineError, OnnxspectError, caused_by, writing
from onnxspect.converters.sandbox.guard_child import MEMORY, RESULT, STAGE
from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.converters.text import printable, readable_bytes

_RESULT_LIMIT = 64 << 20
_BEFORE_THE_JOB = ("at the start", "in sandbox")
_START_SECONDS = 60.0  # for importing the largest framework on a slow disk
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


def child_available() -> bool:
    """Whether this interpreter can start itself (a frozen application may not)."""
    return bool(sys.executable)


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A fresh folder that only this user can enter; removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="onnxspect-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    # One that waits was started with neither of these.
    waiting = None if readable or environment else _waiting.pop(job, None)
    with waiting or _Child(environment or {}) as child:
        folder = child.folder
        _put(files or {}, folder)
        message = full_request(job, request, folder, limits, readable, require_sandbox)
        code, timed_out, errors = child.answer(message, limits)
        yield collect(folder, code, timed_out, errors, limits, shown)


def start_ahead(job: str) -> None:
    """Start a child for the next `guarded` run of `job` now, so that its libraries load while this process does other things.

    It is locked in like any other, and sees no file before its request comes; unused, it ends with this process. Does
    nothing where one is waiting already, or where this interpreter cannot start itself.
    """
    if job in _waiting or not child_available():
        return
    child = _Child({})
    with contextlib.suppress(OSError):  # it ended at once: the run that takes it says why
        child.tell({"ahead": True, "job": job, "folder": str(child.folder), "readable": []})
    _waiting[job] = child


#: Job -> the child that was started ahead and has no request yet.
_waiting: dict[str, _Child] = {}


@atexit.register
def _end_waiting() -> None:
    while _waiting:
        _waiting.popitem()[1].close()


class _Child:
    """A started child, its work folder and what it says on stderr; a context that ends it and removes the folder."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        if not child_available():
            raise MachineError("this Python cannot start a child process, so an untrusted file cannot be opened safely")
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(work_folder())
        self._errors: IO[bytes] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # it is closed with the stack
        try:
            self._process = subprocess.Popen(
                child_command(),
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                cwd=self.folder,
                env=child_environment(self.folder, environment),
                start_new_session=True,
            )
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process if it is still there, and remove the folder."""
        if self._process.returncode is None:
            kill_tree(self._process)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._stack.close()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a line, and leave the pipe open for the next."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self, message: Mapping[str, Any], limits: GuardLimits) -> tuple[int, bool, str]:
        """Hand it the request and wait. Returns its exit code, whether it ran out of time, its stderr."""
        timed_out = False
        try:
            # The child's own alarm ends the job in time; this is for a job that undid it, with slack for the start.
            self._process.communicate(json.dumps(message).encode() + b"\n", timeout=limits.seconds + _START_SECONDS)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            kill_tree(self._process)
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 4000, 0))
        return self._process.returncode, timed_out, self._errors.read().decode("utf-8", "replace")


def _put(files: Mapping[str, bytes | Iterable[bytes]], folder: Path) -> None:
    for name, content in files.items():
        with writing(folder / name), (folder / name).open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)


class WarmPool:
    """One process with a job's libraries loaded, which does every request in a forked copy of itself.

    Each file still meets a process of its own, locked in as in `guarded`; only the imports (0.3 s for the probe) are
    paid once. For many files (a folder of models, a fuzz run). Linux only.
    """

    def __init__(self, job: str, limits: GuardLimits, environment: Mapping[str, str] | None = None) -> None:
        self._job, self._limits, self._environment = job, limits, environment or {}
        self._server: subprocess.Popen[bytes] | None = None
        self._home = tempfile.TemporaryDirectory(prefix="onnxspect-pool-")

    def __enter__(self) -> WarmPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._home.cleanup()

    @contextlib.contextmanager
    def run(
        self,
        request: Mapping[str, Any],
        *,
        shown: str,
        files: Mapping[str, bytes | Iterable[bytes]] | None = None,
        readable: Sequence[Path] = (),
        require_sandbox: bool = False,
    ) -> Iterator[GuardedRun]:
        """As `guarded`, for this pool's job."""
        with work_folder() as folder:
            _put(files or {}, folder)
            message = full_request(self._job, request, folder, self._limits, readable, require_sandbox)
            answer = self._ask(json.dumps(message).encode() + b"\n")
            if answer is None:
                raise MachineError(f"{shown}: the pool's process ended ({_stage(folder)})")
            yield collect(folder, int(answer["code"]), bool(answer["timed_out"]), "", self._limits, shown)

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        server = self._server if self._server is not None and self._server.poll() is None else self._start()
        try:
            if server.stdin is None or server.stdout is None:
                return None
            server.stdin.write(line)
            server.stdin.flush()
            answer = _line_within(server.stdout.fileno(), self._limits.seconds + _START_SECONDS)
            return None if answer is None else dict(json.loads(answer))
        except (OSError, ValueError):
            return None
        finally:
            if server.poll() is not None:
                self._server = None

    def _start(self) -> subprocess.Popen[bytes]:
        home = Path(self._home.name)
        server = subprocess.Popen(
            child_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env=child_environment(home, self._environment),
            start_new_session=True,
        )
        self._server = server
        if server.stdin is None or server.stdout is None:
            raise InternalError("the pool's process has no pipes")
        server.stdin.write(json.dumps({"serve": True, "job": self._job}).encode() + b"\n")
        server.stdin.flush()
        if _line_within(server.stdout.fileno(), _START_SECONDS) is None:
            self._stop()
            raise MachineError("the pool's process did not start", "a warm pool needs Linux")
        return server

    def _stop(self) -> None:
        if self._server is not None:
            kill_tree(self._server)
            for pipe in (self._server.stdin, self._server.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._server = None


def _line_within(fd: int, seconds: float) -> bytes | None:
    """One line from a pipe, or None if it ends or nothing comes in time. (Answers are short: one write each.)"""
    line = b""
    deadline = time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        chunk = os.read(fd, 4096) if ready else b""
        if not chunk or len(line) > 65_536:
            return None
        line += chunk
    return line


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


def kill_tree(child: subprocess.Popen[bytes]) -> None:
    """End a child, and what it may have started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def collect(folder: Path, code: int, timed_out: bool, errors: str, limits: GuardLimits, shown: str) -> GuardedRun:
    """Turn what a child left into a result or an error."""
    stage = _stage(folder)
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


def _stage(folder: Path) -> str:
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
