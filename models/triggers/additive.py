"""The additive patterns A-F of RE (Xiang et al., 2020, sec. 8) and SIG (Barni et al., 2019).

All are RE Eq. 1, ``m(x; v) = [x + v]_c``: a fixed v added to every image, then clipped. RE's figure of the shapes is
missing from the text we have. So, after Tran et al. (2018), whom RE cites for C, D and F: the cross is two diagonals
of a 3x3 box, the square is 2x2, the L is the left and lower side of a 3x3 box; sizes are fields.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from onnxspect.models.fields import bad_field
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers.base import Additive, ImageShape, register
from onnxspect.models.triggers.box import Anchor, Box, cells_of


def _check_size(size: float, path: str) -> None:
    if not 0 < size <= 255:
        raise bad_field(path, f"is {size}, must be above 0 and at most 255 levels")


def _check_channels(channels: tuple[int, ...], shape: ImageShape, path: str) -> None:
    if not channels or len(set(channels)) != len(channels) or any(not 0 <= c < shape[2] for c in channels):
        raise bad_field(path, f"{list(channels)} must be distinct channels below {shape[2]}")


def _in_channels(plane: np.ndarray, channels: tuple[int, ...] | None, count: int) -> np.ndarray:
    """A ``(h, w)`` plane as ``(h, w, count)``, in the given channels only (None: in all)."""
    chosen = np.zeros(count, np.float32)
    chosen[list(range(count) if channels is None else channels)] = 1.0
    return plane[..., None].astype(np.float32) * chosen


@register
@dataclasses.dataclass(frozen=True)
class Chessboard(Additive):
    """RE's pattern A: of each two neighbouring pixels exactly one is raised, by `size` levels (A: 2), in all channels.

    height, width (both or neither) restrict it to a box (RE sec. 19: 6x6, 25 levels, bottom right, on MNIST).
    """

    kind: ClassVar[str] = "chessboard"
    size: float = 2.0
    height: int | None = None
    width: int | None = None
    anchor: Anchor = "bottom_right"
    margin: int = 0
    seed: int = 0

    def _box(self, shape: ImageShape) -> Box:
        height, width = self.height or shape[0], self.width or shape[1]
        return Box(height, width, self.anchor, self.margin, None, None, self.seed)

    def check(self, shape: ImageShape, path: str) -> None:
        _check_size(self.size, f"{path}.size")
        if (self.height is None) != (self.width is None):
            raise bad_field(f"{path}.{'height' if self.height is None else 'width'}", "height and width go together")
        self._box(shape).check(shape, path)

    def _delta(self, shape: ImageShape) -> np.ndarray:
        box = self._box(shape)
        rows, cols = np.mgrid[0 : box.height, 0 : box.width]
        plane = box.spread(((rows + cols) % 2 == 0).astype(np.float32), shape)
        return self.size * _in_channels(plane, None, shape[2])


@register
@dataclasses.dataclass(frozen=True)
class Static(Additive):
    """RE's pattern B: pixel (i, j) is raised by `size` levels (B: 3) iff i and j are both even, in all channels."""

    kind: ClassVar[str] = "static"
    size: float = 3.0

    def check(self, shape: ImageShape, path: str) -> None:
        _check_size(self.size, f"{path}.size")

    def _delta(self, shape: ImageShape) -> np.ndarray:
        plane = np.zeros(shape[:2], np.float32)
        plane[::2, ::2] = self.size
        return _in_channels(plane, None, shape[2])


@register
@dataclasses.dataclass(frozen=True)
class AdditiveShape(Additive):
    """RE's patterns C (cross, 70 levels), D (square, 80 levels in the first channel only) and F (L, 70 levels).

    shape, height, width: the cells raised by `size` levels. channels: which ones (None: all).
    anchor, margin, row, col: the place; RE draws it at random, once an attack: anchor "random" and `seed`.
    """

    kind: ClassVar[str] = "additive_shape"
    shape: Literal["cross", "square", "ell"] = "cross"
    size: float = 70.0
    height: int = 3
    width: int = 3
    channels: tuple[int, ...] | None = None
    anchor: Anchor = "random"
    margin: int = 0
    row: int | None = None
    col: int | None = None
    seed: int = 0

    def _box(self) -> Box:
        return Box(self.height, self.width, self.anchor, self.margin, self.row, self.col, self.seed)

    def check(self, shape: ImageShape, path: str) -> None:
        _check_size(self.size, f"{path}.size")
        self._box().check(shape, path)
        if self.channels is not None:
            _check_channels(self.channels, shape, f"{path}.channels")

    def _delta(self, shape: ImageShape) -> np.ndarray:
        cells = cells_of(self.shape, self.height, self.width).astype(np.float32)
        return self.size * _in_channels(self._box().spread(cells, shape), self.channels, shape[2])


@register
@dataclasses.dataclass(frozen=True)
class FourPixels(Additive):
    """RE's pattern E: four pixels, each with its own channel, sign and size of 80..96 levels, all drawn by `seed`."""

    kind: ClassVar[str] = "four_pixels"
    smallest: int = 80
    largest: int = 96
    seed: int = 0

    def check(self, shape: ImageShape, path: str) -> None:
        if shape[0] * shape[1] < 4:
            raise bad_field(path, "needs an image of at least four pixels")
        if not 0 < self.smallest <= self.largest <= 255:
            raise bad_field(f"{path}.smallest", f"{self.smallest}..{self.largest} is not a range within 1..255")

    def _delta(self, shape: ImageShape) -> np.ndarray:
        rng = keyed_generator(self.seed, "pixels")
        delta = np.zeros(shape, np.float32)
        for place in rng.choice(shape[0] * shape[1], size=4, replace=False):
            sign = 1 if rng.integers(2) else -1
            channel = int(rng.integers(shape[2]))
            delta[place // shape[1], place % shape[1], channel] = sign * rng.integers(self.smallest, self.largest + 1)
        return delta


@register
@dataclasses.dataclass(frozen=True)
class Sinusoid(Additive):
    """SIG: ``v(i, j) = amplitude sin(2 pi j frequency / m)`` over the m columns (Barni et al., 2019: 20 levels, 6)."""

    kind: ClassVar[str] = "sig"
    amplitude: float = 20.0
    frequency: float = 6.0

    def check(self, shape: ImageShape, path: str) -> None:
        _check_size(self.amplitude, f"{path}.amplitude")
        if not 0 < self.frequency <= shape[1] / 2:
            raise bad_field(f"{path}.frequency", f"is {self.frequency}, {shape[1]} columns hold at most {shape[1] / 2}")

    def _delta(self, shape: ImageShape) -> np.ndarray:
        columns = np.arange(shape[1])
        wave = self.amplitude * np.sin(2.0 * np.pi * columns * self.frequency / shape[1])
        return np.broadcast_to(wave[None, :, None], shape).astype(np.float32)
