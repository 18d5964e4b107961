"""Nodes that a patch adds to a graph: a mask on a value, the input filter beside the classifier, suppressed logits.

Everything that is added has a name that begins with `onnxspect/`, so that what was there before is still there under
its own name: a masked or suppressed value keeps its name, and it is its producer's output that is renamed. They use
operators of opset 7 on, the first whose arithmetic broadcasts as today (logits are suppressed from opset 9 on, which
has Where); older files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.lowering.knowledge import learn
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.method import ADDED

#: The outputs that a guarded model has beside its own.
SCORE, REJECTED = "backdoor_score", "rejected"
#: Arithmetic broadcasts as in numpy from this opset on.
_OLDEST_OPSET = 7
#: Where.
_OLDEST_TO_SUPPRESS = 9
#: Added operators that take a value's name over, and which of their inputs the value is then: masks, suppressed logits, frozen values.
_COVERS = {"Mul": 0, "Where": 2, "And": 0, "Or": 0}
#: Added nodes that stand behind each other and take one value's name over, at most.
_LINKS = 4
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Mask:
    """Multiplies a value by zeros and ones along one axis: pruned neurons (Neural Cleanse, Wang et al., 2019, sec. VI-B).

    Attributes:
        value: ONNX value name.
        axis: the neurons' axis in it.
        rank: number of its axes.
        keep: bool ``(neurons,)``.
    """

    value: str
    axis: int
    rank: int
    keep: np.ndarray = field(repr=False)

    def apply(self, model: onnx.ModelProto) -> str:
        """Insert a Mul behind the value's producer; consumers still read the value by its name."""
        nodes = _Nodes(model, f"mask/{self.value}", _check_opset(model))
        kind = _element_type(model, self.value)
        shape = [-1 if i == self.axis else 1 for i in range(self.rank)]
        values = self.keep.astype(helper.tensor_dtype_to_np_dtype(kind)).reshape(shape)
        inner = nodes.fresh(f"{ADDED}unmasked/{self.value}")
        nodes.add("Mul", inner, nodes.constant("keep", values), output=self.value)
        nodes.stand_before(self.value, inner)
        return f"a mask on {printable(self.value)} that keeps {int(self.keep.sum())} of {len(self.keep)} neurons"


@dataclass(frozen=True)
class Freeze:
    """Makes a value, or some of its elements, what it always is on clean images (cut.py).

    Attributes:
        value: ONNX value name.
        usual: its value on a clean image, or group of images, in its own type.
        asleep: which elements are frozen, bool in its shape.
    """

    value: str
    usual: np.ndarray = field(repr=False)
    asleep: np.ndarray = field(repr=False)

    def apply(self, model: onnx.ModelProto) -> str:
        """Insert a choice by constants behind the value's producer; consumers still read the value by its name."""
        nodes = _Nodes(model, f"cut/{self.value}", _check_opset(model, _OLDEST_TO_SUPPRESS))
        inner = nodes.fresh(f"{ADDED}uncut/{self.value}")
        if self.usual.dtype == np.bool_:  # onnxruntime has no Where of truth values
            awake = nodes.add("And", inner, nodes.constant("awake", ~self.asleep))
            nodes.add("Or", awake, nodes.constant("usual", self.asleep & self.usual), output=self.value)
        else:
            which = nodes.constant("asleep", np.array(True) if self.asleep.all() else self.asleep)
            nodes.add("Where", which, nodes.constant("usual", self.usual), inner, output=self.value)
        nodes.stand_before(self.value, inner)
        return f"{printable(self.value)} is frozen at what it is on clean images"


@dataclass(frozen=True)
class Reading:
    """What a filter reads of one value, linear in its activations.

    Attributes:
        value: ONNX value name of the activations ``(n, ...)``.
        weights: float32 ``(k, targets)``.
        neurons: int64 ``(k,)``, indices into the flattened activations of one image; None for all of them, in order.
    """

    value: str
    weights: np.ndarray = field(repr=False)
    neurons: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Filter:
    """The input filter inside the model: linear scores of some activations, and the largest one's comparison with a threshold.

    Attributes:
        readings: their scores are added.
        offsets: float32 ``(targets,)``, added too.
        threshold: an image is rejected where the largest of its scores is above it.
    """

    readings: tuple[Reading, ...]
    offsets: np.ndarray = field(repr=False)
    threshold: float

    def apply(self, model: onnx.ModelProto) -> str:
        """Append the nodes, and the outputs `backdoor_score` float32 ``(n,)`` and `rejected` bool ``(n,)``."""
        graph = model.graph
        nodes = _Nodes(model, "filter", _check_opset(model))
        score, rejected = (nodes.fresh(name) for name in (SCORE, REJECTED))
        total = nodes.linear(self.readings, self.offsets)
        nodes.reduce("ReduceMax", total, keepdims=0, output=score)
        limit = nodes.constant("threshold", np.array([self.threshold], np.float32))
        nodes.add("Greater", score, limit, output=rejected)
        graph.node.extend(nodes.made)
        batch = graph.output[0].type.tensor_type.shape.dim[:1]
        for name, element in ((score, TensorProto.FLOAT), (rejected, TensorProto.BOOL)):
            info = helper.make_tensor_value_info(name, element, [None])
            if batch:
                info.type.tensor_type.shape.dim[0].CopyFrom(batch[0])
            graph.output.append(info)
        return f"an input filter on {_described(self.readings)}: outputs {score}, {rejected}"


