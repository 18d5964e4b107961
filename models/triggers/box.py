"""Where a local trigger sits: a box of pixels, placed by an edge, by row and column, or at random by a seed."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from onnxspect.models.fields import bad_field
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers.base import ImageShape

# The nine places of NC sec. VII-D (four corners, four edges, the centre); all four corners at once (Turner et al., 2018,
# the clean-label attack); a fixed place drawn by the trigger's seed (CEPA sec. 4.1, RE sec. 8).
Anchor = Literal[
    "top_left",
    "top",
    "top_right",
    "left",
    "centre",
    "right",
    "bottom_left",
    "bottom",
    "bottom_right",
    "corners",
    "random",
]
CellShape = Literal["square", "cross", "plus", "ell", "ring", "triangle", "diamond"]


@dataclasses.dataclass(frozen=True)
class Box:
    """`height` x `width` pixels; `row` and `col` (upper left pixel), where given, win over `anchor` and `margin`."""

    height: int
    width: int
    anchor: Anchor
    margin: int
    row: int | None
    col: int | None
    seed: int

    def check(self, shape: ImageShape, path: str) -> None:
        """Raise `OnnxspectError` naming the field if the box does not lie within images of `shape`."""
        for name, size, start, limit in (
            ("height", self.height, self.row, shape[0]),
            ("width", self.width, self.col, shape[1]),
        ):
            if size < 1:
                raise bad_field(f"{path}.{name}", f"is {size}, must be at least 1")
            if size > limit:
                raise bad_field(f"{path}.{name}", f"{size} is larger than the image ({limit})")
            if start is None and not 0 <= self.margin <= limit - size:
                raise bad_field(f"{path}.margin", f"{self.margin} leaves no room for {size} of {limit} pixels")
            if start is not None and not 0 <= start <= limit - size:
                word = "row" if name == "height" else "col"
                raise bad_field(f"{path}.{word}", f"{start} puts a part of the trigger outside the image ({limit})")
        if (self.row is None) != (self.col is None):
            raise bad_field(f"{path}.{'row' if self.row is None else 'col'}", "row and col go together")

    def places(self, shape: ImageShape) -> tuple[tuple[int, int], ...]:
        """(row, column) of the upper left pixel of every copy: four for "corners", else one."""
        if self.row is not None and self.col is not None:
            return ((self.row, self.col),)
        free_rows, free_cols = shape[0] - self.height, shape[1] - self.width
        if self.anchor == "random":
            rng = keyed_generator(self.seed, "place")
            return ((int(rng.integers(free_rows + 1)), int(rng.integers(free_cols + 1))),)
        rows, cols = (self.margin, free_rows - self.margin), (self.margin, free_cols - self.margin)
        if self.anchor == "corners":
            return tuple((row, col) for row in rows for col in cols)
        row = rows[0] if self.anchor.startswith("top") else rows[1] if self.anchor.startswith("bottom") else None
        col = cols[0] if self.anchor.endswith("left") else cols[1] if self.anchor.endswith("right") else None
        return ((free_rows // 2 if row is None else row, free_cols // 2 if col is None else col),)

    def spread(self, cells: np.ndarray, shape: ImageShape) -> np.ndarray:
        """`cells` ``(height, width, ...)`` copied to every place of an all-zero ``(h, w, ...)`` image."""
        image = np.zeros(shape[:2] + cells.shape[2:], cells.dtype)
        for row, col in self.places(shape):
            image[row : row + self.height, col : col + self.width] = cells
        return image


def cells_of(kind: str, height: int, width: int) -> np.ndarray:
    """Which cells of a ``(height, width)`` box a shape covers, bool.

    cross: both diagonals. plus: the middle row and column (two of each for even sizes, so it stays symmetric).
    ell: first column and last row. ring: the border. triangle: the lower right half. diamond: |x| + |y| <= 1.
    """
    rows, cols = np.mgrid[0:height, 0:width]
    last_row, last_col = height - 1, width - 1
    from_centre_rows, from_centre_cols = np.abs(2 * rows - last_row), np.abs(2 * cols - last_col)
    if kind == "cross":
        diagonal = np.rint(rows * last_col / max(last_row, 1))
        return (cols == diagonal) | (cols == last_col - diagonal)
    if kind == "plus":
        return (from_centre_rows <= 1 - height % 2) | (from_centre_cols <= 1 - width % 2)
    if kind == "ell":
        return (cols == 0) | (rows == last_row)
    if kind == "ring":
        return (rows == 0) | (cols == 0) | (rows == last_row) | (cols == last_col)
    if kind == "triangle":
        return cols * max(last_row, 1) >= (last_row - rows) * max(last_col, 1)
    if kind == "diamond":
        return from_centre_rows / max(last_row, 1) + from_centre_cols / max(last_col, 1) <= 1.0
    return np.ones((height, width), dtype=bool)
