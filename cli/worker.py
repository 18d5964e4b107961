"""The worker of a command: locks itself in, then does what the command does.

Run as ``python -P -m onnxspect.cli.worker`` by supervisor.py, with its request as a line of JSON on standard input, or as a copy of a
process that has the libraries loaded and has opened nothing (forkserver.py). Order: a
process that starts children is forked (starter.py); this one gives up all files but those of the request; the command's
libraries are imported; limits and a filter of system calls follow; only then is a byte of an untrusted file read.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from onnxspect.cli import exit_status, listening
from onnxspect.cli.places import Output
from onnxspect.converters import stages, whole
from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox import guard, linux, lock
from onnxspect.converters.sandbox.starter import Starter
from onnxspect.engine.readers import neighbours

#: The longest file that a command may write: a model with its external data is tens of GiB at most.
_OUTPUT_BYTES = 1 << 40
_FILES_OPEN = 4096
#: Jobs of children whose libraries `load_all` loads.
LOADED = ("probe",)
#: What a thread's stack and its allocator map and do not use; several libraries start a thread a core.
_RESERVED_BY_CORE = 256 << 20


def main() -> None:
    """Do the request on standard input; ends the process."""
    if sys.platform == "linux":
        linux.die_with_parent()
    line = sys.stdin.readline()
    if not line:  # the supervisor is gone
        os._exit(exit_status.FAILURE)
    os._exit(serve(json.loads(line)))  # all that is kept is on the disk, and torch takes its time to go


def serve(request: Mapping[str, Any], loaded: Collection[str] = ()) -> int:
    """Do a request, and say so; the status with which this process is to end.

    Args:
        request: from the supervisor.
        loaded: jobs of children whose libraries this process has loaded (forkserver.py).
    """
    control = socket.socket(fileno=int(request["control"]))
    control.set_inheritable(False)
    if request.get("listening") is not None:
        listening.inherit(int(request["listening"]))
    try:
        _on_signals()
        status = _done(request, control, loaded)
    except KeyboardInterrupt:  # the supervisor says what came
        status = exit_status.FAILURE
    except Exception:  # asked for, with ONNXSPECT_DEBUG
        traceback.print_exc()
        status = exit_status.FAILURE
    status = _flushed(status)
    guard.end_waiting()
    control.sendall(json.dumps({"status": status}).encode() + b"\n")
    return status


def _done(request: Mapping[str, Any], control: socket.socket, loaded: Collection[str]) -> int:
    from onnxspect.cli import main as command_line

    folder = Path(request["folder"])
    stages.record_in(folder)
    stages.stage("sandbox")
    starter = Starter(lambda: _lock_starter(request), loaded)
    level = lock.Level()
    lock.files(level, request["readable"], request["writable"], request["devices"])
    neighbours.know(request["readable"])
    budget = guard.Budget(
        time.monotonic() + float(request["seconds"]), int(request["memory_bytes"]), bool(request["require_sandbox"])
    )
    guard.set_up(budget, starter)
    whole.place_by(_placing(request, control))
    stages.stage("start")
    command_line.start_ahead(request["arguments"])
    command_line.load(request["arguments"][0])
    if request["devices"]:
        _start_driver(str(request["device"]))
    lock.limits(
        level,
        int(request["memory_bytes"]),
        float(request["seconds"]),
        _OUTPUT_BYTES,
        watched=bool(request["devices"]),
        reserved_bytes=(os.cpu_count() or 1) * _RESERVED_BY_CORE,
        files_open=_FILES_OPEN,
    )
    lock.calls(level)
    command_line.escape_what_lacks()
    return command_line.run(request["arguments"], level, memory_bytes=int(request["memory_bytes"]))


def _start_driver(device: str) -> None:
    """Let CUDA's driver start, which makes itself a socket: once the filter of system calls is there it would fail with error 304.

    What goes wrong here goes wrong again where the device is chosen (engine/run.py), and is reported from there.
    """
    import torch

    from onnxspect.engine.subject.memory import devices_of

    with contextlib.suppress(Exception):
        for one in devices_of(device):
            torch.zeros(1, device=one)


def load_all(commands: Collection[str]) -> None:
    """Import what these commands need from their first step to their last, with that of the children in LOADED."""
    from onnxspect.cli import main as command_line
    from onnxspect.converters.sandbox.guard_child import JOBS
    from onnxspect.engine.ahead import LATER

    for name in commands:
        command_line.load(name)
    for module in (*(JOBS[job] for job in LOADED), *LATER):
        importlib.import_module(module)


def _on_signals() -> None:
    """The first signal that ends a command unwinds it; further ones are left to the supervisor, which kills."""

    def unwind(_number: int, _frame: FrameType | None) -> None:
        for one in ending:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    ending = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in ending:
        signal.signal(number, unwind)


def _lock_starter(request: Mapping[str, Any]) -> None:
    """The process that starts children: the worker's files, and of /proc all, since its children read their own entries."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # the worker's pipes are not its own
        os.dup2(nowhere, number)
    for name in ("control", "listening"):
        if request.get(name) is not None:
            os.close(int(request[name]))
    level = lock.Level()
    lock.files(level, request["readable"], [request["folder"]], proc=("/proc",))
    lock.calls(level, starts_children=True)


def _placing(request: Mapping[str, Any], control: socket.socket) -> whole.Placing:
    """Outputs are written in their staging folders and renamed by the supervisor; the rest in its own folder, by this process."""
    outputs = [
        (Output(Path(o["target"]), None if o["staging"] is None else Path(o["staging"]), o["errno"]))
        for o in request["outputs"]
    ]

    def output_of(target: Path) -> Output | None:
        absolute = Path(os.path.abspath(target))  # noqa: PTH100
        return next((o for o in outputs if absolute.parent == o.target.parent and o.allows(absolute.name)), None)

    def scratch(target: Path) -> Path:
        output = output_of(target)
        if output is None:
            return target.parent
        if output.staging is None:
            raise OSError(output.errno, os.strerror(output.errno), str(target))
        return output.staging

    def place(temporary: Path, target: Path) -> None:
        if output_of(target) is None:
            whole.rename(temporary, target)
            return
        _asked(control, {"from": temporary.name, "to": os.path.abspath(target)}, target)  # noqa: PTH100

    def remove(useless: Path) -> None:
        if output_of(useless) is None:
            os.unlink(useless)  # noqa: PTH108
        else:
            _asked(control, {"remove": os.path.abspath(useless)}, useless)  # noqa: PTH100

    return whole.Placing(scratch, place, str(request["mark"]), remove)


def _asked(control: socket.socket, request: Mapping[str, str], target: Path) -> None:
    """Have the supervisor do something to an output.

    Raises:
        OSError: it cannot, or will not.
    """
    control.sendall(json.dumps(request).encode() + b"\n")
    answer = json.loads(_line(control))
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), str(target))
    if answer:
        raise OSError(errno.EACCES, str(answer), str(target))


def _line(control: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = control.recv(4096)
        if not piece:
            raise OSError(errno.EPIPE, "the supervisor is gone")
        line += piece
    return line


def _flushed(status: int) -> int:
    """The status, unless what was printed does not arrive."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            return exit_status.FAILURE
    return status


if __name__ == "__main__":
    try:
        main()
    except OnnxspectError as error:
        sys.stderr.write(f"onnxspect: {error}\n")
        sys.exit(exit_status.FAILURE)
