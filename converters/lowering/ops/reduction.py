"""Reductions, ArgMax and ArgMin.

The axes are an attribute until opset 18 (13 for ReduceSum) and an input since; without axes everything is reduced,
or, with noop_with_empty_axes, nothing: the elementwise part of ReduceL1 and its kin (abs, square, log) still applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering


def reduce_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum, in the type of x."""
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def reduce_mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Mean; integers are divided towards zero."""
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = int(torch.Size([x.shape[a] for a in axes]).numel())
    return torch.div(x.sum(axes, keepdim=keep), count, rounding_mode="trunc").to(x.dtype)


def reduce_max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Maximum; among equals the gradient is shared. Nothing has the maximum -inf (or the least integer)."""
    return _extreme(x, axes, keep, torch.amax, _least)


def reduce_min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Minimum; among equals the gradient is shared. Nothing has the minimum inf (or the greatest integer)."""
    return _extreme(x, axes, keep, torch.amin, _greatest)


def _extreme(
    x: Tensor, axes: list[int], keep: bool, reduce: Callable[..., Tensor], of_nothing: Callable[[torch.dtype], float]
) -> Tensor:
    if _is_empty(x, axes):
        return _fill_reduced(x, axes, keep, of_nothing(x.dtype))
    if x.dtype == torch.bool:
        return reduce(x.to(torch.uint8), axes, keepdim=keep).bool()
    return reduce(x, axes, keepdim=keep)


def _is_empty(x: Tensor, axes: list[int]) -> bool:
    return any(x.shape[a] == 0 for a in axes)


def _least(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return False
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _greatest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return True
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max


def _fill_reduced(x: Tensor, axes: list[int], keep: bool, value: Any) -> Tensor:
    gone = {a % x.ndim for a in axes}
    shape = [1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone]
    return x.new_full(shape, value)


def reduce_prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Product, one axis at a time as torch has it."""
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def reduce_l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum of absolute values."""
    return reduce_sum(x.abs(), axes, keep)


def reduce_l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Root of the sum of squares; its gradient at 0 is 0, as torch's own norm has it."""
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, axes, keepdim=keep)
    return x.double().square().sum(axes, keepdim=keep).sqrt().to(x.dtype)


def reduce_sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum of squares."""
    return reduce_sum(x * x, axes, keep)


def reduce_log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Logarithm of the sum."""
    return reduce_sum(x, axes, keep).log()


def reduce_log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Logarithm of the sum of exponentials, without overflow."""
    return torch.logsumexp(x, axes, keepdim=keep)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceSum": reduce_sum,
    "ReduceMean": reduce_mean,
    "ReduceMax": reduce_max,
    "ReduceMin": reduce_min,
    "ReduceProd": reduce_prod,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceSumSquare": reduce_sum_square,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
}


def reduce(op_type: str, x: Tensor, axes: Any, keep: bool, empty_is_none: bool) -> Tensor:
    """Apply a reduction over `axes`, a sequence or a host tensor; None or empty means all axes, or none of them."""
    function = _REDUCTIONS[op_type]
    chosen = [] if axes is None else to_ints(axes)
    if not chosen and not empty_is_none:
        chosen = list(range(x.ndim))
    if not chosen:  # each element alone: over an axis of one element that is made for the purpose
        return function(x.unsqueeze(-1), [-1], False)
    return function(x, chosen, keep)


def _reduction(op_type: str, attribute_until: tuple[int, ...], input_since: tuple[int, ...]) -> None:
    @lowering(op_type, *attribute_until, *input_since, data=(0,))
    def build(node: NodeView) -> Any:
        keep = bool(node.attr("keepdims", 1))
        if node.version in attribute_until:
            axes, empty_is_none = node.attr("axes"), False
        else:
            axes, empty_is_none = node.ints(1), bool(node.attr("noop_with_empty_axes", 0))
        if op_type == "ReduceMean" and node.is_float(0) and isinstance(axes, (list, tuple)) and axes:
            return node.call(torch.mean, node.input(0), list(axes), keep)
        return node.call(reduce, op_type, node.input(0), axes, keep, empty_is_none)


_reduction("ReduceSum", (1, 11), (13,))
_reduction("ReduceMean", (1, 11, 13), (18,))
_reduction("ReduceMax", (1, 11, 12, 13), (18, 20))
_reduction("ReduceMin", (1, 11, 12, 13), (18, 20))
_reduction("ReduceProd", (1, 11, 13), (18,))
_reduction("ReduceL1", (1, 11, 13), (18,))
_reduction("ReduceL2", (1, 11, 13), (18,))
_reduction("ReduceSumSquare", (1, 11, 13), (18,))
_reduction("ReduceLogSum", (1, 11, 13), (18, 28))
_reduction("ReduceLogSumExp", (1, 11, 13), (18, 28))


def arg_extremum(x: Tensor, axis: int, keep: bool, largest: bool, last: bool) -> Tensor:
    """Index of the extremum along `axis`; of equals the first, or the last."""
    if not last:
        return x.argmax(axis, keepdim=keep) if largest else x.argmin(axis, keepdim=keep)
    flipped = x.flip(axis)
    found = flipped.argmax(axis, keepdim=keep) if largest else flipped.argmin(axis, keepdim=keep)
    return x.shape[axis] - 1 - found


def _arg(op_type: str, largest: bool) -> None:
    @lowering(op_type, 1, 11, 12, 13)
    def build(node: NodeView) -> Any:
        axis, keep = int(node.attr("axis", 0)), bool(node.attr("keepdims", 1))
        return node.call(arg_extremum, node.input(0), axis, keep, largest, bool(node.attr("select_last_index", 0)))


_arg("ArgMax", True)
_arg("ArgMin", False)
