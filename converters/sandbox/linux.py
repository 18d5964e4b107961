"""A process locks itself in: Landlock, seccomp, no_new_privs, fewer capabilities; by ctypes, without a helper program.

What it holds back on Linux 5.13 and later (x86-64 and aarch64):

* files: only the folders given can be read, only the work folder can be written (Landlock, docs.kernel.org
  userspace-api/landlock); changing owners, modes, times and attributes, which Landlock does not see, is refused by
  seccomp;
* network: no socket of any family can be made (seccomp), and io_uring, which could make one unseen, is refused;
* processes: no program can be started and no process made, nobody else signalled or traced;
* memory and queues shared by name or number: System V and POSIX IPC, keyrings, inotify and the like are refused;
* its own limits cannot be raised again.

What it cannot hold back: `stat`, `access`, `readlink` and `chdir` need no right of Landlock, and a filter of system calls does
not see the path behind a pointer. So a file's name, size, times and owner can be learned by whoever guesses its path; its
content and a folder's listing cannot. Only a file system of the process's own (a mount namespace, which unprivileged users
often may not make) would hide these too.

This is a list of what is forbidden, not of what is allowed: frameworks need hundreds of system calls that change from
release to release. It is a second wall behind the file checks, not a proof against a kernel bug.

Order matters. Landlock binds only the calling thread and its descendants, so `restrict_files` must come before any
library starts threads; `restrict_calls` comes after the (trusted) imports and binds all threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 15, 36, 38
_SIGKILL = 9

# linux/landlock.h; these three numbers are the same on every architecture that Landlock runs on.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_IOCTL_DEV = 1 << 15  # ABI 5
_TRUNCATE = 1 << 14  # ABI 3
_FILE_BITS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # the rights that a rule on a file may name
_FS_BITS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_FS_BITS_NEWEST = (1 << 16) - 1
_NET_BITS = 3  # ABI 4: bind and connect by TCP
_SCOPE_BITS = 3  # ABI 6: abstract unix sockets, signals
_READ_RIGHTS = _READ_FILE | _READ_DIR | _EXECUTE  # mapping a shared library needs no right of its own; execute is moot

# Every call that is refused outright: name -> (x86-64, aarch64); -1 where the architecture has none.
_REFUSED = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # System V and POSIX IPC: memory and queues that outlive a process, which no rule on files reaches.
    "shmget": (29, 194),
    "shmctl": (31, 195),
    "shmat": (30, 196),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "semop": (65, 193),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # What happens in other folders: Landlock does not see who watches them.
    "inotify_init": (253, -1),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "lookup_dcookie": (212, 18),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "modify_ldt": (154, -1),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
# Those that only a process without children of its own can do without: what starts the next child needs them.
_REFUSED_TO_WORKERS = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "setrlimit": (160, 164),
}
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT64 = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000

_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG = 0, 4, 16  # offsets into struct seccomp_data

# Which capabilities stay, where the process runs as root: reading and writing files whatever their mode (Landlock
# decides about those). All others, such as raw sockets, devices and modules, go.
_KEPT_CAPABILITIES = 1 << 1 | 1 << 2


class SandboxUnavailable(Exception):
    """This kernel or architecture lacks a measure; the text names it."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def name_process(name: str) -> None:
    """What this process is called in lists of processes; of a copy that would be the name of what it was copied from. 15 bytes count."""
    _libc().prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def adopt_orphans() -> None:
    """Ask the kernel to make this process the parent of whatever its descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """From here on no exec can add rights; Landlock and seccomp require it."""
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        raise SandboxUnavailable("no_new_privs")


def drop_capabilities() -> None:
    """Give up what root can do beyond opening files (`capset`, version 3 of its structure)."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    current = ctypes.create_string_buffer(24)
    libc = _libc()
    if libc.capget(header, current) != 0:
        raise SandboxUnavailable("capget")
    permitted = struct.unpack("=6I", current.raw[:24])[1]
    kept = permitted & _KEPT_CAPABILITIES
    if libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0))) != 0:
        raise SandboxUnavailable("capset")


def landlock_version() -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    return max(_syscall(_CREATE_RULESET, None, 0, 1), 0)


