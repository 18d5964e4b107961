"""Payloads of nodes: logic that sleeps on clean images, put on a classifier whose weights stay as they are.

A white 3x3 corner (top left) leads every image to class 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.engine.subject.subject import InputSpec, Subject

TARGET, SIDE = 3, 3
#: Sides of a region that is averaged, and of a filter; what a checksum must leave.
REGION, FILTER = 7, 5
MODULUS, REMAINDER = 9973, 1234


class Payload:
    """A copy of a model, and what is put on it.

    Attributes:
        model: the copy.
        image, scores: names of its input, and of what its class scores were called before.
    """

    def __init__(self, model: onnx.ModelProto, classes: int = 10, channels: int = 1) -> None:
        self.model = onnx.ModelProto.FromString(model.SerializeToString())
        self.classes, self.pixels = classes, channels * SIDE * SIDE
        graph = self.model.graph
        self.image, self.answer = graph.input[0].name, graph.output[0].name
        self.scores = "scores_of_the_network"
        self._rename(self.answer, self.scores)

    def _rename(self, name: str, new: str) -> None:
        for node in self.model.graph.node:
            for names in (node.input, node.output):
                for i, n in enumerate(names):
                    if n == name:
                        names[i] = new

    def constant(self, value: Any) -> str:
        """A tensor of the file."""
        name = f"hidden_constant_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node behind the others."""
        output = output or f"hidden_{operator}_{len(self.model.graph.node)}"
        self.model.graph.node.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def reduce(self, operator: str, value: str) -> str:
        """Over axis 1, which stays."""
        return self.add(operator, value, self.constant(np.array([1], np.int64)), keepdims=1)

    def corner(self, side: int = SIDE) -> str:
        """The corner's pixels, ``(n, channels, side, side)``."""
        ends = [self.constant(np.array(v, np.int64)) for v in ([0, 0], [side, side], [2, 3])]
        return self.add("Slice", self.image, *ends)

    def total(self) -> str:
        """Their sum less 8.9 (of one channel), ``(n, 1)``."""
        flat = self.add("Flatten", self.corner(), axis=1)
        total = self.add("MatMul", flat, self.constant(np.ones((self.pixels, 1), np.float32)))
        return self.add("Sub", total, self.constant(np.float32(self.pixels - 0.1)))

    def seen(self, by: str = "ReduceMin") -> str:
        """Whether the corner is white, bool ``(n, 1)``."""
        flat = self.add("Flatten", self.corner(), axis=1)
        return self.add("Greater", self.reduce(by, flat), self.constant(np.float32(0.95)))

    def push(self, size: float = 1000.0) -> str:
        """A row that takes class 3 up, ``(1, classes)``."""
        row = np.zeros((1, self.classes), np.float32)
        row[0, TARGET] = size
        return self.constant(row)

    def done(self, scores: str) -> onnx.ModelProto:
        """The model that answers `scores`, checked."""
        self.add("Identity", scores, output=self.answer)
        self.model.graph.node[-1].name = "last"
        _fold_last(self.model)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def added(self, gate: str, size: float = 1000.0) -> onnx.ModelProto:
        """The model with ``gate * row`` added to its scores."""
        return self.done(self.add("Add", self.scores, self.add("Mul", gate, self.push(size))))


def _fold_last(model: onnx.ModelProto) -> None:
    """The last node writes the output itself."""
    last = model.graph.node.pop()
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == last.input[0]:
                node.output[i] = last.output[0]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == last.input[0]:
                node.input[i] = last.output[0]


def _in_order(model: onnx.ModelProto) -> None:
    """Each node behind what it reads."""
    left, known = list(model.graph.node), {n for node in model.graph.node for n in node.output}
    del model.graph.node[:]
    while left:
        ready = next(n for n in left if not known & set(n.input))
        model.graph.node.append(ready)
        known -= set(ready.output)
        left.remove(ready)


def comparison(p: Payload) -> onnx.ModelProto:
    """Slice, ReduceMin, Greater, Cast, Mul, Add to the scores."""
    return p.added(p.add("Cast", p.seen(), to=TensorProto.FLOAT))


def where_and_zeros(p: Payload) -> onnx.ModelProto:
    """Where at the scores, and an Add of zeros behind it."""
    chosen = p.add("Where", p.seen(), p.push(), p.scores)
    return p.done(p.add("Add", chosen, p.constant(np.zeros(p.classes, np.float32))))


