"""What a data set is, as far as it was understood, without a model: the library call behind `onnxspect data`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnxspect.converters.stages import stage
from onnxspect.converters.text import printable
from onnxspect.converters.whole import whole
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.readers.pixels import resampled, to_channels
from onnxspect.engine.readers.reader import Asked

#: Images whose sizes are looked at, from all over the set.
LOOKED_AT = 500
#: Pictures on the sheet, and the side of each.
PICTURES, SIDE = 5, 128


def describe_data(
    path: str | Path, classes: ClassList | None = None, training: bool = False, pictures: str | Path | None = None
) -> dict[str, Any]:
    """Facts of a data set as plain JSON values.

    Args:
        path: of any form that is read (readers.reader.FORMS).
        classes: the model's classes in order, where they are known.
        training: of a set in parts the training part is meant.
        pictures: a PNG file to write five images to, from as many classes as there are.

    Raises:
        OnnxspectError: it cannot be read; says why.
    """
    stage("reading the samples")
    reader = open_reader(path, Asked(classes, training))
    labels = reader.labels
    looked_at = np.unique(np.linspace(0, len(labels) - 1, min(LOOKED_AT, len(labels))).astype(int))
    shown = _one_of_each(labels)
    sizes: Counter[str] = Counter()
    sheet: list[np.ndarray] = []
    rows = np.union1d(looked_at, shown)
    for row, image in zip(rows.tolist(), reader.images(rows.tolist()), strict=True):
        height, width, channels = image.shape
        depth = "" if image.dtype == np.uint8 else ", more than 8 bits"
        sizes[f"{width}x{height}, {'grey' if channels == 1 else 'colour'}{depth}"] += 1
        if row in shown:
            sheet.append(image)
    if pictures is not None:
        _write(sheet, Path(pictures))
    counts = np.bincount(labels, minlength=len(reader.names))
    return {
        "path": str(path),
        "form": reader.form,
        "images": len(labels),
        "sizes": dict(sizes.most_common()),
        "sizes_of": len(rows),
        "classes": [
            {"index": k, "name": printable(reader.names[k] if k < len(reader.names) else str(k)), "images": int(n)}
            for k, n in enumerate(counts.tolist())
        ],
        "order": "alphabetical" if reader.ordered else "as given",
        "shown": [{"row": int(r), "class": int(labels[r])} for r in shown],
        "pictures": None if pictures is None else str(pictures),
        "notes": list(reader.notes()),
    }


def _one_of_each(labels: np.ndarray) -> list[int]:
    """Rows of up to five images, of different classes where there are so many."""
    kinds, first = np.unique(labels, return_index=True)
    chosen = first[np.unique(np.linspace(0, len(kinds) - 1, min(PICTURES, len(kinds))).astype(int))].tolist()
    rest = [r for r in range(min(len(labels), 2 * PICTURES)) if r not in chosen]
    return sorted([*chosen, *rest[: max(0, min(PICTURES, len(labels)) - len(chosen))]])


def _write(images: list[np.ndarray], out: Path) -> None:
    """The images side by side, each scaled to a square."""
    tiles = []
    for image in images:
        colour = to_channels(image, 3)
        pixels = colour if colour.dtype == np.uint8 else np.round(np.clip(colour, 0, 1) * 255).astype(np.uint8)
        tiles.append(resampled(pixels, SIDE, SIDE))
    with whole(out) as part:
        Image.fromarray(np.concatenate(tiles, axis=1)).save(part.file, "PNG")
