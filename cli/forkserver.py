"""A process that has a scan's libraries loaded and has opened nothing: each command of many is a copy of it.

Run as ``python -P -m onnxspect.cli.forkserver FOLDER`` by engine/fleet/forked.py, which asks on a socket, standard input. A request is a
number and two file descriptors: a pipe from which the copy reads what to do, and its stderr. This process itself is told
nothing, no name and no option, so that one model's worker finds nothing of another's in its memory.

A copy is a supervisor (supervisor.py) like that of a command alone, and its worker is a copy of it, which locks itself in before it reads a byte
(worker.py). All of them go when this process goes, and it goes with the one that started it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time

from onnxspect.cli import exit_status
from onnxspect.cli.main import supervised
from onnxspect.cli.worker import load_all
from onnxspect.cli.worker_process import GRACE, copied
from onnxspect.converters.sandbox import linux
from onnxspect.converters.sandbox.forked import DEVNULL, Forked

#: Those that a scan of many models is made of (engine/fleet/fleet.py).
COMMANDS = ("scan", "references")
#: What this process and its copies are called in lists of processes.
NAME, COMMAND = "onnxspect-fork", "onnxspect-scan"
#: Room for a request: a number.
_MOST = 64
#: Seconds that a copy has for its end: its own worker has GRACE.
_END = GRACE + 4.0
_PAUSE = 0.02


def main(folder: str) -> int:
    """Serve until the other side closes its socket.

    Args:
        folder: that paths of the commands count from. Until the libraries are loaded this process is elsewhere: they look for settings
            in the working folder, which may be a stranger's.
    """
    linux.die_with_parent()
    linux.name_process(NAME)
    requests = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    load_all(COMMANDS)
    os.chdir(folder)
    # What is there now is there to stay: a collection in a copy would touch, and so copy, all of its memory.
    gc.collect()
    gc.freeze()
    running: dict[str, Forked] = {}
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(requests, selectors.EVENT_READ)
            waiting.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    if key.fileobj is woken:
                        with contextlib.suppress(OSError):
                            woken.recv(4096)
                        continue
                    number, descriptors, _, _ = socket.recv_fds(requests, _MOST, 2)
                    if not number:
                        return 0
                    try:
                        running[number.decode()] = _copy(*descriptors)
                    finally:
                        for one in descriptors:
                            os.close(one)
                for name in [n for n, copy in running.items() if copy.poll() is not None]:
                    requests.send(json.dumps({"number": name, "status": running.pop(name).returncode}).encode())
    finally:
        _end(list(running.values()))


def _copy(asking: int, said: int) -> Forked:
    return Forked(
        COMMAND,
        lambda: _command(asking),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=said,
        environment=dict(os.environ),
        keep=(asking,),
    )


def _command(asking: int) -> int:
    """In a copy: one command, as its supervisor."""
    with os.fdopen(asking, "rb") as pipe:
        text = pipe.read()
    if not text:
        return exit_status.FAILURE
    request = json.loads(text)
    os.environ.update(request["environment"])
    return supervised(list(request["arguments"]), copied)


def _end(copies: list[Forked]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for copy in copies:
            with contextlib.suppress(ProcessLookupError):
                copy.send_signal(number)
        until = time.monotonic() + _END
        while any(c.poll() is None for c in copies) and time.monotonic() < until:
            time.sleep(_PAUSE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
