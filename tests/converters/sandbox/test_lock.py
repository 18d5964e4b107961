"""What a process may still do after it has locked itself in, where it computes on a GPU and where not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")

#: CUDA's driver (580) does this when it starts: a socket of its own, and names for its threads; either refusal is its error 304.
DRIVER = """
import json, os, socket, sys, threading
from onnxspect.converters.sandbox import lock

def tried(deed):
    try:
        deed()
    except OSError as error:
        return error.strerror
    return "done"

def socket_of_the_driver():
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as made:
        made.bind(f"\\0onnxspect-test-{os.getpid()}")

def name_a_thread():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with open(f"/proc/self/task/{thread.native_id}/comm", "w") as file:
            file.write("driver")
    finally:
        end.set()
        thread.join()

def name_the_parent():
    with open(f"/proc/{os.getppid()}/comm", "w") as file:
        file.write("driver")

def set_a_limit_of_the_system():
    with open("/proc/sys/vm/overcommit_ratio", "r+") as file:
        file.write(file.read())

deeds = (socket_of_the_driver, name_a_thread, name_the_parent, set_a_limit_of_the_system)
level = lock.Level()
lock.files(level, [], [sys.argv[1]], json.loads(sys.argv[2]))
said = [{d.__name__: tried(d) for d in deeds}]
lock.calls(level)
said.append({d.__name__: tried(d) for d in deeds})
level.require()
print(json.dumps(said))
"""


def locked_in(folder: Path, devices: list[str]) -> list[dict[str, str]]:
    """What came of each deed, before and after system calls are filtered."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder), json.dumps(devices)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said: list[dict[str, str]] = json.loads(done.stdout)
    return said


def test_a_driver_can_start_between_the_two_halves_and_name_its_threads_later(tmp_path: Path) -> None:
    before, after = locked_in(tmp_path, ["/dev/null"])
    denied = "Permission denied"
    assert before == {
        "socket_of_the_driver": "done",
        "name_a_thread": "done",
        "name_the_parent": denied,
        "set_a_limit_of_the_system": denied,
    }
    assert after == {**before, "socket_of_the_driver": "Operation not permitted"}


def test_without_a_gpu_no_thread_is_named(tmp_path: Path) -> None:
    before, after = locked_in(tmp_path, [])
    assert {before["name_a_thread"], after["name_a_thread"]} == {"Permission denied"}


def test_compiled_modules_that_lie_elsewhere_are_read_and_not_written(tmp_path: Path) -> None:
    prefix, work = tmp_path / "bytecode", tmp_path / "work"
    prefix.mkdir()
    work.mkdir()
    (prefix / "kept").write_text("x")
    code = (
        "import sys\nfrom onnxspect.converters.sandbox import lock\n"
        "lock.files(lock.Level(), [], [sys.argv[1]])\n"
        "print(open(sys.pycache_prefix + '/kept').read())\n"
        "open(sys.pycache_prefix + '/new', 'w')"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(prefix)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(work)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "x"
    assert "PermissionError" in done.stderr.splitlines()[-1]
