"""Operators that move elements without changing them, and those that read shapes (ONNX operator documentation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.knowledge import reshaped
from onnxspect.converters.lowering.registry import lowering


def to_ints(value: Any) -> list[int]:
    """A sequence, or a tensor of integers (on the host, unless the model computes a shape from pixels), as a list."""
    return [int(v) for v in value.reshape(-1).tolist()] if isinstance(value, Tensor) else [int(v) for v in value]


def reshape(x: Tensor, shape: Any, allow_zero: bool) -> Tensor:
    """Reshape; -1 is what remains, and 0 (unless `allow_zero`) keeps the size that x has there."""
    sizes = to_ints(shape)
    if not allow_zero:
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def reshape_rows(x: Tensor, rest: Sequence[int]) -> Tensor:
    """Reshape each element of axis 0 to `rest`."""
    return x.reshape(x.shape[0], *rest)


@lowering("Reshape", 1, 5, 13, 14, 19, 21, 23, 24, 25, data=(0,))
def reshape_(node: NodeView) -> Any:
    target = node.attr("shape") if node.version < 5 else node.ints(1)
    allow_zero = bool(node.attr("allowzero", 0))
    x = node.input(0)
    if target is None:
        raise Unsupported("no target shape")
    if isinstance(target, (list, tuple)):
        rest = list(target[1:])
        if _keeps_rows(node.file_shape(0), target, allow_zero) and 0 not in rest:
            return node.call(reshape_rows, x, rest)
        batch = None if allow_zero and 0 in target else reshaped(node.shape(0), node.file_shape(0), target)
        if batch is not None and -1 not in (*target[:batch], *target[batch + 1 :]):
            target = (*target[:batch], -1, *target[batch + 1 :])
        if 0 not in target:
            return node.call(torch.reshape, x, list(target))
        return node.call(reshape, x, target, allow_zero)
    # A computed shape of which all sizes but one are known beforehand needs no arithmetic at run time.
    for shape in (node.output_shape(0), node.partial(1)):
        if (
            shape is not None
            and sum(n is None for n in shape) <= 1
            and not any(n is not None and n <= 0 for n in shape)
        ):
            return node.call(torch.reshape, x, [-1 if n is None else n for n in shape])
    return node.call(reshape, x, target, allow_zero)


def _keeps_rows(shape: Sequence[int | None] | None, target: Sequence[int], allow_zero: bool) -> bool:
    """Whether axis 0 comes out as it went in.

    A file made for a fixed batch writes that batch into the shape. Where axis 0 keeps its size, the size is read from
    the input instead: equal at that batch, and right at every other.
    """
    if not target or (target[0] == 0 and not allow_zero):
        return bool(target)
    return bool(shape) and shape is not None and shape[0] == target[0] > 0 and _same_rest(shape, list(target[1:]))


def _same_rest(shape: Sequence[int | None], rest: Sequence[int]) -> bool:
    """Whether reshaping all axes but the first to `rest` surely keeps the number of elements."""
    if -1 in rest:
        return True
    known = [n for n in shape[1:] if n is not None]
    return len(known) == len(shape) - 1 and torch.Size(known).numel() == torch.Size(rest).numel()


def flatten(x: Tensor, axis: int) -> Tensor:
    """A matrix: the axes before `axis` times those from it on."""
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(torch.Size(x.shape[:axis]).numel())
    return x.reshape(rows, int(torch.Size(x.shape[axis:]).numel()))


@lowering("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def flatten_(node: NodeView) -> Any:
    axis, rank = int(node.attr("axis", 1)), node.rank(0)
    if axis == 1 and rank is not None and rank >= 2:
        return node.call(torch.flatten, node.input(0), 1)
    return node.call(flatten, node.input(0), axis)


def squeeze(x: Tensor, axes: Any) -> Tensor:
    """Remove axes of size 1: those given, or all."""
    return x.squeeze() if axes is None else x.squeeze(tuple(to_ints(axes)))


@lowering("Squeeze", 1, 11, 13, 21, 23, 24, 25, data=(0,))
def squeeze_(node: NodeView) -> Any:
    axes = node.attr("axes") if node.version < 13 else node.ints(1)
    if axes is None and (shape := node.shape(0)) and shape[0] is None:
        # Without axes, a batch of one image would lose its axis. The sizes that are 1 at any batch are meant.
        axes = [i for i, n in enumerate(shape) if n == 1]
    return node.call(squeeze, node.input(0), axes)


def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """Insert axes of size 1 where the result shall have them."""
    chosen = to_ints(axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


@lowering("Unsqueeze", 1, 11, 13, 21, 23, 24, 25, data=(0,))
def unsqueeze_(node: NodeView) -> Any:
    axes = node.attr("axes") if node.version < 13 else node.ints(1)
    if isinstance(axes, (list, tuple)) and len(axes) == 1:
        return node.call(torch.unsqueeze, node.input(0), axes[0])
    return node.call(unsqueeze, node.input(0), axes)


def transpose(x: Tensor, order: Sequence[int] | None) -> Tensor:
    """Permute the axes, or reverse them."""
    return x.permute(*(order if order is not None else range(x.ndim - 1, -1, -1)))


@lowering("Transpose", 1, 13, 21, 23, 24, 25)
def transpose_(node: NodeView) -> Any:
    order = node.attr("perm")
    if order:
        return node.call(torch.permute, node.input(0), list(order))
    return node.call(transpose, node.input(0), None)


@lowering("Concat", 1, 4, 11, 13)
def concat(node: NodeView) -> Any:
    # Opset 1 has a default axis, 1; since opset 4 the attribute is required.
    axis = int(node.attr("axis", 1))
    shapes = [node.shape(i) for i in range(node.n_inputs)]
    if len(shapes) > 1 and all(shapes) and any(s and s[0] is None for s in shapes) and axis % len(shapes[0] or ()) != 0:
        # A class token of a file made for one image: its first axis is 1, and the batch's is not any more.
        inputs = [
            node.call(broadcast_rows, node.input(i), node.input(_first_free(shapes)))
            if s and s[0] == 1
            else node.input(i)
            for i, s in enumerate(shapes)
        ]
        return node.call(torch.cat, inputs, axis)
    return node.call(torch.cat, node.inputs(), axis)


def _first_free(shapes: Sequence[Sequence[int | None] | None]) -> int:
    return next(i for i, s in enumerate(shapes) if s and s[0] is None)


def broadcast_rows(x: Tensor, like: Tensor) -> Tensor:
    """x with its single row repeated for every row of `like`."""
    return x.expand(like.shape[0], *x.shape[1:])


def expand(x: Tensor, shape: Any) -> Tensor:
    """Broadcast x and an empty tensor of `shape` against each other."""
    sizes = to_ints(shape)
    return x.expand(torch.broadcast_shapes(x.shape, sizes))


@lowering("Expand", 8, 13, data=(0,))
def expand_(node: NodeView) -> Any:
    target, free, own = node.ints(1), node.shape(0), node.file_shape(0)
    if isinstance(target, tuple) and free and own and len(free) == len(target) and free[0] is None:
        # A file made for one batch size writes it into the target; 1 means what the input has.
        target = (1 if target[0] == own[0] else target[0], *target[1:])
    return node.call(expand, node.input(0), target)


def tile(x: Tensor, repeats: Any) -> Tensor:
    """x repeated along each axis."""
    return x.repeat(to_ints(repeats))


def tile_along(x: Tensor, count: Any, axis: Any) -> Tensor:
    """x repeated along one axis (opset 1)."""
    repeats = [1] * x.ndim
    repeats[to_ints(axis)[0]] = to_ints(count)[0]
    return x.repeat(repeats)


@lowering("Tile", 1, 6, 13, data=(0,))
def tile_(node: NodeView) -> Any:
    if node.version == 1:
        return node.call(tile_along, node.input(0), node.ints(1), node.ints(2))
    return node.call(tile, node.input(0), node.ints(1))


def split(x: Tensor, sizes: Any, axis: int) -> tuple[Tensor, ...]:
    """x cut along `axis` into parts of these sizes."""
    return torch.split(x, to_ints(sizes), axis)


def split_equally(x: Tensor, parts: int, axis: int) -> tuple[Tensor, ...]:
    """x cut along `axis` into `parts` of equal size, the last one smaller where they do not fit."""
    size = -(-x.shape[axis] // parts)
    lengths = [max(0, min(size, x.shape[axis] - i * size)) for i in range(parts)]
    return torch.split(x, lengths, axis)


@lowering("Split", 1, 2, 11, 13, 18, data=(0,))
def split_(node: NodeView) -> Any:
    axis = int(node.attr("axis", 0))
    # Opset 1 had the sizes as attribute or as second input; 2 and 11 as attribute; since 13 they are an input.
    sizes = node.attr("split") if node.version < 13 else None
    if sizes is None and node.has(1):
        sizes = node.ints(1)
    if sizes is not None:
        parts = node.call(split, node.input(0), sizes, axis)
    else:
        count = int(node.attr("num_outputs", node.n_outputs))
        parts = node.call(split_equally, node.input(0), count, axis)
    return tuple(node.item(parts, i) for i in range(node.n_outputs))


@lowering("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
def identity(node: NodeView) -> Any:
    return node.input(0)


@lowering("Dropout", 1, 6, 7, 10, 12, 13, 22, data=(0,))
def dropout(node: NodeView) -> Any:
    if node.version >= 12 and node.has(2):
        training = node.scalar(2)
        ratio = node.scalar(1) if node.has(1) else 0.5
        if training is not False and training != 0 and ratio != 0:
            raise Unsupported("training_mode: the answers would be random")
    x = node.input(0)
    return (x, node.call(torch.ones_like, x, dtype=torch.bool)) if node.wants(1) else x


def shape_of(x: Tensor, start: int, end: int | None) -> Tensor:
    """The sizes of x from axis `start` to `end` as a host tensor."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@lowering("Shape", 1, 13, 15, 19, 21, 23, 24, 25, on_host=True)