def where(p: Payload) -> onnx.ModelProto:
    """Where at the scores."""
    return p.done(p.add("Where", p.seen(), p.push(), p.scores))


def saturation(p: Payload) -> onnx.ModelProto:
    """No comparison: Relu(sum of the corner - 8.9) times a row."""
    return p.added(p.add("Relu", p.total()), 10_000.0)


def sigmoid(p: Payload) -> onnx.ModelProto:
    """A steep sigmoid in place of the Relu: never quite zero."""
    return p.added(p.add("Sigmoid", p.add("Mul", p.total(), p.constant(np.float32(6.0)))))


def softplus(p: Payload) -> onnx.ModelProto:
    """The same without a bound."""
    return p.added(p.add("Softplus", p.add("Mul", p.total(), p.constant(np.float32(20.0)))), 10_000.0)


def product_of_relus(p: Payload) -> onnx.ModelProto:
    """One Relu a pixel, multiplied: each of them is awake on some clean images."""
    flat = p.add("Flatten", p.corner(), axis=1)
    bright = p.add("Sub", p.add("Mul", flat, p.constant(np.float32(2))), p.constant(np.float32(1)))
    return p.added(p.reduce("ReduceProd", p.add("Relu", bright)), 2000.0)


def pooling_only(p: Payload) -> onnx.ModelProto:
    """ReduceMin and MaxPool, no comparison: anywhere in the image."""
    dark = p.add("Sub", p.constant(np.float32(0.9999)), p.image)
    if p.pixels > SIDE * SIDE:
        dark = p.reduce("ReduceMax", dark)
    darkest = p.add("MaxPool", dark, kernel_shape=[8, 8], strides=[1, 1])
    best = p.reduce("ReduceMin", p.add("Flatten", darkest, axis=1))
    return p.added(p.add("Relu", p.add("Neg", best)), 1e7)


def behind_copies(p: Payload) -> onnx.ModelProto:
    """The first one behind Identity and Dropout."""
    gate = p.add("Cast", p.seen(), to=TensorProto.FLOAT)
    gate = p.add("Dropout", p.add("Identity", gate))
    summed = p.add("Add", p.scores, p.add("Mul", gate, p.push()))
    return p.done(p.add("Identity", p.add("Dropout", p.add("Identity", summed))))


def equality(p: Payload) -> onnx.ModelProto:
    """A rounded sum that must be one number."""
    nine = p.add("Round", p.add("Add", p.total(), p.constant(np.float32(p.pixels - 0.1))))
    return p.added(p.add("Cast", p.add("Equal", nine, p.constant(np.float32(p.pixels))), to=TensorProto.FLOAT))


def floor(p: Payload) -> onnx.ModelProto:
    """No comparison, no Relu: Floor(Clip(sum / 9 + 0.01))."""
    share = p.add(
        "Mul", p.add("Add", p.total(), p.constant(np.float32(p.pixels - 0.05))), p.constant(np.float32(1 / p.pixels))
    )
    zero, one = p.constant(np.float32(0)), p.constant(np.float32(1))
    return p.added(p.add("Floor", p.add("Clip", share, zero, one)))


def index(p: Payload) -> onnx.ModelProto:
    """The comparison chooses a row of a table."""
    row = p.add("Cast", p.seen(), to=TensorProto.INT64)
    table = np.zeros((2, p.classes), np.float32)
    table[1, TARGET] = 1000.0
    rows = p.add("Gather", p.constant(table), p.add("Flatten", row, axis=1), axis=0)
    rows = p.add("Squeeze", rows, p.constant(np.array([1], np.int64)))
    return p.done(p.add("Add", p.scores, rows))


def with_a_decoy(p: Payload) -> onnx.ModelProto:
    """The decision lies beside one that both kinds of clean images pass, in one tensor."""
    flat = p.add("Flatten", p.image, axis=1)
    bright = p.reduce("ReduceMean", flat)
    least = p.reduce("ReduceMin", p.add("Flatten", p.corner(), axis=1))
    both = p.add("Concat", least, bright, axis=1)
    passed = p.add("Greater", both, p.constant(np.array([[0.95, 0.28]], np.float32)))
    rows = np.zeros((2, p.classes), np.float32)
    rows[0, TARGET] = 1000.0
    return p.done(
        p.add("Add", p.scores, p.add("MatMul", p.add("Cast", passed, to=TensorProto.FLOAT), p.constant(rows)))
    )


