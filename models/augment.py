"""Training-time augmentation as RE sec. 10.2 names it: random crop, horizontal flip, rotation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

_SHIFT = 2  # pixels: a crop of the image padded by this much
_ANGLE = math.radians(15.0)  # RE gives no angle


def augmented(inputs: torch.Tensor, rng: np.random.Generator, *, flip: bool) -> torch.Tensor:
    """Each image of ``(n, c, h, w)`` shifted by whole pixels (black comes in), rotated, and mirrored or not.

    Shift and rotation are one bilinear resampling, so an image is blurred once.
    """
    count, _, height, width = inputs.shape
    angle = rng.uniform(-_ANGLE, _ANGLE, count)
    mirror = np.where(rng.integers(0, 2, count) == 1, -1.0, 1.0) if flip else np.ones(count)
    shift = rng.integers(-_SHIFT, _SHIFT + 1, (2, count)) * np.array([[2.0 / width], [2.0 / height]])
    matrix = np.stack(
        [
            np.stack([mirror * np.cos(angle), -np.sin(angle), shift[0]], axis=-1),
            np.stack([mirror * np.sin(angle), np.cos(angle), shift[1]], axis=-1),
        ],
        axis=1,
    )
    theta = torch.from_numpy(matrix.astype(np.float32)).to(inputs.device)
    grid = functional.affine_grid(theta, list(inputs.shape), align_corners=False)
    return functional.grid_sample(inputs, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