@dataclass(frozen=True)
class LogitSuppression:
    """Suppresses a target's logit where it is the largest and its trigger score above a threshold: it becomes the least.

    Attributes:
        readings: their trigger scores are added.
        offsets: float32 ``(targets,)``, added too.
        threshold: above which a target is suppressed.
        targets: class indices, in the order of the trigger scores.
        value: ONNX value name of the class scores ``(n, classes)``; whatever is computed from it sees what is left of them.
        classes: how many.
    """

    readings: tuple[Reading, ...]
    offsets: np.ndarray = field(repr=False)
    threshold: float
    targets: tuple[int, ...]
    value: str
    classes: int

    def apply(self, model: onnx.ModelProto) -> str:
        """Insert the nodes behind the class scores' producer; consumers still read the scores by their name."""
        nodes = _Nodes(model, "withhold", _check_opset(model, _OLDEST_TO_SUPPRESS))
        _producer(model, self.value)
        if len(learn(model).file_shapes.get(self.value, ())) != 2:
            raise OnnxspectError(f"{printable(self.value)}: the file's class scores are no table of images and classes")
        kind = _element_type(model, self.value)
        inner = nodes.fresh(f"{ADDED}unwithheld/{self.value}")
        readings = [replace(r, value=inner) if r.value == self.value else r for r in self.readings]
        total = nodes.linear(readings, self.offsets, {inner: kind})
        limit = nodes.constant("threshold", np.array([self.threshold], np.float32))
        above = nodes.add("Cast", nodes.add("Greater", total, limit), to=TensorProto.FLOAT)
        which = nodes.constant("classes", np.eye(self.classes, dtype=np.float32)[list(self.targets)])
        none = nodes.constant("none", np.zeros(1, np.float32))
        suspected = nodes.add("Greater", nodes.add("MatMul", above, which), none)
        scores = inner if kind == TensorProto.FLOAT else nodes.add("Cast", inner, to=TensorProto.FLOAT)
        # In float32, for which every runtime has these operators.
        least, most = (nodes.reduce(o, scores, keepdims=1) for o in ("ReduceMin", "ReduceMax"))
        suppressed = nodes.add("And", suspected, nodes.add("Not", nodes.add("Less", scores, most)))
        if kind != TensorProto.FLOAT:
            least = nodes.add("Cast", least, to=kind)
        nodes.add("Where", suppressed, least, inner, output=self.value)
        nodes.stand_before(self.value, inner)
        shown = ", ".join(map(str, self.targets))
        return f"the score of class {shown} is suppressed by {_described(self.readings)}"


class _Nodes:
    """Nodes in the making, under names that the model has not.

    Args:
        model: its graph gets the constants at once; the nodes (`made`) are for the caller to put in their place.
        part: of their names.
        opset: the file's.
    """

    def __init__(self, model: onnx.ModelProto, part: str, opset: int) -> None:
        self.made: list[onnx.NodeProto] = []
        self._model, self._part, self._opset = model, part, opset
        self._taken = _names(model)

    def stand_before(self, value: str, inner: str) -> None:
        """Put what was made behind the producer of `value`, which is called `inner` from now on; consumers read on by its name.

        Raises:
            OnnxspectError: the file computes no such value.
        """
        position, output = _producer(self._model, value)
        self._model.graph.node[position].output[output] = inner
        for i, node in enumerate(self.made):
            self._model.graph.node.insert(position + 1 + i, node)

    def fresh(self, name: str) -> str:
        """`name`, or the first of name_2, name_3, ... that is free."""
        self._taken.add(found := next(n for n in _numbered(name) if n not in self._taken))
        return found

    def constant(self, name: str, values: np.ndarray) -> str:
        """A new initializer."""
        self._model.graph.initializer.append(numpy_helper.from_array(values, self.fresh(f"{ADDED}{self._part}/{name}")))
        return self._model.graph.initializer[-1].name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: int | list[int]) -> str:
        """A new node; the name of its output."""
        output = output or self.fresh(f"{ADDED}{self._part}/{operator.lower()}")
        added = helper.make_node(operator, inputs, [output], name=self.fresh(f"{ADDED}{self._part}/{operator}"))
        added.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
        self.made.append(added)
        return output

    def reduce(self, operator: str, value: str, keepdims: int, output: str = "") -> str:
        """Over axis 1; axes became an input in opset 18."""
        if self._opset < 18:
            return self.add(operator, value, axes=[1], keepdims=keepdims, output=output)
        return self.add(
            operator, value, self.constant("axes", np.array([1], np.int64)), keepdims=keepdims, output=output
        )

    def linear(self, readings: Sequence[Reading], offsets: np.ndarray, kinds: Mapping[str, int] | None = None) -> str:
        """The sum of all readings and the offsets, float32 ``(n, targets)``.

        Args:
            readings, offsets: as of a `Filter`.
            kinds: element types of values that the file does not have yet.

        Raises:
            OnnxspectError: the file computes no such value.
        """
        made = {o for n in self._model.graph.node for o in n.output}
        total = self.constant("offsets", offsets.astype(np.float32).reshape(1, -1))
        for reading in readings:
            kind = (kinds or {}).get(reading.value)
            if kind is None:
                if reading.value not in made:
                    raise OnnxspectError(f"{printable(reading.value)}: the file computes no value of this name")
                kind = _element_type(self._model, reading.value)
            value = self.add("Flatten", reading.value, axis=1)
            if reading.neurons is not None:
                value = self.add("Gather", value, self.constant("neurons", reading.neurons.astype(np.int64)), axis=1)
            if kind != TensorProto.FLOAT:
                value = self.add("Cast", value, to=TensorProto.FLOAT)
            weights = self.constant("weights", reading.weights.astype(np.float32))
            total = self.add("Add", total, self.add("MatMul", value, weights))
        return total


