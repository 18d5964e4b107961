"""Where the logits of a classifier are: the walk back from its outputs through what only turns them into an answer.

Probabilities, labels and dictionaries of probabilities are made from the logits by a tail of a few nodes (Softmax,
ArgMax, ZipMap, ...). Inspection wants the logits themselves: a softmax saturates, and labels have no gradient. Nothing
is cut from the file: the torch graph is merely asked for another value (lower.py lowers only what that value needs).
What the nodes of such a tail are is told in endings.py, what else a file answers in other_outputs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.builder import FLOATS
from onnxspect.converters.lowering.endings import (
    View,
    attribute,
    elementwise,
    final_function,
    is_distribution,
    keeps_order,
)
from onnxspect.converters.lowering.knowledge import Knowledge, learn
from onnxspect.converters.text import printable

#: Nodes that hand their first input on, perhaps in another form.
PASS_THROUGH = frozenset(
    ("Identity", "Dropout", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
    + ("QuantizeLinear", "DequantizeLinear")
)
#: Nodes that turn class scores into labels: input 0 holds the scores (1 where noted).
LABELLERS: dict[tuple[str, str], int] = {
    ("", "ArgMax"): 0,
    ("", "TopK"): 0,
    ("ai.onnx.ml", "ZipMap"): 0,
    ("ai.onnx.ml", "LabelEncoder"): 0,
    ("ai.onnx.ml", "CastMap"): 0,
    ("ai.onnx.ml", "ArrayFeatureExtractor"): 1,
}
MAX_WALK = 64
_HOW = {"softmax": "before_softmax", "log_softmax": "before_softmax", "sigmoid": "before_sigmoid"}


@dataclass(frozen=True)
class LogitsInfo:
    """Where the logits are.

    Attributes:
        value: ONNX value name, of shape (n, classes), possibly with further axes of size 1.
        how: what that value is. "logits": the graph's own scores. "before_softmax", "before_sigmoid": the input of the
            function that the graph ends in; of one sigmoid it is one number, the second class's score beside a first that
            has 0. "log_of_probabilities": probabilities whose softmax could not be found; their logarithm serves as logits.
            "one_logit": one number, by the user's word the logit of a second class.
        removed: names of the nodes between the value and the graph's output (or of their first output, where a node
            has no name), from the value on.
        output: name of the graph's output that led there.
        chosen: which of the value's classes the output has, and in which order; () for all, as they are.
    """

    value: str
    how: str
    removed: tuple[str, ...]
    output: str = ""
    chosen: tuple[int, ...] = ()


def logits_of(model: onnx.ModelProto, knowledge: Knowledge | None = None, output: str = "") -> LogitsInfo:
    """Find the logits of a classifier.

    The first output that leads back to floating-point scores counts, embeddings apart (see `score_outputs`).

    Args:
        model: the classifier, its functions inlined.
        knowledge: what is inferred of its values, where that is at hand.
        output: name of the output that is meant; it may then be one number an image.

    Raises:
        OnnxspectError: no output does, or the named one does not.
    """
    knowledge = knowledge or learn(model)
    if output:
        return _named(model, knowledge, output)
    found = score_outputs(model, knowledge)
    if found:
        return found[0]
    names = ", ".join(printable(o.name) for o in model.graph.output[:5])
    raise OnnxspectError(
        f"no output ({names}) leads back to class scores", "an image classifier answers one score for each class"
    )


def score_outputs(model: onnx.ModelProto, knowledge: Knowledge | None = None) -> tuple[LogitsInfo, ...]:
    """Every output that leads back to class scores of its own: the likeliest first, then in the file's order.

    Labels and probabilities of the same scores lead to the same place, and count once. An output that another one's scores are
    computed from is an embedding, most likely, and comes last.

    Args:
        model: functions inlined.
        knowledge: what is inferred of its values, where that is at hand.
    """
    view = View.of(model, knowledge or learn(model))
    found: list[LogitsInfo] = []
    for output in model.graph.output:
        info = walk(output.name, view)
        if info is not None and _place(info, view) not in {_place(f, view) for f in found}:
            found.append(replace(info, output=output.name))
    behind = {f.value: needed(f.value, view.producers) for f in found}

    def rank(info: LogitsInfo) -> tuple[bool, bool]:
        inner = any(info.value != v and info.value in needed for v, needed in behind.items())
        return inner, not sees_image(model, info.value, view.producers)

    return tuple(sorted(found, key=rank))


def outputs_of(model: onnx.ModelProto, info: LogitsInfo) -> tuple[str, ...]:
    """The graph's outputs that are made of these class scores, in the file's order.

    Args:
        model: functions inlined.
        info: of one of its outputs.
    """
    view = View.of(model, learn(model))
    found = []
    for output in model.graph.output:
        walked = walk(output.name, view)
        if output.name == info.output or (walked is not None and _place(walked, view) == _place(info, view)):
            found.append(output.name)
    return tuple(found)


def _place(info: LogitsInfo, view: View) -> tuple[str, tuple[int, ...]]:
    """Which class scores these are, whatever copy of them is named."""
    name = info.value
    for _ in range(MAX_WALK):
        node = view.node(name)
        if node is None or node.op_type not in ("Identity", "Dropout", "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            break
        name = node.input[0]
    return name, info.chosen


def _named(model: onnx.ModelProto, knowledge: Knowledge, output: str) -> LogitsInfo:
    """The class scores that the output of that name leads to."""
    names = [o.name for o in model.graph.output]
    if output not in names:
        raise OnnxspectError(
            f"has no output named {printable(output)}", f"its outputs are {', '.join(map(printable, names[:20]))}"
        )
    view = View.of(model, knowledge)
    info = walk(output, view)
    if info is None:
        if _is_float(output, view) and _size(view.shape(output)) == 1:
            return LogitsInfo(output, "one_logit", (), output)
        raise OnnxspectError(
            f"its output {printable(output)} does not lead back to class scores",
            "an image classifier answers one score for each class",
        )
    return replace(info, output=output)


def needed(value: str, producers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """A value and all that it is computed from."""
    seen: set[str] = set()
    waiting = [value]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += producers[name].input if name in producers else ()
    return seen


def sees_image(
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


def walk(name: str, view: View) -> LogitsInfo | None:
    """Back from the output `name`; None where it leads to nothing that has the form of class scores."""
    removed: list[onnx.NodeProto] = []
    scores: tuple[str, int] | None = None  # the last value on the way that can be scores, and how much is behind it
    steps: list[Callable[[np.ndarray], np.ndarray]] = []  # what is done to each score, the last first
    chosen: tuple[int, ...] | None = None  # the output's classes among those of `name`
    labels = False
    for _ in range(MAX_WALK):
        node = view.producers.get(name)
        if scores is None and not steps and chosen is None and _can_be_scores(name, node, view):
            scores = (name, len(removed))
        if node is None:
            break
        domain = "" if node.domain == "ai.onnx" else node.domain
        final = final_function(node, view)
        if final is not None and keeps_order(steps[::-1], final.how, _size(view.shape(final.value))):
            order = final.chosen if chosen is None else _composed(final.chosen, chosen)
            info = LogitsInfo(final.value, _HOW[final.how], _names([*final.nodes, *removed[::-1]]), chosen=order)
            return _further(info, view)
        removed.append(node)
        if (domain, node.op_type) in LABELLERS:
            name, scores, labels = node.input[LABELLERS[domain, node.op_type]], None, True
            continue
        if domain == "ai.onnx.ml" and node.op_type == "LinearClassifier" and len(node.output) > 1:
            # Its labels and its scores are two outputs of one node: go on from the scores.
            if name == node.output[1]:
                break
            removed.pop()
            name = node.output[1]
            continue
        if domain:
            break
        step = elementwise(node, view)
        if node.op_type in PASS_THROUGH or keeps_images(node):
            name = node.input[0]
        elif (columns := gathered(node, view)) is not None:
            chosen = columns if chosen is None else tuple(columns[i] for i in chosen if i < len(columns))
            name = node.input[0]
        elif step is not None and not labels:
            steps.append(step[1])
            name = step[0]
        else:
            break
    average = (scores is None or bool(steps)) and chosen is None and is_distribution(name, view)
    average = average and _can_be_scores(name, view.producers.get(name), view)
    if average and keeps_order(steps[::-1], "softmax", _size(view.shape(name))):
        behind = removed[:-1] if removed and name in removed[-1].output else removed
        return LogitsInfo(name, "log_of_probabilities", _names(behind[::-1]))
    if scores is None:
        return None
    value, behind_scores = scores
    how = "log_of_probabilities" if is_distribution(value, view) else "logits"
    if how == "logits" and _size(view.shape(value)) == 1:
        return None  # one number that no sigmoid made
    return LogitsInfo(value, how, _names(removed[:behind_scores][::-1]))


def _further(info: LogitsInfo, view: View) -> LogitsInfo:
    """Behind a softmax of a softmax (a mistake that many make) the scores are those that went into the first."""
    name, before = info.value, info
    for _ in range(MAX_WALK):
        node = view.producers.get(name)
        if node is None:
            return info
        final = final_function(node, view)
        if final is not None and info.how == "before_softmax" and not final.chosen:
            return replace(
                before, value=final.value, how=_HOW[final.how], removed=(*_names([*final.nodes]), *info.removed)
            )
        if node.domain not in ("", "ai.onnx") or node.op_type not in (
            "Identity",
            "Dropout",
            "Cast",
            "Reshape",
            "Flatten",
        ):
            return info
        name = node.input[0]
    return info


def _composed(pair: tuple[int, ...], chosen: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(pair[i] for i in chosen) if pair else chosen


def keeps_images(node: onnx.NodeProto) -> bool:
    """Whether a Transpose leaves the axis of the images where it is: of class scores all others but one have size 1."""
    if node.op_type != "Transpose":
        return False
    permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
    return bool(permutation) and permutation[0] == 0 if permutation else False


def gathered(node: onnx.NodeProto, view: View) -> tuple[int, ...] | None:
    """The columns that a node takes from class scores (n, classes), in order; None where it does something else."""
    shape = view.shape(node.input[0]) if node.input else None
    classes = _size(shape)
    if shape is None or classes is None or len(shape) != 2:
        return None
    if node.op_type == "Gather" and attribute(node, "axis", 0.0) in (1.0, -1.0):
        indices = view.array(node.input[1])
        if indices is None or indices.ndim != 1 or indices.size < 2:
            return None
        found = tuple(int(i) % classes for i in indices if -classes <= i < classes)
        return found if len(found) == indices.size else None
    if node.op_type == "Slice" and len(node.input) >= 3:
        starts, ends, axes, steps = (
            view.array(node.input[i]) if len(node.input) > i and node.input[i] else default
            for i, default in ((1, None), (2, None), (3, np.array([0])), (4, np.array([1])))
        )
        if any(v is None or v.size != 1 for v in (starts, ends, axes, steps)) or int(axes.flat[0]) not in (1, -1):  # type: ignore[union-attr]
            return None
        found = tuple(range(classes))[int(starts.flat[0]) : int(ends.flat[0]) : int(steps.flat[0])]  # type: ignore[union-attr]
        return found if len(found) > 1 else None
    return None


def _names(nodes: list[onnx.NodeProto]) -> tuple[str, ...]:
    return tuple(node.name or node.output[0] for node in nodes)


def _size(shape: tuple[int | None, ...] | None) -> int | None:
    """How many class scores an image has by this shape; None where that is not known."""
    if shape is None or any(n is None for n in shape[1:]):
        return None
    return int(np.prod([n or 1 for n in shape[1:]]))


def _is_float(name: str, view: View) -> bool:
    dtype = view.knowledge.dtypes.get(name)
    return dtype is None or dtype in FLOATS or dtype == TensorProto.UNDEFINED


def _can_be_scores(name: str, node: onnx.NodeProto | None, view: View) -> bool:
    """Whether a value is floating point, as far as is known, and has one axis of classes: (n, classes), perhaps with further axes
    of size 1, wherever they are."""
    if node is not None and (node.domain, node.op_type) in LABELLERS:
        return False
    shape = view.shape(name)
    if not _is_float(name, view):
        return False
    if shape is None:
        return True
    if len(shape) < 2:
        return False
    return all(n in (1, None) for n in shape[2:]) or (None not in shape[1:] and sum(n != 1 for n in shape[1:]) == 1)