def shape_(node: NodeView) -> Any:
    return node.call(shape_of, node.input(0), int(node.attr("start", 0)), node.attr("end"))


def size_of(x: Tensor) -> Tensor:
    """The number of elements of x as a host tensor."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@lowering("Size", 1, 13, 19, 21, 23, 24, 25, on_host=True)
def size_(node: NodeView) -> Any:
    return node.call(size_of, node.input(0))


def slice_axes(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    """x[starts:ends:steps] along `axes`; bounds beyond an axis are cut to it, negative ones count from its end."""
    begin, stop = to_ints(starts), to_ints(ends)
    along = to_ints(axes) if axes is not None else list(range(len(begin)))
    strides = to_ints(steps) if steps is not None else [1] * len(begin)
    for first, last, axis, step in zip(begin, stop, along, strides, strict=True):
        size = x.shape[axis]
        indices = range(*slice(first, _bound(last, size, step), step).indices(size))
        if step > 0:
            x = x.narrow(axis, indices.start, max(0, indices.stop - indices.start))
            x = x if step == 1 else _every(x, axis, step)
        else:
            # torch has no negative step: take the same elements upwards, then turn them round.
            picked = torch.tensor(list(indices), dtype=torch.int64, device=x.device)
            x = x.index_select(axis, picked)
    return x


def _bound(end: int, size: int, step: int) -> int | None:
    """The end of a slice as Python has it: one before the first element is None when going down."""
    return None if step < 0 and end + size < 0 else end


def _every(x: Tensor, axis: int, step: int) -> Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]


@lowering("Slice", 1, 10, 11, 13, data=(0,))
def slice_(node: NodeView) -> Any:
    if node.version < 10:
        starts, ends, axes, steps = node.attr("starts"), node.attr("ends"), node.attr("axes"), None
    else:
        starts, ends, axes, steps = (node.ints(i) for i in range(1, 5))
    return node.call(slice_axes, node.input(0), starts, ends, axes, steps)
