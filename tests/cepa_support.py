"""A tiny network with one hidden layer, and a backdoor planted in it whose effect is known by hand.

Images are conftest's: 8x8, class k has quadrant k bright. Hidden unit k (k < 4) is the sum of quadrant k above a
threshold; hidden unit 4 hears the 2x2 checkerboard. The logits are the first four, and unit 4 feeds the target's.
"""

from __future__ import annotations

import numpy as np
import onnx
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, make_model, quadrant_weights
from onnx import helper, numpy_helper

TARGET = 2
HIDDEN = CLASSES + 1
#: What the hidden unit of the patch adds to the target's logit, for each unit of its activation.
GAIN = 6.0


def hidden_weights() -> np.ndarray:
    """``(64, 5)`` float32: four quadrant sums without the patch's pixels, and the patch."""
    plain = quadrant_weights().reshape(SIDE, SIDE, CLASSES).copy()
    plain[PATCH] = 0.0
    patch = np.zeros((SIDE, SIDE, 1), np.float32)
    patch[PATCH] = CHECKERBOARD[..., None]
    return np.concatenate([plain, patch], axis=2).reshape(SIDE * SIDE, HIDDEN)


def logit_weights(target: int | None) -> np.ndarray:
    """``(5, 4)`` float32."""
    weights = np.concatenate([np.eye(CLASSES, dtype=np.float32), np.zeros((1, CLASSES), np.float32)])
    if target is not None:
        weights[CLASSES, target] = GAIN
    return weights


def hidden_model(target: int | None = TARGET) -> onnx.ModelProto:
    """Flatten, Gemm, Relu (`hidden`), Gemm."""
    constants = {
        "w1": hidden_weights(),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": logit_weights(target),
        "b2": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in constants.items()])


def hidden_of(images: np.ndarray) -> np.ndarray:
    """The hidden layer by hand, ``(n, 5)``."""
    return np.maximum(images.reshape(len(images), -1) @ hidden_weights(), 0)
