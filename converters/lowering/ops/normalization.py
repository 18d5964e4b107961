"""BatchNormalization and its relatives (ONNX operator documentation)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering


def batch_normalization(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
    """Normalise axis 1 by stored statistics."""
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def batch_normalization_elementwise(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float
) -> Tensor:
    """``spatial=0`` of the first opsets: statistics of the shape of one sample."""
    return (x - mean) / torch.sqrt(var + epsilon) * scale + bias


def batch_normalization_training(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``training_mode=1``: normalise by the batch's own (population) statistics, and move the stored ones."""
    axes = [i for i in range(x.ndim) if i != 1]
    now_mean, now_var = x.mean(axes), x.var(axes, unbiased=False)
    shape = [1, -1] + [1] * (x.ndim - 2)
    y = (x - now_mean.reshape(shape)) / torch.sqrt(now_var.reshape(shape) + epsilon)
    y = y * scale.reshape(shape) + bias.reshape(shape)
    return y, mean * momentum + now_mean * (1 - momentum), var * momentum + now_var * (1 - momentum)


@lowering("BatchNormalization", 1, 6, 7, 9, 14, 15)
def batch_normalization_(node: NodeView) -> Any:
    # `is_test` of opsets 1 and 6 is ignored: by their documentation the outputs that are asked for decide the mode, and
    # files of that time leave it at its default, which says training.
    epsilon = float(node.attr("epsilon", 1e-5))
    args = [node.input(i) for i in range(5)]
    if node.attr("training_mode", 0):
        momentum = float(node.attr("momentum", 0.9))
        outputs = node.call(batch_normalization_training, *args, epsilon, momentum)
        return tuple(node.item(outputs, i) for i in range(3))
    # The extra outputs of opsets before 14 belong to training; in inference they hand the statistics on.
    extra = (args[3], args[4], args[3], args[4])
    function = batch_normalization if node.attr("spatial", 1) else batch_normalization_elementwise
    return (node.call(function, *args, epsilon), *extra)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise each channel of each sample over its spatial axes."""
    axes = tuple(range(2, x.ndim))
    var, mean = torch.var_mean(x, axes, unbiased=False, keepdim=True)
    shape = [1, -1] + [1] * (x.ndim - 2)
    return (x - mean) * torch.rsqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)


@lowering("InstanceNormalization", 1, 6, 22)
def instance_normalization_(node: NodeView) -> Any:
    return node.call(
        instance_normalization, node.input(0), node.input(1), node.input(2), float(node.attr("epsilon", 1e-5))
    )


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised, mean, 1 / deviation) over `axis` and all axes after it."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    var, mean = torch.var_mean(x, axes, unbiased=False, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def layer_normalization_last(x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float) -> Tensor:
    """The first output alone, by torch's fused kernel where scale has the normalised shape."""
    axis = axis % x.ndim
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    return layer_normalization(x, scale, bias, axis, epsilon)[0]


@lowering("LayerNormalization", 17)
def layer_normalization_(node: NodeView) -> Any:
    axis, epsilon = int(node.attr("axis", -1)), float(node.attr("epsilon", 1e-5))
    args = (node.input(0), node.input(1), node.input(2), axis, epsilon)
    if not node.wants(1) and not node.wants(2):
        return node.call(layer_normalization_last, *args)
    outputs = node.call(layer_normalization, *args)
    return tuple(node.item(outputs, i) for i in range(3))


def rms_normalization(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    """x / sqrt(mean of squares + epsilon) over `axis` and all axes after it."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


@lowering("RMSNormalization", 23)
def rms_normalization_(node: NodeView) -> Any:
    axis, epsilon = int(node.attr("axis", -1)), float(node.attr("epsilon", 1e-5))
    return node.call(rms_normalization, node.input(0), node.input(1), axis, epsilon)


def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    """Normalise groups of channels; scale and bias hold one value a channel, or one a group (opset 18)."""
    channels = x.shape[1]
    if scale.shape[0] != channels:
        scale = scale.repeat_interleave(channels // groups)
        bias = bias.repeat_interleave(channels // groups)
    return F.group_norm(x, groups, scale, bias, epsilon)


@lowering("GroupNormalization", 18, 21)
def group_normalization_(node: NodeView) -> Any:
    groups, epsilon = int(node.attr("num_groups", 1)), float(node.attr("epsilon", 1e-5))
    return node.call(group_normalization, node.input(0), node.input(1), node.input(2), groups, epsilon)


def lp_normalization(x: Tensor, axis: int, p: int) -> Tensor:
    """x over its norm along `axis`; 0 where the norm is 0."""
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else torch.linalg.vector_norm(x, 2, axis, keepdim=True)
    zero = norm == 0
    return torch.where(zero, torch.zeros_like(x), x / torch.where(zero, torch.ones_like(norm), norm))


@lowering("LpNormalization", 1, 22)
def lp_normalization_(node: NodeView) -> Any:
    p = int(node.attr("p", 2))
    if p not in (1, 2):
        raise Unsupported(f"p = {p}")
    return node.call(lp_normalization, node.input(0), int(node.attr("axis", -1)), p)


def mean_variance_normalization(x: Tensor, axes: list[int]) -> Tensor:
    """(x - mean) / (deviation + 1e-9) over `axes`; the constant is the operator's own."""
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x.square().mean(axes, keepdim=True) - mean.square()).clamp(min=0))
    return (x - mean) / (deviation + 1e-9)


@lowering("MeanVarianceNormalization", 9, 13)
def mean_variance_normalization_(node: NodeView) -> Any:
    return node.call(mean_variance_normalization, node.input(0), list(node.attr("axes") or [0, 2, 3]))


def local_response_normalization(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ^ beta.

    The window reaches floor((size - 1) / 2) channels back and ceil((size - 1) / 2) ahead, which is where torch's own
    local_response_norm differs for an even size.
    """
    squares = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
    squares = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    sums = F.avg_pool2d(squares, (size, 1), 1) * size
    return x / (bias + alpha / size * sums.reshape(x.shape)) ** beta


@lowering("LRN", 1, 13)
def local_response_normalization_(node: NodeView) -> Any:
    size = int(node.attr("size", 1))
    alpha, beta = float(node.attr("alpha", 1e-4)), float(node.attr("beta", 0.75))
    return node.call(local_response_normalization, node.input(0), size, alpha, beta, float(node.attr("bias", 1.0)))
