"""Removing a folder that an untrusted process filled: of any depth, never out of it, whatever the modes are."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from pathlib import Path

_HAS_DIR_FD = {os.open, os.unlink, os.rename, os.rmdir, os.mkdir} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def remove_tree(folder: Path) -> None:
    """Remove `folder` and all that is in it; what the system does not let go is left, without an error.

    Every folder inside is first moved up to the top and then emptied there, so that neither the depth of the nesting (paths
    longer than the system allows, more levels than Python recurses) nor a link among them matters.
    """
    if not _HAS_DIR_FD:
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        top = os.open(folder, _FOLDER)
    except OSError:
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _empty(top: int) -> None:
    failed: set[str] = set()
    while names := [n for n in os.listdir(top) if n not in failed]:
        for name in names:
            try:
                if not _is_folder(top, name):
                    os.unlink(name, dir_fd=top)
                    continue
                inner = _opened(top, name)
                try:
                    _lift(inner, top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
            except OSError:
                failed.add(name)


def _lift(inner: int, top: int) -> None:
    """Remove the files of a folder and move its folders to the top, under names that nobody could guess."""
    for name in os.listdir(inner):
        with contextlib.suppress(OSError):
            if not _is_folder(inner, name):
                os.unlink(name, dir_fd=inner)
                continue
            os.close(_opened(inner, name))  # to be moved, a folder must be writable itself
            os.rename(name, f".{secrets.token_hex(8)}.removed", src_dir_fd=inner, dst_dir_fd=top)


def _is_folder(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _opened(parent: int, name: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:  # its maker took the rights away
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _FOLDER, dir_fd=parent)
