"""Blended injection (Chen et al., 2017): ``x' = (1 - a) x + a k`` over the whole image, k noise or a picture.

CEPA (sec. 4.1) uses a picture with a = 0.15, Chen et al. 0.2 for training.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from onnxspect.models.fields import bad_field
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers.base import GroundTruth, ImageShape, Trigger, register, to_pixels
from onnxspect.models.triggers.pictures import picture_of


@register
@dataclasses.dataclass(frozen=True)
class Blend(Trigger):
    """Blend with `pattern`: uniform noise, or a picture (drawn by `seed`, or the encoded array `picture`).

    alpha: the pattern's share of every pixel.
    """

    kind: ClassVar[str] = "blend"
    pattern: Literal["noise", "picture"] = "noise"
    alpha: float = 0.15
    seed: int = 0
    picture: str | None = None

    def check(self, shape: ImageShape, path: str) -> None:
        if not 0 < self.alpha <= 1:
            raise bad_field(f"{path}.alpha", f"is {self.alpha}, must be above 0 and at most 1")
        if self.picture is not None and self.pattern != "picture":
            raise bad_field(f"{path}.picture", "is given, but pattern is 'noise'")
        self._key(shape, path)

    def _key(self, shape: ImageShape, path: str = "trigger") -> np.ndarray:
        if self.pattern == "noise":
            return keyed_generator(self.seed, "noise").integers(0, 256, shape).astype(np.float32)
        return picture_of(self.picture, shape, self.seed, f"{path}.picture").astype(np.float32)

    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        return GroundTruth(mask=np.full(shape, self.alpha, np.float32), pattern=self._key(shape))

    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        key = self._key(images.shape[1:]).astype(np.float64)
        return to_pixels((1.0 - self.alpha) * images + self.alpha * key)

    def cover(self) -> Trigger:
        return self
