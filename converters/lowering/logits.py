"""Where the logits of a classifier are: the walk back from its output through what only turns them into an answer.

Probabilities, labels and dictionaries of probabilities are made from the logits by a tail of a few nodes (Softmax,
ArgMax, ZipMap, ...). Inspection wants the logits themselves: a softmax saturates, and labels have no gradient. Nothing
is cut from the file: the torch graph is merely asked for another value (lowering.py lowers only what that value needs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.builder import FLOATS
from onnxspect.converters.lowering.knowledge import Knowledge, learn
from onnxspect.converters.text import printable

#: Nodes that hand their first input on, perhaps in another form.
_PASS_THROUGH = frozenset(
    ("Identity", "Dropout", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
    + ("QuantizeLinear", "DequantizeLinear")
)
#: Nodes that turn class scores into labels: input 0 holds the scores (1 where noted).
_LABELLERS: dict[tuple[str, str], int] = {
    ("", "ArgMax"): 0,
    ("", "TopK"): 0,
    ("ai.onnx.ml", "ZipMap"): 0,
    ("ai.onnx.ml", "LabelEncoder"): 0,
    ("ai.onnx.ml", "CastMap"): 0,
    ("ai.onnx.ml", "ArrayFeatureExtractor"): 1,
}
_MAX_WALK = 64


@dataclass(frozen=True)
class LogitsInfo:
    """Where the logits are.

    Attributes:
        value: ONNX value name, of shape (n, classes), possibly with trailing axes of size 1.
        how: what that value is. "logits": the graph's own scores. "before_softmax", "before_sigmoid": the input of the
            function that the graph ends in. "log_of_probabilities": probabilities whose softmax could not be found;
            their logarithm serves as logits.
        removed: names of the nodes between the value and the graph's output (or of their first output, where a node
            has no name), from the value on.
    """

    value: str
    how: str
    removed: tuple[str, ...]


def logits_of(model: onnx.ModelProto, knowledge: Knowledge | None = None) -> LogitsInfo:
    """Find the logits of a classifier.

    The first output that leads back to floating-point scores counts: labels and probabilities of the same scores lead
    to the same place.

    Args:
        model: the classifier.
        knowledge: what is inferred of its values, where that is at hand.

    Raises:
        OnnxspectError: no output does.
    """
    knowledge = knowledge or learn(model)
    producers = {name: node for node in model.graph.node for name in node.output if name}
    for output in model.graph.output:
        found = _walk(output.name, producers, knowledge)
        if found is not None:
            return found
    names = ", ".join(printable(o.name) for o in model.graph.output[:5])
    raise OnnxspectError(
        f"no output ({names}) leads back to class scores", "an image classifier answers one score for each class"
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
    for _ in range(_MAX_WALK):
        node = producers.get(value)
        if node is None or node.domain not in ("", "ai.onnx"):
            return ""
        if node.op_type == "Where":
            return (node.name or value) if _sees_image(model, node.input[0], producers) else ""
        if node.op_type not in _PASS_THROUGH:
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
    producers = {name: node for node in model.graph.node for name in node.output if name}
    before = _needed(value, producers)
    found = []
    for output in model.graph.output:
        name = output.name
        if name in before or not _sees_image(model, name, producers, (value,)):
            continue
        # What joins the scores with the image once more is an answer of its own, weights or not.
        if value not in _needed(name, producers) and not _weighted(name, producers, before):
            continue
        scores = _walk(name, producers, knowledge)
        where = name if scores is None else scores.value
        if where == value:
            continue
        shape, kind = knowledge.shapes.get(where), knowledge.dtypes.get(where, TensorProto.UNDEFINED)
        if scores is not None:
            answers = shape is None or shape[1] != 1
        else:
            answers = kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.STRING)
        found.append(OtherOutput(name, answers))
    return tuple(found)


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


def _needed(value: str, producers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """A value and all that it is computed from."""
    seen: set[str] = set()
    waiting = [value]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += producers[name].input if name in producers else ()
    return seen


def _sees_image(
    model: onnx.ModelProto, value: str, producers: Mapping[str, onnx.NodeProto], but: tuple[str, ...] = ()
) -> bool:
    """Whether a value depends on an input of the graph, otherwise than through the values `but`."""
    inputs = {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer}
    seen, waiting = set(but), [value]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        if name in inputs:
            return True
        if name in producers:
            seen.add(name)
            waiting += producers[name].input
    return False


def _walk(name: str, producers: Mapping[str, onnx.NodeProto], knowledge: Knowledge) -> LogitsInfo | None:
    """Back from the output `name`; None where it leads to nothing that has the form of class scores."""
    removed: list[onnx.NodeProto] = []
    scores: tuple[str, int] | None = None  # the last value on the way that can be scores, and how much is behind it
    for _ in range(_MAX_WALK):
        node = producers.get(name)
        if scores is None and _can_be_scores(name, node, knowledge):
            scores = (name, len(removed))
        if node is None:
            break
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = _final_function(node, knowledge, producers)
        if function is not None:
            value, how, inner = function
            return LogitsInfo(value, how, _names([*inner, *removed[::-1]]))
        removed.append(node)
        if (domain, node.op_type) in _LABELLERS:
            name, scores = node.input[_LABELLERS[domain, node.op_type]], None
        elif not domain and node.op_type in _PASS_THROUGH:
            name = node.input[0]
        elif domain == "ai.onnx.ml" and node.op_type == "LinearClassifier" and len(node.output) > 1:
            # Its labels and its scores are two outputs of one node: go on from the scores.
            if name == node.output[1]:
                break
            removed.pop()
            name = node.output[1]
        else:
            break
    if scores is None:
        return None
    value, behind = scores
    how = "log_of_probabilities" if _is_distribution(value, producers) else "logits"
    return LogitsInfo(value, how, _names(removed[:behind][::-1]))


def _names(nodes: list[onnx.NodeProto]) -> tuple[str, ...]:
    return tuple(node.name or node.output[0] for node in nodes)


def _can_be_scores(name: str, node: onnx.NodeProto | None, knowledge: Knowledge) -> bool:
    """Whether a value is floating point, as far as is known, and of the form (n, classes) or (n, classes, 1, ...)."""
    if node is not None and (node.domain, node.op_type) in _LABELLERS:
        return False
    dtype, shape = knowledge.dtypes.get(name), knowledge.shapes.get(name)
    if dtype is not None and dtype not in FLOATS and dtype != TensorProto.UNDEFINED:
        return False
    return shape is None or (len(shape) >= 2 and all(n in (1, None) for n in shape[2:]))


def _final_function(
    node: onnx.NodeProto, knowledge: Knowledge, producers: Mapping[str, onnx.NodeProto]
) -> tuple[str, str, list[onnx.NodeProto]] | None:
    """(its input, how, the nodes it is made of) where `node` ends a softmax or sigmoid over the classes."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Softmax", "LogSoftmax") and _over_classes(node, knowledge):
        return node.input[0], "before_softmax", [node]
    if node.op_type == "Sigmoid":
        return node.input[0], "before_sigmoid", [node]
    if node.op_type == "Div":  # softmax written out: exp(z) / sum(exp(z))
        top, bottom = producers.get(node.input[0]), producers.get(node.input[1])
        if top is not None and bottom is not None and top.op_type == "Exp" and _sums(bottom, node.input[0]):
            return top.input[0], "before_softmax", [top, bottom, node]
    if node.op_type == "Exp":  # exp(log_softmax(z))
        inner = producers.get(node.input[0])
        if inner is not None and inner.op_type == "LogSoftmax" and _over_classes(inner, knowledge):
            return inner.input[0], "before_softmax", [inner, node]
    return None


