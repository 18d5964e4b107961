"""Gather, Scatter and their relatives: elements picked or written by index (ONNX operator documentation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering


def wrap(indices: Tensor, size: int) -> Tensor:
    """Indices as int64, negative ones counted from the end of an axis of `size`."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Slices of x along `axis`: the shape of `indices` takes the place of that axis."""
    axis = axis % x.ndim
    picked = x.index_select(axis, wrap(indices, x.shape[axis]).reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_one(x: Tensor, axis: int, index: int) -> Tensor:
    """One slice of x; the axis is gone."""
    return x.select(axis, index)


@lowering("Gather", 1, 11, 13)
def gather_(node: NodeView) -> Any:
    axis, constant = int(node.attr("axis", 0)), node.constant(1)
    if constant is not None and constant.ndim == 0:
        return node.call(gather_one, node.input(0), axis, int(constant))
    return node.call(gather, node.input(0), node.input(1), axis)


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """x[i][index][k] along `axis`, for each element of `indices`."""
    return x.gather(axis, wrap(indices, x.shape[axis]))


@lowering("GatherElements", 11, 13)
def gather_elements_(node: NodeView) -> Any:
    return node.call(gather_elements, node.input(0), node.input(1), int(node.attr("axis", 0)))


def _flat_indices(shape: torch.Size, indices: Tensor) -> Tensor:
    """Tuples along the last axis of `indices` as positions in the flattened leading axes of `shape`."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i in range(indices.shape[-1]):
        flat = flat * shape[i] + wrap(indices[..., i], shape[i])
    return flat


def gather_nd(x: Tensor, indices: Tensor, batch_axes: int) -> Tensor:
    """Slices of x at the tuples along the last axis of `indices`, within each of the first `batch_axes` axes."""
    depth = indices.shape[-1]
    lead = x.shape[:batch_axes]
    batch = int(torch.Size(lead).numel())
    inner = x.shape[batch_axes:]
    rows = int(torch.Size(inner[:depth]).numel())
    flat = _flat_indices(torch.Size(inner), indices)  # (batch axes, middle)
    middle = flat.shape[batch_axes:]
    data = x.reshape(batch * rows, -1)
    offset = torch.arange(batch, device=flat.device).unsqueeze(1) * rows
    picked = data.index_select(0, (flat.reshape(batch, -1) + offset).reshape(-1))
    return picked.reshape(*lead, *middle, *inner[depth:])


@lowering("GatherND", 11, 12, 13)
def gather_nd_(node: NodeView) -> Any:
    return node.call(gather_nd, node.input(0), node.input(1), int(node.attr("batch_dims", 0)))


_REDUCTIONS = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """x with each update written to, or combined with, the element that its index names along `axis`."""
    where = wrap(indices, x.shape[axis])
    how = _REDUCTIONS[reduction]
    return x.scatter(axis, where, updates) if how is None else x.scatter_reduce(axis, where, updates, how)


def _reduction(node: NodeView) -> str:
    reduction = node.attr("reduction", "none")
    if reduction not in _REDUCTIONS:
        raise Unsupported(f"reduction {reduction!r}")
    return str(reduction)


@lowering("Scatter", 9)
@lowering("ScatterElements", 11, 13, 16, 18)
def scatter_elements_(node: NodeView) -> Any:
    axis = int(node.attr("axis", 0))
    return node.call(scatter_elements, node.input(0), node.input(1), node.input(2), axis, _reduction(node))


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """x with each slice of `updates` written to, or combined with, the slice at a tuple of `indices`."""
    depth = indices.shape[-1]
    rows = int(torch.Size(x.shape[:depth]).numel())
    data = x.reshape(rows, -1)
    where = _flat_indices(x.shape, indices).reshape(-1, 1).expand(-1, data.shape[1])
    new = updates.reshape(where.shape)
    how = _REDUCTIONS[reduction]
    out = data.scatter(0, where, new) if how is None else data.scatter_reduce(0, where, new, how)
    return out.reshape(x.shape)


@lowering("ScatterND", 11, 13, 16, 18)
def scatter_nd_(node: NodeView) -> Any:
    return node.call(scatter_nd, node.input(0), node.input(1), node.input(2), _reduction(node))


def one_hot(indices: Tensor, depth: Any, values: Tensor, axis: int) -> Tensor:
    """values[1] where an axis of `depth` elements meets the index, else values[0]; nowhere for an index out of range."""
    size = to_ints(depth)[0] if isinstance(depth, Tensor) else int(depth)
    chosen = wrap(indices, size)
    steps = torch.arange(size, device=indices.device)
    rank = indices.ndim + 1
    hit = chosen.unsqueeze(axis if axis >= 0 else axis + rank) == steps.reshape(
        [-1 if i == axis % rank else 1 for i in range(rank)]
    )
    return torch.where(hit, values[1], values[0])


@lowering("OneHot", 9, 11, 28, data=(0, 2))
def one_hot_(node: NodeView) -> Any:
    return node.call(one_hot, node.input(0), node.scalar(1), node.input(2), int(node.attr("axis", -1)))


def compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """The slices of x along `axis` (of the flattened x by default) where the condition holds."""
    x = x.reshape(-1) if axis is None else x
    chosen = condition.reshape(-1).nonzero().reshape(-1).to(x.device)
    return x.index_select(0 if axis is None else axis, chosen)


@lowering("Compress", 9, 11, 28)
def compress_(node: NodeView) -> Any:
    return node.call(compress, node.input(0), node.input(1), node.attr("axis"))


def non_zero(x: Tensor) -> Tensor:
    """Indices of the elements that are not 0, ``(axes, count)``."""
    return x.nonzero().t()


@lowering("NonZero", 9, 13)
def non_zero_(node: NodeView) -> Any:
    return node.call(non_zero, node.input(0))


def top_k(x: Tensor, k: Any, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) elements along `axis` and where they are; of equals the first comes first."""
    count = to_ints(k)[0] if isinstance(k, Tensor) else int(k)
    values, where = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), where.narrow(axis, 0, count)


