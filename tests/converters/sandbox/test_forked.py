"""Copies of a process: what they have of it and what not, and that a copy which opens a file is locked in as a Python of its own is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_job  # noqa: F401  # loaded here, as the libraries of a job are where copies are made
import pytest

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox import guard
from onnxspect.converters.sandbox import linux as sandbox_linux
from onnxspect.converters.sandbox.child import Here
from onnxspect.converters.sandbox.forked import BROKEN, DEVNULL, PIPE, Forked
from onnxspect.converters.sandbox.guard import GuardLimits, guarded

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sandbox_linux.landlock_version() < 1, reason="needs Linux with Landlock"
)
LIMITS = GuardLimits(seconds=20, memory_bytes=512 << 20, output_bytes=8 << 20)


def copy(do: Callable[[], Any], **more: Any) -> tuple[int, str, str]:
    """Its status, and what it printed on stdout and stderr."""
    made = Forked(
        "test-copy",
        lambda: int(do() or 0),
        **{"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, "environment": {"A": "b"}} | more,
    )
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(p).read().decode() for p in (made.stdout, made.stderr) if p is not None)
    return made.wait(), out, err


def test_a_copy_has_its_own_streams_and_environment_and_no_other_file(tmp_path: Path) -> None:
    kept, other = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)

    def look() -> int:
        print(dict(os.environ), sorted(n for n in range(100) if Path(f"/proc/self/fd/{n}").exists()))
        print(Path.cwd(), os.getpgid(0) == os.getpid(), Path("/proc/self/comm").read_text().strip())
        print("said", file=sys.stderr)
        return 3

    code, out, err = copy(look, keep=(kept,), cwd=tmp_path)
    os.close(kept)
    os.close(other)
    assert (code, err) == (3, "said\n")
    assert out.splitlines() == [f"{{'A': 'b'}} {[0, 1, 2, kept]}", f"{tmp_path} True test-copy"]


def test_what_goes_wrong_in_a_copy_stays_there() -> None:
    def fail() -> None:
        raise ValueError("of the copy")

    code, _, err = copy(fail)
    assert code == BROKEN
    assert err.endswith("ValueError: of the copy\n")
    assert copy(lambda: sys.exit(5))[0] == 5
    assert copy(lambda: os.kill(os.getpid(), signal.SIGKILL))[0] == -signal.SIGKILL


def test_a_copy_is_waited_for_signalled_and_goes_with_its_parent() -> None:
    made = Forked("test-copy", lambda: time.sleep(60) or 0, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, environment={})
    with pytest.raises(subprocess.TimeoutExpired):
        made.communicate(b"x", 0.05)
    assert made.poll() is None
    made.send_signal(signal.SIGTERM)  # not this process's handlers
    assert made.wait(10) == -signal.SIGTERM

    def start_another() -> int:
        another = Forked("test-copy", lambda: time.sleep(60) or 0, stdin=DEVNULL, stdout=1, stderr=1, environment={})
        print(another.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    began = time.monotonic()
    code, out, _ = copy(start_another)  # stdout is at its end when the other is gone too
    assert code == -signal.SIGKILL
    assert out.strip().isdecimal()
    assert time.monotonic() - began < 30


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this job are copies of this process."""
    monkeypatch.setattr(guard, "_launcher", Here(("hostile_job",)))


def deed(name: str, limits: GuardLimits = LIMITS, **request: Any) -> dict[str, Any]:
    with guarded("hostile_job", {"deed": name, **request}, shown="evil.bin", limits=limits) as run:
        return {**run.result, "sandbox": run.sandbox}


@pytest.mark.usefixtures("copies")
def test_a_copy_that_opens_a_file_is_locked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    secret = tmp_path / "secret"
    secret.write_bytes(b"token")
    own = deed("own file")
    assert "did" in own
    assert own["sandbox"].complete
    for name in ("tcp socket", "program", "fork", "kill parent", "raise limits", "shared memory", "ptrace", "keyring"):
        assert "did" not in deed(name), name
    for name in ("read", "write", "delete", "chmod"):
        assert deed(name, path=str(secret))["refused"] == "PermissionError"
    assert deed("read", path=f"/proc/{os.getpid()}/environ")["refused"] == "PermissionError"
    assert "SECRET_TOKEN" not in deed("environment")["did"].split(",")
    assert secret.read_bytes() == b"token"


@pytest.mark.usefixtures("copies")
def test_limits_of_a_copy_are_on_top_of_what_it_has() -> None:
    with pytest.raises(OnnxspectError, match="SIGSEGV"):
        deed("segfault")
    with pytest.raises(OnnxspectError, match="of memory"):
        deed("memory", GuardLimits(seconds=20, memory_bytes=256 << 20))
