"""The parent of a command: it starts one worker, relays what it says, keeps its limits, and opens nothing itself.

Everything untrusted (models, images, archives, run folders) is read by the worker, which locks itself in first
(worker.py). This process parses the command line, makes the folders and the temporary ones that the worker may write into, passes
signals on, renames finished outputs, and when the worker is gone, whatever became of it, removes what is left and says in one
line what happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from onnxspect.cli import budget, command_table, exit_status, listening, places
from onnxspect.cli.relay import Cleaner
from onnxspect.cli.worker_process import GRACE, Start, Worker, anew, end, environment_in, resident
from onnxspect.converters.errors import OnnxspectError, unwritable, writing
from onnxspect.converters.sandbox import linux
from onnxspect.converters.sandbox.guard import stage_in
from onnxspect.converters.sandbox.removal import remove_tree
from onnxspect.converters.sandbox.walk import walk
from onnxspect.converters.text import readable_bytes, visible
from onnxspect.converters.whole import SUFFIX, rename

#: Seconds between two looks at the worker's memory.
_LOOK = 0.25
_PIECE = 1 << 16
_MOST_CONTROL = 1 << 20
_KEEPS = {
    "scan": "; a scan goes on where it stopped when the same command is run again",
    "patch": "; a patch begins anew when the same command is run again: no model was written",
}
#: A signal that is how a command ends.
_ORDINARY_END = {"view": signal.SIGINT}
_HARMFUL = "the file is damaged or made to do harm; it was only opened in a locked-in process"


def supervise(arguments: list[str], how: Start = anew) -> int:
    """Run a command in a worker and return the exit status.

    Args:
        arguments: the command's name first, one of `main.COMMANDS`.
        how: the worker is started.
    """
    command = arguments[0]
    try:
        with _Signals() as signals:
            given = command_table.parsed(command, arguments[1:])
            limits = budget.limits(command, given)
            with _prepared(command, given) as ready:
                if ready.touched.listening is not None and given.get("browser"):
                    listening.show(listening.url_of(ready.touched.listening))
                return _Run(command, arguments, limits, ready, signals, how).status()
    except click.ClickException as error:
        error.show(sys.stderr)
        return exit_status.USAGE
    except OnnxspectError as error:
        complain(error.message, error.hint)
        return exit_status.OF_KIND[error.kind]


def complain(message: str, hint: str = "") -> None:
    """What stopped the work, on stderr."""
    with contextlib.suppress(OSError):
        click.echo(f"onnxspect: {visible(message)}" + (f"\n  hint: {visible(hint)}" if hint else ""), err=True)


class _Signals:
    """Notes the signals that end a command, wakes whoever waits, and passes them on; a context that undoes all that."""

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        self.worker: Worker | None = None
        self.woken, self._waker = socket.socketpair()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self.woken.setblocking(False)
        self._waker.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and the shell's & mean it
                self._before[number] = signal.signal(number, self._ending)
        if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pausing)
        self._old_fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.woken.close()
        self._waker.close()

    def _ending(self, number: int, _: FrameType | None) -> None:
        self.came = self.came or signal.Signals(number)
        self.pass_on(signal.SIGTERM)

    def _pausing(self, _number: int, _frame: FrameType | None) -> None:
        self.pass_on(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.pass_on(signal.SIGCONT)

    def pass_on(self, number: int) -> None:
        """To the worker and the processes of its group."""
        if self.worker is not None and self.worker.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.worker.pid, number)


@dataclass
class _Ready:
    """What was made for a worker.

    Attributes:
        folder: its temporary folder.
        touched: what it may touch.
        mark: in the names of the temporary files that it makes.
        orderly: whether it ended by itself, and so removed its unfinished files.
    """

    folder: Path
    touched: places.Places
    orderly: bool = False
    mark: str = field(default_factory=lambda: f"w{secrets.token_hex(4)}-")


@contextlib.contextmanager
def _prepared(command: str, given: dict[str, Any]) -> Iterator[_Ready]:
    """Make folders for a worker; afterwards nothing of it is left but its results."""
    with writing(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="onnxspect-")).resolve()
    touched = places.Places()
    ready = _Ready(folder, touched)
    try:
        with writing(folder):
            _font_list(folder)
        ready.touched = touched = places.prepare(command, given)
        touched.writable.append(str(folder))
        yield ready
    finally:
        if touched.listening is not None:
            touched.listening.close()
        remove_tree(folder)
        for output in touched.outputs:
            if output.staging is not None:
                remove_tree(output.staging)
        if not ready.orderly:
            _sweep(ready)
        for made in reversed(touched.made):
            with contextlib.suppress(OSError):
                made.rmdir()  # only where nothing is in it


def _sweep(ready: _Ready) -> None:
    """Remove the temporary files that a killed worker left among its results."""
    for place in ready.touched.writable:
        for folder, _, names in walk(Path(place), deepest=None):
            for name in names:
                if ready.mark in name and name.endswith(SUFFIX):
                    with contextlib.suppress(OSError):
                        os.unlink(Path(folder) / name)  # noqa: PTH108


def _font_list(folder: Path) -> None:
    """Matplotlib's list of fonts, which takes seconds to make, where the worker finds it; it cannot read the user's cache."""
    own = folder / "matplotlib"
    own.mkdir()
    cache = os.environ.get("MPLCONFIGDIR") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "matplotlib"
    )
    with contextlib.suppress(OSError):
        for path in Path(cache).glob("fontlist-*.json"):
            shutil.copyfile(path, own / path.name)


class _Run:
    """One worker, from start to end."""

    def __init__(
        self, command: str, arguments: list[str], limits: budget.Limits, ready: _Ready, signals: _Signals, how: Start
    ) -> None:
        self._how = how
        self._command, self._arguments = command, arguments
        self._limits, self._ready, self._signals = limits, ready, signals
        self._ends = time.monotonic() + limits.seconds
        self._cause: OnnxspectError | str | None = None
        self._killed_at: float | None = None
        self._answer: int | None = None
        self._said = b""  # the end of the worker's stderr
        self._control_rest = b""

    def status(self) -> int:
        """Start the worker, serve it to its end, say what became of it; the exit status."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                worker = self._start(theirs)
            self._signals.worker = worker
            if self._signals.came is not None:
                self._signals.pass_on(signal.SIGTERM)
            try:
                self._serve(worker, ours)
                ours.settimeout(0)
                with contextlib.suppress(OSError):
                    self._hear(ours)  # its last word may come with the end of its pipes
            finally:
                end(worker)
        return self._outcome(worker.returncode)

    def _start(self, theirs: socket.socket) -> Worker:
        touched = self._ready.touched
        if sys.platform == "linux":
            linux.adopt_orphans()
        served = None if touched.listening is None else touched.listening.fileno()
        request = {
            "arguments": self._arguments,
            "readable": touched.readable,
            "writable": touched.writable,
            "devices": touched.devices,
            "device": touched.device,
            "outputs": [
                {"target": str(o.target), "staging": None if o.staging is None else str(o.staging), "errno": o.errno}
                for o in touched.outputs
            ],
            "folder": str(self._ready.folder),
            "mark": self._ready.mark,
            "control": theirs.fileno(),
            "listening": served,
            "memory_bytes": self._limits.memory_bytes,
            "seconds": self._limits.seconds,
            "require_sandbox": self._limits.require_sandbox,
        }
        handed = (theirs.fileno(),) if served is None else (theirs.fileno(), served)
        return self._how(request, environment_in(self._ready.folder), handed)

    def _serve(self, worker: Worker, control: socket.socket) -> None:
        """Relay, answer and watch, until the worker's pipes are closed."""
        cleaners = {}
        with selectors.DefaultSelector() as waiting:
            for pipe, name in ((worker.stdout, "stdout"), (worker.stderr, "stderr")):
                if pipe is not None:
                    cleaners[pipe.fileno()] = Cleaner(getattr(sys, name).isatty())
                    waiting.register(pipe, selectors.EVENT_READ, name)
            waiting.register(control, selectors.EVENT_READ, "control")
            waiting.register(self._signals.woken, selectors.EVENT_READ, "signal")
            open_pipes = 2
            while open_pipes:
                for key, _ in waiting.select(_LOOK):
                    if key.data == "signal":
                        with contextlib.suppress(OSError):
                            self._signals.woken.recv(4096)
                    elif key.data == "control":
                        if not self._hear(control):
                            waiting.unregister(control)
                    else:
                        piece = os.read(key.fd, _PIECE)
                        self._pass_on(key.data, cleaners[key.fd].clean(piece, last=not piece))
                        if not piece:
                            waiting.unregister(key.fileobj)
                            open_pipes -= 1
                self._watch(worker)

    def _pass_on(self, name: str, piece: bytes) -> None:
        if name == "stderr":
            self._said = (self._said + piece)[-4000:]
        if self._cause is not None or self._signals.came is not None or not piece:
            return
        stream: Any = getattr(sys, name)
        try:
            stream.buffer.write(piece)
            stream.flush()
        except OSError as error:
            self._stop(unwritable(Path("standard output" if name == "stdout" else "standard error"), error))
            with contextlib.suppress(OSError):  # what could not be written must not fail again when this process ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def _watch(self, worker: Worker) -> None:
        """End a worker whose time or memory is spent, and kill one that does not end."""
        now = time.monotonic()
        if self._cause is None and self._signals.came is None:
            if now > self._ends:
                self._stop("time")
            elif resident(worker.pid) > self._limits.memory_bytes + _LIBRARIES:
                self._stop("memory")
                self._signals.pass_on(signal.SIGKILL)
        elif self._killed_at is None:
            self._killed_at = now + GRACE
        elif now > self._killed_at:
            self._signals.pass_on(signal.SIGKILL)

    def _stop(self, cause: OnnxspectError | str) -> None:
        if self._cause is None:
            self._cause = cause
            self._signals.pass_on(signal.SIGTERM)

    def _hear(self, control: socket.socket) -> bool:
        """Do what the worker asks for; whether it may ask for more. It may lie: nothing it says is more than a name."""
        data = control.recv(_PIECE)
        self._control_rest += data
        *lines, self._control_rest = self._control_rest.split(b"\n")
        if not data or len(self._control_rest) > _MOST_CONTROL:
            return False
        for line in lines:
            try:
                said = json.loads(line)
                if "status" in said:
                    self._answer = int(said["status"])
                    continue
                remove = "remove" in said
                answer = (
                    self._remove(str(said["remove"])) if remove else self._place(str(said["from"]), str(said["to"]))
                )
            except (ValueError, KeyError, TypeError, RecursionError):
                answer = {"refused": "not understood"}
            with contextlib.suppress(OSError):
                control.sendall(json.dumps(answer).encode() + b"\n")
        return True

    def _place(self, name: str, target: str) -> dict[str, Any]:
        """Rename a finished file from an output's staging folder to its place."""
        wanted = Path(target)
        for output in self._ready.touched.outputs:
            if output.staging is None or wanted.parent != output.target.parent or not output.allows(wanted.name):
                continue
            source = output.staging / Path(name).name
            try:
                if not stat.S_ISREG(source.lstat().st_mode):
                    return {"refused": "not a regular file"}
                rename(source, wanted)
            except OSError as error:
                return {"errno": error.errno}
            return {}
        return {"refused": f"{wanted.name} is no output of this command"}

    def _remove(self, name: str) -> dict[str, Any]:
        """Remove a data file of an output, which a new one has taken the place of."""
        useless = Path(name)
        outputs = self._ready.touched.outputs
        if not any(useless.parent == o.target.parent and o.allows_data(useless.name) for o in outputs):
            return {"refused": f"{useless.name} is no data file of an output"}
        try:
            if not stat.S_ISREG(useless.lstat().st_mode):
                return {"refused": "not a regular file"}
            useless.unlink()
        except OSError as error:
            return {"errno": error.errno}
        return {}

    def _outcome(self, code: int) -> int:
        """Say what became of the worker where it did not say so itself; the exit status."""
        stage = stage_in(self._ready.folder)
        abnormal = self._signals.came is not None or self._cause is not None or code != self._answer
        self._ready.orderly = not abnormal
        if abnormal and sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # a progress bar hides the cursor
        keeps = _KEEPS.get(self._command, "")
        if self._signals.came is not None:
            if self._signals.came is _ORDINARY_END.get(self._command):  # at any moment: the worker may not have begun
                return exit_status.CLEAN if code in (exit_status.FAILURE, -signal.SIGTERM, -signal.SIGKILL) else code
            complain(f"interrupted by {self._signals.came.name} ({stage}){keeps}")
        elif isinstance(self._cause, OnnxspectError):
            complain(self._cause.message, self._cause.hint)
            return exit_status.OF_KIND[self._cause.kind]
        elif self._cause == "time" or code == -signal.SIGXCPU:
            complain(f"took more than {self._limits.seconds:.0f} s ({stage})", f"raise --max-seconds{keeps}")
        elif self._cause == "memory" or (code < 0 and b"bad_alloc" in self._said):
            complain(*out_of_memory(self._limits.memory_bytes, stage))
        elif code == -signal.SIGKILL:
            complain(
                f"the worker was killed, as when memory runs out ({stage})",
                f"lower --max-memory, or give it more{keeps}",
            )
        elif code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            complain(f"the worker crashed ({name} {stage})", _HARMFUL)
        elif code != self._answer:
            complain(
                f"the worker ended with status {code} and no answer ({stage})",
                "this is a fault of onnxspect; please report it",
            )
        else:
            return code
        return exit_status.FAILURE


def out_of_memory(limit: int, stage: str) -> tuple[str, str]:
    """The message and hint for a command that wanted more memory than it may have."""
    return f"took more than {readable_bytes(limit)} of memory ({stage})", "raise --max-memory if you trust the file"


#: What the libraries of a worker take of memory at most; the kernel's own limits, set in the worker, count on top of theirs.
_LIBRARIES = 1 << 30
