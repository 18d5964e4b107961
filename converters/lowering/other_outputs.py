"""What else a file answers: outputs that do not follow from the class scores that are looked at, and switches between such scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto

from onnxspect.converters.lowering.endings import View, elementwise, final_function
from onnxspect.converters.lowering.knowledge import learn
from onnxspect.converters.lowering.logits import (
    LABELLERS,
    MAX_WALK,
    PASS_THROUGH,
    LogitsInfo,
    gathered,
    keeps_images,
    needed,
    sees_image,
    walk,
)

#: Nodes that weigh what they take: behind one, a value says something of its own.
_WEIGHING = frozenset(
    (
        "Gemm",
        "MatMul",
        "Conv",
        "ConvTranspose",
        "MatMulInteger",
        "ConvInteger",
        "QLinearConv",
        "QLinearMatMul",
        "Einsum",
    )
    + (
        "LSTM",
        "GRU",
        "RNN",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "Equal",
        "Where",
        "Gather",
        "If",
        "Loop",
    )
)


def switch_of(model: onnx.ModelProto, value: str) -> str:
    """Name of the node that chooses between class scores by a comparison of its own with the image, or "".

    A threshold has no slope: a search along gradients sees what lies in front of such a node, and never makes it switch. Filters
    that are part of the answer are built so (engine/mitigation/target_logit_suppression.py), and an attacker could build the like.

    Args:
        model: the file.
        value: ONNX name of its class scores.
    """
    producers = {name: node for node in model.graph.node for name in node.output if name}
    for _ in range(MAX_WALK):
        node = producers.get(value)
        if node is None or node.domain not in ("", "ai.onnx"):
            return ""
        if node.op_type == "Where":
            return (node.name or value) if sees_image(model, node.input[0], producers) else ""
        if node.op_type not in PASS_THROUGH:
            return ""
        value = node.input[0]
    return ""


@dataclass(frozen=True)
class OtherOutput:
    """An output of the graph that does not follow from the class scores.

    Attributes:
        name: of the output.
        answers: whether it can be an answer of its own: scores, or labels made of other scores.
    """

    name: str
    answers: bool


def other_outputs(model: onnx.ModelProto, value: str) -> tuple[OtherOutput, ...]:
    """The outputs that say something else than the class scores `value`, in the file's order.

    Labels and probabilities of those scores say the same. An embedding that the scores are made from, or the like of it that no
    further weights went into, is none of its own.

    Args:
        model: functions inlined.
        value: ONNX name of the class scores.
    """
    knowledge = learn(model)
    view = View.of(model, knowledge)
    producers = view.producers
    before = needed(value, producers)
    found = []
    for output in model.graph.output:
        name = output.name
        if name in before or not sees_image(model, name, producers) or _says_the_same(name, value, view):
            continue
        # What is made of the scores is an answer of its own, weights or not: of them alone, or joined with the image once more.
        if value not in needed(name, producers) and not _weighted(name, producers, before):
            continue
        scores = walk(name, view)
        where = name if scores is None else scores.value
        if where == value:
            continue
        shape, kind = knowledge.shapes.get(where), knowledge.dtypes.get(where, TensorProto.UNDEFINED)
        if scores is not None:
            answers = shape is None or shape[1] != 1
        else:
            answers = kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.STRING)
        if answers or sees_image(model, name, producers, (value,)):  # else it says how sure the scores are, or the like
            found.append(OtherOutput(name, answers))
    return tuple(found)


def _says_the_same(name: str, value: str, view: View) -> bool:
    """Whether an output names the class that the scores `value` are largest at: between them is nothing but what keeps the order."""
    for _ in range(MAX_WALK):
        if name == value:
            return True
        node = view.producers.get(name)
        if node is None:
            return False
        domain = "" if node.domain == "ai.onnx" else node.domain
        final = final_function(node, view)
        if final is not None:
            name = final.value
        elif (domain, node.op_type) in LABELLERS:
            name = node.input[LABELLERS[domain, node.op_type]]
        elif domain:
            return False
        elif node.op_type in PASS_THROUGH or node.op_type == "OneHot" or keeps_images(node) or gathered(node, view):
            name = node.input[0]
        elif node.op_type == "Gather" and node.input[0] in view.constants:  # the label's name
            name = node.input[1]
        elif (step := elementwise(node, view)) is not None and _rises(step[1]):
            name = step[0]
        else:
            return False
    return False


def _rises(step: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether a function of each score keeps their order, as far as one that saturates can."""
    with np.errstate(all="ignore"):
        rise = np.diff(step(np.linspace(-20, 20, 401)))
    return bool((rise >= 0).all() and (rise > 0).any())


def embeddings(model: onnx.ModelProto, value: str) -> tuple[LogitsInfo, ...]:
    """Outputs in the form of class scores that the class scores `value` are computed from.

    Args:
        model: functions inlined.
        value: ONNX name of the class scores that are looked at.
    """
    view = View.of(model, learn(model))
    before = needed(value, view.producers)
    found = []
    for output in model.graph.output:
        if output.name in before and output.name != value:
            info = walk(output.name, view)
            if info is not None and info.value != value and not set(info.chosen):
                found.append(replace(info, output=output.name))
    return tuple(found)


def _weighted(name: str, producers: Mapping[str, onnx.NodeProto], before: set[str]) -> bool:
    """Whether anything between the values `before` the class scores (the image apart) and `name` weighs or decides."""
    seen, waiting = set(), [name]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        node = producers.get(at)
        if node is None:
            continue
        if (node.domain not in ("", "ai.onnx") or node.op_type in _WEIGHING) and at not in before:
            return True
        if at not in before:
            waiting += node.input
    return False