def _sums(node: onnx.NodeProto, value: str) -> bool:
    return node.op_type == "ReduceSum" and node.input[0] == value


def _over_classes(node: onnx.NodeProto, knowledge: Knowledge) -> bool:
    """Whether a Softmax runs over axis 1 (and axes of size 1)."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    shape = knowledge.shapes.get(node.input[0])
    if axis is None or shape is None:
        # Both defaults (1 before opset 13, the last since) mean the classes of an (n, classes) matrix.
        return axis in (None, 1, -1) and (shape is None or len(shape) == 2 or set(shape[2:]) <= {1})
    axis = axis % len(shape)
    return axis == 1 or (axis == len(shape) - 1 and len(shape) == 2)


def _is_distribution(value: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value is probabilities by construction: x / sum(x), a classifier's or an average of softmaxes."""
    node = producers.get(value)
    if node is None:
        return False
    if node.op_type == "Div" and _sums(producers.get(node.input[1], onnx.NodeProto()), node.input[0]):
        return True
    if node.op_type in ("Normalizer", "LinearClassifier") and node.domain == "ai.onnx.ml":
        attributes = {a.name: a.s for a in node.attribute}
        if node.op_type == "Normalizer":
            return attributes.get("norm", b"MAX") == b"L1"
        return attributes.get("post_transform", b"NONE") in (b"SOFTMAX", b"LOGISTIC")
    if node.op_type in ("Mean", "Sum", "Add"):
        return all(_ends_in_softmax(i, producers) for i in node.input)
    if node.op_type in ("Div", "Mul"):
        return any(_is_distribution(i, producers) for i in node.input)
    return False


def _ends_in_softmax(value: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    node = producers.get(value)
    return node is not None and (node.op_type == "Softmax" or _is_distribution(value, producers))
