"""Operators of opset 1 that ONNX later dropped and old files still use.

ONNX no longer documents them; the formulas are those of ONNX 1.2's "experimental ops", which onnxruntime keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.ops.activation import softplus
from onnxspect.converters.lowering.registry import lowering


def image_scaler(x: Tensor, scale: float, bias: tuple[float, ...]) -> Tensor:
    """scale * x + one bias a channel."""
    return x * scale + torch.tensor(bias, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)


@lowering("ImageScaler", 1)
def image_scaler_(node: NodeView) -> Any:
    bias = tuple(float(b) for b in node.attr("bias") or [0.0])
    return node.call(image_scaler, node.input(0), float(node.attr("scale", 1.0)), bias)


def affine(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta."""
    return alpha * x + beta


@lowering("Affine", 1)
def affine_(node: NodeView) -> Any:
    return node.call(affine, node.input(0), float(node.attr("alpha", 1.0)), float(node.attr("beta", 0.0)))


def parametric_softplus(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * log(1 + exp(beta * x))."""
    return alpha * softplus(beta * x)


@lowering("ParametricSoftplus", 1)
def parametric_softplus_(node: NodeView) -> Any:
    return node.call(parametric_softplus, node.input(0), float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0)))


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@lowering("ScaledTanh", 1)
def scaled_tanh_(node: NodeView) -> Any:
    return node.call(scaled_tanh, node.input(0), float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0)))


def crop(x: Tensor, border: tuple[int, ...], size: tuple[int, ...] | None) -> Tensor:
    """Cut (left, top, right, bottom) off an image, or keep `size` (height, width) from the left and top border on."""
    left, top, right, bottom = border
    height, width = size if size else (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x[:, :, top : top + height, left : left + width]


@lowering("Crop", 1)
def crop_(node: NodeView) -> Any:
    scale = node.attr("scale")
    return node.call(crop, node.input(0), tuple(node.attr("border")), tuple(scale) if scale else None)
