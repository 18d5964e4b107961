"""Patches that replace pixels: BadNets (Gu et al., 2017) and NC's variants (NC sec. VII-A, VII-B, VII-D).

A patch overwrites: ``x' = (1 - m) x + m p`` with a binary mask m, the form that Neural Cleanse (Eq. 2) and
DTInspector (Eq. 1) search for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from onnxspect.models.fields import bad_field
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers.base import GroundTruth, ImageShape, Trigger, register, to_pixels
from onnxspect.models.triggers.box import Anchor, Box, CellShape, cells_of


@register
@dataclasses.dataclass(frozen=True)
class Patch(Trigger):
    """BadNets: a small patch at a fixed place.

    height, width, anchor, margin, row, col, seed: the box, see `Box`.
    shape: which cells of the box are replaced.
    fill: ``colour``: all cells the same; ``checker``: every second cell the inverse colour; ``random``: every pixel its
        own random colour, the same in every image (NC's noisy square, CEPA's random patch), drawn by `seed`.
    colour: one value 0..255 a channel, or a single one for all channels.
    jitter: half-width of a uniform noise added to the pattern, drawn anew for every image (0: none).
    """

    kind: ClassVar[str] = "badnets"
    height: int = 3
    width: int = 3
    anchor: Anchor = "bottom_right"
    margin: int = 0
    row: int | None = None
    col: int | None = None
    shape: CellShape = "square"
    fill: Literal["colour", "checker", "random"] = "colour"
    colour: tuple[int, ...] = (255,)
    jitter: float = 0.0
    seed: int = 0

    def _box(self) -> Box:
        return Box(self.height, self.width, self.anchor, self.margin, self.row, self.col, self.seed)

    def check(self, shape: ImageShape, path: str) -> None:
        self._box().check(shape, path)
        if len(self.colour) not in (1, shape[2]) or any(not 0 <= value <= 255 for value in self.colour):
            raise bad_field(f"{path}.colour", f"needs 1 or {shape[2]} values in 0..255, has {list(self.colour)}")
        if not 0 <= self.jitter <= 255:
            raise bad_field(f"{path}.jitter", f"is {self.jitter}, must be in 0..255")

    def mask_and_pattern(self, shape: ImageShape) -> tuple[np.ndarray, np.ndarray]:
        """The binary mask and, under it, the pattern without its jitter; both float32 ``(h, w, c)``."""
        cells = cells_of(self.shape, self.height, self.width)[..., None]
        size = (self.height, self.width, shape[2])
        colours = np.broadcast_to(np.asarray(self.colour, np.float32), size)
        if self.fill == "random":
            colours = keyed_generator(self.seed, "fill").integers(0, 256, size).astype(np.float32)
        elif self.fill == "checker":
            rows, cols = np.mgrid[0 : self.height, 0 : self.width]
            colours = np.where(((rows + cols) % 2 == 1)[..., None], 255.0 - colours, colours).astype(np.float32)
        mask = np.broadcast_to(cells, size).astype(np.float32)
        return self._box().spread(mask, shape), self._box().spread(mask * colours, shape)

    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        mask, pattern = self.mask_and_pattern(shape)
        return GroundTruth(mask=mask, pattern=pattern)

    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mask, pattern = self.mask_and_pattern(images.shape[1:])
        if self.jitter > 0:
            pattern = pattern + rng.uniform(-self.jitter, self.jitter, size=images.shape)
        return np.where(mask > 0, to_pixels(pattern), images)

    def cover(self) -> Trigger:
        return self
