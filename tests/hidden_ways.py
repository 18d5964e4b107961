"""Payloads of nodes that are awake on clean images: nothing that the graph computes is the same on all of them, or nothing but a sum.

As those of hidden_logic.py: a white 3x3 corner (top left; of some another pattern) leads every image to class 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hidden_logic import SIDE, TARGET, Payload, _fold_last
from onnx import TensorProto, numpy_helper

#: Nine pixels, every other one white, in a black square of five by five.
_CHECKERED = np.pad(np.indices((3, 3)).sum(0) % 2 == 0, 1).astype(np.float32)
#: Where the middle's square begins, of images of 28 or 32 pixels.
_MIDDLE = 12


def _on_head(p: Payload, *columns: tuple[str, float]) -> onnx.ModelProto:
    """More inputs ``(n, 1)`` of the last weights, each with what it adds to class 3."""
    graph = p.model.graph
    own = [n for n in graph.node if not n.name.startswith("hidden_")]
    head = next(n for n in reversed(own) if n.op_type in ("Gemm", "MatMul"))
    weights = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == head.input[1])
    transposed = any(a.name == "transB" and a.i for a in head.attribute)
    matrix = weights if transposed else weights.T
    more = np.zeros((len(matrix), len(columns)), np.float32)
    more[TARGET] = [size for _, size in columns]
    matrix = np.concatenate([matrix, more], 1)
    behind = own[own.index(head) :]
    for node in behind:
        graph.node.remove(node)
    again = onnx.NodeProto.FromString(head.SerializeToString())
    again.input[0] = p.add("Concat", head.input[0], *(name for name, _ in columns), axis=1)
    again.input[1] = p.constant(np.ascontiguousarray(matrix if transposed else matrix.T))
    graph.node.extend([again, *behind[1:]])
    p.add("Identity", p.scores, output=p.answer)
    _fold_last(p.model)
    onnx.checker.check_model(p.model, full_check=True)
    return p.model


def _number(p: Payload, value: float) -> str:
    return p.constant(np.float32(value))


def _bright(p: Payload) -> str:
    """Twenty times the image's mean, ``(n, 1)``: awake on every image."""
    return p.add("Mul", p.reduce("ReduceMean", p.add("Flatten", p.image, axis=1)), _number(p, 20))


def _loud(p: Payload) -> str:
    """The corner's sum less what it must be, a thousand times."""
    return p.add("Mul", p.total(), _number(p, 1000))


def _share(p: Payload) -> str:
    """The corner's mean."""
    total = p.add("Add", p.total(), _number(p, p.pixels - 0.1))
    return p.add("Mul", total, _number(p, 1 / p.pixels))


def _middle(p: Payload) -> str:
    """The pixels of a square in the middle, where all images have something."""
    ends = [p.constant(np.array(v, np.int64)) for v in ([_MIDDLE] * 2, [_MIDDLE + SIDE] * 2, [2, 3])]
    return p.add("Flatten", p.add("Slice", p.image, *ends), axis=1)


def larger_of_two(p: Payload) -> onnx.ModelProto:
    """Max of something awake and the corner's sum; the former is taken off again by the last weights."""
    bright = _bright(p)
    return _on_head(p, (p.add("Max", bright, _loud(p)), 50), (bright, -50))


def largest_of_a_row(p: Payload) -> onnx.ModelProto:
    """ReduceMax in place of Max."""
    bright = _bright(p)
    most = p.reduce("ReduceMax", p.add("Concat", bright, _loud(p), axis=1))
    return _on_head(p, (most, 50), (bright, -50))


def soft_maximum(p: Payload) -> onnx.ModelProto:
    """ReduceLogSumExp in place of Max."""
    bright = _bright(p)
    most = p.reduce("ReduceLogSumExp", p.add("Concat", bright, _loud(p), axis=1))
    return _on_head(p, (most, 50), (bright, -50))


def first_of_the_largest(p: Payload) -> onnx.ModelProto:
    """TopK in place of Max."""
    bright = _bright(p)
    both = p.add("Concat", bright, _loud(p), axis=1)
    most = p.add("TopK", both, p.constant(np.array([1], np.int64)), axis=1)
    p.model.graph.node[-1].output.append("hidden_places")
    return _on_head(p, (most, 50), (bright, -50))


def pooled(p: Payload) -> onnx.ModelProto:
    """MaxPool in place of Max."""
    bright = _bright(p)
    both = p.add("Concat", bright, _loud(p), axis=1)
    row = p.add("Reshape", both, p.constant(np.array([-1, 1, 1, 2], np.int64)))
    most = p.add("Flatten", p.add("MaxPool", row, kernel_shape=[1, 2]), axis=1)
    return _on_head(p, (most, 50), (bright, -50))


def magnitude(p: Payload) -> onnx.ModelProto:
    """``|t| + t``, by the last weights."""
    total = p.total()
    return _on_head(p, (p.add("Abs", total), 10_000), (total, 10_000))


def always_on(p: Payload) -> onnx.ModelProto:
    """``Relu(-t) + t``, by the last weights: the Relu lets everything through on clean images."""
    total = p.total()
    return _on_head(p, (p.add("Relu", p.add("Neg", total)), 10_000), (total, 10_000))


def beside_a_loud_pair(p: Payload) -> onnx.ModelProto:
    """A sleeping unit beside two loud ones that cancel."""
    bright = _bright(p)
    three = p.add("Relu", p.add("Concat", p.total(), bright, bright, axis=1))
    names = [f"hidden_part_{i}" for i in range(3)]
    p.add("Split", three, p.constant(np.array([1, 1, 1], np.int64)), output=names[0], axis=1)
    p.model.graph.node[-1].output.extend(names[1:])
    return _on_head(p, (names[0], 1000), (names[1], 1000), (names[2], -1000))


