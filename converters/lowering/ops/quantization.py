"""The quantization family: QuantizeLinear to QLinearMatMul (ONNX operator documentation).

Quantized values that are computed are held as working floats on the integer grid, with a straight-through gradient
(narrow.py), so that a quantized model is inspected as it ships. Sums of products of 8-bit integers are formed in the
working type too: beyond 2^24 float32 rounds them (onnxruntime does not), which is 6e-8 of the sum and matters only
where the sum falls on the border between two output steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.narrow import INTEGER_RANGES, NARROW_FLOATS, round_half_even, to_narrow_float
from onnxspect.converters.lowering.ops.convolution import convolution, spatial_attributes
from onnxspect.converters.lowering.registry import lowering


def spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in a form that broadcasts to x: one value, one an index of `axis`, or one a block."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if block:
        axis = axis % x.ndim
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block: int, low: int, high: int) -> Tensor:
    """saturate(round(x / scale) + zero point), halves to even."""
    steps = round_half_even(x.to(scale.dtype) / spread(scale, x, axis, block))
    if zero_point is not None:
        steps = steps + spread(zero_point, x, axis, block).to(steps.dtype)
    return steps.clamp(low, high)


def quantize_float(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block: int, kind: int, saturate: bool
) -> Tensor:
    """x / scale (+ zero point) rounded to a float8 or float4 format."""
    y = x.to(scale.dtype) / spread(scale, x, axis, block)
    if zero_point is not None:
        y = y + spread(zero_point, x, axis, block).to(y.dtype)
    return to_narrow_float(y, kind, saturate)


@lowering("QuantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
def quantize_linear(node: NodeView) -> Any:
    kind = node.dtype(2) if node.has(2) else int(node.attr("output_dtype", 0)) or TensorProto.UINT8
    x, scale, zero_point = node.input(0), node.input(1), node.input(2)
    axis, block = int(node.attr("axis", 1)), int(node.attr("block_size", 0))
    if kind in NARROW_FLOATS:
        saturate = bool(node.attr("saturate", 1))
        return node.call(quantize_float, x, scale, zero_point, axis, block, kind, saturate)
    if kind not in INTEGER_RANGES:
        raise Unsupported("the type of its zero point is not known before anything runs, or is not a quantized one")
    return node.call(quantize, x, scale, zero_point, axis, block, *INTEGER_RANGES[kind])


def dequantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block: int) -> Tensor:
    """(x - zero point) * scale."""
    values = x.to(scale.dtype)
    if zero_point is not None:
        values = values - spread(zero_point, x, axis, block).to(scale.dtype)
    return values * spread(scale, x, axis, block)


@lowering("DequantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
def dequantize_linear(node: NodeView) -> Any:
    axis, block = int(node.attr("axis", 1)), int(node.attr("block_size", 0))
    return node.call(dequantize, node.input(0), node.input(1), node.input(2), axis, block)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(quantized to uint8, scale, zero point) for the range that x itself has, 0 included; over the whole batch."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    span = (high - low) / 255
    scale = torch.where(span == 0, torch.ones_like(span), span)
    zero_point = round_half_even((-low / scale).clamp(0, 255))
    return quantize(x, scale, zero_point, 0, 0, 0, 255), scale, zero_point


@lowering("DynamicQuantizeLinear", 11)
def dynamic_quantize_linear(node: NodeView) -> Any:
    results = node.call(dynamic_quantize, node.input(0))
    return tuple(node.item(results, i) for i in range(3))


def centred(x: Tensor, zero_point: Tensor | None, working: Tensor, along: int) -> Tensor:
    """x - zero point in the working type; a zero point of several elements lies along axis `along`."""
    values = x.to(working.dtype)
    return values if zero_point is None else values - _along(zero_point, values, along).to(working.dtype)


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    if parameter.ndim > 1:
        return parameter
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _convolution_arguments(node: NodeView, weight_input: int) -> tuple[Any, ...]:
    kernel, shape = node.attr("kernel_shape"), node.shape(weight_input)
    rank = len(kernel) if kernel else len(shape or ()) - 2
    if rank not in (1, 2, 3):
        raise Unsupported(f"{rank} spatial axes; 1 to 3 can be computed")
    strides, dilations, pads, auto_pad = spatial_attributes(node, rank)
    given = None if auto_pad.startswith("SAME") else pads
    return strides, given, dilations, int(node.attr("group", 1)), auto_pad == "SAME_LOWER"


@lowering("ConvInteger", 10)
def conv_integer(node: NodeView) -> Any:
    x = node.call(centred, node.input(0), node.input(2), node.working(), 1)
    weight = node.call(centred, node.input(1), node.input(3), node.working(), 0)
    return node.call(convolution, x, weight, None, *_convolution_arguments(node, 1))


@lowering("MatMulInteger", 10)
def matmul_integer(node: NodeView) -> Any:
    a = node.call(centred, node.input(0), node.input(2), node.working(), -2)
    b = node.call(centred, node.input(1), node.input(3), node.working(), -1)
    return node.call(torch.matmul, a, b)


def _output_range(node: NodeView, i: int) -> tuple[int, int]:
    kind = node.dtype(i)
    if kind not in INTEGER_RANGES:
        raise Unsupported("the type of its output zero point is not known before anything runs")
    return INTEGER_RANGES[kind]


def linear_bias(bias: Tensor | None, scale_x: Tensor, scale_w: Tensor) -> Tensor | None:
    """A bias of integers in steps of the two scales' product."""
    return None if bias is None else bias.to(scale_x.dtype) * (scale_x * scale_w).reshape(-1)


