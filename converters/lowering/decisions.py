"""The decisions of a graph: nodes that answer true or false, or choose, by the data of the image."""

from __future__ import annotations

import onnx
from torch import fx

from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.node_names import Names
from onnxspect.converters.lowering.observation import operator_of
from onnxspect.converters.lowering.taps import lying_between, results

_DECIDING = frozenset(
    ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin", "TopK", "NonZero", "OneHot")
    + ("Sign", "IsNaN", "IsInf", "Hardmax")
)


def is_decision(node: fx.Node) -> bool:
    """Whether a value between image and scores answers true or false, or chooses."""
    return operator_of(node) in _DECIDING


def decisions(model: onnx.ModelProto, lowered: LoweredModel) -> tuple[str, ...]:
    """Names of the nodes between image and class scores that answer true or false, or choose, by the image's data."""
    between = lying_between(lowered.module.graph, results(lowered)[0])
    names = Names(lowered, model)
    found = (names.of(n) for n in between if is_decision(n))
    return tuple(dict.fromkeys(name for name, kind in found if kind in _DECIDING))
