"""Seeded images on which a framework's model and its ONNX file are compared."""

from __future__ import annotations

import numpy as np


def test_image(shape: tuple[int, ...], layout: str, rng: np.random.Generator) -> np.ndarray:
    """A seeded image of `shape` in [0, 1]: coarse blocks and fine noise, of random contrast.

    To a trained network, images of noise alone are all one class; blocks of random size and colour tell them apart.
    """
    noise = rng.random(shape, dtype=np.float32)
    if layout not in ("NCHW", "NHWC"):
        return noise * rng.random(dtype=np.float32)
    height, width, channels = (shape[1], shape[2], shape[0]) if layout == "NCHW" else shape
    cells = int(rng.integers(2, 7))
    grid = rng.random((cells, cells, channels), dtype=np.float32) > 0.5
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    blocks = grid[rows][:, columns].astype(np.float32)
    blocks = blocks if layout == "NHWC" else blocks.transpose(2, 0, 1)
    share = 0.3 * rng.random(dtype=np.float32)
    return np.asarray((1 - share) * blocks + share * noise, np.float32)
