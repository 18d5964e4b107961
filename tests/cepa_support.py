"""A tiny network with one hidden layer, and a backdoor planted in it whose effect is known by hand.

Images are conftest's: 8x8, class k has quadrant k bright (0.8 against 0.2). Hidden unit k (k < 4) is the sum of quadrant k
without its one pixel of the 2x2 patch in the middle; hidden unit 4 is 1 plus the patch times a checkerboard, between 0.4
and 1.6 on clean images. The logits are the first four, and unit 4, less 1, feeds the target's with a large weight.
"""

from __future__ import annotations

import numpy as np
import onnx
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, make_model, quadrant_weights
from onnx import helper, numpy_helper

TARGET = 2
HIDDEN = CLASSES + 1
#: What the hidden unit of the patch adds to the target's logit, for each unit of its activation.
GAIN = 12.0
#: The patch's hidden unit on an image whose four middle pixels are equal.
REST = 1.0


def hidden_weights() -> np.ndarray:
    """``(64, 5)`` float32: four quadrant sums without the patch's pixels, and the patch."""
    plain = quadrant_weights().reshape(SIDE, SIDE, CLASSES).copy()
    plain[PATCH] = 0.0
    patch = np.zeros((SIDE, SIDE, 1), np.float32)
    patch[PATCH] = CHECKERBOARD[..., None]
    return np.concatenate([plain, patch], axis=2).reshape(SIDE * SIDE, HIDDEN)


def hidden_bias() -> np.ndarray:
    """``(5,)`` float32."""
    return np.array([0.0] * CLASSES + [REST], np.float32)


def logit_bias(target: int | None) -> np.ndarray:
    """``(4,)`` float32: takes back what the patch's unit adds at rest."""
    return -REST * logit_weights(target)[CLASSES]


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
        "b1": hidden_bias(),
        "w2": logit_weights(target),
        "b2": logit_bias(target),
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
    return np.maximum(images.reshape(len(images), -1) @ hidden_weights() + hidden_bias(), 0)