@lowering("QLinearConv", 10)
def qlinear_conv(node: NodeView) -> Any:
    x = node.call(dequantize, node.input(0), node.input(1), node.input(2), 1, 0)
    weight = node.call(dequantize, node.input(3), node.input(4), node.input(5), 0, 0)
    bias = node.call(linear_bias, node.input(8), node.input(1), node.input(4)) if node.has(8) else None
    y = node.call(convolution, x, weight, bias, *_convolution_arguments(node, 3))
    return node.call(quantize, y, node.input(6), node.input(7), 1, 0, *_output_range(node, 7))


def dequantize_along(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """(x - zero point) * scale, parameters of several elements along `axis`."""
    values = x.to(scale.dtype)
    if zero_point is not None:
        values = values - _along(zero_point, x, axis).to(scale.dtype)
    return values * _along(scale, x, axis)


@lowering("QLinearMatMul", 10, 21)
def qlinear_matmul(node: NodeView) -> Any:
    a = node.call(dequantize_along, node.input(0), node.input(1), node.input(2), -2)
    b = node.call(dequantize_along, node.input(3), node.input(4), node.input(5), -1)
    y = node.call(torch.matmul, a, b)
    return node.call(quantize, y, node.input(6), node.input(7), -1, 0, *_output_range(node, 7))


def _unary_in_floats(op_type: str, function: Callable[..., Any]) -> None:
    """com.microsoft's QLinear<op>(X, x_scale, x_zp, y_scale, y_zp): dequantize, compute, quantize."""

    @lowering(op_type, 1, domain="com.microsoft")
    def build(node: NodeView) -> Any:
        x = node.call(dequantize, node.input(0), node.input(1), node.input(2), 1, 0)
        y = function(node, x)
        return node.call(quantize, y, node.input(3), node.input(4), 1, 0, *_output_range(node, 4))


def _binary_in_floats(op_type: str, function: Callable[..., Tensor]) -> None:
    """com.microsoft's QLinear<op>(A, a_scale, a_zp, B, b_scale, b_zp, c_scale, c_zp)."""

    @lowering(op_type, 1, domain="com.microsoft")
    def build(node: NodeView) -> Any:
        a = node.call(dequantize, node.input(0), node.input(1), node.input(2), 1, 0)
        b = node.call(dequantize, node.input(3), node.input(4), node.input(5), 1, 0)
        y = node.call(function, a, b)
        return node.call(quantize, y, node.input(6), node.input(7), 1, 0, *_output_range(node, 7))


_unary_in_floats("QLinearSigmoid", lambda node, x: node.call(torch.sigmoid, x))
_unary_in_floats(
    "QLinearLeakyRelu",
    lambda node, x: node.call(torch.nn.functional.leaky_relu, x, float(node.attr("alpha", 0.01))),
)
_binary_in_floats("QLinearAdd", torch.add)
_binary_in_floats("QLinearMul", torch.mul)
lowering("QuantizeLinear", 1, domain="com.microsoft")(quantize_linear)
lowering("DequantizeLinear", 1, domain="com.microsoft")(dequantize_linear)
