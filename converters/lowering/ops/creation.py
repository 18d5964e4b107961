"""Operators that make a tensor from a shape or a range (ONNX operator documentation).

What they make starts as a host value (see the header of lowering.py): most of it is shape arithmetic, and the rest
moves to the device where it first meets a device value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported, host_dtype
from onnxspect.converters.lowering.ops.cast import TORCH_TYPES
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering


def constant_of_shape(shape: Any, value: float | int | bool, dtype: torch.dtype) -> Tensor:
    """A host tensor of `shape` that holds `value` everywhere."""
    return torch.full(to_ints(shape), value, dtype=dtype)


@lowering("ConstantOfShape", 9, 20, 21, 23, 24, 25, data=(), on_host=True)
def constant_of_shape_(node: NodeView) -> Any:
    value = np.asarray(node.attr("value", np.zeros(1, np.float32)))
    return node.call(constant_of_shape, node.ints(0), value.reshape(-1)[0].item(), host_dtype(value))


def arange(start: Any, limit: Any, delta: Any, dtype: torch.dtype) -> Tensor:
    """start, start + delta, ... below (or above) limit, as a host tensor."""
    first, last, step = (v.reshape(()).item() if isinstance(v, Tensor) else v for v in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    # The operator's own formula; torch.arange rounds differently for fractional steps.
    return (torch.arange(count, dtype=dtype) * step + first).to(dtype)


@lowering("Range", 11, 27, data=(), on_host=True)
def range_(node: NodeView) -> Any:
    kind = next((node.dtype(i) for i in range(3) if node.dtype(i)), TensorProto.INT64)
    if kind not in TORCH_TYPES:
        raise Unsupported("a type that torch has no equal of")
    return node.call(arange, *(node.scalar(i) for i in range(3)), TORCH_TYPES[kind])


def eye(shape: Any, k: int, dtype: torch.dtype) -> Tensor:
    """A host matrix with ones on its k-th diagonal."""
    rows, columns = to_ints(shape)
    matrix = torch.arange(columns).unsqueeze(0) - torch.arange(rows).unsqueeze(1) == k
    return matrix.to(dtype)


def eye_like(x: Tensor, k: int, dtype: torch.dtype | None) -> Tensor:
    """A host matrix of the shape of x with ones on its k-th diagonal."""
    return eye(list(x.shape), k, dtype or x.dtype)


@lowering("EyeLike", 9, 22, on_host=True)
def eye_like_(node: NodeView) -> Any:
    kind = node.attr("dtype")
    return node.call(eye_like, node.input(0), int(node.attr("k", 0)), TORCH_TYPES[kind] if kind else None)


_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0),
    "HammingWindow": (25 / 46, -21 / 46, 0.0),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


def window(size: Any, periodic: bool, coefficients: tuple[float, float, float], dtype: torch.dtype) -> Tensor:
    """A cosine window a + b cos(2 pi n / N) + c cos(4 pi n / N), N the size or, if not periodic, one less."""
    n = to_ints(size)[0] if isinstance(size, Tensor) else int(size)
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / (n if periodic else n - 1))
    a, b, c = coefficients
    return (a + b * torch.cos(angle) + c * torch.cos(2 * angle)).to(dtype)


def _window(node: NodeView) -> Any:
    dtype = TORCH_TYPES[int(node.attr("output_datatype", TensorProto.FLOAT))]
    return node.call(window, node.scalar(0), bool(node.attr("periodic", 1)), _WINDOWS[node.op_type], dtype)


lowering("HannWindow", 17, data=(), on_host=True)(_window)
lowering("HammingWindow", 17, data=(), on_host=True)(_window)
lowering("BlackmanWindow", 17, data=(), on_host=True)(_window)
