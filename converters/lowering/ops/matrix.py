"""Operators on matrices: Trilu and Det (ONNX operator documentation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.registry import lowering


def trilu(x: Tensor, k: Any, upper: bool) -> Tensor:
    """The upper or lower triangle of each matrix, from its k-th diagonal on."""
    diagonal = int(k.reshape(()).item()) if isinstance(k, Tensor) else int(k or 0)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@lowering("Trilu", 14, data=(0,))
def trilu_(node: NodeView) -> Any:
    return node.call(trilu, node.input(0), node.scalar(1), bool(node.attr("upper", 1)))


@lowering("Det", 11, 22)
def det(node: NodeView) -> Any:
    return node.call(torch.linalg.det, node.input(0))
