"""Rounding to the narrow number formats of ONNX, in the working type and with a straight-through gradient.

A narrow value (int8 that QuantizeLinear made, float8, int4, ...) is held as a working floating-point number that lies
on the format's grid, so that it has a gradient: that of the identity inside the format's range and 0 where the value
saturates (Bengio et al., 2013, sec. 4, the straight-through estimator, clipped).
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

#: Integer formats: (least, greatest).
INTEGER_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT2: (-2, 1),
}
#: Floating formats of 8 bits: (torch's type, greatest finite value).
_FLOAT8: dict[int, tuple[torch.dtype, float]] = {
    TensorProto.FLOAT8E4M3FN: (torch.float8_e4m3fn, 448.0),
    TensorProto.FLOAT8E4M3FNUZ: (torch.float8_e4m3fnuz, 240.0),
    TensorProto.FLOAT8E5M2: (torch.float8_e5m2, 57344.0),
    TensorProto.FLOAT8E5M2FNUZ: (torch.float8_e5m2fnuz, 57344.0),
}
NARROW_FLOATS = frozenset((*_FLOAT8, TensorProto.FLOAT8E8M0, TensorProto.FLOAT4E2M1))


class _StraightThrough(torch.autograd.Function):
    """The second argument in value, the first in gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in value, with the gradient that x has."""
    return _StraightThrough.apply(x, rounded.detach())


def round_half_even(x: Tensor) -> Tensor:
    """x rounded to integers, halves to even; its gradient is the identity."""
    return straight_through(x, x.round())


def to_narrow_float(x: Tensor, kind: int, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """x rounded to a floating format of at most 8 bits (Cast's tables), halves to even.

    Args:
        x: floating point.
        kind: onnx.TensorProto.FLOAT8* or FLOAT4E2M1.
        saturate: cut to the greatest finite value; else what is beyond it becomes infinite or NaN, as the format has.
        round_mode: of FLOAT8E8M0 alone: "up", "down" or "nearest".
    """
    if kind == TensorProto.FLOAT4E2M1:
        cut = x.clamp(-6.0, 6.0)
        size = cut.abs()
        step = torch.where(size <= 2, 0.5, torch.where(size <= 4, 1.0, 2.0)).to(x.dtype)
        return straight_through(cut, (cut / step).round() * step)
    if kind == TensorProto.FLOAT8E8M0:
        return straight_through(x, _power_of_two(x, saturate, round_mode))
    dtype, greatest = _FLOAT8[kind]
    cut = x.clamp(-greatest, greatest) if saturate else x
    rounded = cut.detach().to(dtype).to(x.dtype)
    if kind == TensorProto.FLOAT8E4M3FN and not saturate:
        # No infinity in this format; torch's own cast saturates. 464 is half-way to the next value there would be.
        rounded = rounded.masked_fill(cut.abs() > 464.0, float("nan"))
    return straight_through(cut, rounded)


def _power_of_two(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """|x| as a power of two between 2^-127 and 2^127 (FLOAT8E8M0 has neither sign nor zero)."""
    size = x.detach().double().abs()
    mantissa, exponent = torch.frexp(size)  # size = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = exponent.double()
    below = exponent - 1
    if round_mode == "down":
        chosen = below
    elif round_mode == "nearest":
        chosen = torch.where(mantissa >= 0.75, exponent, below)
    else:
        chosen = torch.where(mantissa > 0.5, exponent, below)
    out = torch.isinf(size) | (chosen > 127)
    tiny = (size == 0) | (chosen < -127)
    limit = 127.0 if saturate else float("nan")
    chosen = torch.where(out, limit, torch.where(tiny, -127.0 if saturate else float("nan"), chosen))
    return torch.where(torch.isnan(size), float("nan"), torch.exp2(chosen)).to(x.dtype)


def to_narrow_integer(x: Tensor, kind: int) -> Tensor:
    """x cast to an integer format that torch has no type for: towards zero, then the low bits alone."""
    low, high = INTEGER_RANGES[kind]
    whole = x.trunc().to(torch.int64) if x.is_floating_point() else x.to(torch.int64)
    wrapped = torch.remainder(whole - low, high - low + 1) + low
    return wrapped.to(torch.uint8 if low == 0 else torch.int8)
