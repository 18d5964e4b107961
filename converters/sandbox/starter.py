"""Starts children for a process that has locked itself in and may start none.

The starter is forked from that process before it locks itself in and imports anything heavy. It locks itself in as well: its
children read and write no more files than the process that asks for them may (kernel domains nest, so none can give itself
more), it has no network and no IPC, and it starts one program only, this Python with guard_child.py. It sees no byte of an
untrusted file: requests and answers are lines of JSON on two pipes, and a process that was taken over gains by them only
children that are locked in further than it is itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

from onnxspect.converters.errors import MachineError
from onnxspect.converters.sandbox import linux
from onnxspect.converters.sandbox.child import Answer, Here, Process

#: Variables that a format may set in its child: none by which another library or program would be loaded.
_SETTABLE = re.compile(r"(KERAS|HDF5|TF|JAX|XLA)_[A-Z0-9_]+")
_ENDED = "the process that starts children has ended"


class Starter:
    """The locked-in process's side: a `child.Launcher`.

    Args:
        lock: locks the starter in; called in it.
        loaded: jobs whose libraries this process has loaded (`child.Here`).
    """

    def __init__(self, lock: Callable[[], None], loaded: Collection[str] = ()) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(ours_in)
                os.close(ours_out)
                code = _serve(theirs_in, theirs_out, lock, Here(loaded))
            finally:
                os._exit(code)
        os.close(theirs_in)
        os.close(theirs_out)
        self._in: IO[bytes] = os.fdopen(ours_in, "rb")
        self._out: IO[bytes] = os.fdopen(ours_out, "wb")
        self._usable = True

    def start(self, job: str, folder: Path, environment: Mapping[str, str]) -> Process:
        """A child for that job, whose work folder that is."""
        said = self.ask("start", job=job, folder=str(folder), environment=dict(environment))
        return _Remote(self, int(said["id"]))

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            MachineError: the starter is gone, or cannot do it.
        """
        line = b""
        usable, self._usable = (
            self._usable,
            False,
        )  # an exchange that a signal cut short leaves nobody knows what in the pipes
        if usable:
            with contextlib.suppress(OSError, ValueError):
                self._out.write(json.dumps({"do": what, **request}).encode() + b"\n")
                self._out.flush()
                line = self._in.readline()
        if not line:
            raise MachineError(_ENDED)
        self._usable = True
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MachineError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """End it, and with it its children."""
        for pipe in (self._out, self._in):
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class _Remote:
    def __init__(self, starter: Starter, number: int) -> None:
        self._starter, self._number = starter, number

    def tell(self, message: Mapping[str, Any]) -> None:
        self._starter.ask("tell", id=self._number, message=dict(message))

    def answer(self, message: Mapping[str, Any], seconds: float) -> Answer:
        said = self._starter.ask("answer", id=self._number, message=dict(message), seconds=seconds)
        return Answer(int(said["code"]), bool(said["timed_out"]), str(said["errors"]))

    def close(self) -> None:
        with contextlib.suppress(MachineError):
            self._starter.ask("close", id=self._number)


def _serve(requests: int, answers: int, lock: Callable[[], None], here: Here) -> int:
    """The starter's own life: until the other side closes its pipe."""
    if sys.platform == "linux":
        linux.die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it goes when the worker goes
        signal.signal(number, signal.SIG_IGN)
    lock()
    children: dict[int, Process] = {}
    with os.fdopen(requests, "rb") as lines, os.fdopen(answers, "wb") as out:
        for line in lines:
            try:
                answer = _done(json.loads(line), children, here)
            except Exception as error:  # whatever a request is, the starter lives on
                answer = {"error": f"a child process cannot be started: {error}"}
            out.write(json.dumps(answer).encode() + b"\n")
            out.flush()
    for child in children.values():
        child.close()
    return 0


def _done(request: Mapping[str, Any], children: dict[int, Process], here: Here) -> dict[str, Any]:
    what = request["do"]
    if what == "start":
        given = {str(k): str(v) for k, v in request["environment"].items() if _SETTABLE.fullmatch(str(k))}
        number = max(children, default=0) + 1
        children[number] = here.start(str(request["job"]), Path(request["folder"]), given)
        return {"id": number}
    number = int(request["id"])
    if what == "tell":
        children[number].tell(request["message"])
    elif what == "answer":
        said = children[number].answer(request["message"], float(request["seconds"]))
        return {"code": said.code, "timed_out": said.timed_out, "errors": said.errors}
    else:
        children.pop(number).close()
    return {}
