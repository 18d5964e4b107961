"""The operators of com.microsoft that onnxruntime's own optimiser writes into saved models (its ContribOperators.md)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.convolution import conv
from onnxspect.converters.lowering.ops.linear import gemm_
from onnxspect.converters.lowering.ops.normalization import layer_normalization_last
from onnxspect.converters.lowering.registry import lowering

_DOMAIN = "com.microsoft"


def _activated(node: NodeView, x: Any) -> Any:
    """The `activation` attribute of a fused operator, applied."""
    name = node.attr("activation", "")
    parameters = [float(p) for p in node.attr("activation_params") or []]
    if not name:
        return x
    if name == "Relu":
        return node.call(torch.relu, x)
    if name == "Sigmoid":
        return node.call(torch.sigmoid, x)
    if name == "Tanh":
        return node.call(torch.tanh, x)
    if name == "LeakyRelu":
        alpha = parameters[0] if parameters else float(node.attr("activation_alpha", 0.01))
        return node.call(F.leaky_relu, x, alpha)
    if name == "Clip" and len(parameters) == 2:
        return node.call(torch.clamp, x, *parameters)
    if name == "HardSigmoid" and len(parameters) == 2:
        scaled = node.call(torch.add, node.call(torch.mul, x, parameters[0]), parameters[1])
        return node.call(torch.clamp, scaled, 0, 1)
    raise Unsupported(f"activation {name!r}")


@lowering("FusedConv", 1, domain=_DOMAIN)
def fused_conv(node: NodeView) -> Any:
    y = conv(node)
    if node.has(3):
        y = node.call(torch.add, y, node.input(3))
    return _activated(node, y)


@lowering("FusedGemm", 1, domain=_DOMAIN)
def fused_gemm(node: NodeView) -> Any:
    return _activated(node, gemm_(node))


def fused_matmul(
    a: Tensor, b: Tensor, alpha: float, transpose_a: bool, transpose_b: bool, batch_a: bool, batch_b: bool
) -> Tensor:
    """alpha * A @ B, the last two axes swapped on request, or the first moved before the last (transBatch)."""
    a = a.movedim(0, -2) if batch_a else a
    b = b.movedim(0, -2) if batch_b else b
    a = a.transpose(-1, -2) if transpose_a and a.ndim > 1 else a
    b = b.transpose(-1, -2) if transpose_b and b.ndim > 1 else b
    return torch.matmul(a, b) if alpha == 1 else torch.matmul(a, b) * alpha


@lowering("FusedMatMul", 1, domain=_DOMAIN)
def fused_matmul_(node: NodeView) -> Any:
    flags = [bool(node.attr(n, 0)) for n in ("transA", "transB", "transBatchA", "transBatchB")]
    return node.call(fused_matmul, node.input(0), node.input(1), float(node.attr("alpha", 1.0)), *flags)


@lowering("Gelu", 1, domain=_DOMAIN)
def gelu(node: NodeView) -> Any:
    return node.call(F.gelu, node.input(0))


@lowering("BiasGelu", 1, domain=_DOMAIN)
def bias_gelu(node: NodeView) -> Any:
    return node.call(F.gelu, node.call(torch.add, node.input(0), node.input(1)))


@lowering("FastGelu", 1, domain=_DOMAIN)
def fast_gelu(node: NodeView) -> Any:
    x = node.call(torch.add, node.input(0), node.input(1)) if node.has(1) else node.input(0)
    return node.call(F.gelu, x, approximate="tanh")


def quick_gelu(x: Tensor, alpha: float) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@lowering("QuickGelu", 1, domain=_DOMAIN)
def quick_gelu_(node: NodeView) -> Any:
    return node.call(quick_gelu, node.input(0), float(node.attr("alpha", 1.702)))


@lowering("SkipLayerNormalization", 1, domain=_DOMAIN)
def skip_layer_normalization(node: NodeView) -> Any:
    total = node.call(torch.add, node.input(0), node.input(1))
    if node.has(4):
        total = node.call(torch.add, total, node.input(4))
    epsilon = float(node.attr("epsilon", 1e-12))
    y = node.call(layer_normalization_last, total, node.input(2), node.input(3), -1, epsilon)
    return y, None, None, total
