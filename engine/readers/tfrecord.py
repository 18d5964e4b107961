"""TFRecord files of tf.train.Example, as TensorFlow Datasets and training scripts write them; TensorFlow is not needed.

A record is a length (8 bytes), its checksum (4), the data, their checksum (4); the data are a protocol buffer with a map of
named lists of bytes, floats or whole numbers. Checksums are not compared: a damaged record does not parse, or its picture does not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, cast

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.encoded import EncodedPictures, columns_of
from onnxspect.engine.readers.labels import of_numbers
from onnxspect.engine.readers.limits import limits, unpacked
from onnxspect.engine.readers.listing import TEST_PARTS, TRAIN_PARTS
from onnxspect.engine.readers.manifest import labelled_column
from onnxspect.engine.readers.reader import Asked

IMAGE_FEATURES = ("image/encoded", "image", "image_raw", "img", "encoded")
LABEL_FEATURES = ("image/class/label", "label", "labels", "class", "image/class/text", "target")
#: Bytes of one record at most.
_RECORD = 512 * 2**20
_ERRORS = (OSError, EOFError, zlib.error, struct.error, ValueError, IndexError)


def open_folder(path: Path, asked: Asked) -> Records | None:
    """A folder with such files; None for another."""
    files = sorted(p for p in path.iterdir() if _is_record(p) and p.is_file())
    if not files:
        return None
    order = TRAIN_PARTS if asked.training else TEST_PARTS
    parts = {name: [f for f in files if name in _words(f)] for name in order}
    part = next((name for name in order if parts[name]), None)
    chosen = parts[part] if part is not None else files
    said = [f"the set is in parts: only {part!r} was read"] if part is not None and len(chosen) < len(files) else []
    return _open(path, chosen, asked, said)


def open_file(path: Path, asked: Asked) -> Records | None:
    """A file whose name says TFRecord; None for another."""
    return _open(path, [path], asked, []) if _is_record(path) else None


def _is_record(path: Path) -> bool:
    return "tfrecord" in path.name.lower()


def _words(path: Path) -> list[str]:
    return path.name.lower().replace(".", "-").replace("_", "-").split("-")


class Records(EncodedPictures):
    """A reader of records; `column` is the feature of the images."""

    item: ClassVar[str] = "record"

    def stored(self) -> Iterator[bytes]:
        """The records."""
        return (record for path in self.paths for record in _records(path))

    def encoded(self, stored: object, where: str) -> bytes:
        """The one picture of a record."""
        values = _example(cast(bytes, stored), where).get(self.column, [])
        if len(values) != 1 or not isinstance(values[0], bytes):
            raise OnnxspectError(
                f"{where}: {self.column} is not one encoded picture",
                "save the images as PNG or JPEG in one bytes feature",
            )
        return values[0]


def _open(root: Path, paths: Sequence[Path], asked: Asked, said: Sequence[str]) -> Records:
    values: list[object] = []
    image = label = ""
    for number, record in enumerate(r for p in paths for r in _records(p)):
        limits().check_files(number, str(root))
        example = _example(record, f"{root}: record {number}")
        if number == 0:
            image, label = columns_of(sorted(example), IMAGE_FEATURES, LABEL_FEATURES, str(root))
        found = example.get(label, [])
        if len(found) != 1:
            raise OnnxspectError(
                f"{root}: record {number} has {len(found)} labels, not one",
                "one whole number, or one text, as the label of a record",
            )
        values.append(found[0].decode("utf-8", "replace") if isinstance(found[0], bytes) else found[0])
    if not values:
        raise OnnxspectError(f"{root}: no records in it", "the set is empty: give another part of it")
    names = _names(paths[0].parent / f"{label}.labels.txt")
    whole = [v for v in values if isinstance(v, int)]
    if names and len(whole) == len(values):
        labelled = of_numbers(np.array(whole, np.int64), names, asked.classes, str(root))
    else:
        labelled = labelled_column(values, asked, str(root))
    return Records(
        "TFRecord",
        str(root),
        labelled.labels,
        labelled.names,
        tuple(paths),
        image,
        (*said, *labelled.notes),
        labelled.ordered,
    )


def _names(path: Path) -> tuple[str, ...]:
    """The class names that TensorFlow Datasets keeps beside the records."""
    try:
        return tuple(path.read_text(encoding="utf-8").split()) if path.is_file() and path.stat().st_size < 2**24 else ()
    except (OSError, ValueError):
        return ()


def _records(path: Path) -> Iterator[bytes]:
    try:
        with unpacked(path) as file:
            while head := file.read(12):
                (length,) = struct.unpack("<Q", head[:8])
                if len(head) < 12 or length > _RECORD:
                    raise ValueError(f"a record of {length:,} bytes")
                data = file.read(length + 4)
                if len(data) != length + 4:
                    raise EOFError("ends inside a record")
                yield data[:length]
    except _ERRORS as error:
        raise caused_by(
            error, f"{path}: not a readable TFRecord file ({printable(str(error), 80)})", "copy or fetch it again"
        ) from error


def _example(data: bytes, where: str) -> dict[str, list[bytes | int | float]]:
    """The features of a tf.train.Example by name."""
    try:
        found: dict[str, list[bytes | int | float]] = {}
        for features in _fields(data, 1):
            for entry in _fields(features, 1):
                name = b"".join(_fields(entry, 1)).decode("utf-8", "replace")
                found[name] = [v for feature in _fields(entry, 2) for v in _values(feature)]
        return found
    except (ValueError, IndexError, struct.error) as error:
        raise OnnxspectError(
            f"{where}: not a tf.train.Example ({printable(str(error), 60)})",
            "records of tf.train.Example are read: write the set so, or as npz",
        ) from error


def _values(feature: bytes) -> Iterator[bytes | int | float]:
    for values in _fields(feature, 1):
        yield from _fields(values, 1)
    for values in _fields(feature, 2):
        for packed in _fields(values, 1):
            yield from struct.unpack(f"<{len(packed) // 4}f", packed)
    for values in _fields(feature, 3):
        for kind, value in _wire(values):
            if kind == 0:
                yield _signed(int.from_bytes(value, "little"))
            else:
                position = 0
                while position < len(value):
                    number, position = _varint(value, position)
                    yield _signed(number)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _fields(data: bytes, wanted: int) -> list[bytes]:
    """The length-delimited (or fixed) contents of one field."""
    return [value for number, (kind, value) in _numbered(data) if number == wanted and kind in (2, 5)]


def _wire(data: bytes) -> list[tuple[int, bytes]]:
    return [found for number, found in _numbered(data) if number == 1]


def _numbered(data: bytes) -> Iterator[tuple[int, tuple[int, bytes]]]:
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, (0, value.to_bytes(8, "little"))
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(data):
            raise ValueError("ends inside a field")
        yield key >> 3, (kind, data[position : position + length])
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number & (2**64 - 1), position
        if shift > 63:
            raise ValueError("a number of more than 10 bytes")
