"""Activations: the elementwise functions of one tensor that networks use as nonlinearities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering


@lowering("Relu", 1, 6, 13, 14)
def relu(node: NodeView) -> Any:
    return node.call(torch.relu, node.input(0))


@lowering("LeakyRelu", 1, 6, 16)
def leaky_relu(node: NodeView) -> Any:
    return node.call(F.leaky_relu, node.input(0), float(node.attr("alpha", 0.01)))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where it is positive, else slope * x; the slope broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


def prelu_per_channel(x: Tensor, slope: Tensor) -> Tensor:
    """As `prelu`, the slope ``(channels,)`` or ``(1,)`` along axis 1 (opsets before 7)."""
    return prelu(x, slope.reshape(-1, *[1] * (x.ndim - 2)) if slope.ndim == 1 else slope)


@lowering("PRelu", 1, 6, 7, 9, 16)
def prelu_(node: NodeView) -> Any:
    return node.call(prelu if node.version >= 7 else prelu_per_channel, node.input(0), node.input(1))


@lowering("Elu", 1, 6, 22)
def elu(node: NodeView) -> Any:
    return node.call(F.elu, node.input(0), float(node.attr("alpha", 1.0)))


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """gamma * (x where positive, else alpha * (exp(x) - 1))."""
    return gamma * F.elu(x, alpha)


@lowering("Selu", 1, 6, 22)
def selu_(node: NodeView) -> Any:
    # The defaults are the schema's: opset 1 rounds them further than opset 6 does.
    alpha, gamma = (1.6732, 1.0507) if node.version == 1 else (1.67326319217681884765625, 1.05070102214813232421875)
    return node.call(selu, node.input(0), float(node.attr("alpha", alpha)), float(node.attr("gamma", gamma)))


@lowering("Celu", 12, 28)
def celu(node: NodeView) -> Any:
    return node.call(F.celu, node.input(0), float(node.attr("alpha", 1.0)))


@lowering("Sigmoid", 1, 6, 13)
def sigmoid(node: NodeView) -> Any:
    return node.call(torch.sigmoid, node.input(0))


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta, cut to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0, 1)


@lowering("HardSigmoid", 1, 6, 22)
def hard_sigmoid_(node: NodeView) -> Any:
    alpha, beta = float(node.attr("alpha", 0.2)), float(node.attr("beta", 0.5))
    if beta == 0.5 and abs(alpha - 1 / 6) < 1e-7:
        return node.call(F.hardsigmoid, node.input(0))
    return node.call(hard_sigmoid, node.input(0), alpha, beta)


@lowering("HardSwish", 14, 22)
def hard_swish(node: NodeView) -> Any:
    return node.call(F.hardswish, node.input(0))


def swish(x: Tensor, alpha: float) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@lowering("Swish", 24)
def swish_(node: NodeView) -> Any:
    return node.call(swish, node.input(0), float(node.attr("alpha", 1.0)))


@lowering("Tanh", 1, 6, 13)
def tanh(node: NodeView) -> Any:
    return node.call(torch.tanh, node.input(0))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without torch's cut to x above 20, which float64 would see."""
    return torch.logaddexp(x, torch.zeros_like(x))


@lowering("Softplus", 1, 22)
def softplus_(node: NodeView) -> Any:
    return node.call(softplus, node.input(0))


@lowering("Softsign", 1, 22)
def softsign(node: NodeView) -> Any:
    return node.call(F.softsign, node.input(0))


@lowering("Mish", 18, 22)
def mish(node: NodeView) -> Any:
    return node.call(F.mish, node.input(0))


@lowering("Gelu", 20)
def gelu(node: NodeView) -> Any:
    approximate = node.attr("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise Unsupported(f"approximate {approximate!r}")
    return node.call(F.gelu, node.input(0), approximate=approximate)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where it exceeds alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@lowering("ThresholdedRelu", 10, 22)
def thresholded_relu_(node: NodeView) -> Any:
    return node.call(thresholded_relu, node.input(0), float(node.attr("alpha", 1.0)))


def shrink(x: Tensor, bias: float, limit: float) -> Tensor:
    """x + bias below -limit, x - bias above limit, else 0, in the type of x."""
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, (x + bias).to(x.dtype), torch.where(x > limit, (x - bias).to(x.dtype), zero))


@lowering("Shrink", 9)
def shrink_(node: NodeView) -> Any:
    return node.call(shrink, node.input(0), float(node.attr("bias", 0.0)), float(node.attr("lambd", 0.5)))


def clip(x: Tensor, low: Any, high: Any) -> Tensor:
    """min(max(x, low), high): where low exceeds high the answer is high."""
    if low is not None:
        x = torch.maximum(x, low) if isinstance(low, Tensor) else torch.clamp(x, min=low)
    if high is not None:
        x = torch.minimum(x, high) if isinstance(high, Tensor) else torch.clamp(x, max=high)
    return x


@lowering("Clip", 1, 6, 11, 12, 13)
def clip_(node: NodeView) -> Any:
    if node.version < 11:
        bounds = [node.attr("min"), node.attr("max")]
    else:
        constants = [node.constant(1), node.constant(2)]
        known = all(c is not None or not node.has(i) for i, c in enumerate(constants, 1))
        bounds = [None if c is None else c.reshape(-1)[0].item() for c in constants]
        if not known:
            return node.call(clip, node.input(0), node.input(1), node.input(2))
    low, high = bounds
    if low is None and high is None:
        return node.input(0)
    if low is not None and high is not None and low < high and node.is_float(0) and not node.on_host:
        return node.call(F.hardtanh, node.input(0), low, high)  # ReLU6 and its like: clamp takes seven times as long
    if low is None or high is None or low <= high:
        return node.call(torch.clamp, node.input(0), low, high)
    return node.call(clip, node.input(0), low, high)
