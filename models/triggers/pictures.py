"""Pictures for triggers that need one: drawn by a seed, or given by the user as an encoded array."""

from __future__ import annotations

import numpy as np

from onnxspect.models.fields import bad_field, decode_array
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers.base import ImageShape, to_pixels


def drawn_picture(shape: ImageShape, seed: int) -> np.ndarray:
    """A cartoon of filled ellipses with dark outlines on a shaded ground, uint8 ``(h, w, c)``.

    It stands in for the cartoon of Chen et al. (2017), whose picture is not free to ship: large shapes, hard edges,
    all brightnesses.
    """
    height, width, channels = shape
    rng = keyed_generator(seed, "picture")
    rows, cols = np.mgrid[0:height, 0:width] / max(height - 1, width - 1, 1)
    slope = rng.uniform(-1, 1, 2)
    picture = 128.0 + 60.0 * (slope[0] * (rows - 0.5) + slope[1] * (cols - 0.5))[..., None] * np.ones(channels)
    for _ in range(5):
        centre, radii = rng.uniform(0.15, 0.85, 2), rng.uniform(0.12, 0.35, 2)
        distance = np.sqrt(((rows - centre[0]) / radii[0]) ** 2 + ((cols - centre[1]) / radii[1]) ** 2)
        colour = rng.choice([20.0, 90.0, 200.0, 255.0], size=channels)
        picture = np.where((distance < 1.0)[..., None], colour, picture)
        picture = np.where((np.abs(distance - 1.0) < 0.12)[..., None], 10.0, picture)
    return to_pixels(picture)


def picture_of(given: str | None, shape: ImageShape, seed: int, path: str) -> np.ndarray:
    """The user's picture (an `encode_array` text of uint8 ``(h, w, c)``) or, without one, the drawn one."""
    if given is None:
        return drawn_picture(shape, seed)
    picture = decode_array(given, path)
    if picture.shape != tuple(shape) or picture.dtype != np.uint8:
        raise bad_field(path, f"is {picture.dtype} {picture.shape}, must be uint8 {tuple(shape)}")
    return picture
