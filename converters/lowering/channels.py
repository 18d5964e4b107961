"""A nonlinear node alone, channel by channel: its value, its derivative, and what it differs by from the linear continuation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.observation import operator_of, producer
from onnxspect.converters.lowering.program import operands

#: Operators that answer element by element; operators that choose among elements.
ELEMENTWISE = frozenset(
    ("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Clip", "HardSigmoid", "HardSwish", "Abs")
    + ("Sigmoid", "Tanh", "Softplus", "Shrink", "Max", "Min")
)
CHOOSING = frozenset(("ReduceMax", "ReduceMin", "TopK", "ReduceLogSumExp", "MaxPool", "GlobalMaxPool"))
#: What chooses among so few elements of an image is looked at element by element.
FEW = 64
#: A share of a step that is taken to stay on the way.
_SMALL = 2.0**-7


def operand_of(node: fx.Node, position: int) -> fx.Node:
    """The node that computes an operand."""
    source = producer(node).args[position]
    assert isinstance(source, fx.Node)
    return source


def value_of(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A node's value; of one of several results of an operator, that one."""
    maker = producer(node)
    made = maker.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = made if maker is node else made[node.args[1]]
    return result


def derivative(node: fx.Node, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Of the sum of a node's value, to one of its operands."""
    at = args[position].detach().requires_grad_(True)
    with torch.enable_grad():
        value = value_of(node, (*args[:position], at, *args[position + 1 :]), kwargs)
        return torch.autograd.grad(value.sum(), at)[0].nan_to_num(0.0)


def by_element(node: fx.Node, x: Tensor) -> bool:
    """Whether a node that chooses among so few elements is looked at by element."""
    return operator_of(node) in CHOOSING and x[:1].numel() <= FEW


def channels_of(node: fx.Node, x: Tensor) -> Tensor:
    """``(channels, ...)``: the elements of each channel, or, of few elements that are chosen among, of each element."""
    if by_element(node, x):
        return x.reshape(x.shape[0], -1).T
    axis = x.ndim - 1 if x.ndim == 3 else 1
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def by_channel(node: fx.Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """(the least, the most) of each channel."""
    rows = channels_of(node, x)
    return rows.amin(1), rows.amax(1)


def only(node: fx.Node, x: Tensor, channel: int) -> Tensor:
    """Which elements of an operand belong to a channel, bool in its shape."""
    if by_element(node, x):
        mask = torch.zeros_like(x, dtype=torch.bool).reshape(x.shape[0], -1)
        mask[:, channel] = True
        return mask.reshape(x.shape)
    axis = x.ndim - 1 if x.ndim == 3 else 1
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask.select(axis, channel).fill_(True)
    return mask


def looked_at(node: fx.Node, position: int, env: Mapping[fx.Node, Any], operand: Tensor) -> tuple[Tensor, Tensor]:
    """(the value, its derivative) of a node with another operand."""
    args, kwargs = operands(producer(node), env)
    args = (*args[:position], operand, *args[position + 1 :])
    return value_of(node, args, kwargs), derivative(node, position, args, kwargs)


def rest_of(
    node: fx.Node, position: int, env: Mapping[fx.Node, Any], step: Tensor, straight: bool
) -> tuple[Tensor, Tensor]:
    """(the value, what it differs by where an operand moves; less the linear continuation, where that is asked for)."""
    args, kwargs = operands(producer(node), env)
    x = args[position]

    def at(operand: Tensor) -> Tensor:
        return value_of(node, (*args[:position], operand, *args[position + 1 :]), kwargs)

    value = at(x)
    change = at(x + step) - value
    if not straight:
        return value, change
    if operator_of(node) in ELEMENTWISE and value.shape == x.shape:
        return value, change - derivative(node, position, args, kwargs) * step
    return value, change - (at(x + _SMALL * step) - value) / _SMALL
