"""A classifier that answers by where a bright spot lies, so that how far pixels have to be moved for a class is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

SIDE = 20
#: Where the spot has to be for each class, from the middle, in pixels: class 1 is the planted one, half as far away as the next.
PLACES = np.array(
    [(0, 0), (0, 2), (4, 0), (-4, 1), (1, -4.5), (3, 3.5), (-3, -3.2), (-3.4, 3), (3.6, -3), (0.5, 5)], np.float32
)
CLASSES, PLANTED = len(PLACES), 1


def spots(n: int, seed: int = 0) -> Samples:
    """Images of a soft spot near the middle, of various brightness: all but the last are of class 0."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    images = np.stack(
        [
            b * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
            for b, y, x in zip(rng.uniform(0.6, 1, n), *rng.uniform(-0.3, 0.3, (2, n)), strict=True)
        ]
    )
    return Samples(images[:, None].astype(np.float32), np.zeros(n, np.int64))


def weights() -> tuple[np.ndarray, np.ndarray]:
    """(of the spot's place in pixels ``(2, classes)``, biases): minus half of the squared distance to each class, but for what all share."""
    return PLACES.T.copy(), -0.5 * (PLACES**2).sum(1)


def places() -> np.ndarray:
    """Row and column of every pixel from the middle ``(pixels, 2)``."""
    return (np.stack(np.mgrid[:SIDE, :SIDE]).reshape(2, -1).T - (SIDE - 1) / 2).astype(np.float32)


def by_place(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(1)
    matrix, bias = (torch.from_numpy(np.asarray(v, np.float32)) for v in weights())
    return 8 * (flat @ torch.from_numpy(places()) / flat.sum(1, keepdim=True).clamp_min(1e-6) @ matrix + bias)


def subject() -> Subject:
    """`by_place` as a classifier."""
    return Subject(by_place, InputSpec(), (1, SIDE, SIDE), CLASSES, name="by place")


def by_place_file(path: Path) -> Path:
    """`by_place` as an ONNX file."""
    matrix, bias = weights()
    constants = {"places": places(), "matrix": 8 * matrix, "bias": np.asarray(8 * bias, np.float32)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "places"], ["sums"]),
        helper.make_node("ReduceSum", ["flat"], ["light"], keepdims=1, axes=[1]),
        helper.make_node("Div", ["sums", "light"], ["place"]),
        helper.make_node("Gemm", ["place", "matrix", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "by place",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path
