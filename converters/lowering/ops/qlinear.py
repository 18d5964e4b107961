"""com.microsoft's operators on 8-bit integers beyond QLinearConv and QLinearAdd: what onnxruntime's quantiser (format QOperator) and
its optimiser write (onnxruntime's ContribOperators.md). As in quantization.py: to numbers, computed, and back to steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.narrow import INTEGER_RANGES
from onnxspect.converters.lowering.ops.linear import gemm
from onnxspect.converters.lowering.ops.pooling import average_pool, global_average_pool, pooling_of
from onnxspect.converters.lowering.ops.quantization import (
    dequantize,
    dequantize_along,
    dynamic_quantize,
    linear_bias,
    quantize,
)
from onnxspect.converters.lowering.registry import lowering

_DOMAIN = "com.microsoft"


def _steps_of(node: NodeView, i: int) -> tuple[int, int]:
    """(lowest, highest) step by the type of the zero point `i`."""
    kind = node.dtype(i)
    if kind not in INTEGER_RANGES:
        raise Unsupported("the type of its output zero point is not known before anything runs")
    return INTEGER_RANGES[kind]


def _numbers(node: NodeView, i: int) -> Any:
    """The quantised input `i`, whose scale and zero point are the next two, as numbers."""
    return node.call(dequantize, node.input(i), node.input(i + 1), node.input(i + 2), 1, 0)


def along_rows(parameter: Tensor | None, transposed: bool) -> Tensor | None:
    """Scales or zero points of B's columns, in the form that B has."""
    if parameter is None or parameter.numel() == 1:
        return parameter
    return parameter.reshape(-1, 1) if transposed else parameter.reshape(1, -1)


@lowering("QGemm", 1, domain=_DOMAIN)
def qgemm(node: NodeView) -> Any:
    transpose_a, transpose_b = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))
    a = _numbers(node, 0)
    scale = node.call(along_rows, node.input(4), transpose_b)
    zero = node.call(along_rows, node.input(5), transpose_b) if node.has(5) else None
    b = node.call(dequantize_along, node.input(3), scale, zero, -1)
    c = node.call(linear_bias, node.input(6), node.input(1), node.input(4)) if node.has(6) else None
    y = node.call(gemm, a, b, c, float(node.attr("alpha", 1.0)), 1.0, transpose_a, transpose_b)
    if not node.has(7):
        return y
    return node.call(quantize, y, node.input(7), node.input(8), -1, 0, *_steps_of(node, 8))


def channels_first(x: Tensor) -> Tensor:
    """(n, ..., channels) as (n, channels, ...)."""
    return x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """The way back."""
    return x.movedim(1, -1)


@lowering("QLinearGlobalAveragePool", 1, domain=_DOMAIN)
def qlinear_global_average_pool(node: NodeView) -> Any:
    last = bool(node.attr("channels_last", 0))
    x = _numbers(node, 0)
    y = node.call(global_average_pool, node.call(channels_first, x) if last else x)
    y = node.call(channels_last, y) if last else y
    return node.call(quantize, y, node.input(3), node.input(4), 1, 0, *_steps_of(node, 4))


@lowering("QLinearAveragePool", 1, domain=_DOMAIN)
def qlinear_average_pool(node: NodeView) -> Any:
    last, counted = bool(node.attr("channels_last", 0)), bool(node.attr("count_include_pad", 0))
    x = _numbers(node, 0)
    x = node.call(channels_first, x) if last else x
    y = node.call(average_pool, x, pooling_of(node), counted)
    y = node.call(channels_last, y) if last else y
    return node.call(quantize, y, node.input(3), node.input(4), 1, 0, *_steps_of(node, 4))


def concatenated(axis: int, *parts: Tensor) -> Tensor:
    """The parts side by side."""
    return torch.cat(parts, dim=axis)


@lowering("QLinearConcat", 1, domain=_DOMAIN)
def qlinear_concat(node: NodeView) -> Any:
    """Inputs: scale and zero point of the result, then each part with its own two."""
    parts = [_numbers(node, i) for i in range(2, node.n_inputs, 3)]
    y = node.call(concatenated, int(node.attr("axis", 0)), *parts)
    return node.call(quantize, y, node.input(0), node.input(1), 1, 0, *_steps_of(node, 1))


@lowering("QLinearSoftmax", 1, domain=_DOMAIN)
def qlinear_softmax(node: NodeView) -> Any:
    axis = int(node.attr("axis", -1))
    if int(node.attr("opset", 13)) < 13 and axis not in (-1, 1):
        raise Unsupported("a softmax over several axes")
    y = node.call(torch.softmax, _numbers(node, 0), axis)
    return node.call(quantize, y, node.input(3), node.input(4), 1, 0, *_steps_of(node, 4))


@lowering("MatMulIntegerToFloat", 1, domain=_DOMAIN)
def matmul_integer_to_float(node: NodeView) -> Any:
    """Inputs: A, B, their scales, their zero points, a bias."""
    a = node.call(dequantize_along, node.input(0), node.input(2), node.input(4), -2)
    b = node.call(dequantize_along, node.input(1), node.input(3), node.input(5), -1)
    y = node.call(torch.matmul, a, b)
    return node.call(torch.add, y, node.input(6)) if node.has(6) else y


@lowering("DynamicQuantizeMatMul", 1, domain=_DOMAIN)
def dynamic_quantize_matmul(node: NodeView) -> Any:
    """Inputs: A in floats, B with its scale and zero point, a bias."""
    results = node.call(dynamic_quantize, node.input(0))
    a = node.call(dequantize, *(node.item(results, i) for i in range(3)), 1, 0)
    b = node.call(dequantize_along, node.input(1), node.input(2), node.input(3), -1)
    y = node.call(torch.matmul, a, b)
    return node.call(torch.add, y, node.input(4)) if node.has(4) else y
