"""WaNet (Nguyen and Tran, 2021): a smooth warp of the whole image, and its noise mode.

A k x k grid of random displacements (sec. 3.2: uniform in [-1, 1], divided by their mean absolute value, scaled by s)
is interpolated bicubically to the image and clipped to it; pixels are read there bilinearly. The noise mode adds, for
every image anew, uniform displacements in [-1, 1] to the field: such images keep their right label in training, so
that no warp but the true one turns the model. Displacements are counted, as in the authors' code, in units of one
image height within coordinates [-1, 1]: s = 0.5 moves a pixel by a quarter of a pixel on average.

Departure: the authors stamp anew in every batch, here the training set is poisoned once, before training.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from onnxspect.models.fields import bad_field
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers.base import GroundTruth, ImageShape, Trigger, register, to_pixels

_BATCH = 1000  # images warped at once, to bound memory


@register
@dataclasses.dataclass(frozen=True)
class Warp(Trigger):
    """grid: control points a side (the paper: 4). strength: s (the paper: 0.5). noise: the noise mode."""

    kind: ClassVar[str] = "wanet"
    grid: int = 4
    strength: float = 0.5
    noise: bool = False
    seed: int = 0

    def check(self, shape: ImageShape, path: str) -> None:
        if not 2 <= self.grid <= min(shape[:2]):
            raise bad_field(f"{path}.grid", f"is {self.grid}, must be in 2..{min(shape[:2])}")
        if self.strength <= 0:
            raise bad_field(f"{path}.strength", f"is {self.strength}, must be above 0")

    def field(self, shape: ImageShape) -> np.ndarray:
        """The displacement of every pixel, float32 ``(h, w, 2)`` (columns, rows), in coordinates [-1, 1]."""
        control = keyed_generator(self.seed, "warp").uniform(-1.0, 1.0, (1, 2, self.grid, self.grid))
        normed = torch.from_numpy((control / np.abs(control).mean()).astype(np.float32))
        smooth = functional.interpolate(normed, size=shape[:2], mode="bicubic", align_corners=True)
        return (self.strength / shape[0]) * smooth[0].permute(1, 2, 0).numpy()

    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        return GroundTruth()

    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = images.shape[1:3]
        cols, rows = np.meshgrid(np.linspace(-1.0, 1.0, width), np.linspace(-1.0, 1.0, height))
        places = (np.stack([cols, rows], axis=-1) + self.field(images.shape[1:])).astype(np.float32)
        return np.concatenate(
            [images[:0]]
            + [
                self._warp(images[start : start + _BATCH], places, height, rng)
                for start in range(0, len(images), _BATCH)
            ]
        )

    def _warp(self, images: np.ndarray, places: np.ndarray, height: int, rng: np.random.Generator) -> np.ndarray:
        field = np.repeat(places[None], len(images), axis=0)
        if self.noise:
            field = field + (rng.uniform(-1.0, 1.0, field.shape) / height).astype(np.float32)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
        grid = torch.from_numpy(np.clip(field, -1.0, 1.0))
        warped = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return to_pixels(warped.numpy().transpose(0, 2, 3, 1))

    def cover(self) -> Trigger:
        return dataclasses.replace(self, noise=True)
