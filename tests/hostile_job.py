"""A guard job that does what an untrusted file might do once it runs code. Used by test_guard.py only."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from onnxspect.converters.errors import CLASSES, Kind


def preload(_: dict[str, Any]) -> None:
    """Untrusted code needs no libraries."""


def run(request: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Try `request["deed"]` and report what came of it."""
    try:
        said = DEEDS[request["deed"]](request, folder)
    except MemoryError:
        raise
    except OSError as error:
        return {"refused": type(error).__name__, "errno": error.errno}
    return {"did": str(said)}


def _read(request: dict[str, Any], _: pathlib.Path) -> object:
    return len(pathlib.Path(request["path"]).read_bytes())


def _raise(request: dict[str, Any], _: pathlib.Path) -> object:
    raise CLASSES[Kind(request["kind"])]("the fact", "the way out")


def _write(request: dict[str, Any], _: pathlib.Path) -> object:
    return pathlib.Path(request["path"]).write_bytes(b"pwned")


def _delete(request: dict[str, Any], _: pathlib.Path) -> object:
    return pathlib.Path(request["path"]).unlink()


def _chmod(request: dict[str, Any], _: pathlib.Path) -> object:
    return pathlib.Path(request["path"]).chmod(0o777)


def _touch(request: dict[str, Any], _: pathlib.Path) -> object:
    return os.utime(request["path"], (0, 0))


def _own_file(_: dict[str, Any], folder: pathlib.Path) -> object:
    return (folder / "mine").write_bytes(b"fine")


def _connect(family: int) -> Callable[[dict[str, Any], pathlib.Path], object]:
    def deed(*_: object) -> object:
        return socket.socket(family, socket.SOCK_STREAM).fileno()

    return deed


def _program(*_: object) -> object:
    return subprocess.run(["/bin/true"], check=True)


def _system(*_: object) -> object:
    status = os.system("true")
    if status != 0:
        raise OSError(status, "os.system failed")
    return status


def _fork(*_: object) -> object:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def _kill_parent(*_: object) -> object:
    return os.kill(os.getppid(), 0)


def _call(name: str, *arguments: object) -> Callable[[dict[str, Any], pathlib.Path], object]:
    """A call of the C library; refused where it fails."""

    def deed(*_: object) -> object:
        made = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
        if made < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return made

    return deed


def _stat(request: dict[str, Any], _: pathlib.Path) -> object:
    return pathlib.Path(request["path"]).stat().st_size


def _list(request: dict[str, Any], _: pathlib.Path) -> object:
    return sorted(p.name for p in pathlib.Path(request["path"]).iterdir())


def _nest(_: dict[str, Any], folder: pathlib.Path) -> object:
    """A folder in a folder, three thousand deep: no path reaches the last, and no recursion does."""
    os.chdir(folder)
    for _i in range(3000):
        pathlib.Path("d").mkdir()
        os.chdir("d")
    pathlib.Path("last").write_bytes(b"left behind")
    return "nested"


def _raise_limits(*_: object) -> object:
    import resource

    try:
        return resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    except ValueError as error:
        raise OSError(1, str(error)) from None


def _thread(*_: object) -> object:
    seen: list[int] = []
    worker = threading.Thread(target=lambda: seen.append(1))
    worker.start()
    worker.join()
    return seen


def _socket_in_thread(*_: object) -> object:
    seen: list[object] = []

    def attempt() -> None:
        try:
            seen.append(socket.socket().fileno())
        except OSError as error:
            seen.append(error)

    worker = threading.Thread(target=attempt)
    worker.start()
    worker.join()
    if isinstance(seen[0], OSError):
        raise seen[0]
    return seen[0]


def _memory(*_: object) -> object:
    hog = []
    while True:
        hog.append(bytearray(64 << 20))


def _big_file(_: dict[str, Any], folder: pathlib.Path) -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with (folder / "big").open("wb") as file:
        for _i in range(64):
            file.write(bytes(1 << 20))
    return "wrote it"


def _segfault(*_: object) -> object:
    ctypes.string_at(0)
    return "survived"


def _abort(*_: object) -> object:
    os.abort()


def _sleep(*_: object) -> object:
    time.sleep(600)
    return "woke"


def _spin(*_: object) -> object:
    signal.setitimer(signal.ITIMER_REAL, 0)  # undo the alarm: the limit on processor time remains
    while True:
        pass


def _exit(*_: object) -> object:
    os._exit(7)


def _system_exit(*_: object) -> object:
    sys.exit("a framework called sys.exit")


def _lying_result(request: dict[str, Any], folder: pathlib.Path) -> object:
    result = folder / "result.json"
    kind = request["kind"]
    if kind == "link":
        result.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(result)
    elif kind == "garbage":
        result.write_bytes(b"\xff\xfe[[[[")
    elif kind == "deep":
        result.write_text("[" * 200_000)
    elif kind == "list":
        result.write_text("[1]")
    elif kind == "huge":
        with result.open("wb") as file:
            file.truncate(200 << 20)
    elif kind == "wrong types":
        result.write_text('{"result": 3, "seconds": "x", "peak_bytes": null}')
    os._exit(0)


def _environment(*_: object) -> object:
    return ",".join(sorted(os.environ))


def _import_path(*_: object) -> object:
    return str(pathlib.Path.cwd()) in sys.path or "" in sys.path


def _write_to_stdout(*_: object) -> object:
    return os.write(1, b'{"code": 0, "timed_out": false}\n') > 0


DEEDS: dict[str, Callable[[dict[str, Any], pathlib.Path], object]] = {
    "raise": _raise,
    "read": _read,
    "write": _write,
    "delete": _delete,
    "chmod": _chmod,
    "touch": _touch,
    "own file": _own_file,
    "tcp socket": _connect(socket.AF_INET),
    "unix socket": _connect(socket.AF_UNIX),
    "netlink socket": _connect(getattr(socket, "AF_NETLINK", 16)),
    "program": _program,
    "os.system": _system,
    "fork": _fork,
    "kill parent": _kill_parent,
    "raise limits": _raise_limits,
    "shared memory": _call("shmget", 0x5A17, 4096, 0o1666),
    "message queue": _call("msgget", 0x5A17, 0o1666),
    "semaphore": _call("semget", 0x5A17, 1, 0o1666),
    "posix queue": _call("syscall", 240 if os.uname().machine == "x86_64" else 180, b"onnxspect", 0o102, 0o600, None),
    "inotify": _call("inotify_init1", 0),
    "keyring": _call("syscall", 250 if os.uname().machine == "x86_64" else 219, 0, -3, 1),
    "userfaultfd": _call("syscall", 323 if os.uname().machine == "x86_64" else 282, 1),
    "io_uring": _call("syscall", 425, 1, None),
    "bpf": _call("syscall", 321 if os.uname().machine == "x86_64" else 280, 5, None, 0),
    "ptrace": _call("ptrace", 16, 1, None, None),
    "stat": _stat,
    "list": _list,
    "nest": _nest,
    "thread": _thread,
    "socket in thread": _socket_in_thread,
    "memory": _memory,
    "big file": _big_file,
    "segfault": _segfault,
    "abort": _abort,
    "sleep": _sleep,
    "spin": _spin,
    "exit": _exit,
    "sys.exit": _system_exit,
    "lying result": _lying_result,
    "environment": _environment,
    "import path": _import_path,
    "write to stdout": _write_to_stdout,
}
