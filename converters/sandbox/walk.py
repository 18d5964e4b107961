"""Going through folders of any depth: os.walk recurses, and a stranger's folder nests deeper than Python does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable

#: Folders inside each other that a data set, a model or a folder of models has at most.
DEEPEST = 100


def walk(top: Path, deepest: int | None = DEEPEST) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk does: every folder with the names of the folders and of the other entries in it; links are not entered.

    Args:
        top: where to begin.
        deepest: levels below it; None for as many as paths may be long.

    Yields:
        path, folders (what is taken out of this list is not entered), other entries; of a folder that cannot be read nothing.

    Raises:
        OnnxspectError: it is nested deeper.
    """
    waiting = [(os.fspath(top), 0)]
    while waiting:
        folder, depth = waiting.pop()
        if deepest is not None and depth > deepest:
            raise OnnxspectError(
                f"{printable(str(top), 200)}: folders in it are nested more than {deepest} deep",
                "give the folder that is meant",
            )
        below: list[str] = []
        names: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    (below if entry.is_dir() else names).append(entry.name)
        except OSError:
            continue
        yield folder, below, names
        inside = [os.path.join(folder, name) for name in below]  # noqa: PTH118  # half a million times in a large set
        waiting += [(path, depth + 1) for path in reversed(inside) if not os.path.islink(path)]  # noqa: PTH114
