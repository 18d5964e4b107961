"""A copy of this process that does one thing and ends, where starting Python anew would cost seconds of imports.

The copy begins with this process's memory: fork only from a process that has read nothing untrusted and knows nothing secret. Of
files it has the three streams and what it is told to keep, and an environment of its own. It has the face of subprocess.Popen, as
far as those use it who start children. Linux only: elsewhere the libraries' threads do not outlive a fork safely.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO

from onnxspect.converters.sandbox import linux

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
#: A status of no command: the copy failed before, or in a way that nothing in it expected.
BROKEN = 70
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGCHLD)
_FIRST_FD, _LAST_FD = 3, 1 << 20
#: Seconds between two looks at a copy that is waited for: the first, and the longest.
_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


class Forked:
    """A copy of this process, in a process group of its own; it ends with this one.

    Args:
        name: what it is called in lists of processes.
        do: what it does; its status.
        stdin, stdout, stderr: a file descriptor, PIPE or DEVNULL.
        environment: all that it has.
        keep: further file descriptors that stay open in it.
        cwd: its working folder.

    Attributes:
        pid: of the copy.
        returncode: its status, or the negative number of the signal that ended it; None until that is known.
        stdin, stdout, stderr: this side of each PIPE.
    """

    def __init__(
        self,
        name: str,
        do: Callable[[], int],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        environment: Mapping[str, str],
        keep: Collection[int] = (),
        cwd: Path | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        theirs: list[int] = []  # one a stream
        opened: list[int] = []  # to be closed on this side
        for stream, wanted in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            if wanted == PIPE:
                reading, writing = os.pipe()
                end, own, mode = (reading, writing, "wb") if stream == "stdin" else (writing, reading, "rb")
                setattr(self, stream, os.fdopen(own, mode, buffering=0))
                theirs.append(end)
                opened.append(end)
            elif wanted == DEVNULL:
                theirs.append(os.open(os.devnull, os.O_RDWR))
                opened.append(theirs[-1])
            else:
                theirs.append(wanted)
        parent = os.getpid()
        # No signal may meet a copy that still has this process's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                linux.name_process(name)
                _be(do, parent, theirs, environment, keep, cwd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for number in opened:
                os.close(number)
        with contextlib.suppress(
            OSError
        ):  # the copy does the same; whoever comes first, a signal to the group reaches it
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """Its status, where it has ended."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else asked first
                self.returncode = BROKEN
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, in so many seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        pause = _PAUSE
        while (code := self.poll()) is None:
            if until is not None and timeout is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired("a copy of this process", timeout)
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        return code

    def communicate(self, data: bytes, timeout: float) -> None:
        """Write, close the pipe, and wait for the end.

        Raises:
            subprocess.TimeoutExpired: as `wait`.
        """
        if self.stdin is not None:
            with contextlib.suppress(OSError):  # it ended at once: its end says why
                self.stdin.write(data)
            with contextlib.suppress(OSError):
                self.stdin.close()
        self.wait(timeout)

    def send_signal(self, number: int) -> None:
        """To the copy alone, where it is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def _be(
    do: Callable[[], int],
    parent: int,
    streams: Collection[int],
    environment: Mapping[str, str],
    keep: Collection[int],
    cwd: Path | None,
) -> None:
    """The copy's life. It never returns: what its parent would do next is not its own to do."""
    code = BROKEN
    try:
        linux.die_with_parent()
        if os.getppid() != parent:
            os._exit(BROKEN)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _stand_on(streams)
        _close_all_but(keep)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # the environment says where
        if cwd is not None:
            os.chdir(cwd)
        code = do()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else BROKEN
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _stand_on(numbers: Collection[int]) -> None:
    """Let the three streams be these; Python's own are opened anew, for they remember what kind of file they stood on."""
    encoding = sys.stdout.encoding
    for target, number in enumerate(numbers):
        os.dup2(number, target)
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115  # of numbers, for the copy's life
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115


def _close_all_but(keep: Collection[int]) -> None:
    first = _FIRST_FD
    for number in sorted(n for n in keep if n >= _FIRST_FD):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, _LAST_FD)
