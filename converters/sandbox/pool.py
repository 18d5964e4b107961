"""A process that does many jobs of one kind, each in a locked-in copy of itself; see `WarmPool`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import InternalError, MachineError
from onnxspect.converters.sandbox.child import START_SECONDS, child_command, child_environment, kill_tree, work_folder
from onnxspect.converters.sandbox.guard import GuardedRun, GuardLimits, collect, full_request, put, stage_in


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
            put(files or {}, folder)
            message = full_request(self._job, request, folder, self._limits, readable, require_sandbox)
            answer = self._ask(json.dumps(message).encode() + b"\n")
            if answer is None:
                raise MachineError(f"{shown}: the pool's process ended ({stage_in(folder)})")
            yield collect(folder, int(answer["code"]), bool(answer["timed_out"]), "", self._limits, shown)

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        server = self._server if self._server is not None and self._server.poll() is None else self._start()
        try:
            if server.stdin is None or server.stdout is None:
                return None
            server.stdin.write(line)
            server.stdin.flush()
            answer = _line_within(server.stdout.fileno(), self._limits.seconds + START_SECONDS)
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
        if _line_within(server.stdout.fileno(), START_SECONDS) is None:
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
