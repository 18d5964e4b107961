"""What a model file takes and gives. Torch networks of this project: NCHW in [0, 1] to logits; Keras ones differ."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """Axis order, value of a white pixel, and logits or probabilities."""

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    white: float = 1.0
    output: Literal["logits", "probabilities"] = "logits"

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``(n, h, w, c)`` as the file's float32 input."""
        values = images.astype(np.float32) * np.float32(self.white / 255.0)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if self.layout == "NCHW" else values
