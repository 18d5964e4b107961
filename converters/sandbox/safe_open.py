"""Opening files at untrusted paths: never a FIFO, a device or a folder, never outside a folder, always with a limit.

Two policies:

* `open_regular`: the path that the *user* typed. Symbolic links are followed (model caches are made of them), but what
  they lead to must be a regular file. It is checked before it is opened, because opening a device can have effects,
  opened with ``O_NONBLOCK`` so that a FIFO put there in between cannot block, and checked again when it is open.
* `open_beneath`: a path that a *file* named (external data, the output of a sandboxed child). It must be relative,
  without ``..``; every component is opened relative to the one before it with ``O_NOFOLLOW``, so a symbolic link
  anywhere in it is refused even if it is put there between check and use; and a hard link (a second name, which may
  lie outside the folder) is refused too.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.text import printable, readable_bytes

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}
_CHUNK = 1 << 22
# Absent on Windows, where FIFOs have no path in the file system and O_BINARY is needed instead.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
#: A folder is only passed through: where the system can say so, no right to list it is asked for.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_HAS_DIR_FD = os.open in os.supports_dir_fd and bool(_NOFOLLOW)


@dataclass(frozen=True)
class Content:
    """The bytes of a file and what they are.

    Attributes:
        data: the content.
        sha256: its digest, in hexadecimal.
    """

    data: bytes
    sha256: str

    @property
    def size(self) -> int:
        """Length of `data` in bytes."""
        return len(self.data)


def open_regular(path: Path) -> int:
    """Open the file that the user named, for reading; the caller closes the descriptor.

    Raises:
        OnnxspectError: if it does not exist, cannot be read or is not a regular file.
    """
    shown = printable(str(path), 200)
    try:
        _require_regular(Path(path).stat(), shown)
        fd = os.open(path, _READ)
    except FileNotFoundError:
        raise OnnxspectError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:
        raise caused_by(error, f"{shown}: cannot be opened: {_reason(error)}") from None
    try:
        _require_regular(os.fstat(fd), shown)
    except OnnxspectError:
        os.close(fd)
        raise
    return fd


def read_regular(path: Path, limit: int) -> Content:
    """Read the whole file that the user named.

    Args:
        path: symbolic links are followed.
        limit: bytes; a longer file is refused, also one that grows while it is read.

    Raises:
        OnnxspectError: as `open_regular`, or the file is longer than `limit`.
    """
    fd = open_regular(path)
    try:
        return _read_all(fd, limit, printable(str(path), 200))
    finally:
        os.close(fd)


def read_beneath(folder: Path, name: str, limit: int, *, offset: int = 0, length: int | None = None) -> Content:
    """Read the file, or a part of the file, that another file named.

    Args:
        folder: where `name` must lie.
        name: a relative path with ``/`` between its components.
        limit: bytes; more than that is refused.
        offset: where to start.
        length: how many bytes; to the end of the file if None.

    Raises:
        OnnxspectError: if the path leaves the folder, leads over a link, is not a regular file, has a second name,
            is shorter than ``offset + length``, or is longer than `limit`.
    """
    shown = printable(name, 200)
    fd = _open_beneath(folder, name, shown)
    try:
        size = os.fstat(fd).st_size
        wanted = size - offset if length is None else length
        if offset < 0 or wanted < 0 or offset + wanted > size:
            raise OnnxspectError(
                f"{shown}: has {size} bytes, but bytes {offset} to {offset + max(wanted, 0)} are asked for",
                "the file was cut short, or belongs to another model",
            )
        if wanted > limit:
            raise OnnxspectError(f"{shown}: {readable_bytes(wanted)} is over the limit of {readable_bytes(limit)}")
        os.lseek(fd, offset, os.SEEK_SET)
        content = _read_all(fd, limit, shown, exactly=wanted)
    finally:
        os.close(fd)
    return content


def _open_beneath(folder: Path, name: str, shown: str) -> int:
    parts = name.split("/")
    windows = PureWindowsPath(name)
    if not name or "\0" in name or name.startswith("/") or windows.drive or windows.root or "\\" in name:
        raise OnnxspectError(f"{shown}: not a relative path inside the model's folder", "it was not opened")
    if ".." in parts:
        raise OnnxspectError(f"{shown}: leads out of the model's folder", "it was not opened")
    parts = [p for p in parts if p not in ("", ".")]
    if not parts:
        raise OnnxspectError(f"{shown}: names no file", "it was not opened")
    try:
        fd = _open_at(folder, parts) if _HAS_DIR_FD else _open_checked(folder, parts, shown)
    except FileNotFoundError:
        raise OnnxspectError(f"{shown}: no such file beside the model", "put it into the model's folder") from None
    except (OSError, ValueError) as error:
        link = "a symbolic link is not followed, " if isinstance(error, OSError) and error.errno in (20, 40, 62) else ""
        raise caused_by(
            error, f"{shown}: cannot be opened: {link}{_reason(error)}", "put the file itself into the model's folder"
        ) from None
    status = os.fstat(fd)
    try:
        _require_regular(status, shown)
        if status.st_nlink > 1:
            raise OnnxspectError(
                f"{shown}: has {status.st_nlink} names (hard links), so it may be a file of another folder",
                "copy it: a copy has one name",
            )
    except OnnxspectError:
        os.close(fd)
        raise
    return fd


def _open_at(folder: Path, parts: list[str]) -> int:
    """Open `parts` one by one, each relative to the one before it, following no symbolic link."""
    here = os.open(folder, _FOLDER)
    try:
        for part in parts[:-1]:
            deeper = os.open(part, _FOLDER | _NOFOLLOW, dir_fd=here)
            os.close(here)
            here = deeper
        # A device is recognised before it is opened; a swap in between still meets O_NONBLOCK and fstat.
        _require_regular(os.stat(parts[-1], dir_fd=here, follow_symlinks=False), printable("/".join(parts), 200))
        return os.open(parts[-1], _READ | _NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def _open_checked(folder: Path, parts: list[str], shown: str) -> int:
    """The same where the platform has no openat (Windows): check, then open. A race is possible there."""
    path = Path(folder)
    for part in parts:
        path = path / part
        if path.is_symlink() or (hasattr(path, "is_junction") and path.is_junction()):
            raise OnnxspectError(f"{shown}: a link is not followed", "put the file itself into the model's folder")
    return os.open(path, _READ)


def _read_all(fd: int, limit: int, shown: str, exactly: int | None = None) -> Content:
    size = os.fstat(fd).st_size if exactly is None else exactly
    if size > limit:
        raise OnnxspectError(f"{shown}: {readable_bytes(size)} is over the limit of {readable_bytes(limit)}")
    digest = hashlib.sha256()
    chunks: list[bytes] = []
    total = 0
    while exactly is None or total < exactly:
        try:
            chunk = os.read(fd, _CHUNK if exactly is None else min(_CHUNK, exactly - total))
        except OSError as error:
            raise caused_by(error, f"{shown}: cannot be read: {_reason(error)}") from None
        if not chunk:
            break
        total += len(chunk)
        if total > limit:  # it grew, or the file system does not tell sizes
            raise OnnxspectError(f"{shown}: longer than the limit of {readable_bytes(limit)}")
        digest.update(chunk)
        chunks.append(chunk)
    if exactly is not None and total < exactly:
        raise OnnxspectError(f"{shown}: ended after {total} of {exactly} bytes")
    return Content(b"".join(chunks), digest.hexdigest())


def _require_regular(status: os.stat_result, shown: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
        raise OnnxspectError(f"{shown}: is {kind}, not a regular file", "it was not opened")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
