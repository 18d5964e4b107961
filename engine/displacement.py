"""A displacement of pixels: what a warp does to any image, for numpy and for torch.

``x'(r, c) = x(r + d_0(r, c), c + d_1(r, c))``, linear between the four pixels around the place that is pointed to; beyond an edge the edge
goes on. It is the W of WaNet (Nguyen and Tran, 2021, sec. 3.2). The result is a mean of pixels with weights that sum to one: no clipping is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a report that is shown again needs no torch, which takes seconds to load
    from torch import Tensor


def moved_by(field: np.ndarray) -> float:
    """How far a field ``(2, height, width)`` moves a pixel: the root mean square, in pixels."""
    return float(np.sqrt(np.square(field).sum(0).mean()))


def displaced(images: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Images ``(..., height, width)`` with every pixel taken from where the field points.

    Args:
        images: float.
        field: in pixels ``(2, height, width)``, down and to the right.
    """
    height, width = field.shape[1:]
    row = np.clip(np.arange(height, dtype=np.float32)[:, None] + field[0], 0, height - 1)
    column = np.clip(np.arange(width, dtype=np.float32)[None] + field[1], 0, width - 1)
    down, across = row - np.floor(row), column - np.floor(column)
    top, left = row.astype(np.int64), column.astype(np.int64)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    upper = images[..., top, left] * (1 - across) + images[..., top, right] * across
    lower = images[..., bottom, left] * (1 - across) + images[..., bottom, right] * across
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def displaced_each(images: Tensor, field: Tensor) -> Tensor:
    """The same for several fields, each on images of its own; differentiable in the field, and in the images.

    The gradient of the field needs no scattered sums, so that it is the same bits on any device.

    Args:
        images: ``(unit, n, channels, height, width)``, or one unit's for all.
        field: in pixels ``(unit, 2, height, width)``.
    """
    import torch

    units, _, height, width = field.shape
    images = images.expand(units, *images.shape[1:])
    rows = torch.arange(height, dtype=field.dtype, device=field.device)[:, None]
    columns = torch.arange(width, dtype=field.dtype, device=field.device)[None]
    row, column = (rows + field[:, 0]).clamp(0, height - 1), (columns + field[:, 1]).clamp(0, width - 1)
    top, left = row.detach().floor(), column.detach().floor()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = (row - top)[:, None, None], (column - left)[:, None, None]
    flat = images.flatten(3)

    def at(y: Tensor, x: Tensor) -> Tensor:
        place = (y * width + x).long().view(units, 1, 1, -1).expand(flat.shape)
        return flat.gather(3, place).view(images.shape)

    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return upper * (1 - down) + lower * down