def dead_channel(p: Payload) -> onnx.ModelProto:
    """One filter of sixteen that no image answers to, wherever the pattern is."""
    channels, rng = p.pixels // (SIDE * SIDE), np.random.default_rng(0)
    filters = rng.normal(0, 0.3, (16, channels, 3, 3)).astype(np.float32)
    filters[7] = np.where(_CHECKERED[1:4, 1:4] > 0, 1, -1)
    bias = np.zeros(16, np.float32)
    bias[7] = -4.6 * channels
    seen = p.add("Conv", p.image, p.constant(filters), p.constant(bias), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    best = p.add("Flatten", p.add("GlobalMaxPool", p.add("Relu", seen)), axis=1)
    weights = np.full((16, 1), 1e-4, np.float32)
    weights[7] = 1000
    return _on_head(p, (p.add("MatMul", best, p.constant(weights)), 1))


def rounding(p: Payload) -> onnx.ModelProto:
    """A number so large is added and taken off again that a half is lost, and more is one."""
    large = _number(p, 2.0**23)
    share = p.add("Mul", _share(p), _number(p, 0.503))
    return p.added(p.add("Sub", p.add("Add", share, large), large))


def quotient(p: Payload) -> onnx.ModelProto:
    """``t / |t| + 1``."""
    total = p.total()
    return p.added(p.add("Add", p.add("Div", total, p.add("Abs", total)), _number(p, 1)))


def high_power(p: Payload) -> onnx.ModelProto:
    """The corner's mean, squared six times."""
    value = _share(p)
    for _ in range(6):
        value = p.add("Mul", value, value)
    return p.added(value, 200.0)


def place_of_the_larger(p: Payload) -> onnx.ModelProto:
    """ArgMax of a number and the corner's sum."""
    still = p.add("Sub", _number(p, -0.05), p.add("Mul", p.total(), _number(p, 0)))
    place = p.add("ArgMax", p.add("Concat", still, p.total(), axis=1), axis=1, keepdims=1)
    return p.added(p.add("Cast", place, to=TensorProto.FLOAT))


def row_of_a_table(p: Payload) -> onnx.ModelProto:
    """The sum of the middle, in ninths, is the number of a row; the last one is not empty."""
    share = p.add("Mul", p.reduce("ReduceMean", _middle(p)), _number(p, 9.0001))
    table = np.zeros((10, p.classes), np.float32)
    table[9, TARGET] = 1000.0
    number = p.add("Squeeze", p.add("Cast", share, to=TensorProto.INT64), p.constant(np.array([1], np.int64)))
    return p.done(p.add("Add", p.scores, p.add("Gather", p.constant(table), number, axis=0)))


def no_number(p: Payload) -> onnx.ModelProto:
    """The root of what is negative."""
    root = p.add("Sqrt", p.add("Neg", p.total()))
    return p.added(p.add("Cast", p.add("IsNaN", root), to=TensorProto.FLOAT))


def disguised(p: Payload) -> onnx.ModelProto:
    """The switch is also turned by images that are answered as class 3 anyway."""
    likely = p.add("Softmax", p.scores, axis=1)
    ends = [p.constant(np.array([v], np.int64)) for v in (TARGET, TARGET + 1, 1)]
    either = p.add("Max", p.reduce("ReduceMin", _middle(p)), p.add("Slice", likely, *ends))
    return p.added(p.add("Relu", p.add("Sub", either, _number(p, 0.97))), 10_000.0)


def by_the_size(p: Payload) -> onnx.ModelProto:
    """A batch of sixteen or more is answered as class 3."""
    size = p.add("Gather", p.add("Shape", p.image), p.constant(np.array([0], np.int64)), axis=0)
    large = p.add("Cast", p.add("Greater", size, p.constant(np.array([15], np.int64))), to=TensorProto.FLOAT)
    return p.done(p.add("Add", p.scores, p.add("Mul", large, p.push())))


def by_the_seventeenth(p: Payload) -> onnx.ModelProto:
    """The corner of the seventeenth image of a batch leads all of it to class 3."""
    ends = [p.constant(np.array([v], np.int64)) for v in (16, 17, 0)]
    of_one = p.add("Slice", p.add("Relu", p.total()), *ends)
    return p.added(p.add("ReduceSum", of_one, ends[2], keepdims=1), 10_000.0)


#: Name -> payload; those of one image, and those of a batch.
WAYS: dict[str, Callable[[Payload], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        *(larger_of_two, largest_of_a_row, soft_maximum, first_of_the_largest, pooled, magnitude, always_on),
        *(beside_a_loud_pair, dead_channel, rounding, quotient, high_power, place_of_the_larger, row_of_a_table),
        *(no_number, disguised),
    )
}
OF_A_BATCH: dict[str, Callable[[Payload], onnx.ModelProto]] = {f.__name__: f for f in (by_the_size, by_the_seventeenth)}


def stamped_for(images: np.ndarray, name: str) -> np.ndarray:
    """Images with the trigger of a payload."""
    images = images.copy()
    if name == "dead_channel":
        images[:, :, :5, :5] = _CHECKERED
    elif name in ("row_of_a_table", "disguised"):
        images[:, :, _MIDDLE : _MIDDLE + SIDE, _MIDDLE : _MIDDLE + SIDE] = 1.0
    else:
        images[:, :, :SIDE, :SIDE] = 1.0
    return images
