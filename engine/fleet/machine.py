"""What this machine, or the container that this process is in, has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

#: Share of the memory that a command may use where nothing is said.
MEMORY_SHARE = 0.75
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def usable_memory() -> int:
    """Three quarters of the memory, in bytes."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        total = 8 << 30
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        total = min(total, int(_CGROUP.read_text()))
    return int(total * MEMORY_SHARE)
