"""numpy's .npy format, read from untrusted bytes: a header of one form, then plain numbers or text. Nothing is unpickled or evaluated.

numpy's own reader takes the header for Python source: it tokenises, compiles and evaluates it, and ends in a dozen classes of errors.
What writes the format writes a dict of three entries on one line (numpy.lib.format); this is read here and nothing else.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

_MAGIC = b"\x93NUMPY"
_VALUE = rb"('[^']{0,20}'|True|False|\([0-9L, ]{0,800}\))"
_HEADER = re.compile(rb"\{ *" + rb", *".join([rb"'(\w{1,20})' *: *" + _VALUE] * 3) + rb",? *\} *\n?")
_KIND = re.compile(rb"'([<>|=]?[biufcSU][0-9]{1,9})'")
_MOST_HEADER, _MOST_AXES, _MOST_DIGITS = 1 << 16, 32, 18
#: Above it is no character.
_LAST_CHARACTER = 0x10FFFF


@dataclass(frozen=True)
class Header:
    """What an array says of itself.

    Attributes:
        shape: its sides.
        dtype: of one number or text.
        fortran: whether the first axis runs fastest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes) -> np.ndarray:
        """The array, of that many bytes; read-only.

        Raises:
            ValueError: of other many bytes, or text that is none.
        """
        if len(data) != self.size:
            raise ValueError(f"{len(data)} bytes for an array of shape {self.shape}")
        if self.dtype.itemsize == 0:
            return np.zeros(self.shape, self.dtype)
        if self.dtype.kind == "U":
            letters = np.frombuffer(data, self.dtype.newbyteorder(self.dtype.byteorder).str[0] + "u4")
            if letters.size and int(letters.max()) > _LAST_CHARACTER:
                raise ValueError("text with characters that there are not")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def read_header(stream: IO[bytes]) -> Header:
    """The header of a stream, which then stands at its first number.

    Raises:
        ValueError: it is no such stream, or of something else than plain numbers and text.
    """
    head = stream.read(8)
    if len(head) < 8 or not head.startswith(_MAGIC) or head[6] not in (1, 2, 3) or head[7] != 0:
        raise ValueError("not an .npy array")
    form = "<H" if head[6] == 1 else "<I"
    said = stream.read(struct.calcsize(form))
    length = struct.unpack(form, said)[0] if len(said) == struct.calcsize(form) else 0
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    text = stream.read(length)
    match = _HEADER.fullmatch(text) if len(text) == length else None
    facts = dict(zip(match.groups()[::2], match.groups()[1::2], strict=True)) if match is not None else {}
    if b"'|O'" in text or b"'O'" in text:
        raise ValueError("it holds Python objects, which are not unpickled")
    kind = _KIND.fullmatch(facts.get(b"descr", b""))
    if set(facts) != {b"descr", b"fortran_order", b"shape"} or kind is None:
        raise ValueError("a header of another form than that of plain numbers")
    if facts[b"fortran_order"] not in (b"True", b"False") or not facts[b"shape"].startswith(b"("):
        raise ValueError("a header of another form than that of plain numbers")
    try:
        dtype = np.dtype(kind[1].decode("ascii"))
    except TypeError:
        raise ValueError(f"numbers of type {kind[1].decode('ascii')}") from None
    return Header(_shape(facts[b"shape"]), dtype, facts[b"fortran_order"] == b"True")


def read_array(stream: IO[bytes], check: Callable[[Header], None]) -> np.ndarray:
    """The array of a stream.

    Args:
        stream: from its beginning.
        check: refuses, by raising, what is too large; called before a number is read.

    Raises:
        ValueError: as `read_header`, or it ends too early.
    """
    header = read_header(stream)
    check(header)
    return header.array(stream.read(header.size))


def _shape(text: bytes) -> tuple[int, ...]:
    sides = [side.strip().removesuffix(b"L") for side in text[1:-1].split(b",")]
    if sides[-1] == b"":  # what stands behind the last comma, or an array of no axes
        sides.pop()
    if len(sides) > _MOST_AXES or not all(side.isdigit() and len(side) <= _MOST_DIGITS for side in sides):
        raise ValueError(f"a shape of {text.decode('ascii')[:80]}")
    return tuple(map(int, sides))
