"""Sequences and optionals (ONNX operator documentation): Python lists, and None, of tensors.

Nothing here knows lengths before it runs, so SequenceMap (a loop over a length) is not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering


def _position(value: Any) -> int:
    return to_ints(value)[0] if isinstance(value, Tensor) else int(value)


def construct(*tensors: Tensor) -> list[Tensor]:
    """A sequence of these tensors."""
    return list(tensors)


@lowering("SequenceConstruct", 11)
def construct_(node: NodeView) -> Any:
    return node.call(construct, *node.inputs())


@lowering("SequenceEmpty", 11)
def empty_(node: NodeView) -> Any:
    return node.call(construct)


def at(sequence: Sequence[Tensor], position: Any) -> Tensor:
    """One tensor of a sequence; negative positions count from its end."""
    return sequence[_position(position)]


@lowering("SequenceAt", 11, data=(0,))
def at_(node: NodeView) -> Any:
    return node.call(at, node.input(0), node.scalar(1))


def insert(sequence: Sequence[Tensor], tensor: Tensor, position: Any) -> list[Tensor]:
    """The sequence with a tensor put in before `position`, at its end by default."""
    out = list(sequence)
    out.insert(len(out) if position is None else _position(position), tensor)
    return out


@lowering("SequenceInsert", 11, data=(0, 1))
def insert_(node: NodeView) -> Any:
    return node.call(insert, node.input(0), node.input(1), node.scalar(2))


def erase(sequence: Sequence[Tensor], position: Any) -> list[Tensor]:
    """The sequence without one tensor, the last by default."""
    out = list(sequence)
    out.pop(-1 if position is None else _position(position))
    return out


@lowering("SequenceErase", 11, data=(0,))
def erase_(node: NodeView) -> Any:
    return node.call(erase, node.input(0), node.scalar(1))


def length(sequence: Sequence[Tensor]) -> Tensor:
    """How many tensors, as a host value."""
    return torch.tensor(len(sequence), dtype=torch.int64)


@lowering("SequenceLength", 11, on_host=True)
def length_(node: NodeView) -> Any:
    return node.call(length, node.input(0))


def concatenate(sequence: Sequence[Tensor], axis: int, new_axis: bool) -> Tensor:
    """The tensors of a sequence joined along an axis, or along a new one."""
    return torch.stack(list(sequence), axis) if new_axis else torch.cat(list(sequence), axis)


@lowering("ConcatFromSequence", 11)
def concatenate_(node: NodeView) -> Any:
    return node.call(concatenate, node.input(0), int(node.attr("axis", 0)), bool(node.attr("new_axis", 0)))


def split_to_sequence(x: Tensor, sizes: Any, axis: int, keep: bool) -> list[Tensor]:
    """x cut along `axis`: into parts of one size, of the sizes given, or into single slices."""
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if keep else [p.squeeze(axis) for p in parts]
    if isinstance(sizes, Tensor):
        return list(torch.split(x, to_ints(sizes)[0] if sizes.ndim == 0 else to_ints(sizes), axis))
    return list(torch.split(x, sizes if isinstance(sizes, int) else list(sizes), axis))


@lowering("SplitToSequence", 11, 24, data=(0,))
def split_to_sequence_(node: NodeView) -> Any:
    known = node.constant(1)
    sizes = node.scalar(1) if known is not None and known.ndim == 0 else node.ints(1)
    axis, keep = int(node.attr("axis", 0)), bool(node.attr("keepdims", 1))
    return node.call(split_to_sequence, node.input(0), sizes, axis, keep)


def nothing() -> None:
    """An optional that holds nothing."""
    return


def same(value: Any) -> Any:
    """An optional that holds `value`, or what it holds."""
    return value


@lowering("Optional", 15, 28)
def optional(node: NodeView) -> Any:
    return node.call(same, node.input(0)) if node.has(0) else node.call(nothing)


@lowering("OptionalGetElement", 15, 18, 28)
def get_element(node: NodeView) -> Any:
    return node.call(same, node.input(0))


def has_element(value: Any) -> Tensor:
    """Whether an optional holds something, as a host value."""
    return torch.tensor(value is not None)


@lowering("OptionalHasElement", 15, 18, 28, on_host=True)
def has_element_(node: NodeView) -> Any:
    return node.call(has_element, node.input(0) if node.has(0) else None)
