"""The few operators of ai.onnx.ml that stand before the logits of a scikit-learn pipeline (ONNX-ML documentation).

Their coefficients are attributes, not initializers: a patch cannot be about them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.cast import to_working
from onnxspect.converters.lowering.registry import lowering

_DOMAIN = "ai.onnx.ml"


def scaler(x: Tensor, offset: tuple[float, ...], scale: tuple[float, ...]) -> Tensor:
    """(x - offset) * scale, one value for all features or one for each."""
    shift, factor = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (offset, scale))
    return (x - shift) * factor


@lowering("Scaler", 1, domain=_DOMAIN)
def scaler_(node: NodeView) -> Any:
    x = node.call(to_working, node.input(0), node.working())
    offset, scale = node.attr("offset") or [0.0], node.attr("scale") or [1.0]
    return node.call(scaler, x, tuple(offset), tuple(scale))


def normalizer(x: Tensor, norm: str) -> Tensor:
    """Each row over its largest value, sum of magnitudes or length; a row of zeros stays."""
    if norm == "MAX":
        size = x.amax(-1, keepdim=True)
    elif norm == "L1":
        size = x.abs().sum(-1, keepdim=True)
    else:
        size = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


@lowering("Normalizer", 1, domain=_DOMAIN)
def normalizer_(node: NodeView) -> Any:
    norm = node.attr("norm", "MAX")
    if norm not in ("MAX", "L1", "L2"):
        raise Unsupported(f"norm {norm!r}")
    return node.call(normalizer, node.call(to_working, node.input(0), node.working()), norm)


def linear_classifier(
    x: Tensor, coefficients: tuple[float, ...], intercepts: tuple[float, ...], transform: str
) -> Tensor:
    """Scores ``(n, classes)`` of a linear classifier, as probabilities where `transform` says so."""
    features = x.reshape(x.shape[0], -1)
    weight = torch.tensor(coefficients, dtype=x.dtype, device=x.device).reshape(-1, features.shape[1])
    scores = features @ weight.t()
    if intercepts:
        scores = scores + torch.tensor(intercepts, dtype=x.dtype, device=x.device)
    if transform == "SOFTMAX":
        return torch.softmax(scores, -1)
    return torch.sigmoid(scores) if transform == "LOGISTIC" else scores


@lowering("LinearClassifier", 1, domain=_DOMAIN)
def linear_classifier_(node: NodeView) -> Any:
    transform = node.attr("post_transform", "NONE")
    if transform not in ("NONE", "SOFTMAX", "LOGISTIC"):
        raise Unsupported(f"post_transform {transform!r}")
    labels = node.attr("classlabels_ints") or node.attr("classlabels_strings") or []
    coefficients, intercepts = tuple(node.attr("coefficients") or ()), tuple(node.attr("intercepts") or ())
    if len(labels) == 2 and len(intercepts) == 1:
        raise Unsupported("one score for two classes")
    x = node.call(to_working, node.input(0), node.working())
    scores = node.call(linear_classifier, x, coefficients, intercepts, transform)
    # Output 0 is the label, which is no number where classes have names; the position of the best score stands for it.
    return node.call(torch.argmax, scores, -1), scores