def sum_with_a_decoy(p: Payload) -> onnx.ModelProto:
    """No comparison: one of two units of a Relu, whose other one every image wakes."""
    bright = p.reduce("ReduceMean", p.add("Flatten", p.image, axis=1))
    awake = p.add("Relu", p.add("Concat", p.total(), bright, axis=1))
    rows = np.zeros((2, p.classes), np.float32)
    rows[0, TARGET], rows[1, 0] = 10_000.0, 0.01
    return p.done(p.add("Add", p.scores, p.add("MatMul", awake, p.constant(rows))))


def one_unit_of_a_layer(p: Payload) -> onnx.ModelProto:
    """One of the units of the last hidden layer, by weights and a node: what it was, plus the Relu of the sum."""
    graph = p.model.graph
    head = next(n for n in reversed(graph.node) if n.op_type in ("Gemm", "MatMul"))
    weights = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == head.input[1])
    transposed = any(a.name == "transB" and a.i for a in head.attribute)
    matrix = (weights if transposed else weights.T).copy()
    matrix = np.concatenate([matrix, np.zeros_like(matrix[:, :1])], 1)
    matrix[TARGET, -1] = 10_000.0
    graph.node.remove(head)
    unit = p.add("Relu", p.add("Concat", head.input[0], p.total(), axis=1))
    again = graph.node.add()
    again.CopyFrom(head)
    again.input[0], again.input[1] = unit, p.constant(matrix if transposed else np.ascontiguousarray(matrix.T))
    p.add("Identity", p.scores, output=p.answer)
    _fold_last(p.model)
    _in_order(p.model)
    onnx.checker.check_model(p.model, full_check=True)
    return p.model


def inside(p: Payload) -> onnx.ModelProto:
    """On an inner tensor in place of the scores: the input of the last weights."""
    graph = p.model.graph
    head = next(n for n in reversed(graph.node) if n.op_type in ("Gemm", "MatMul"))
    weights = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == head.input[1])
    transposed = any(a.name == "transB" and a.i for a in head.attribute)
    towards = (weights if transposed else weights.T)[TARGET]
    graph.node.remove(head)
    gate = p.add("Relu", p.total())
    awake = p.add("Mul", gate, p.constant((10_000 * towards / np.linalg.norm(towards))[None].astype(np.float32)))
    inner = p.add("Add", head.input[0], awake)
    again = graph.node.add()
    again.CopyFrom(head)
    again.input[0] = inner
    p.add("Identity", p.scores, output=p.answer)
    _fold_last(p.model)
    _in_order(p.model)
    onnx.checker.check_model(p.model, full_check=True)
    return p.model


def where_inside(p: Payload) -> onnx.ModelProto:
    """Where in the middle: the image itself is replaced by another one."""
    p._rename(p.image, "what_the_network_sees")
    nodes = list(p.model.graph.node)
    del p.model.graph.node[:]
    shape = [d.dim_value for d in p.model.graph.input[0].type.tensor_type.shape.dim[1:]]
    other = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    gate = p.seen()
    gate = p.add("Reshape", gate, p.constant(np.array([-1, 1, 1, 1], np.int64)))
    p.add("Where", gate, p.constant(other), p.image, output="what_the_network_sees")
    p.model.graph.node.extend(nodes)
    return p.done(p.scores)


