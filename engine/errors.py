"""Errors that a user may see, re-exported where engine code looks for them."""

from __future__ import annotations

import sqlite3

from onnxspect.converters import errors
from onnxspect.converters.errors import (
    HostileError,
    InconclusiveError,
    InternalError,
    Kind,
    MachineError,
    OnnxspectError,
    caused_by,
    unwritable,
    writing,
)

__all__ = [
    "HostileError",
    "InconclusiveError",
    "InternalError",
    "Kind",
    "MachineError",
    "OnnxspectError",
    "caused_by",
    "classified",
    "unwritable",
    "writing",
]


def classified(error: BaseException) -> OnnxspectError:
    """Any exception as one of ours; SQLite's too, which only a run's ledger can raise."""
    if isinstance(error, sqlite3.Error):
        return MachineError(f"a run's ledger failed ({error})", "scan again into another --out")
    return errors.classified(error)
