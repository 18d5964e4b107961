"""A MATLAB file (.mat, version 5 to 7.2) with images and labels: names and shapes are read first, then the two variables."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers import mat5
from onnxspect.engine.readers.arrays import BATCH, ArrayReader, array_reader
from onnxspect.engine.readers.file_bytes import digest_of
from onnxspect.engine.readers.labels import listed
from onnxspect.engine.readers.reader import Asked

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_file(path: Path, asked: Asked) -> ArrayReader | None:
    """A .mat file; None for another."""
    if path.suffix.lower() != ".mat":
        return None
    with path.open("rb") as file:
        head = file.read(520)
    if _HDF5 in (head[:8], head[512:520]):
        raise OnnxspectError(f"{path}: saved with -v7.3, which is HDF5 and is not read", "save it with -v7, or as npz")
    try:
        inside = mat5.shapes(path)
        pair = next(((x, y) for x, y in asked.keys if x in inside and y in inside), None)
        if pair is None:
            raise OnnxspectError(
                f"{path}: no `images` and `labels` in it (found {listed(sorted(inside)) or 'nothing'})",
                f"save them under such a pair of names: {', '.join(f'{x}/{y}' for x, y in asked.keys[:4])}",
            )
        found = mat5.arrays(path, pair)
        images, labels = found[pair[0]], found[pair[1]]
    except (ValueError, OSError, zlib.error, struct.error) as error:
        line = printable((str(error).splitlines() or [type(error).__name__])[0], 120)
        raise caused_by(error, f"{path}: not a readable .mat file ({line})", "save it with -v7, or as npz") from error
    if labels.ndim == 2 and 1 in labels.shape:  # MATLAB has no vectors
        labels = labels.reshape(-1)
    said = []
    if images.ndim in (3, 4) and images.shape[0] != len(labels) and images.shape[-1] == len(labels):
        images = np.moveaxis(images, -1, 0)  # MATLAB counts images along the last axis
        said.append("images lie along the last axis, as MATLAB keeps them")
    stored = images

    def batches() -> Iterator[np.ndarray]:
        return (stored[i : i + BATCH] for i in range(0, len(stored), BATCH))

    count = len(stored) if stored.ndim else 0
    return array_reader("a MATLAB file", path, count, labels, (), asked.classes, batches, lambda: digest_of(path), said)
