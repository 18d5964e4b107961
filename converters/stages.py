"""What is being done, noted where it outlives the process: so that a crash, a time-out or a kill can name its stage.

Nothing is noted until someone says where (`record_in`); a library call in a caller's process notes nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

#: The name of the file, in a worker's own folder.
FILE = "stage"

_place: Path | None = None
_now = ""


def record_in(folder: Path) -> None:
    """Note stages in a file of this folder from here on."""
    global _place
    _place = folder / FILE


def stage(name: str) -> None:
    """`name` begins."""
    global _now
    _now = name
    if _place is not None:
        with contextlib.suppress(OSError):  # a full disk will be reported by what fills it
            _place.write_text(name, encoding="utf-8")


def current() -> str:
    """What was noted last; empty where nothing was."""
    return _now
