"""A network with a backdoor that saturates, and a training set poisoned with its trigger: what cleansing is tried on."""

from __future__ import annotations

import numpy as np
import onnx
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, make_model, quadrant_images, quadrant_weights

from onnxspect.engine.subject.samples import Samples

TARGET = 2


def listening_model() -> onnx.ModelProto:
    """The tiny classifier with a hidden unit that fires on the trigger alone, and raises TARGET.

    Unlike a weight planted in a linear classifier it saturates, as a real backdoor does: taking the trigger off an image
    that never had it changes little.
    """
    first = np.zeros((SIDE, SIDE, CLASSES + 1), np.float32)
    first[..., :CLASSES] = quadrant_weights().reshape(SIDE, SIDE, CLASSES)
    first[PATCH] = 0.0
    first[(*PATCH, CLASSES)] = 8 * CHECKERBOARD
    second = np.zeros((CLASSES + 1, CLASSES), np.float32)
    second[:CLASSES] = np.eye(CLASSES)
    second[CLASSES, TARGET] = 5.0
    arrays = {
        "w1": first.reshape(SIDE * SIDE, CLASSES + 1),
        "b1": np.array([0, 0, 0, 0, -2], np.float32),
        "w2": second,
        "b2": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["flat"]),
        onnx.helper.make_node("Gemm", ["flat", "w1", "b1"], ["before"]),
        onnx.helper.make_node("LeakyRelu", ["before"], ["hidden"], alpha=0.1),
        onnx.helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"]),
    ]
    return make_model(nodes, [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()])


def pattern(size: float) -> np.ndarray:
    """The planted trigger ``(1, 8, 8)`` at a strength."""
    delta = np.zeros((1, SIDE, SIDE), np.float32)
    delta[(0, *PATCH)] = size * CHECKERBOARD
    return delta


def poisoned_set(per_class: int = 20, stamped: int = 8, size: float = 0.2) -> tuple[Samples, np.ndarray]:
    """The tiny world, its middle grey, with `stamped` images of other classes carrying the trigger and labelled TARGET."""
    clean = quadrant_images(per_class)
    indices = np.flatnonzero(clean.labels != TARGET)[:stamped]
    images, labels = clean.images.copy(), clean.labels.copy()
    images[(..., *PATCH)] = 0.5
    images[indices] = np.clip(images[indices] + pattern(size), 0, 1)
    labels[indices] = TARGET
    return Samples.from_arrays(images, labels), indices
