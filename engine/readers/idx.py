"""MNIST's own files (IDX), plain or gzipped, as torchvision and Keras keep them: images and labels in a pair of files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.arrays import BATCH, ArrayReader, array_reader
from onnxspect.engine.readers.file_bytes import digest_of, exactly
from onnxspect.engine.readers.limits import limits, unpacked
from onnxspect.engine.readers.neighbours import inside
from onnxspect.engine.readers.reader import Asked

#: Beginnings of the file names of each part (EMNIST's carry its name in front), by what is asked for.
_PARTS = {False: ("t10k", "test", "train"), True: ("train", "t10k", "test")}
_BYTES = 0x08
_ERRORS = (OSError, EOFError, zlib.error, struct.error, ValueError)


def open_folder(path: Path, asked: Asked) -> ArrayReader | None:
    """A folder with such files in it, or in its `raw` or `MNIST/raw`; None where there are none."""
    for place in (path, path / "raw", path / "MNIST" / "raw", path / "FashionMNIST" / "raw"):
        files = [p for p in _listdir(place) if "idx3" in p.name and "images" in p.name]
        for part in _PARTS[asked.training]:
            images = next((p for p in files if part in p.name), None)
            if images is not None:
                said = [f"the set is in parts: only {images.name} was read"] if len(files) > 1 else []
                return _open(images, asked, said)
    return None


def open_file(path: Path, asked: Asked) -> ArrayReader | None:
    """A file of images in that format, its labels beside it; None for another file."""
    return _open(path, asked, []) if "idx3" in path.name and "images" in path.name else None


def _listdir(place: Path) -> list[Path]:
    try:
        return [p for p in inside(place) if p.is_file()]
    except OSError:
        return []


def _open(images: Path, asked: Asked, said: list[str]) -> ArrayReader:
    stem = images.name.replace("images", "labels").replace("idx3", "idx1")
    choices = [images.with_name(n) for n in (stem, stem.removesuffix(".gz"), f"{stem}.gz")]
    labels = next((p for p in choices if p.is_file()), None)
    if labels is None:
        raise OnnxspectError(f"{images}: its labels are not beside it", f"expected {stem}")
    try:
        with unpacked(images) as file:
            shape = _header(file, images, 3)
        with unpacked(labels) as file:
            (count,) = _header(file, labels, 1)
            limits().check_bytes(8 * count, str(labels), f"{count} labels")
            values = np.frombuffer(_exactly(file, count, labels), np.uint8)
    except _ERRORS as error:
        raise caused_by(
            error, f"{images}: not a readable IDX file ({str(error)[:80]})", "copy or fetch it again"
        ) from error
    limits().check_image(shape[2], shape[1], str(images))

    def batches() -> Iterator[np.ndarray]:
        try:
            with unpacked(images) as file:
                _header(file, images, 3)
                for start in range(0, shape[0], BATCH):
                    n = min(BATCH, shape[0] - start)
                    yield np.frombuffer(_exactly(file, n * shape[1] * shape[2], images), np.uint8).reshape(
                        n, *shape[1:]
                    )
        except _ERRORS as error:
            raise caused_by(
                error, f"{images}: not a readable IDX file ({str(error)[:80]})", "copy or fetch it again"
            ) from error

    return array_reader(
        "IDX files", images, shape[0], values, (), asked.classes, batches, lambda: digest_of(images), said
    )


def _header(file: IO[bytes], path: Path, axes: int) -> tuple[int, ...]:
    zero, kind, found = struct.unpack(">HBB", _exactly(file, 4, path))
    if zero != 0 or kind != _BYTES or found != axes:
        raise OnnxspectError(
            f"{path}: not an IDX file of {axes} axes of bytes",
            "MNIST's own files are meant, with images and labels side by side: fetch them again",
        )
    return struct.unpack(f">{axes}I", _exactly(file, 4 * axes, path))


def _exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    return exactly(file, count, f"{path}: ends before its last number")
