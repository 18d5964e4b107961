"""A process locks itself in, in two halves, and says which measures are in force and which this system lacks.

`files` comes first, before any library starts a thread: Landlock binds the calling thread and what it starts. `calls` and
`limits` come after the (trusted) imports, before a byte of an untrusted file is read. The child that opens one file
(guard_child.py), the command line's worker (cli/worker.py) and the process that starts children for it (starter.py) all use
these; how each measure works is in linux.py.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox import linux

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf")
PROC = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys/vm")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")


@dataclass
class Level:
    """Which measures are in force in this process, and which the system does not have."""

    applied: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def require(self) -> None:
        """Refuse to go on where anything is missing.

        Raises:
            OnnxspectError: naming what is missing.
        """
        if self.missing:
            raise OnnxspectError(
                f"this system cannot lock a process in ({', '.join(self.missing)} missing)",
                "files that run code when they are opened, and --require-sandbox, need Linux 5.13 or later on x86-64 or aarch64",
            )


def files(
    level: Level,
    readable: Sequence[str | Path],
    writable: Sequence[str | Path],
    devices: Sequence[str | Path] = (),
    proc: Sequence[str] = PROC,
) -> None:
    """First half: no new rights, and no file but these, Python's own and a few of the system's.

    Args:
        level: what came of it is added.
        readable: files and folders.
        writable: files and folders, in which anything may be made, changed and removed.
        devices: that may be read, written and commanded.
        proc: what of /proc may be read.
    """
    if sys.platform != "linux":
        level.missing += ["Landlock", "seccomp"]
        return
    for name, measure in (("no_new_privs", linux.no_new_privileges), ("capabilities", linux.drop_capabilities)):
        try:
            measure()
            level.applied.append(name)
        except linux.SandboxUnavailable as error:
            level.missing.append(str(error))
    allowed = [Path(p) for p in (*SYSTEM, *proc, *DEVICES, *python_folders(), *readable)]
    try:
        version = linux.restrict_files(allowed, [*map(Path, writable), Path("/dev/null")], [Path(d) for d in devices])
        level.applied.append(f"Landlock {version}")
    except linux.SandboxUnavailable as error:
        level.missing.append(str(error))


def calls(level: Level, starts_children: bool = False) -> None:
    """Second half: no system call that makes sockets, processes or rights; see `linux.restrict_calls`."""
    if sys.platform != "linux":
        return
    try:
        linux.restrict_calls(starts_children)
        level.applied.append("seccomp")
    except linux.SandboxUnavailable as error:
        level.missing.append(str(error))


def limits(
    level: Level,
    memory_bytes: int,
    seconds: float,
    output_bytes: int,
    *,
    watched: bool = False,
    reserved_bytes: int = 0,
    files_open: int = 1024,
) -> None:
    """Limits that the kernel keeps, on top of what this process maps already.

    Args:
        level: what came of it is added.
        memory_bytes: of private memory.
        seconds: of processor time, for each core; wall time is for whoever waits.
        output_bytes: the longest file that may be written.
        watched: someone else watches the memory in use, since a CUDA driver maps far more than it uses: mappings are not limited.
        reserved_bytes: mapped besides and never used, such as the stacks and allocators' reserves of many threads.
        files_open: at a time.
    """
    try:
        import resource
    except ImportError:  # Windows
        level.missing.append("rlimits")
        return
    cores = os.cpu_count() or 1
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: output_bytes,
        resource.RLIMIT_NOFILE: files_open,
        # Wall time is measured outside; this is for the case that nobody is there any more.
        resource.RLIMIT_CPU: int(min(seconds * cores, 1 << 40)) + 10,
    }
    if sys.platform == "linux" and not watched:
        wanted[resource.RLIMIT_DATA] = _status_bytes("VmData") + memory_bytes
        wanted[resource.RLIMIT_AS] = _status_bytes("VmSize") + memory_bytes + reserved_bytes
    for which, value in wanted.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # Past the soft limit on processor time comes a signal with a name, SIGXCPU; past the hard one SIGKILL.
        soft = max(value - 5, 1) if which == resource.RLIMIT_CPU else value
        resource.setrlimit(which, (soft, value))
    level.applied.append("rlimits")
    if sys.platform != "linux":
        level.missing.append("memory limit")  # macOS accepts RLIMIT_AS and does not keep it


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


def python_folders() -> list[str]:
    """Where this interpreter's own code and that of its packages lies, editable installs and compiled modules (PYTHONPYCACHEPREFIX) included."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(p for p in (*sys.path, sys.pycache_prefix) if p)}
    for name in ("onnxspect", "onnxspect.cli", "onnxspect.converters", "onnxspect.engine", "onnxspect.models"):
        found = importlib.util.find_spec(name)
        folders.update(found.submodule_search_locations or () if found is not None else ())
    return sorted(f for f in folders if f != "/")
