"""Softmax, LogSoftmax and Hardmax.

Before opset 13 they flatten the input to a matrix at `axis` (default 1) and normalise its rows; since then they
normalise along one axis (default the last).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.registry import lowering


def hardmax(x: Tensor, dim: int) -> Tensor:
    """1 at the first maximum along `dim`, else 0."""
    return F.one_hot(x.argmax(dim), x.shape[dim]).movedim(-1, dim).to(x.dtype)


def _over_rows(function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int) -> Tensor:
    """`function` over everything from `axis` on, taken as one axis; the axes before it stay apart."""
    axis = axis % x.ndim if x.ndim else 0
    return function(x.flatten(axis), axis).reshape(x.shape)


def softmax_rows(x: Tensor, axis: int) -> Tensor:
    """Softmax as opsets before 13 have it."""
    return _over_rows(torch.softmax, x, axis)


def log_softmax_rows(x: Tensor, axis: int) -> Tensor:
    """LogSoftmax as opsets before 13 have it."""
    return _over_rows(torch.log_softmax, x, axis)


def hardmax_rows(x: Tensor, axis: int) -> Tensor:
    """Hardmax as opsets before 13 have it."""
    return _over_rows(hardmax, x, axis)


def _softmax(node: NodeView, along_axis: Callable[..., Tensor], over_rows: Callable[..., Tensor]) -> Any:
    x = node.input(0)
    if node.version >= 13:
        return node.call(along_axis, x, int(node.attr("axis", -1)))
    axis, rank = int(node.attr("axis", 1)), node.rank(0)
    if rank and axis % rank == rank - 1:
        return node.call(along_axis, x, axis)
    return node.call(over_rows, x, axis)


@lowering("Softmax", 1, 11, 13)
def softmax(node: NodeView) -> Any:
    return _softmax(node, torch.softmax, softmax_rows)


@lowering("LogSoftmax", 1, 11, 13)
def log_softmax(node: NodeView) -> Any:
    return _softmax(node, torch.log_softmax, log_softmax_rows)


@lowering("Hardmax", 1, 11, 13)
def hardmax_(node: NodeView) -> Any:
    return _softmax(node, hardmax, hardmax_rows)
