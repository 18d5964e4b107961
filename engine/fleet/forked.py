"""Commands as copies of a process of this machine that has their libraries loaded (cli/forkserver.py).

A tiny model's scan takes a second, and starting its worker anew, Python, torch and onnxruntime, took four. That process is started
with the first command and gets nothing of the environment that a worker would not get. Should it be killed, all its commands end with
it; they are lost to whoever waits for them, who may begin them again in a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onnxspect.converters.sandbox.environment import kept_with_places
from onnxspect.engine.fleet.executor import LOST, Ended, Job
from onnxspect.engine.fleet.local import Size, end_of, least_busy

PROGRAM = "onnxspect.cli.forkserver"
#: Seconds that it has for its own end, and that of all its commands.
_GRACE = 20.0
_MOST = 1 << 12
_GONE = "onnxspect: the worker was killed with the process that starts workers"


@dataclass
class _Running:
    job: Job
    said: IO[bytes]
    since: float
    gpu: str | None


class Forkserver:
    """An executor (executor.py) on this machine; Linux only."""

    def __init__(self, size: Size) -> None:
        self._size = size
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._said: IO[bytes] | None = None
        self._running: dict[str, _Running] = {}
        self._number = 0

    @property
    def slots(self) -> int:
        """Commands at a time."""
        return self._size.jobs

    def start(self, job: Job) -> None:
        """Have a copy made for it."""
        gpu = least_busy(self._size.gpus, [r.gpu for r in self._running.values()])
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        request = json.dumps({"arguments": job.arguments, "environment": environment}).encode()
        self._number += 1
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the command has ended
        self._running[str(self._number)] = _Running(job, said, time.monotonic(), gpu)
        asking = self._connected()
        # The request waits in a file that has no name: a pipe would hold 64 KiB, and whoever writes more would wait for the copy.
        with tempfile.TemporaryFile() as text:
            text.write(request)
            text.seek(0)
            with contextlib.suppress(OSError):  # it is gone: `wait` sees that
                socket.send_fds(asking, [str(self._number).encode()], [text.fileno(), said.fileno()])

    def wait(self, seconds: float) -> list[tuple[Job, Ended]]:
        """Those that have ended."""
        if self._socket is None:
            time.sleep(seconds)
            return []
        ended: list[tuple[Job, Ended]] = []
        while select.select([self._socket], [], [], 0 if ended else seconds)[0]:
            try:
                answer = self._socket.recv(_MOST)
            except OSError:
                answer = b""
            if not answer:
                return [*ended, *self._lost()]
            told = json.loads(answer)
            running = self._running.pop(told["number"])
            ended.append(_ended(running, int(told["status"])))
        return ended

    def stop(self) -> None:
        """End all."""
        if self._socket is not None:
            self._socket.close()  # it sees that, and ends what it started
            self._socket = None
        if self._server is not None:
            try:
                self._server.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._server.kill()  # and all with it
                self._server.wait()
            self._server = None
        if self._said is not None:
            self._said.close()
            self._said = None
        for running in self._running.values():
            running.said.close()
        self._running = {}

    def _connected(self) -> socket.socket:
        """The socket of the process that makes copies, which is started where there is none."""
        if self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it has ended
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, str(Path.cwd())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=_environment(os.environ, self._size.threads),
                cwd="/",
                start_new_session=True,  # a Ctrl-C in the terminal comes to its parent alone
            )
        self._socket = ours
        return ours

    def _lost(self) -> list[tuple[Job, Ended]]:
        """It has ended, and all its commands with it."""
        running, self._running = list(self._running.values()), {}
        text, status = "", LOST
        if self._server is not None:
            status = self._server.wait()
        if self._said is not None:
            text = end_of(self._said)
        self.stop()
        if status == -signal.SIGKILL or not text.strip():
            text = _GONE
        return [(r.job, Ended(LOST if text == _GONE else 1, text, _close(r))) for r in running]


def _environment(whole: Mapping[str, str], threads: int) -> dict[str, str]:
    own = {
        "OMP_NUM_THREADS": str(threads),
        "JOBLIB_MULTIPROCESSING": "0",  # in a worker it would look for semaphores, and warn that it may have none
        "ORT_DISABLE_TELEMETRY": "1",
    }
    return {**kept_with_places(whole), **own}


def _ended(running: _Running, status: int) -> tuple[Job, Ended]:
    text = end_of(running.said)
    return running.job, Ended(status, text, _close(running))


def _close(running: _Running) -> float:
    running.said.close()
    return time.monotonic() - running.since