def restrict_files(readable: Sequence[Path], writable: Sequence[Path], devices: Sequence[Path] = ()) -> int:
    """Allow reading under `readable` and everything under `writable`, and no other file. Paths that do not exist are
    passed over. `devices` can be read, written and commanded (ioctl); where there are any, this process may name its
    threads. Returns the ABI used.

    Raises:
        SandboxUnavailable: if the kernel has no Landlock, or this process already has several threads.
    """
    version = landlock_version()
    if version < 1:
        raise SandboxUnavailable("Landlock")
    if _threads() > 1:
        raise SandboxUnavailable("Landlock (threads were already running)")
    rights = _FS_BITS_BY_ABI.get(version, _FS_BITS_NEWEST)
    fields = (rights, _NET_BITS, _SCOPE_BITS)[: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(fields)}Q", *fields))
    ruleset = _syscall(_CREATE_RULESET, attributes, 8 * len(fields), 0)
    if ruleset < 0:
        raise SandboxUnavailable("Landlock")
    try:
        for path in readable:
            _allow(ruleset, path, _READ_RIGHTS & rights)
        for path in writable:
            _allow(ruleset, path, rights & ~_IOCTL_DEV)
        for path in devices:
            _allow(ruleset, path, rights & (_READ_FILE | _WRITE_FILE | _IOCTL_DEV))
        if devices:
            # CUDA's driver names its threads by writing their comm anew, and gives up (error 304) where it may not.
            _allow(ruleset, Path("/proc/self/task"), rights & (_READ_RIGHTS | _WRITE_FILE | _TRUNCATE))
        if _syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            raise SandboxUnavailable("Landlock")
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # absent on this system, so nothing to allow
    try:
        if not path.is_dir():
            rights &= _FILE_BITS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd))
        if _syscall(_ADD_RULE, ruleset, 1, rule, 0) != 0:
            raise SandboxUnavailable(f"Landlock (rule refused: {os.strerror(ctypes.get_errno())})")
    finally:
        os.close(fd)


def restrict_calls(starts_children: bool = False) -> None:
    """Install the seccomp filter, for all threads of this process.

    Args:
        starts_children: leave it processes, programs, signals and limits, for whoever starts children that lock themselves in
            further; the rest is refused all the same, to it and to all that it starts.

    Raises:
        SandboxUnavailable: on another architecture than x86-64 and aarch64, or a kernel without seccomp filters.
    """
    machine = platform.machine()
    if machine not in _MACHINES or sys.maxsize < 2**32:
        raise SandboxUnavailable(f"seccomp (no table for {machine})")
    program = _filter(machine, None if starts_children else os.getpid())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    # 1 = SECCOMP_SET_MODE_FILTER; flag 1 = TSYNC, all threads. Positive results name a thread that could not follow.
    if _syscall(_SECCOMP[machine], 1, 1, header) != 0:
        raise SandboxUnavailable("seccomp")


def _filter(machine: str, pid: int | None) -> list[tuple[int, int, int, int]]:
    """The BPF program. Each test is self-contained (it jumps over its own return), so no long offsets are needed.

    Without a `pid`, the one for a process that starts children.
    """
    column, arch = _MACHINES[machine]
    refuse = _ERRNO | errno.EPERM
    steps = [(_LOAD, 0, 0, _ARCH), (_JEQ, 1, 0, arch), (_RET, 0, 0, _KILL_PROCESS), (_LOAD, 0, 0, _NR)]
    if machine == "x86_64":  # the x32 numbering would pass by every number below
        steps += [(_JGE, 0, 1, _X32), (_RET, 0, 0, refuse)]
    for numbers in (*_REFUSED.values(), *(_REFUSED_TO_WORKERS.values() if pid is not None else ())):
        if numbers[column] >= 0:
            steps += [(_JEQ, 0, 1, numbers[column]), (_RET, 0, 0, refuse)]
    if pid is None:
        return [*steps, (_RET, 0, 0, _ALLOW)]
    # clone3's flags are behind a pointer, out of a filter's sight: "not implemented" makes libc use clone instead.
    steps += [(_JEQ, 0, 1, _CLONE3[column]), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    # clone: threads only.
    steps += [(_JEQ, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _ARG), (_JSET, 1, 0, _CLONE_THREAD)]
    steps += [(_RET, 0, 0, refuse), (_RET, 0, 0, _ALLOW)]
    for number in (_KILL[column], _TGKILL[column]):  # abort() signals its own process; nobody else may be signalled
        steps += [(_JEQ, 0, 4, number), (_LOAD, 0, 0, _ARG), (_JEQ, 1, 0, pid)]
        steps += [(_RET, 0, 0, refuse), (_RET, 0, 0, _ALLOW)]
    # prlimit64: reading limits (a null pointer for the new ones) is allowed; both halves of the pointer count.
    steps += [(_JEQ, 0, 6, _PRLIMIT64[column]), (_LOAD, 0, 0, _ARG + 16), (_JEQ, 0, 3, 0)]
    steps += [(_LOAD, 0, 0, _ARG + 20), (_JEQ, 0, 1, 0), (_RET, 0, 0, _ALLOW), (_RET, 0, 0, refuse)]
    return [*steps, (_RET, 0, 0, _ALLOW)]


def _threads() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return 1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc().prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def _syscall(number: int, *arguments: object) -> int:
    call = _libc().syscall
    call.restype = ctypes.c_long
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(call(ctypes.c_long(number), *wrapped))
