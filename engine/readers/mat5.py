"""MATLAB's files of level 5 (what ``save -v6`` and ``-v7`` write): their arrays of real numbers, and nothing else.

Read here and not by scipy, whose reader is native code that trusts a file's tags and can be led to crash. A file is a header of 128
bytes and elements; an element is a tag (type, bytes) and its content, padded to 8 bytes; one of four bytes or less may stand in the tag
itself. A matrix is an element of elements: flags, dimensions, name, numbers; it may be packed by zlib. (The MathWorks, "MAT-File
Format", chapter 1.)
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from onnxspect.engine.readers.limits import limits

_PACKED, _MATRIX = 15, 14
#: How numbers are stored, by the type in a tag; and what they are to MATLAB, by class.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
#: Flags, dimensions and name of a matrix, in bytes at most.
_FACTS = 4096
_MOST_AXES, _MOST_ELEMENTS = 32, 100_000


@dataclass(frozen=True)
class _Matrix:
    """The facts of one matrix, and where its numbers begin in its content; `number` is "" for what is no array of real numbers."""

    name: str
    shape: tuple[int, ...]
    number: str
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices in a file, by name; nothing but their facts is unpacked.

    Raises:
        ValueError, OSError, zlib.error: it is no such file, or damaged.
    """
    with path.open("rb") as file:
        order = _order(file)
        return {m.name: m.shape for _, m in _matrices(file, order)}


def arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of those names, of MATLAB's type, in its shape.

    Raises:
        ValueError, OSError, zlib.error: as `shapes`; or one is no array of real numbers.
        OnnxspectError: one is larger than the limit.
    """
    found: dict[str, np.ndarray] = {}
    with path.open("rb") as file:
        order = _order(file)
        for content, matrix in _matrices(file, order):
            if matrix.name not in names:
                continue
            if not matrix.number:
                raise ValueError(f"{matrix.name} is no array of real numbers")
            # As it is stored, and as it is given back: at most 8 bytes a number each.
            limits().check_bytes(16 * matrix.count, str(path), f"{matrix.name} of shape {matrix.shape}")
            data = content.read(matrix.start + 8 * matrix.count + 16)
            found[matrix.name] = _numbers(data, matrix, order)
    return found


class _Content:
    """The content of a matrix, from its beginning, packed or not."""

    def __init__(self, file: IO[bytes], size: int, packed: bool) -> None:
        self._file, self._at, self._size, self._packed = file, file.tell(), size, packed

    def read(self, most: int) -> bytes:
        """As many bytes of it as there are, at most `most`."""
        self._file.seek(self._at)
        if not self._packed:
            return self._file.read(min(self._size, most))
        unpacked, left = zlib.decompressobj(), self._size
        parts, wanted = [], most + 8  # the matrix's own tag stands in front
        while wanted > 0 and left > 0 and not unpacked.eof:
            piece = self._file.read(min(left, 1 << 20))
            if not piece:
                break
            left -= len(piece)
            parts.append(unpacked.decompress(piece, wanted))
            wanted -= len(parts[-1])
        data = b"".join(parts)
        return data[8:]


def _order(file: IO[bytes]) -> str:
    head = file.read(128)
    if len(head) < 128 or head[126:] not in (b"IM", b"MI"):
        raise ValueError("not a MAT file of level 5")
    return "<" if head[126:] == b"IM" else ">"


def _matrices(file: IO[bytes], order: str) -> Iterator[tuple[_Content, _Matrix]]:
    for _ in range(_MOST_ELEMENTS):
        tag = file.read(8)
        if not tag:
            return
        if len(tag) < 8:
            raise ValueError("ends inside a tag")
        kind, size = struct.unpack(f"{order}II", tag)
        content, after = _Content(file, size, kind == _PACKED), file.tell() + size
        if kind in (_PACKED, _MATRIX):
            matrix = _facts(content.read(_FACTS), order)
            if matrix is not None:
                yield content, matrix
        file.seek(after)
    raise ValueError("more matrices than any data set has")


def _facts(data: bytes, order: str) -> _Matrix | None:
    """None for what has no facts of a matrix (a part that MATLAB keeps for itself)."""
    if len(data) < 16:
        return None
    kind, flags, at = _element(data, 0, order)
    if kind != 6 or len(flags) != 8:
        return None
    bits = struct.unpack(f"{order}I", flags[:4])[0]
    kind, sides, at = _element(data, at, order)
    if kind != 5 or len(sides) % 4 or not 8 <= len(sides) <= 4 * _MOST_AXES:
        raise ValueError("a matrix without dimensions")
    shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
    if min(shape) < 0:
        raise ValueError(f"a matrix of shape {shape}")
    _, name, at = _element(data, at, order)
    number = "" if bits & _COMPLEX else _CLASSES.get(bits & 0xFF, "")
    return _Matrix(name.decode("latin-1"), shape, number, at)


def _numbers(data: bytes, matrix: _Matrix, order: str) -> np.ndarray:
    kind, stored, _ = _element(data, matrix.start, order)
    if kind not in _STORED:
        raise ValueError(f"{matrix.name} is stored in a way that no array is")
    values = (
        np.frombuffer(stored, np.dtype(order + _STORED[kind])) if len(stored) % int(_STORED[kind][1]) == 0 else None
    )
    if values is None or len(values) != matrix.count:
        raise ValueError(f"{matrix.name} of shape {matrix.shape} has {len(stored)} bytes")
    return values.astype(matrix.number).reshape(matrix.shape, order="F")


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """(type, content, where the next one begins) of the element at a place.

    Raises:
        ValueError: it does not end within the data.
    """
    if at + 8 > len(data):
        raise ValueError("ends inside a matrix")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # a small one: its size stands in the upper half, its content in the tag
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError("a small element of more than 4 bytes")
        return kind, data[at + 4 : at + 4 + size], at + 8
    if at + 8 + size > len(data):
        raise ValueError("ends inside a matrix")
    return kind, data[at + 8 : at + 8 + size], at + 8 + size + (-size) % 8
