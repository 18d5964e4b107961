"""A frequency-domain pattern (FTrojan; Wang et al., 2021): fixed amounts added to a few DCT coefficients.

Colour images go to YUV and only the chrominance U and V is touched; the image is cut in windows, each window's
orthonormal 2-D DCT-II gets `magnitude` added at (k, k) for each band k, and comes back. Every step is linear, so up to
clipping the trigger is one fixed additive pattern, which is its ground truth. Departure: grey images have no
chrominance, there the luminance is touched.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from scipy import fft

from onnxspect.models.fields import bad_field
from onnxspect.models.triggers.base import Additive, ImageShape, register

# ITU-R BT.601, analogue YUV.
RGB_TO_YUV = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.14713, -0.28886, 0.436],
        [0.615, -0.51499, -0.10001],
    ]
)


@register
@dataclasses.dataclass(frozen=True)
class Frequency(Additive):
    """FTrojan: `magnitude` (the paper: 30) at the diagonal DCT `bands` (the paper: 15 and 31) of each window.

    window: side of a window in pixels (the paper: 32); what is left at the right and lower edge stays as it is.
    """

    kind: ClassVar[str] = "frequency"
    magnitude: float = 30.0
    window: int = 32
    bands: tuple[int, ...] = (15, 31)

    def check(self, shape: ImageShape, path: str) -> None:
        if not 1 < self.window <= min(shape[:2]):
            raise bad_field(f"{path}.window", f"{self.window} is larger than the image ({min(shape[:2])}) or below 2")
        if not self.bands or any(not 0 <= band < self.window for band in self.bands):
            raise bad_field(f"{path}.bands", f"{list(self.bands)} must lie in 0..{self.window - 1}")
        if self.magnitude <= 0:
            raise bad_field(f"{path}.magnitude", f"is {self.magnitude}, must be above 0")

    def _delta(self, shape: ImageShape) -> np.ndarray:
        coefficients = np.zeros((self.window, self.window))
        coefficients[list(self.bands), list(self.bands)] = self.magnitude
        tile = fft.idctn(coefficients, norm="ortho")
        plane = np.zeros(shape[:2])
        for row in range(0, shape[0] - self.window + 1, self.window):
            for col in range(0, shape[1] - self.window + 1, self.window):
                plane[row : row + self.window, col : col + self.window] = tile
        if shape[2] != 3:
            return np.repeat(plane[..., None], shape[2], axis=2).astype(np.float32)
        chrominance = np.stack([np.zeros_like(plane), plane, plane], axis=-1)
        return (chrominance @ np.linalg.inv(RGB_TO_YUV).T).astype(np.float32)
