"""Nodes that a patch adds to a graph: a mask on a value, and the input filter beside the classifier.

Everything that is added has a name that begins with `onnxspect/`, so that what was there before is still there under
its own name: a masked value keeps its name, and it is its producer's output that is renamed. Both use operators of
opset 7 on, the first whose arithmetic broadcasts as today; older files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.knowledge import learn
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.method import ADDED

#: The outputs that a guarded model has beside its own.
SCORE, REJECTED = "backdoor_score", "rejected"
#: Arithmetic broadcasts as in numpy from this opset on.
_OLDEST_OPSET = 7
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Mask:
    """Multiplies a value by zeros and ones along one axis: neurons that always answer 0 (002, sec. VI-B).

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
        _check_opset(model)
        position, output = _producer(model, self.value)
        node = model.graph.node[position]
        inner = _fresh(model, f"{ADDED}unmasked/{self.value}")
        mask = _fresh(model, f"{ADDED}mask/{self.value}")
        kind = _element_type(model, self.value)
        shape = [-1 if i == self.axis else 1 for i in range(self.rank)]
        values = self.keep.astype(helper.tensor_dtype_to_np_dtype(kind)).reshape(shape)
        node.output[output] = inner
        model.graph.initializer.append(numpy_helper.from_array(values, mask))
        masking = helper.make_node(
            "Mul", [inner, mask], [self.value], name=_fresh(model, f"{ADDED}masking/{self.value}")
        )
        model.graph.node.insert(position + 1, masking)
        return f"a mask on {printable(self.value)} that keeps {int(self.keep.sum())} of {len(self.keep)} neurons"


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
        opset = _check_opset(model)
        graph, taken = model.graph, _names(model)
        made = {o for n in graph.node for o in n.output}
        for reading in self.readings:
            if reading.value not in made:
                raise OnnxspectError(f"{printable(reading.value)}: the file computes no value of this name")
        kinds = [_element_type(model, r.value) for r in self.readings]

        def named(name: str) -> str:
            taken.add(found := next(n for n in _numbered(f"{ADDED}filter/{name}") if n not in taken))
            return found

        def constant(name: str, values: np.ndarray) -> str:
            graph.initializer.append(numpy_helper.from_array(values, named(name)))
            return graph.initializer[-1].name

        def node(operator: str, *inputs: str, output: str = "", **attributes: int | list[int]) -> str:
            output = output or named(operator.lower())
            added = helper.make_node(operator, inputs, [output], name=named(operator))
            added.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
            graph.node.append(added)
            return output

        score, rejected = (next(n for n in _numbered(name) if n not in taken) for name in (SCORE, REJECTED))
        total = constant("offsets", self.offsets.astype(np.float32).reshape(1, -1))
        for reading, kind in zip(self.readings, kinds, strict=True):
            value = node("Flatten", reading.value, axis=1)
            if reading.neurons is not None:
                value = node("Gather", value, constant("neurons", reading.neurons.astype(np.int64)), axis=1)
            if kind != TensorProto.FLOAT:
                value = node("Cast", value, to=TensorProto.FLOAT)
            weights = constant("weights", reading.weights.astype(np.float32))
            total = node("Add", total, node("MatMul", value, weights))
        if opset < 18:
            node("ReduceMax", total, axes=[1], keepdims=0, output=score)
        else:
            node("ReduceMax", total, constant("axes", np.array([1], np.int64)), keepdims=0, output=score)
        node("Greater", score, constant("threshold", np.array([self.threshold], np.float32)), output=rejected)
        batch = graph.output[0].type.tensor_type.shape.dim[:1]
        for name, element in ((score, TensorProto.FLOAT), (rejected, TensorProto.BOOL)):
            info = helper.make_tensor_value_info(name, element, [None])
            if batch:
                info.type.tensor_type.shape.dim[0].CopyFrom(batch[0])
            graph.output.append(info)
        values = ", ".join(printable(r.value) for r in self.readings)
        neurons = sum(len(r.weights) for r in self.readings)
        return f"an input filter on {neurons} neurons of {values}: outputs {score}, {rejected}"


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
            if node.op_type == "Mul":  # a mask: its producer gets its own output's name back
                renamed[node.input[0]] = node.output[0]
            lines.append(f"node {printable(node.name)} ({node.op_type}) added")
        else:
            kept.append(node)
    for node in kept:
        for i, name in enumerate(node.output):
            if name.startswith(ADDED) and name in renamed:
                node.output[i] = renamed[name]
    tensors = [t for t in graph.initializer if not t.name.startswith(ADDED) or t.name in known_tensors]
    for field_, items in (("node", kept), ("initializer", tensors)):
        copies = [type(i).FromString(i.SerializeToString()) for i in items]
        del getattr(graph, field_)[:]
        getattr(graph, field_).extend(copies)
    return result, tuple(lines)


def _check_opset(model: onnx.ModelProto) -> int:
    """The file's opset.

    Raises:
        OnnxspectError: it is older than what is added.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < _OLDEST_OPSET:
        raise OnnxspectError(
            f"the file is of opset {opset}: nodes can be added from opset {_OLDEST_OPSET} on",
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


def _fresh(model: onnx.ModelProto, name: str) -> str:
    """`name`, or the first of name_2, name_3, ... that the model does not use."""
    taken = _names(model)
    return next(n for n in _numbered(name) if n not in taken)
