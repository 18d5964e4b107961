"""Files that are written whole or not at all: a temporary file, fsync, rename, fsync of the folder.

The one door through which results are written: ledger arrays, reports, pictures, models and their data files. Whatever happens
(a full disk, an error, a kill), the name holds the old content or the new one.

Where the temporary file lies and how it gets its name can be set: in the command line's worker, which may not write in
the folder of an output, the supervisor does the renaming (cli/supervisor.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onnxspect.converters.errors import unwritable

#: The end of a temporary file's name.
SUFFIX = ".part"


@dataclass(frozen=True)
class Placing:
    """How temporary files come to their names.

    Attributes:
        scratch: the folder in which a target's temporary file is made; it must lie on the target's file system.
        place: renames a temporary file to its target, over what was there, and makes the rename durable.
        mark: a part of each temporary file's name, by which those of a killed process are found.
        remove: removes a file that lies beside a target and that nothing names any more.
    """

    scratch: Callable[[Path], Path]
    place: Callable[[Path, Path], None]
    mark: str = ""
    remove: Callable[[Path], None] = os.unlink


def _beside(target: Path) -> Path:
    return target.parent


def rename(temporary: Path, target: Path) -> None:
    """Give a finished temporary file its name, durably."""
    os.replace(temporary, target)  # noqa: PTH105 - the atomic rename itself
    sync_folder(target.parent)


_placing = Placing(_beside, rename)


def place_by(placing: Placing) -> None:
    """From here on, all files of this process are placed so."""
    global _placing
    _placing = placing


class Part:
    """A temporary file on its way to `target`.

    Attributes:
        target: the name that it gets.
        path: where it lies until then.
        file: open for writing and reading, in binary; closed by `finish`.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        name = f".{target.name[:40]}.{_placing.mark}{secrets.token_hex(6)}{SUFFIX}"
        self.path = _placing.scratch(target) / name
        # The mode is what the user's umask makes of it; nothing has to be changed afterwards.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.file: IO[bytes] = os.fdopen(os.open(self.path, flags, 0o666), "w+b")

    def finish(self) -> None:
        """Everything is on the disk; the file is closed."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def place(self) -> None:
        """Rename it to its target."""
        _placing.place(self.path, self.target)

    def discard(self) -> None:
        """Remove it, if it has not been placed."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Part]:
    """A temporary file that becomes `target` where the block ends without an error.

    Raises:
        OnnxspectError: it cannot be written; whatever was there before is untouched.
    """
    part: Part | None = None
    try:
        part = Part(target)
        yield part
        part.finish()
        part.place()
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        if part is not None:
            part.discard()


def write_whole(target: Path, data: bytes) -> None:
    """Write `data` to `target`, whole or not at all.

    Raises:
        OnnxspectError: as `whole`.
    """
    with whole(target) as part:
        part.file.write(data)


def remove(useless: Path) -> None:
    """Remove a file that a result which was placed no longer names; where that fails it stays, and does no harm."""
    with contextlib.suppress(OSError):
        _placing.remove(useless)


def try_place(target: Path) -> None:
    """Find out whether `target` could be written, without touching it.

    Raises:
        OSError: it could not.
    """
    Part(target).discard()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
