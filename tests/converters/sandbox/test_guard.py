"""The guard: a child that does what a hostile file would do is held back, and the parent hears the cause."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onnxspect.converters.errors import CLASSES, InternalError, Kind, OnnxspectError
from onnxspect.converters.sandbox import guard
from onnxspect.converters.sandbox import linux as sandbox_linux
from onnxspect.converters.sandbox.child import child_environment, kill_tree
from onnxspect.converters.sandbox.guard import (
    GuardLimits,
    SandboxLevel,
    collect,
    guarded,
    start_ahead,
)
from onnxspect.converters.sandbox.pool import WarmPool

LIMITS = GuardLimits(seconds=20, memory_bytes=512 << 20, output_bytes=8 << 20)

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or sandbox_linux.landlock_version() < 1,
    reason="needs Linux with Landlock, on x86-64 or aarch64",
)


def deed(name: str, limits: GuardLimits = LIMITS, **request: Any) -> Mapping[str, Any]:
    """Let a child do `name` and return what it reports."""
    with guarded(
        "hostile_job",
        {"deed": name, **request},
        shown="evil.bin",
        limits=limits,
        environment={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as run:
        return {**run.result, "sandbox": run.sandbox}


@needs_sandbox
def test_level_is_full_here() -> None:
    level = deed("own file")["sandbox"]
    assert level.complete
    assert {"no_new_privs", "capabilities", "rlimits", "seccomp"} <= set(level.applied)
    assert str(level).startswith("full: ")


@needs_sandbox
@pytest.mark.parametrize(
    "name",
    [
        "tcp socket",
        "unix socket",
        "netlink socket",
        "socket in thread",
        "program",
        "os.system",
        "fork",
        "kill parent",
        "raise limits",
        "shared memory",
        "message queue",
        "semaphore",
        "posix queue",
        "inotify",
        "keyring",
        "userfaultfd",
        "io_uring",
        "bpf",
        "ptrace",
    ],
)
def test_deed_is_refused(name: str) -> None:
    result = deed(name)
    assert "did" not in result
    assert result["refused"] in ("PermissionError", "OSError", "BlockingIOError")


@needs_sandbox
@pytest.mark.parametrize("name", ["read", "write", "delete", "chmod", "touch"])
def test_files_outside_are_out_of_reach(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"token")
    before = secret.stat()
    assert deed(name, path=str(secret))["refused"] == "PermissionError"
    after = secret.stat()
    assert secret.read_bytes() == b"token"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@needs_sandbox
def test_a_folder_outside_is_not_listed_but_what_is_guessed_can_be_measured(tmp_path: Path) -> None:
    """`stat` needs no right of Landlock: a name that is guessed gives size and times away, as converters/sandbox/linux.py says."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"token")
    assert deed("list", path=str(tmp_path))["refused"] == "PermissionError"
    assert deed("stat", path=str(secret))["did"] == "5"


@needs_sandbox
def test_other_processes_cannot_be_looked_at() -> None:
    assert deed("read", path=f"/proc/{os.getpid()}/environ")["refused"] == "PermissionError"


@pytest.mark.parametrize("name", ["own file", "thread"])
def test_honest_work_is_allowed(name: str) -> None:
    assert "did" in deed(name)


