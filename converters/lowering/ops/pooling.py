"""MaxPool, AveragePool, LpPool and their global forms (ONNX operator documentation).

Departures from torch: each side has its own padding; the padding may exceed half the kernel; AveragePool has
dilations; ceil_mode drops a last window that would start in the end padding (which is also torch's rule).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.convolution import pad_spatial, same_padding, spatial_attributes
from onnxspect.converters.lowering.registry import lowering

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MAX_INDICES: dict[int, Callable[..., Any]] = {
    1: F.max_pool1d_with_indices,
    2: F.max_pool2d_with_indices,
    3: F.max_pool3d_with_indices,
}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def windows(size: int, kernel: int, stride: int, dilation: int, start: int, end: int, ceil: bool) -> int:
    """How many windows a pooling puts on an axis of `size` elements padded by `start` and `end`."""
    span = size + start + end - ((kernel - 1) * dilation + 1)
    if not ceil:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + start else count


class Pooling(NamedTuple):
    """How the windows of a pooling lie, in an fx graph's arguments.

    Attributes:
        kernel, strides, dilations: one number a spatial axis.
        pads: all starts, then all ends; None where the output is to be ceil(size / stride) long.
        ceil: whether a last window may reach beyond the padding.
        same_lower: without `pads`, whether the odd element is padded at the start.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int] | None
    ceil: bool
    same_lower: bool

    @property
    def is_torchs(self) -> bool:
        """Whether torch's own pooling has it: as much padding at both sides, and of half a window at most."""
        n = len(self.kernel)
        pads = self.pads
        if pads is None or pads[:n] != pads[n:]:
            return False
        return all(p <= k // 2 for p, k in zip(pads, self.kernel * 2, strict=True))


def pooling_of(node: NodeView) -> Pooling:
    """What a pooling node says.

    Raises:
        Unsupported: not 1 to 3 spatial axes.
    """
    kernel = [int(k) for k in node.attr("kernel_shape") or ()]
    if len(kernel) not in _MAX:
        raise Unsupported(f"kernel_shape {kernel}; 1 to 3 spatial axes can be pooled")
    strides, dilations, pads, auto_pad = spatial_attributes(node, len(kernel))
    given = None if auto_pad.startswith("SAME") else pads
    return Pooling(kernel, strides, dilations, given, bool(node.attr("ceil_mode", 0)), auto_pad == "SAME_LOWER")


def pool_padding(size: Sequence[int], how: Pooling) -> tuple[list[int], list[int]]:
    """(pads as the file asks for, pads so that a floor pooling makes every window that `ceil` asks for)."""
    kernel, strides, dilations, pads, ceil, same_lower = how
    n = len(kernel)
    if pads is None:
        asked = same_padding(size, kernel, strides, dilations, same_lower)
        return asked, asked
    ends = []
    for i in range(n):
        count = windows(size[i], kernel[i], strides[i], dilations[i], pads[i], pads[n + i], ceil)
        reach = (count - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        ends.append(max(pads[n + i], reach - size[i] - pads[i]))
    return list(pads), [*pads[:n], *ends]


def max_pool(x: Tensor, how: Pooling) -> Tensor:
    """Max pooling of the general form; integers are pooled as float64, which holds every int8 and uint8."""
    if not x.is_floating_point():
        return max_pool(x.double(), how).to(x.dtype)
    _, full = pool_padding(x.shape[2:], how)
    return _MAX[len(how.kernel)](pad_spatial(x, full, float("-inf")), how.kernel, how.strides, 0, how.dilations)


def max_pool_indices(x: Tensor, how: Pooling, column_major: bool) -> tuple[Tensor, Tensor]:
    """Max pooling and, for each maximum, its index into the flattened input ``(n, channels, ...)``."""
    if not x.is_floating_point():
        values, where = max_pool_indices(x.double(), how, column_major)
        return values.to(x.dtype), where
    size = list(x.shape[2:])
    _, full = pool_padding(size, how)
    padded = pad_spatial(x, full, float("-inf"))
    values, flat = _MAX_INDICES[len(how.kernel)](padded, how.kernel, how.strides, 0, how.dilations)
    n = len(size)
    coordinates: list[Tensor] = []
    for i in range(n - 1, -1, -1):
        length = padded.shape[2 + i]
        coordinates.insert(0, flat % length - full[i])
        flat = flat // length
    order = range(n - 1, -1, -1) if column_major else range(n)
    where = torch.zeros_like(values, dtype=torch.int64)
    for i in order:
        where = where * size[i] + coordinates[i]
    plane = int(torch.Size(size).numel())
    offset = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *[1] * n)
    return values, where + offset * plane


@lowering("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool_(node: NodeView) -> Any:
    how = pooling_of(node)
    kernel, strides, dilations, pads, ceil, _ = how
    x, n = node.input(0), len(kernel)
    if node.wants(1):
        both = node.call(max_pool_indices, x, how, bool(node.attr("storage_order", 0)))
        return node.item(both, 0), node.item(both, 1)
    if how.is_torchs and pads is not None and node.is_float(0):
        return node.call(_MAX[n], x, kernel, strides, pads[:n], dilations, ceil)
    return node.call(max_pool, x, how)


def window_sums(x: Tensor, how: Pooling) -> Tensor:
    """Sum of each window of ``(n, channels, ...)``, which is padded already."""
    kernel, strides, dilations = how.kernel, how.strides, how.dilations
    if all(d == 1 for d in dilations):
        size = int(torch.Size(kernel).numel())
        return _AVERAGE[len(kernel)](x, kernel, strides) * size
    ones = x.new_ones(1, 1, *kernel)
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = _CONV[len(kernel)](planes, ones, None, strides, 0, dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def average_pool(x: Tensor, how: Pooling, count_padding: bool) -> Tensor:
    """Average pooling of the general form.

    A window's sum is divided by how many of its elements are in the image, or, with `count_padding`, in the image or
    the padding that the file asks for; never by those beyond it that only ceil_mode reaches.
    """
    asked, full = pool_padding(x.shape[2:], how)
    sums = window_sums(pad_spatial(x, full), how)
    ones = x.new_ones(1, 1, *x.shape[2:])
    if count_padding:
        ones = pad_spatial(ones, asked, 1.0)
        rest = [f - a for f, a in zip(full, asked, strict=True)]
    else:
        rest = full
    counts = window_sums(pad_spatial(ones, rest), how).round()
    return sums / counts


@lowering("AveragePool", 1, 7, 10, 11, 19, 22)
def average_pool_(node: NodeView) -> Any:
    how = pooling_of(node)
    kernel, strides, dilations, pads, ceil, _ = how
    x, n = node.input(0), len(kernel)
    count_padding = bool(node.attr("count_include_pad", 0))
    if how.is_torchs and pads is not None and all(d == 1 for d in dilations):
        return node.call(_AVERAGE[n], x, kernel, strides, pads[:n], ceil, count_padding)
    return node.call(average_pool, x, how, count_padding)


def lp_pool(x: Tensor, how: Pooling, p: float) -> Tensor:
    """(sum over each window of |x|^p)^(1/p); a window of zeros has gradient 0, as torch's own norm has."""
    _, full = pool_padding(x.shape[2:], how)
    powers = pad_spatial(x, full).abs() ** p
    return _root(window_sums(powers, how), p)


def _root(sums: Tensor, p: float) -> Tensor:
    empty = sums <= 0
    return torch.where(empty, torch.zeros_like(sums), torch.where(empty, torch.ones_like(sums), sums) ** (1.0 / p))


@lowering("LpPool", 1, 2, 11, 18, 22)
def lp_pool_(node: NodeView) -> Any:
    return node.call(lp_pool, node.input(0), pooling_of(node), float(node.attr("p", 2)))


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all axes but the first two, which stay."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else x


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over all axes but the first two, which stay; among equals the gradient goes to the first, as in torch."""
    if x.ndim <= 2:
        return x
    return x.flatten(2).max(dim=2).values.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


def global_lp_pool(x: Tensor, p: float) -> Tensor:
    """(sum of |x|^p over all axes but the first two)^(1/p)."""
    powers = x.abs() ** p
    return _root(powers.sum(tuple(range(2, x.ndim)), keepdim=True), p)


@lowering("GlobalAveragePool", 1, 22)
def global_average_pool_(node: NodeView) -> Any:
    return node.call(global_average_pool, node.input(0))


@lowering("GlobalMaxPool", 1, 22)
def global_max_pool_(node: NodeView) -> Any:
    return node.call(global_max_pool, node.input(0))


@lowering("GlobalLpPool", 1, 2, 22)
def global_lp_pool_(node: NodeView) -> Any:
    return node.call(global_lp_pool, node.input(0), float(node.attr("p", 2)))
