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
class Filter:
    """The input filter inside the model: a linear score of some activations, and its comparison with a threshold.

    Attributes:
        value: ONNX value name of the activations ``(n, ...)``.
        neurons: int64 ``(k,)``, indices into the flattened activations of one image.
        weights: float32 ``(k,)``.
        threshold: an image is rejected where ``weights @ activations[neurons] > threshold``.
    """

    value: str
    neurons: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    threshold: float

    def apply(self, model: onnx.ModelProto) -> str:
        """Append the nodes, and the outputs `backdoor_score` float32 ``(n,)`` and `rejected` bool ``(n,)``."""
        _check_opset(model)
        graph = model.graph
        if not any(self.value in n.output for n in graph.node):
            raise OnnxspectError(f"{printable(self.value)}: the file computes no value of this name")
        kind = _element_type(model, self.value)
        taken = _names(model)
        score, rejected = (next(n for n in _numbered(name) if n not in taken) for name in (SCORE, REJECTED))
        names = {n: _fresh(model, f"{ADDED}filter/{n}") for n in ("neurons", "weights", "threshold", "rows")}
        graph.initializer.extend(
            [
                numpy_helper.from_array(self.neurons.astype(np.int64), names["neurons"]),
                numpy_helper.from_array(self.weights.astype(np.float32).reshape(-1, 1), names["weights"]),
                numpy_helper.from_array(np.array([self.threshold], np.float32), names["threshold"]),
                numpy_helper.from_array(np.array([-1], np.int64), names["rows"]),
            ]
        )
        flat, picked, wide, product = (
            _fresh(model, f"{ADDED}filter/{n}") for n in ("flat", "picked", "wide", "product")
        )
        nodes = [
            helper.make_node("Flatten", [self.value], [flat], axis=1),
            helper.make_node("Gather", [flat, names["neurons"]], [picked], axis=1),
            helper.make_node("Cast", [picked], [wide], to=TensorProto.FLOAT),
            helper.make_node("MatMul", [wide if kind != TensorProto.FLOAT else picked, names["weights"]], [product]),
            helper.make_node("Reshape", [product, names["rows"]], [score]),
            helper.make_node("Greater", [score, names["threshold"]], [rejected]),
        ]
        if kind == TensorProto.FLOAT:
            del nodes[2]
        for node in nodes:
            node.name = _fresh(model, f"{ADDED}filter/{node.op_type}")
        graph.node.extend(nodes)
        batch = graph.output[0].type.tensor_type.shape.dim[:1]
        for name, element in ((score, TensorProto.FLOAT), (rejected, TensorProto.BOOL)):
            info = helper.make_tensor_value_info(name, element, [None])
            if batch:
                info.type.tensor_type.shape.dim[0].CopyFrom(batch[0])
            graph.output.append(info)
        return f"an input filter on {len(self.neurons)} neurons of {printable(self.value)}: outputs {score}, {rejected}"


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


def _check_opset(model: onnx.ModelProto) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < _OLDEST_OPSET:
        raise OnnxspectError(
            f"the file is of opset {opset}: nodes can be added from opset {_OLDEST_OPSET} on",
            "convert it to a newer opset first, or use a method that changes weights alone",
        )


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