def _described(readings: Sequence[Reading]) -> str:
    """What is read, in words."""
    values = ", ".join(printable(r.value) for r in readings)
    return f"{sum(len(r.weights) for r in readings)} neurons of {values}"


def added_outputs(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[str, str] | None:
    """The (score, rejected) outputs that a filter added to `before`, or None.

    They are the last two of `after`, behind all those of `before`, and made by nodes named as ours.
    """
    old, new = [o.name for o in before.graph.output], [o.name for o in after.graph.output]
    if len(new) != len(old) + 2 or new[: len(old)] != old:
        return None
    made = {o for n in after.graph.node if n.name.startswith(ADDED) for o in n.output}
    score, rejected = new[-2:]
    return (score, rejected) if {score, rejected} <= made else None


def suppresses_target(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    """Whether a patch of `before` suppresses class scores."""
    known, ours = {n.name for n in before.graph.node}, f"{ADDED}withhold/"
    return any(n.op_type == "Where" and n.name.startswith(ours) and n.name not in known for n in after.graph.node)


def without_additions(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """`after` with what a patch added taken out again, and a line for each thing taken out.

    Only what is recognisable as added goes: nodes and tensors named as ours that `before` has not, and the outputs of
    a filter. So what is left can be compared with `before` position by position.
    """
    result = onnx.ModelProto()
    result.CopyFrom(after)
    graph, lines = result.graph, []
    known_nodes, known_tensors = {n.name for n in before.graph.node}, {t.name for t in before.graph.initializer}
    filter_outputs = added_outputs(before, after)
    if filter_outputs is not None:
        del graph.output[-2:]
        lines.append(f"outputs {' and '.join(filter_outputs)} added")
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.name.startswith(ADDED) and node.name not in known_nodes:
            if node.op_type in _COVERS:  # the producer of what it stands before gets its own output's name back
                renamed[node.input[_COVERS[node.op_type]]] = node.output[0]
            lines.append(f"node {printable(node.name)} ({node.op_type}) added")
        else:
            kept.append(node)
    for node in kept:
        for i, name in enumerate(node.output):
            for _ in range(_LINKS):
                name = renamed.get(name, name) if name.startswith(ADDED) else name
            node.output[i] = name
    tensors = [t for t in graph.initializer if not t.name.startswith(ADDED) or t.name in known_tensors]
    for field_, items in (("node", kept), ("initializer", tensors)):
        copies = [type(i).FromString(i.SerializeToString()) for i in items]
        del getattr(graph, field_)[:]
        getattr(graph, field_).extend(copies)
    return result, tuple(lines)


def _check_opset(model: onnx.ModelProto, oldest: int = _OLDEST_OPSET) -> int:
    """The file's opset.

    Raises:
        OnnxspectError: it is older than what is added.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < oldest:
        raise OnnxspectError(
            f"the file is of opset {opset}: such nodes can be added from opset {oldest} on",
            "convert it to a newer opset first, or use a method that changes weights alone",
        )
    return opset


def _producer(model: onnx.ModelProto, value: str) -> tuple[int, int]:
    """(position of the node, index of its output) that make `value`."""
    for position, node in enumerate(model.graph.node):
        if value in node.output:
            return position, list(node.output).index(value)
    raise OnnxspectError(f"{printable(value)}: the file computes no value of this name")


def _element_type(model: onnx.ModelProto, value: str) -> int:
    kind = learn(model).dtypes.get(value, TensorProto.FLOAT)
    if kind not in _FLOATS:
        raise OnnxspectError(f"{printable(value)}: its type is {helper.tensor_dtype_to_string(kind)}, not a float")
    return kind


def _names(model: onnx.ModelProto) -> set[str]:
    """Every name of a value or node, in subgraphs too."""
    found: set[str] = set()
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        found |= {i.name for i in (*graph.input, *graph.output, *graph.initializer, *graph.value_info)}
        for node in graph.node:
            found |= {node.name, *node.input, *node.output}
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
    return found


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
