"""Gemm and MatMul (ONNX operator documentation)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.registry import lowering


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, transpose_a: bool, transpose_b: bool
) -> Tensor:
    """alpha * A @ B + beta * C, C broadcast to the product."""
    a = a.t() if transpose_a else a
    b = b.t() if transpose_b else b
    if not a.is_floating_point():
        product = torch.matmul(a, b) if alpha == 1 else (torch.matmul(a, b) * alpha).to(a.dtype)
        return product if c is None or beta == 0 else product + (c if beta == 1 else (c * beta).to(c.dtype))
    if c is None or beta == 0:
        return torch.mm(a, b) if alpha == 1 else torch.mm(a, b) * alpha
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@lowering("Gemm", 1, 6, 7, 9, 11, 13)
def gemm_(node: NodeView) -> Any:
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    transpose_a, transpose_b = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))
    a, b, c = node.input(0), node.input(1), node.input(2)
    plain = alpha == 1 and beta == 1 and not transpose_a and transpose_b and node.is_float(0)
    if plain and (c is None or node.rank(2) == 1):
        weight, bias = node.shape(1), node.shape(2)
        if c is None or (weight and bias and bias[0] is not None and bias[0] == weight[0]):
            return node.call(F.linear, a, b, c)
    return node.call(gemm, a, b, c, alpha, beta, transpose_a, transpose_b)


@lowering("MatMul", 1, 9, 13)
def matmul(node: NodeView) -> Any:
    return node.call(torch.matmul, node.input(0), node.input(1))


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """torch.einsum, with ONNX's habits: spaces, upper-case labels, and a one-letter-an-axis ellipsis."""
    return torch.einsum(equation.replace(" ", ""), *operands)


@lowering("Einsum", 12, 28)
def einsum_(node: NodeView) -> Any:
    return node.call(einsum, node.attr("equation", ""), *node.inputs())
