"""What lies beside a file whose folder cannot be listed: a locked-in worker may read what is there, and not look around.

Whoever locked it in has listed the folder (cli/places.py), and says here what was found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_known: dict[Path, list[str]] = {}


def know(paths: Iterable[str]) -> None:
    """From here on, these absolute paths are what lies in their folders."""
    for path in map(Path, paths):
        _known.setdefault(path.parent, []).append(path.name)


def inside(folder: Path) -> list[Path]:
    """What a folder holds, in order; of one that may not be listed what is known to lie there.

    Raises:
        OSError: it cannot be listed, and nothing is known of it.
    """
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        known = _known.get(Path(os.path.abspath(folder)))  # noqa: PTH100  # links stay links, as in what is known
        if known is None:
            raise
        return sorted(folder / name for name in set(known))
