"""Elementwise arithmetic, comparison and logic (ONNX operator documentation).

Before opset 7 a binary operator broadcast only where it said ``broadcast=1``, aligning its second operand to the
first at `axis`; since then numpy's rules hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering


def align(b: Tensor, a: Tensor, axis: int) -> Tensor:
    """`b` with trailing axes added so that its first axis meets axis `axis` of `a`."""
    return b.reshape(*b.shape, *[1] * (a.ndim - axis % a.ndim - b.ndim)) if b.ndim else b


def _operands(node: NodeView) -> tuple[Any, Any]:
    a, b = node.input(0), node.input(1)
    if node.version < 7 and node.attr("broadcast", 0) and node.attr("axis") is not None:
        b = node.call(align, b, a, int(node.attr("axis")))
    return a, b


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b; integers are divided towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _binary(op_type: str, versions: tuple[int, ...], function: Callable[..., Tensor]) -> None:
    @lowering(op_type, *versions)
    def build(node: NodeView) -> Any:
        return node.call(function, *_operands(node))


_binary("Add", (1, 6, 7, 13, 14), torch.add)
_binary("Sub", (1, 6, 7, 13, 14), torch.sub)
_binary("Mul", (1, 6, 7, 13, 14), torch.mul)
_binary("And", (1, 7), torch.logical_and)
_binary("Or", (1, 7), torch.logical_or)
_binary("Xor", (1, 7), torch.logical_xor)
_binary("Equal", (1, 7, 11, 13, 19), torch.eq)
_binary("Greater", (1, 7, 9, 13), torch.gt)
_binary("GreaterOrEqual", (12, 16), torch.ge)
_binary("Less", (1, 7, 9, 13), torch.lt)
_binary("LessOrEqual", (12, 16), torch.le)
_binary("BitwiseAnd", (18,), torch.bitwise_and)
_binary("BitwiseOr", (18,), torch.bitwise_or)
_binary("BitwiseXor", (18,), torch.bitwise_xor)


@lowering("Div", 1, 6, 7, 13, 14)
def div(node: NodeView) -> Any:
    return node.call(torch.div if node.is_float(0) else divide, *_operands(node))


def power(a: Tensor, b: Any) -> Tensor:
    """a to the power b, in the type of a."""
    return torch.pow(a, b).to(a.dtype)


@lowering("Pow", 1, 7, 12, 13, 15)
def pow_(node: NodeView) -> Any:
    exponent = node.constant(1)
    if exponent is not None and exponent.size == 1 and node.is_float(0) and exponent.ndim <= (node.rank(0) or 0):
        return node.call(torch.pow, node.input(0), exponent.reshape(-1)[0].item())
    return node.call(power, *_operands(node))


def modulo(a: Tensor, b: Tensor, fmod: bool) -> Tensor:
    """The remainder with the sign of the divisor, or, with `fmod`, of the dividend."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@lowering("Mod", 10, 13, 28)
def mod(node: NodeView) -> Any:
    return node.call(modulo, *_operands(node), bool(node.attr("fmod", 0)))


def shift(a: Tensor, b: Tensor, left: bool) -> Tensor:
    """Bitwise shift."""
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@lowering("BitShift", 11, 28)
def bit_shift(node: NodeView) -> Any:
    direction = node.attr("direction", "")
    if direction not in ("LEFT", "RIGHT"):
        raise Unsupported(f"direction {direction!r}")
    return node.call(shift, node.input(0), node.input(1), direction == "LEFT")


def total(*tensors: Tensor) -> Tensor:
    """Sum of the tensors, broadcast."""
    return functools.reduce(torch.add, tensors)


def average(*tensors: Tensor) -> Tensor:
    """Mean of the tensors, broadcast."""
    return total(*tensors) / len(tensors)


def greatest(*tensors: Tensor) -> Tensor:
    """Elementwise maximum of the tensors, broadcast."""
    return functools.reduce(torch.maximum, tensors)


def least(*tensors: Tensor) -> Tensor:
    """Elementwise minimum of the tensors, broadcast."""
    return functools.reduce(torch.minimum, tensors)


def _variadic(op_type: str, versions: tuple[int, ...], function: Callable[..., Tensor]) -> None:
    @lowering(op_type, *versions)
    def build(node: NodeView) -> Any:
        return node.call(function, *node.inputs())


_variadic("Sum", (1, 6, 8, 13), total)
_variadic("Mean", (1, 6, 8, 13), average)
_variadic("Max", (1, 6, 8, 12, 13), greatest)
_variadic("Min", (1, 6, 8, 12, 13), least)


def in_own_type(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, with integers left as they are: floor, ceil and round of one are itself."""
    return function(x) if x.is_floating_point() else x


def _unary(op_type: str, versions: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> None:
    @lowering(op_type, *versions)
    def build(node: NodeView) -> Any:
        return node.call(function, node.input(0))


_unary("Abs", (1, 6, 13), torch.abs)
_unary("Neg", (1, 6, 13), torch.neg)
_unary("Exp", (1, 6, 13), torch.exp)
_unary("Log", (1, 6, 13), torch.log)
_unary("Sqrt", (1, 6, 13), torch.sqrt)
_unary("Reciprocal", (1, 6, 13), torch.reciprocal)
_unary("Erf", (9, 13), torch.erf)
_unary("Sign", (9, 13), torch.sign)
_unary("Sin", (7, 22), torch.sin)
_unary("Cos", (7, 22), torch.cos)
_unary("Tan", (7, 22), torch.tan)
_unary("Asin", (7, 22), torch.asin)
_unary("Acos", (7, 22), torch.acos)
_unary("Atan", (7, 22), torch.atan)
_unary("Sinh", (9, 22), torch.sinh)
_unary("Cosh", (9, 22), torch.cosh)
_unary("Asinh", (9, 22), torch.asinh)
_unary("Acosh", (9, 22), torch.acosh)
_unary("Atanh", (9, 22), torch.atanh)
_unary("Not", (1,), torch.logical_not)
_unary("BitwiseNot", (18,), torch.bitwise_not)
_unary("IsNaN", (9, 13, 20), torch.isnan)
_unary("Ceil", (1, 6, 13), torch.ceil)
_unary("Floor", (1, 6, 13), torch.floor)
_unary("Round", (11, 22), torch.round)


def is_infinite(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Where x is -inf (if `negative`) or +inf (if `positive`)."""
    found = torch.zeros_like(x, dtype=torch.bool)
    found = found | torch.isneginf(x) if negative else found
    return found | torch.isposinf(x) if positive else found


@lowering("IsInf", 10, 20)
def is_inf(node: NodeView) -> Any:
    negative, positive = bool(node.attr("detect_negative", 1)), bool(node.attr("detect_positive", 1))
    return node.call(is_infinite, node.input(0), negative, positive)


@lowering("Where", 9, 16)
def where(node: NodeView) -> Any:
    return node.call(torch.where, node.input(0), node.input(1), node.input(2))