def test_readable_paths_are_read_only(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"1234")
    with guarded(
        "hostile_job",
        {"deed": "read", "path": str(given)},
        shown="evil.bin",
        limits=LIMITS,
        readable=[given],
        environment={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as run:
        assert run.result["did"] == "4"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("segfault", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("exit", "ended with status 7"),
        ("sys.exit", "a framework called sys.exit"),
    ],
)
def test_crash_is_named(name: str, words: str) -> None:
    with pytest.raises(OnnxspectError, match=words) as caught:
        deed(name)
    assert caught.value.message.startswith("evil.bin: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", Kind)
def test_the_kind_of_an_error_survives(kind: Kind) -> None:
    with pytest.raises(OnnxspectError) as caught:
        deed("raise", kind=kind.value)
    assert type(caught.value) is CLASSES[kind]
    assert (caught.value.message, caught.value.hint) == ("evil.bin: the fact", "the way out")


def test_what_fails_before_the_job_is_not_the_files_fault() -> None:
    with (
        pytest.raises(InternalError, match=r"evil\.bin: ModuleNotFoundError"),
        guarded("no_such_job", {}, shown="evil.bin", limits=LIMITS),
    ):
        pass


def test_who_is_blamed_for_a_dead_child(tmp_path: Path) -> None:
    """Whatever becomes of a child, collect() says whose fault it was."""
    full = "Traceback\nOSError: [Errno 28] No space left on device"
    (tmp_path / "stage").write_text("start")
    for code, errors, kind in (
        (7, "", Kind.INPUT),
        (1, full, Kind.MACHINE),
        (-9, "", Kind.MACHINE),
        (-11, "", Kind.INPUT),
    ):
        with pytest.raises(OnnxspectError) as caught:
            collect(tmp_path, code, False, errors, LIMITS, "evil.bin")
        assert caught.value.kind is kind, code
    (tmp_path / "stage").unlink()
    with pytest.raises(InternalError, match="at the start"):
        collect(tmp_path, 1, False, "", LIMITS, "evil.bin")


@pytest.mark.skipif(sys.platform != "linux", reason="address space limits are kept on Linux only")
def test_memory_limit_is_named() -> None:
    with pytest.raises(OnnxspectError, match=r"took more than 512\.0 MiB of memory"):
        deed("memory")


@pytest.mark.parametrize(("name", "words"), [("sleep", "took more than 1 s"), ("spin", "out of processor time")])
def test_time_limit_is_named(name: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(OnnxspectError, match=words):
        deed(name, GuardLimits(seconds=1, memory_bytes=512 << 20))
    assert time.monotonic() - start < 30


@pytest.mark.skipif(sys.platform == "win32", reason="no rlimits on Windows")
def test_output_limit() -> None:
    assert deed("big file")["errno"] == 27  # EFBIG


@pytest.mark.parametrize("kind", ["link", "fifo", "garbage", "deep", "list", "huge", "wrong types", "none"])
def test_lying_child_is_not_believed(kind: str) -> None:
    if kind in ("link", "fifo") and sys.platform == "win32":
        pytest.skip("no links or FIFOs on Windows")
    start = time.monotonic()
    with pytest.raises(OnnxspectError) as caught:
        deed("lying result", GuardLimits(seconds=20, memory_bytes=512 << 20), kind=kind)
    assert "evil.bin" in caught.value.message
    assert "root:" not in str(caught.value)
    assert time.monotonic() - start < 15


def test_environment_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    seen = deed("environment")["did"].split(",")
    assert "SECRET_TOKEN" not in seen
    assert "ORT_DISABLE_TELEMETRY" in seen
    assert "SECRET_TOKEN" not in child_environment(Path("x"))


def test_work_folder_is_not_on_the_import_path() -> None:
    assert deed("import path")["did"] == "False"


def test_work_folder_is_removed() -> None:
    with guarded(
        "hostile_job",
        {"deed": "own file"},
        shown="evil.bin",
        limits=LIMITS,
        environment={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as run:
        folder = run.folder
        assert run.read("mine") == b"fine"
    assert not folder.exists()


def test_a_nest_of_folders_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert deed("nest")["did"] == "nested"
    assert list(tmp_path.iterdir()) == []


def test_the_budget_of_a_command_shortens_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever time and memory a child would have by itself, the command's are the most."""
    monkeypatch.setattr(guard, "_budget", guard.Budget(time.monotonic() + 2, None))
    start = time.monotonic()
    with pytest.raises(OnnxspectError, match=r"took more than [12] s"):
        deed("sleep", GuardLimits(seconds=900, memory_bytes=512 << 20))
    assert time.monotonic() - start < 60
    monkeypatch.setattr(guard, "_budget", guard.Budget(None, guard.resident_bytes() + (200 << 20)))
    with pytest.raises(OnnxspectError, match=r"took more than (1\d\d|200)\.\d MiB of memory"):
        deed("memory")


def test_required_sandbox_is_required() -> None:
    """Where a measure is missing, `require_sandbox` refuses before the job starts; here none is, so it runs."""
    assert not SandboxLevel(("rlimits",), ("Landlock",)).complete
    assert str(SandboxLevel(("rlimits",), ("Landlock",))) == "partial: rlimits (missing: Landlock)"
    assert str(SandboxLevel((), ())) == "none: no measure"


# --- the warm pool -----------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="a warm pool needs Linux")


@linux
def test_pool_outlives_what_its_files_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, many jobs, each in a locked-in copy: crashes and limits are named, and the next job is unharmed."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # Four seconds, not one: the other deeds must come to theirs on a busy machine too.
    limits = GuardLimits(seconds=4, memory_bytes=256 << 20)
    deeds = {"segfault": "SIGSEGV", "memory": "of memory", "sleep": "took more than 4 s", "exit": "status 7"}
    with WarmPool("hostile_job", limits) as pool:
        for name, words in deeds.items():
            with (
                pytest.raises(OnnxspectError, match=words) as caught,
                pool.run({"deed": name}, shown="evil.bin"),
            ):
                pass
            assert caught.value.message.startswith("evil.bin: ")
            with pool.run({"deed": "own file"}, shown="evil.bin") as run:
                assert run.result["did"] == "4"
                assert run.read("mine") == b"fine"


@linux
def test_pool_does_not_hear_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that writes an answer to the pool's own pipe is talking to nobody."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with WarmPool("hostile_job", LIMITS) as pool:
        for _ in range(2):
            with pool.run({"deed": "write to stdout"}, shown="evil.bin") as run:
                assert run.result["did"] == "True"


@needs_sandbox
def test_pool_locks_every_copy_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    secret = tmp_path / "secret"
    secret.write_bytes(b"token")
    with WarmPool("hostile_job", LIMITS) as pool:
        for name in ("read", "tcp socket", "fork"):
            with pool.run({"deed": name, "path": str(secret)}, shown="evil.bin") as run:
                assert "refused" in run.result
                assert run.sandbox.complete


def children() -> set[int]:
    """Processes of this one, dead ones that nobody has waited for among them."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> guard._Child:
    """A child for the hostile job that was started before its request is known."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    start_ahead("hostile_job")
    return guard._waiting["hostile_job"]


def ahead(name: str, **request: Any) -> Mapping[str, Any]:
    """Let the next child do `name`, the one that waits if there is one."""
    with guarded("hostile_job", {"deed": name, **request}, shown="evil.bin", limits=LIMITS) as run:
        return {
            **run.result,
            "sandbox": run.sandbox,
            "folder": run.folder,
            "bytes": run.read("mine") if name == "own file" else b"",
        }


def test_a_child_started_ahead_does_one_request(waiting: guard._Child) -> None:
    start_ahead("hostile_job")  # one is enough
    assert guard._waiting["hostile_job"] is waiting
    first, second = ahead("own file"), ahead("own file")
    assert first["folder"] == waiting.folder != second["folder"]
    assert first["bytes"] == second["bytes"] == b"fine"
    assert not waiting.folder.exists()
    assert "hostile_job" not in guard._waiting


@needs_sandbox
@pytest.mark.parametrize("name", ["tcp socket", "program", "raise limits", "read"])
def test_a_child_started_ahead_is_locked_in(name: str, waiting: guard._Child, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"token")
    result = ahead(name, path=str(secret))
    assert result["folder"] == waiting.folder
    assert "did" not in result
    assert result["sandbox"].complete


def test_a_child_started_ahead_may_crash(waiting: guard._Child) -> None:
    with pytest.raises(OnnxspectError, match=r"evil.bin: crashed the library that read it \(SIGSEGV"):
        ahead("segfault")
    assert not waiting.folder.exists()


@pytest.mark.usefixtures("waiting")
def test_a_child_started_ahead_that_was_killed_is_named() -> None:
    kill_tree(guard._waiting["hostile_job"].process.process)
    with pytest.raises(OnnxspectError, match=r"evil.bin: .*was killed"):
        ahead("own file")


def test_a_run_with_files_of_its_own_gets_its_own_child(waiting: guard._Child) -> None:
    """The one that waits has locked its files already."""
    assert deed("own file")["did"]
    assert guard._waiting["hostile_job"] is waiting
    guard.end_waiting()
    assert not waiting.folder.exists()
    assert waiting.process.process.returncode is not None


@linux
def test_no_process_is_left_behind() -> None:
    """After a time-out too. (Another test's library may keep a process of its own: a worker runs many files.)"""
    before = children()
    with pytest.raises(OnnxspectError, match="took more than"):
        deed("sleep", GuardLimits(seconds=1, memory_bytes=512 << 20))
    assert children() <= before
