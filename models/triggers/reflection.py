"""Reflection overlay (Refool; Liu et al., 2020): ``x' = [x + R (*) k]_c``, the reflection R of some scene in a pane.

Three kinds k of reflection, as in that paper's sec. 3: the reflected scene in focus with the image, out of focus
(a Gaussian blur), or ghosted (a thick pane reflects twice, shifted and weaker). Departures: the paper searches a
picture collection for the reflections that work best, here it is one picture, drawn by a seed or given by the user; and
the picture's own mean is taken off, so that the overlay does not merely brighten the image.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from scipy import ndimage

from onnxspect.models.fields import bad_field
from onnxspect.models.triggers.base import Additive, ImageShape, register
from onnxspect.models.triggers.pictures import picture_of


@register
@dataclasses.dataclass(frozen=True)
class Reflection(Additive):
    """strength: weight of the reflection. blur: standard deviation in pixels (out of focus). shift: rows and columns
    between the two copies, and the second one's weight is `ghost_weight` of the first's (ghost).
    """

    kind: ClassVar[str] = "reflection"
    style: Literal["focus", "blur", "ghost"] = "ghost"
    strength: float = 0.3
    blur: float = 1.5
    shift: int = 3
    ghost_weight: float = 0.6
    seed: int = 0
    picture: str | None = None

    def check(self, shape: ImageShape, path: str) -> None:
        if not 0 < self.strength <= 1:
            raise bad_field(f"{path}.strength", f"is {self.strength}, must be above 0 and at most 1")
        if self.style == "blur" and self.blur <= 0:
            raise bad_field(f"{path}.blur", f"is {self.blur}, must be above 0")
        if self.style == "ghost" and not 0 < self.shift < min(shape[:2]):
            raise bad_field(f"{path}.shift", f"is {self.shift}, must be in 1..{min(shape[:2]) - 1}")
        if not 0 < self.ghost_weight <= 1:
            raise bad_field(f"{path}.ghost_weight", f"is {self.ghost_weight}, must be above 0 and at most 1")
        picture_of(self.picture, shape, self.seed, f"{path}.picture")

    def _delta(self, shape: ImageShape) -> np.ndarray:
        scene = picture_of(self.picture, shape, self.seed, "trigger.picture").astype(np.float64)
        scene = scene - scene.mean()
        if self.style == "blur":
            scene = ndimage.gaussian_filter(scene, sigma=(self.blur, self.blur, 0.0), mode="nearest")
        elif self.style == "ghost":
            second = ndimage.shift(scene, (self.shift, self.shift, 0), order=0, mode="constant", cval=0.0)
            scene = (scene + self.ghost_weight * second) / (1.0 + self.ghost_weight)
        return (self.strength * scene).astype(np.float32)