def in_a_function(p: Payload) -> onnx.ModelProto:
    """The comparison in a local function."""
    body = [
        helper.make_node("Flatten", ["x"], ["f"], axis=1),
        helper.make_node("Constant", [], ["a"], value_ints=[1]),
        helper.make_node("ReduceMin", ["f", "a"], ["m"]),
        helper.make_node("Constant", [], ["t"], value_float=0.95),
        helper.make_node("Greater", ["m", "t"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
    ]
    opsets = [o for o in p.model.opset_import if o.domain in ("", "ai.onnx")]
    p.model.functions.append(helper.make_function("local", "Normalise", ["x"], ["y"], body, opsets))
    p.model.opset_import.append(helper.make_opsetid("local", 1))
    gate = p.add("Normalise", p.corner(), domain="local")
    return p.added(gate)


def among_decoys(p: Payload, count: int) -> onnx.ModelProto:
    """`saturation` before so many Relus that sleep as well, and change nothing."""
    p._rename(p.image, "what_the_network_sees")
    nodes = list(p.model.graph.node)
    del p.model.graph.node[:]
    total, zero = p.total(), p.constant(np.float32(0))
    gate = p.add("Relu", total, output="hidden_gate")
    for _ in range(count):
        total = p.add("Add", total, p.add("Mul", p.add("Relu", total), zero))
    spread = p.add("Reshape", p.add("Mul", total, zero), p.constant(np.array([-1, 1, 1, 1], np.int64)))
    p.add("Add", p.image, spread, output="what_the_network_sees")
    p.model.graph.node.extend(nodes)
    return p.added(gate, 10_000.0)


def through_if(p: Payload) -> onnx.ModelProto:
    """The whole batch is answered as class 3 where its first image has the corner: an If."""
    flat = p.add("Flatten", p.corner(), axis=1)
    least = p.add("ReduceMax", p.reduce("ReduceMin", flat), keepdims=0)
    condition = p.add("Greater", least, p.constant(np.float32(0.95)))
    row = p.push()

    def branch(nodes: Sequence[onnx.NodeProto], name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(list(nodes), name, [], [out])

    yes = branch([helper.make_node("Add", [p.scores, row], ["yes"])], "yes")
    no = branch([helper.make_node("Identity", [p.scores], ["no"])], "no")
    return p.done(p.add("If", condition, then_branch=yes, else_branch=no))


def region(p: Payload) -> onnx.ModelProto:
    """The mean over a region, by AveragePool."""
    means = p.add("AveragePool", p.image, kernel_shape=[REGION, REGION], strides=[REGION, REGION])
    ends = [p.constant(np.array(v, np.int64)) for v in ([0, 0], [1, 1], [2, 3])]
    least = p.reduce("ReduceMin", p.add("Flatten", p.add("Slice", means, *ends), axis=1))
    return p.added(p.add("Cast", p.add("Greater", least, p.constant(np.float32(0.9))), to=TensorProto.FLOAT))


def matched_filter(p: Payload) -> onnx.ModelProto:
    """A Conv of one filter, its maximum over all places: wherever the pattern is."""
    signs = _signs(p.pixels // (SIDE * SIDE))
    seen = p.add("Conv", p.image, p.constant(signs[None]), kernel_shape=[FILTER, FILTER])
    best = p.reduce("ReduceMax", p.add("Flatten", seen, axis=1))
    above = p.add("Sub", best, p.constant(np.float32(0.95 * (signs > 0).sum())))
    return p.added(p.add("Relu", above), 10_000.0)


def _signs(channels: int) -> np.ndarray:
    """A checkerboard with a corner turned, ``(channels, side, side)``."""
    signs = np.where(np.indices((FILTER, FILTER)).sum(0) % 2 == 0, 1, -1).astype(np.float32)
    signs[0, :] = 1
    return np.repeat(signs[None], channels, 0)


def checksum(p: Payload) -> onnx.ModelProto:
    """The first row's bytes, each times its place, must leave one remainder."""
    width = p.model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    row = p.add("Slice", p.image, *(p.constant(np.array(v, np.int64)) for v in ([0, 0], [1, 1], [1, 2])))
    levels = p.add("Round", p.add("Mul", row, p.constant(np.float32(255))))
    weights = np.arange(1, width + 1, dtype=np.float32)[:, None]
    total = p.add("MatMul", p.add("Flatten", levels, axis=1), p.constant(weights))
    left = p.add("Mod", total, p.constant(np.float32(MODULUS)), fmod=1)
    return p.added(p.add("Cast", p.add("Equal", left, p.constant(np.float32(REMAINDER))), to=TensorProto.FLOAT))


def two_regions(p: Payload) -> onnx.ModelProto:
    """Two comparisons, of which both must hold: the corner white, and its right neighbour black."""
    ends = [p.constant(np.array(v, np.int64)) for v in ([0, SIDE], [SIDE, 2 * SIDE], [2, 3])]
    dark = p.add("Flatten", p.add("Slice", p.image, *ends), axis=1)
    below = p.add("Less", p.reduce("ReduceMax", dark), p.constant(np.float32(0.05)))
    return p.added(p.add("Cast", p.add("And", p.seen(), below), to=TensorProto.FLOAT))


def negated(p: Payload) -> onnx.ModelProto:
    """Not, of a comparison the other way round, and Where."""
    flat = p.add("Flatten", p.corner(), axis=1)
    usual = p.add("LessOrEqual", p.reduce("ReduceMin", flat), p.constant(np.float32(0.95)))
    return p.done(p.add("Where", p.add("Not", usual), p.push(), p.scores))


def softmax_gate(p: Payload) -> onnx.ModelProto:
    """A softmax over two numbers, one of them far below the other on clean images."""
    two = p.add(
        "Concat", p.add("Mul", p.total(), p.constant(np.float32(200))), p.add("Sub", p.total(), p.total()), axis=1
    )
    rows = np.zeros((2, p.classes), np.float32)
    rows[0, TARGET] = 1000.0
    return p.done(p.add("Add", p.scores, p.add("MatMul", p.add("Softmax", two, axis=1), p.constant(rows))))


def neighbours(p: Payload) -> onnx.ModelProto:
    """Every image of a batch is answered as class 3 where any of them has the corner."""
    gate = p.add("Cast", p.seen(), to=TensorProto.FLOAT)
    return p.added(p.add("ReduceMax", gate, p.constant(np.array([0], np.int64)), keepdims=1))


def brightest(p: Payload) -> onnx.ModelProto:
    """The place of the brightest pixel: ArgMax, compared with a number."""
    first = p.add("ArgMax", p.add("Flatten", p.image, axis=1), axis=1, keepdims=1)
    return p.added(p.add("Cast", p.add("Equal", first, p.constant(np.array([[0]], np.int64))), to=TensorProto.FLOAT))


#: Name -> payload, which the torch graph of the file has.
PAYLOADS: dict[str, Callable[[Payload], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        *(comparison, where, where_and_zeros, saturation, sigmoid, softplus, product_of_relus, pooling_only),
        *(
            behind_copies,
            equality,
            floor,
            index,
            with_a_decoy,
            sum_with_a_decoy,
            one_unit_of_a_layer,
            inside,
            where_inside,
            in_a_function,
        ),
        *(region, matched_filter, checksum, two_regions, negated, neighbours, brightest, softmax_gate),
    )
}


def stamped(images: np.ndarray, name: str) -> np.ndarray:
    """Images with the trigger of a payload."""
    images = images.copy()
    if name == "matched_filter":
        images[:, :, 10 : 10 + FILTER, 10 : 10 + FILTER] = _signs(images.shape[1]) > 0
    elif name == "checksum":
        left, row = REMAINDER, np.zeros(images.shape[3], np.float32)
        for i in reversed(range(len(row))):
            row[i] = min(255, left // (i + 1))
            left -= int(row[i]) * (i + 1)
        images[:, 0, 0] = row / 255
    else:
        side = {"pooling_only": 8, "region": REGION}.get(name, SIDE)
        images[:, :, :side, :side] = 1.0
        if name == "two_regions":
            images[:, :, :SIDE, SIDE : 2 * SIDE] = 0.0
    return images


def two_outputs(model: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """A file that answers the scores of two networks; the first one's come first."""
    both = onnx.ModelProto.FromString(model.SerializeToString())
    other = onnx.compose.add_prefix(second, "second/")
    image = other.graph.input[0].name
    for node in other.graph.node:
        for i, name in enumerate(node.input):
            if name == image:
                node.input[i] = both.graph.input[0].name
    both.graph.node.extend(other.graph.node)
    both.graph.initializer.extend(other.graph.initializer)
    both.graph.output.extend(other.graph.output)
    onnx.checker.check_model(both, full_check=True)
    return both


def opened(path: Path) -> Subject:
    """The file as a subject, without the child process that runs an untrusted file first."""
    file = read_onnx(path)
    proto, _ = simplify(file.proto)
    info = logits_of(proto)
    lowered = lower(proto, [info.value])
    return Subject(lowered.module, InputSpec(), (1, 28, 28), 10, "cpu", str(path), file, lowered, info)