@lowering("TopK", 1, 10, 11, 24, data=(0,))
def top_k_(node: NodeView) -> Any:
    k = node.attr("k") if node.version == 1 else node.scalar(1)
    both = node.call(top_k, node.input(0), k, int(node.attr("axis", -1)), bool(node.attr("largest", 1)))
    return node.item(both, 0), node.item(both, 1)


def unique(x: Tensor, axis: int | None, ordered: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(unique slices, where each occurs first, which one each slice is, how often each occurs)."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = axis % x.ndim
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    positions = torch.arange(x.shape[axis], device=x.device)
    first = torch.full((len(counts),), x.shape[axis], device=x.device).scatter_reduce(0, inverse, positions, "amin")
    if not ordered:
        order = first.argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=x.device)
        values, inverse, counts, first = values.index_select(axis, order), rank[inverse], counts[order], first[order]
    return values, first, inverse, counts


@lowering("Unique", 11, 28)
def unique_(node: NodeView) -> Any:
    results = node.call(unique, node.input(0), node.attr("axis"), bool(node.attr("sorted", 1)))
    return tuple(node.item(results, i) for i in range(4))


def reverse_sequence(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """x with the first elements of each sequence back to front."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    shape_time = [-1 if i == time_axis else 1 for i in range(x.ndim)]
    shape_batch = [-1 if i == batch_axis else 1 for i in range(x.ndim)]
    own = lengths.to(x.device, torch.int64).reshape(shape_batch)
    position = steps.reshape(shape_time)
    order = torch.where(position < own, own - 1 - position, position)
    return x.gather(time_axis, order.expand_as(x))


@lowering("ReverseSequence", 10, 28)
def reverse_sequence_(node: NodeView) -> Any:
    axes = int(node.attr("time_axis", 0)), int(node.attr("batch_axis", 1))
    return node.call(reverse_sequence, node.input(0), node.input(1), *axes)


def _cumulative(function: Callable[[Tensor, int], Tensor], neutral: float) -> Callable[..., Tensor]:
    def apply(x: Tensor, axis: Any, exclusive: bool, reverse: bool) -> Tensor:
        along = to_ints(axis)[0] if isinstance(axis, Tensor) else int(axis)
        x = x.flip(along) if reverse else x
        if exclusive:
            size = x.shape[along]
            flat = [0, 0] * (x.ndim - 1 - along % x.ndim) + [1, 0]
            x = F.pad(x, flat, value=neutral).narrow(along, 0, size)
        out = function(x, along).to(x.dtype)
        return out.flip(along) if reverse else out

    return apply


_cumulative_sum = _cumulative(torch.cumsum, 0)
_cumulative_product = _cumulative(torch.cumprod, 1)


def cumulative_sum(x: Tensor, axis: Any, exclusive: bool, reverse: bool) -> Tensor:
    """Running sum along `axis`, from the end with `reverse`, without the element itself with `exclusive`."""
    return _cumulative_sum(x, axis, exclusive, reverse)


def cumulative_product(x: Tensor, axis: Any, exclusive: bool, reverse: bool) -> Tensor:
    """Running product, as `cumulative_sum`."""
    return _cumulative_product(x, axis, exclusive, reverse)


@lowering("CumSum", 11, 14, data=(0,))
def cumulative_sum_(node: NodeView) -> Any:
    flags = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
    return node.call(cumulative_sum, node.input(0), node.scalar(1), *flags)


@lowering("CumProd", 26, data=(0,))
def cumulative_product_(node: NodeView) -> Any:
    flags = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
    return node.call(cumulative_product, node.input(0), node.scalar(1), *flags)
