"""Loss functions, which files saved for training may hold (ONNX operator documentation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering


def negative_log_likelihood(
    log_p: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignored: int | None
) -> Tensor:
    """-weight[target] * log_p[target], summed, averaged by weight, or as it is.

    Args:
        log_p: ``(n, classes, ...)``.
        target: class indices ``(n, ...)``.
        weight: ``(classes,)``.
        reduction: "none", "sum" or "mean".
        ignored: a target that counts nothing.
    """
    keep = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    safe = torch.where(keep, target, torch.zeros_like(target)).to(torch.int64)
    each = -log_p.gather(1, safe.unsqueeze(1)).squeeze(1)
    share = keep.to(log_p.dtype) if weight is None else weight[safe] * keep
    loss = each * share
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / share.sum()


def cross_entropy(
    scores: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignored: int | None
) -> tuple[Tensor, Tensor]:
    """(negative log likelihood of the softmax of scores, its logarithm)."""
    log_p = torch.log_softmax(scores, 1)
    return negative_log_likelihood(log_p, target, weight, reduction, ignored), log_p


def _arguments(node: NodeView) -> tuple[Any, ...]:
    reduction = node.attr("reduction", "mean")
    if reduction not in ("none", "sum", "mean"):
        raise Unsupported(f"reduction {reduction!r}")
    return node.input(0), node.input(1), node.input(2), reduction, node.attr("ignore_index")


@lowering("NegativeLogLikelihoodLoss", 12, 13, 22)
def negative_log_likelihood_(node: NodeView) -> Any:
    return node.call(negative_log_likelihood, *_arguments(node))


@lowering("SoftmaxCrossEntropyLoss", 12, 13)
def cross_entropy_(node: NodeView) -> Any:
    both = node.call(cross_entropy, *_arguments(node))
    return node.item(both, 0), node.item(both, 1)
