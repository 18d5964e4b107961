"""Errors that a user may see: one class, five kinds. They live in the lowest layer so that every layer can raise them.

They are raised where the fact is known. What no code expected is made one of them in one place, `classified`, which the
command line calls at its boundary. A kind says who can mend it, and maps to one exit status (cli/exit_status.py).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from onnxspect.converters.text import printable


class Kind(enum.Enum):
    """Who can mend what stopped the work."""

    INPUT = "input"
    """The user: a file, an option or a value must be corrected."""
    HOSTILE = "hostile"
    """Nobody: the file holds what is known to attack whoever opens it."""
    INCONCLUSIVE = "inconclusive"
    """More evidence: the input can be used, but it does not allow an answer, or the goals were not reached."""
    MACHINE = "machine"
    """Whoever runs the machine: a disk is full or read-only, memory ran out, a run's files are damaged."""
    INTERNAL = "internal"
    """We: a fault of onnxspect's, to be reported."""


class OnnxspectError(Exception):
    """A fact that stops the work, with the way out.

    Raised as itself it is about the user's input; the other kinds are its subclasses, so ``except OnnxspectError`` catches all.

    Args:
        message: one line that names the file (or field) and the fact.
        hint: what the user can do about it; may be empty.
    """

    kind: ClassVar[Kind] = Kind.INPUT

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def at(self, place: str) -> OnnxspectError:
        """The same fact, of the same kind, with the file or field in front that it is about."""
        return CLASSES[self.kind](f"{place}: {self.message}", self.hint)


class HostileError(OnnxspectError):
    """A file with known-bad content, which the message names; it was not opened.

    Args:
        message, hint: as for every error.
        path: of the file.
        offences: what was found in it, a sentence each.
    """

    kind = Kind.HOSTILE

    def __init__(self, message: str, hint: str = "", path: str = "", offences: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.path = path
        self.offences = offences


class InconclusiveError(OnnxspectError):
    """There is not enough evidence for an answer, or the goals of a patch are missed."""

    kind = Kind.INCONCLUSIVE


class MachineError(OnnxspectError):
    """The machine cannot do it now (disk, memory, rights on an output), or a run's files are damaged."""

    kind = Kind.MACHINE


class InternalError(OnnxspectError):
    """A fault of onnxspect's; the command line adds what to send."""

    kind = Kind.INTERNAL


#: Kind -> its class.
CLASSES: dict[Kind, type[OnnxspectError]] = {
    c.kind: c for c in (OnnxspectError, HostileError, InconclusiveError, MachineError, InternalError)
}

#: What a file system answers where a name is wrong: the user's to correct, whether he reads or writes.
_WRONG_NAME = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}
#: A name that the user may not read is a wrong one too; where a result may not be written, the work would be lost.
_NOT_ALLOWED = {errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "Failed to allocate",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "OOM when",
)

#: How torch's CUDA and cuDNN errors begin before torch 2.8, and some after.
_DEVICE = ("CUDA error:", "CUDA driver error:", "cuDNN error:", "CUBLAS_STATUS_", "Found no NVIDIA driver")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, torch's (CPU or GPU) or a C++ library's way of saying so."""
    torch = sys.modules.get("torch")  # who has not imported it cannot have its errors
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # C++ errors reach Python as RuntimeError or as a library's own class; Python's own classes quote names and values.
    foreign = isinstance(error, RuntimeError) or type(error).__module__ != "builtins"
    return foreign and not isinstance(error, OnnxspectError) and any(t in str(error) for t in _MEMORY)


def is_device(error: BaseException) -> bool:
    """Whether a GPU failed under a kernel: it was lost (XID), reset, or a driver does not fit."""
    torch = sys.modules.get("torch")
    accelerator = getattr(torch, "AcceleratorError", None)
    if accelerator is not None and isinstance(error, accelerator):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _DEVICE)


def unwritable(path: Path, error: OSError, hint: str = "", what: str = "cannot be written") -> OnnxspectError:
    """Why `path` could not be written: the machine's fault, or the user's where the name cannot be that of a file."""
    kind: type[OnnxspectError] = OnnxspectError if error.errno in _WRONG_NAME else MachineError
    return kind(f"{printable(str(path), 200)}: {what} ({_reason(error)})", _way_out(error) or hint)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an OSError of the block one that names `path`.

    Raises:
        OnnxspectError: as `unwritable`.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def caused_by(
    error: BaseException, message: str, hint: str = "", otherwise: type[OnnxspectError] = OnnxspectError
) -> OnnxspectError:
    """An error with `message`, of the kind that its cause gives it.

    For code that catches whatever a library raises over a file: what the file did is `otherwise`, but where memory ran out or a
    disk failed, the file is not to blame.

    Args:
        error: what was caught.
        message: one line.
        hint: of `otherwise`.
        otherwise: the class where neither memory nor a disk failed.
    """
    if isinstance(error, OnnxspectError) and error.kind is not Kind.INPUT:
        return CLASSES[error.kind](message, error.hint)
    if is_memory(error):
        return MachineError(message, _MORE_MEMORY)
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _WRONG_NAME | _NOT_ALLOWED:
        return MachineError(message, _way_out(error))
    return otherwise(message, hint)


def classified(error: BaseException) -> OnnxspectError:
    """Any exception as one of ours: itself, the machine's, or, where nothing is known of it, a fault of ours."""
    if isinstance(error, OnnxspectError):
        return error
    first = printable((str(error).splitlines() or [""])[0], 400)
    if is_memory(error):
        return MachineError(f"out of memory ({type(error).__name__}{': ' if first else ''}{first})", _MORE_MEMORY)
    if is_device(error):
        return MachineError(
            f"the GPU failed ({type(error).__name__}: {first})",
            "run the same command again: a scan goes on where it stopped, with --device cpu without the GPU",
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{printable(os.fsdecode(error.filename), 200)}: " if isinstance(error.filename, str | bytes) else ""
        kind = OnnxspectError if place and error.errno in _WRONG_NAME else MachineError
        return kind(f"{place}{_reason(error)}", _way_out(error))
    return InternalError(f"unexpected failure: {type(error).__name__}: {first}")


_MORE_MEMORY = "give it more memory, or end what else takes it; on a GPU, --device cpu"


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _way_out(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room, or choose a place on another disk"
    if error.errno in _NOT_ALLOWED | {errno.EROFS}:
        return "change its permissions, or choose a place that you may read and write"
    return ""
