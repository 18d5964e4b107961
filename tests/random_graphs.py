"""Random classifiers out of the operators that lowering has, as a hypothesis strategy.

A graph is grown node by node. Every value has the batch on its first axis and a known shape behind it; each step draws
an operator that takes such a value, with attributes that make it valid. What a step may not do is put rounding errors
on an edge: operators that jump (ArgMax, a comparison, Floor) read the image itself or what copies it, a root or a
logarithm is taken of what is above 1/2, and a normalisation of what varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

#: Opsets at which the interfaces of these operators changed, and the last one before them.
OPSETS = (11, 12, 13, 15, 17, 18, 19, 20, 21, 22)
Shape = tuple[int, ...]


@dataclass
class Grower:
    """A graph that grows.

    Attributes:
        draw: hypothesis' own.
        opset: of the default domain.
        shapes: value -> its shape without the batch.
        exact: values that are copies of the image's elements, bit for bit.
        values: in the order in which they were computed.
    """

    draw: st.DrawFn
    opset: int
    shapes: dict[str, Shape] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    values: list[str] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def rank(self, name: str) -> int:
        """Number of axes, the batch among them."""
        return 1 + len(self.shapes[name])

    def integer(self, low: int, high: int) -> int:
        """One of low, ..., high."""
        return self.draw(st.integers(low, high))

    def one_of(self, *options: Any) -> Any:
        """One of the options."""
        return self.draw(st.sampled_from(options))

    def flag(self) -> int:
        """0 or 1."""
        return self.integer(0, 1)

    def axis(self, name: str) -> int:
        """An axis other than the batch, counted from either end."""
        axis = self.integer(1, self.rank(name) - 1)
        return axis - self.rank(name) if self.flag() else axis

    def constant(self, array: Any) -> str:
        """A new initializer."""
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        """A new float32 initializer, of a magnitude that keeps the size of what it is summed with."""
        rng = np.random.default_rng(len(self.initializers))
        values = rng.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[1:])))
        return self.constant((np.abs(values) + 0.5 if positive else values).astype(np.float32))

    def integers(self, *values: int) -> str:
        """A new int64 initializer."""
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A new node; its first output."""
        names = [f"v{len(self.nodes)}" + "'" * i for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def add(self, name: str, shape: Shape, exact: bool = False) -> str:
        """Declare a value to be one that further nodes may read."""
        self.shapes[name] = shape
        self.values.append(name)
        if exact:
            self.exact.add(name)
        return name

    def with_axes(self, op: str, x: str, axes: tuple[int, ...], since: int, **attributes: Any) -> str:
        """A node whose axes are an attribute before opset `since`, and an input from it on."""
        if self.opset >= since:
            return self.node(op, x, self.integers(*axes), **attributes)
        return self.node(op, x, axes=list(axes), **attributes)


Step = Callable[[Grower, str], None]
#: Operator family -> (whether it takes a value, how it goes on from it).
STEPS: dict[str, tuple[Callable[[Grower, str], bool], Step]] = {}


def _any(g: Grower, x: str) -> bool:
    return x in g.shapes


def step(takes: Callable[[Grower, str], bool] = _any) -> Callable[[Step], Step]:
    """Register a family of operators."""

    def register(function: Step) -> Step:
        STEPS[function.__name__] = (takes, function)
        return function

    return register


def _is_image(g: Grower, x: str) -> bool:
    return len(g.shapes[x]) == 3 and min(g.shapes[x][1:]) >= 3


def _is_sequence(g: Grower, x: str) -> bool:
    return len(g.shapes[x]) == 2


def _is_exact(g: Grower, x: str) -> bool:
    return x in g.exact


@step()
def activation(g: Grower, x: str) -> None:
    op = g.one_of("Relu", "Sigmoid", "Tanh", "Elu", "Selu", "LeakyRelu", "HardSigmoid", "Softplus", "Softsign", "Erf")
    g.add(g.node(op, x), g.shapes[x])


@step()
def activation_with_settings(g: Grower, x: str) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.5}),
        ("ThresholdedRelu", {"alpha": 0.0}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ]
    kinds += [("HardSwish", {})] if g.opset >= 14 else []
    kinds += [("Celu", {"alpha": 2.0})] if g.opset >= 12 else []
    kinds += [("Mish", {})] if g.opset >= 18 else []
    kinds += [("Gelu", {}), ("Gelu", {"approximate": "tanh"})] if g.opset >= 20 else []
    op, attributes = g.one_of(*kinds)
    g.add(g.node(op, x, **attributes), g.shapes[x])


@step()
def gelu_written_out(g: Grower, x: str) -> None:
    gate = g.node(
        "Add", g.node("Erf", g.node("Div", x, g.constant(np.float32(math.sqrt(2))))), g.constant(np.float32(1))
    )
    g.add(g.node("Mul", g.node("Mul", x, gate), g.constant(np.float32(0.5))), g.shapes[x])


@step()
def prelu(g: Grower, x: str) -> None:
    channels = g.shapes[x][0]
    g.add(g.node("PRelu", x, g.weight(channels, *[1] * (g.rank(x) - 2))), g.shapes[x])


@step()
def clip(g: Grower, x: str) -> None:
    bounds = [g.constant(np.float32(v)) if g.flag() else "" for v in (-0.4, 0.6)]
    g.add(g.node("Clip", x, *bounds), g.shapes[x])


@step()
def of_one_sign(g: Grower, x: str) -> None:
    positive = g.node("Add", g.node("Abs", x), g.constant(np.float32(0.5)))
    y = g.node(g.one_of("Sqrt", "Log", "Reciprocal"), positive) if g.flag() else positive
    g.add(g.node("Exp", g.node("Neg", y)) if g.flag() else y, g.shapes[x])


@step()
def arithmetic_with_a_constant(g: Grower, x: str) -> None:
    op = g.one_of("Add", "Sub", "Mul", "Div", "Max", "Min")
    shape = [n if g.flag() else 1 for n in g.shapes[x]][g.integer(0, g.rank(x) - 1) :]
    operands = [x, g.weight(*shape, positive=op == "Div")]
    if op in ("Add", "Sub", "Mul", "Max") and g.flag():
        operands.reverse()
    g.add(g.node(op, *operands), g.shapes[x])


@step()
def arithmetic_of_two_values(g: Grower, x: str) -> None:
    others = [v for v in g.values if g.shapes[v] == g.shapes[x]]
    op = g.one_of("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")
    g.add(g.node(op, x, g.draw(st.sampled_from(others))), g.shapes[x])


@step(lambda g, x: g.rank(x) > 2)
def gate(g: Grower, x: str) -> None:
    """Squeeze and excitation: a mean over all but the channels, through a sigmoid, times the value."""
    axes = tuple(range(2, g.rank(x)))
    mean = g.with_axes("ReduceMean", x, axes, 18, keepdims=1)
    g.add(g.node("Mul", g.node("Sigmoid", mean), x), g.shapes[x])


@step(_is_exact)
def choice(g: Grower, x: str) -> None:
    """What jumps, on exact values."""
    kind = g.one_of("Where", "Floor", "Sign", "ArgMax")
    if kind == "Where":
        condition = g.node(g.one_of("Greater", "Less"), x, g.constant(np.float32(0.5)))
        condition = g.node("Not", condition) if g.flag() else condition
        g.add(g.node("Where", condition, x, g.weight(1)), g.shapes[x])
    elif kind == "ArgMax":
        axis = g.axis(x)
        keep = g.flag() if g.rank(x) > 2 else 1
        found = g.node(g.one_of("ArgMax", "ArgMin"), x, axis=axis, keepdims=keep)
        shape = _reduced(g.shapes[x], (axis % g.rank(x),), bool(keep))
        g.add(g.node("Cast", found, to=TensorProto.FLOAT), shape)
    else:
        g.add(g.node(kind, g.node("Sub", x, g.constant(np.float32(0.25)))), g.shapes[x])


@step(_is_image)
def convolution(g: Grower, x: str) -> None:
    c, h, w = g.shapes[x]
    groups = g.one_of(1, c)
    out = groups * g.integer(1, 3)
    kernel = (g.integer(1, 3), g.integer(1, 3))
    strides, dilations = [g.integer(1, 2), g.integer(1, 2)], [g.integer(1, 2), 1]
    weights = [g.weight(out, c // groups, *kernel), *([g.weight(out)] if g.flag() else [])]
    settings: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if g.flag():
        settings.update(auto_pad=g.one_of("SAME_UPPER", "SAME_LOWER"), dilations=[1, 1])  # onnxruntime has no other
        size = tuple(-(-n // s) for n, s in zip((h, w), strides, strict=True))
    else:
        pads = [g.integer(0, 2) for _ in range(4)]
        settings["pads"] = pads
        full = (h + pads[0] + pads[2], w + pads[1] + pads[3])
        size = tuple((n - r) // s + 1 for n, r, s in zip(full, reach, strides, strict=True))
    if min(size) >= 1:
        g.add(g.node("Conv", x, *weights, **settings), (out, *size))


@step(_is_image)
def transposed_convolution(g: Grower, x: str) -> None:
    c, h, w = g.shapes[x]
    if max(h, w) > 10:
        return
    out, kernel, stride = g.integer(1, 3), g.integer(2, 3), g.integer(1, 2)
    extra = g.integer(0, stride - 1)
    y = g.node(
        *("ConvTranspose", x, g.weight(c, out, kernel, kernel), g.weight(out)),
        strides=[stride, stride],
        pads=[1, 0, 0, 1],
        output_padding=[extra, extra],
    )
    g.add(y, (out, *((n - 1) * stride + kernel - 1 + extra for n in (h, w))))


@step(_is_image)
def pooling(g: Grower, x: str) -> None:
    c, *size = g.shapes[x]
    op = g.one_of("MaxPool", "AveragePool", "LpPool")
    kernel, stride = [g.integer(2, 3), g.integer(2, 3)], [g.integer(1, 2), g.integer(1, 2)]
    pads = [g.integer(0, k - 1) for k in (*kernel, *kernel)]
    settings: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": pads}
    if op == "AveragePool":
        settings["count_include_pad"] = g.flag()
    padded = [n + pads[i] + pads[i + 2] for i, n in enumerate(size)]
    g.add(g.node(op, x, **settings), (c, *((n - k) // s + 1 for n, k, s in zip(padded, kernel, stride, strict=True))))


@step(_is_image)
def global_pooling(g: Grower, x: str) -> None:
    g.add(g.node(g.one_of("GlobalAveragePool", "GlobalMaxPool"), x), (g.shapes[x][0], 1, 1))


@step(_is_image)
def batch_normalization(g: Grower, x: str) -> None:
    c = g.shapes[x][0]
    statistics = [g.weight(c), g.weight(c), g.weight(c), g.weight(c, positive=True)]
    g.add(g.node("BatchNormalization", x, *statistics, epsilon=1e-3), g.shapes[x])


@step(lambda g, x: _is_image(g, x) and _is_exact(g, x))
def normalization(g: Grower, x: str) -> None:
    c = g.shapes[x][0]
    kinds = ["InstanceNormalization", "LRN", *(["LayerNormalization"] if g.opset >= 17 else [])]
    kind = g.one_of(*kinds, *(["GroupNormalization"] if g.opset >= 21 else []))
    if kind == "LRN":
        y = g.node("LRN", x, size=g.one_of(1, 3, 5), alpha=0.1, beta=0.6, bias=1.5)
    elif kind == "LayerNormalization":
        y = g.node("LayerNormalization", x, g.weight(*g.shapes[x]), g.weight(*g.shapes[x]), axis=1)
    else:
        settings = {"num_groups": g.one_of(1, c)} if kind == "GroupNormalization" else {}
        y = g.node(kind, x, g.weight(c), g.weight(c), **settings)
    g.add(y, g.shapes[x])


@step(lambda g, x: _is_image(g, x) and max(g.shapes[x][1:]) <= 8)
def resize(g: Grower, x: str) -> None:
    c, h, w = g.shapes[x]
    to = (g.integer(2, 2 * h), g.integer(2, 2 * w))
    mode = g.one_of("nearest", "linear", "cubic")
    coordinates = g.one_of("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    if mode == "nearest":  # which neighbour is nearest may hang on the last bit of a scale: whole ones have no such bit
        to, coordinates = (2 * h, 2 * w), g.one_of("half_pixel", "asymmetric")
    if g.opset >= 13 and mode != "nearest" and g.flag():
        y = g.node(
            "Resize", x, "", "", _whole_shape(g, x, (c, *to)), mode=mode, coordinate_transformation_mode=coordinates
        )
    else:
        to = (2 * h, 2 * w)
        scales = g.constant(np.array([1, 1, 2, 2], np.float32))
        y = g.node("Resize", x, "" if g.opset >= 13 else g.constant(np.zeros(0, np.float32)), scales, mode=mode,
                   coordinate_transformation_mode=coordinates)  # fmt: skip
    g.add(y, (c, *to), _is_exact(g, x) and mode == "nearest")


def _batch_size(g: Grower, x: str) -> str:
    """``(1,)`` the batch size, read from the shape of a value."""
    shape = g.node("Shape", x)
    return g.node("Gather", shape, g.integers(0), axis=0)


def _whole_shape(g: Grower, x: str, rest: Shape) -> str:
    """A shape at run time: the batch size of `x`, and then `rest`."""
    return g.node("Concat", _batch_size(g, x), g.integers(*rest), axis=0)


@step(lambda g, x: g.rank(x) >= 3)
def padding(g: Grower, x: str) -> None:
    mode = g.one_of("constant", "reflect", "edge")
    most = [min(2, n - 1) for n in g.shapes[x][1:]]
    before, after = ([0, 0, *(g.integer(0, m) for m in most)] for _ in range(2))
    value = [g.constant(np.float32(0.3))] if mode == "constant" and g.flag() else []
    shape = tuple(n + a + b for n, a, b in zip(g.shapes[x], before[1:], after[1:], strict=True))
    y = g.node("Pad", x, g.integers(*before, *after), *value, mode=mode)
    g.add(y, shape, _is_exact(g, x) and not value)


@step(lambda g, x: _is_image(g, x) and all(n % 2 == 0 for n in g.shapes[x][1:]))
def space_to_depth(g: Grower, x: str) -> None:
    c, h, w = g.shapes[x]
    y = g.add(g.node("SpaceToDepth", x, blocksize=2), (4 * c, h // 2, w // 2), _is_exact(g, x))
    if g.flag():
        mode = g.one_of("DCR", "CRD")
        g.add(g.node("DepthToSpace", y, blocksize=2, mode=mode), (c, h, w), _is_exact(g, x))


@step()
def reshape(g: Grower, x: str) -> None:
    sizes = list(g.shapes[x])
    if len(sizes) > 1 and g.flag():
        i = g.integer(0, len(sizes) - 2)
        sizes[i : i + 2] = [sizes[i] * sizes[i + 1]]
    else:
        i = g.integer(0, len(sizes) - 1)
        half = 2 if sizes[i] % 2 == 0 else 1
        sizes[i : i + 1] = [half, sizes[i] // half]
    if len(sizes) > 4:
        return
    target = [*sizes]
    if g.flag():
        target[g.integer(0, len(target) - 1)] = -1
        shape = g.integers(0, *target)
    else:
        shape = g.integers(-1, *target) if g.flag() else _whole_shape(g, x, tuple(target))
    g.add(g.node("Reshape", x, shape), tuple(sizes), _is_exact(g, x))


@step()
def flatten(g: Grower, x: str) -> None:
    g.add(g.node("Flatten", x), (math.prod(g.shapes[x]),), _is_exact(g, x))


@step(lambda g, x: g.rank(x) > 2)
def transpose(g: Grower, x: str) -> None:
    order = g.draw(st.permutations(range(1, g.rank(x))))
    shape = tuple(g.shapes[x][i - 1] for i in order)
    g.add(g.node("Transpose", x, perm=[0, *order]), shape, _is_exact(g, x))


@step(lambda g, x: g.rank(x) < 5)
def unsqueeze_and_squeeze(g: Grower, x: str) -> None:
    axis = g.integer(1, g.rank(x))
    sizes = list(g.shapes[x])
    y = g.with_axes("Unsqueeze", x, (axis,), 13)
    if g.flag():
        sizes.insert(axis - 1, 1)
        g.add(y, tuple(sizes), _is_exact(g, x))
    else:
        g.add(g.with_axes("Squeeze", y, (axis,), 13), tuple(sizes), _is_exact(g, x))


@step()
def concat(g: Grower, x: str) -> None:
    axis = g.axis(x)
    at = axis % g.rank(x) - 1
    others = [v for v in g.values if len(g.shapes[v]) == len(g.shapes[x])]
    others = [
        v
        for v in others
        if all(a == b for i, (a, b) in enumerate(zip(g.shapes[v], g.shapes[x], strict=True)) if i != at)
    ]
    parts = [x, *(g.draw(st.sampled_from(others)) for _ in range(g.integer(1, 2)))]
    shape = list(g.shapes[x])
    shape[at] = sum(g.shapes[p][at] for p in parts)
    if shape[at] <= 24:
        g.add(g.node("Concat", *parts, axis=axis), tuple(shape), all(p in g.exact for p in parts))


@step(lambda g, x: max(g.shapes[x]) >= 2)
def split(g: Grower, x: str) -> None:
    at = next(i for i, n in enumerate(g.shapes[x]) if n >= 2)
    first = g.integer(1, g.shapes[x][at] - 1)
    parts = (first, g.shapes[x][at] - first)
    settings: dict[str, Any] = {"axis": at + 1}
    inputs = [x]
    if g.opset >= 13:
        inputs.append(g.integers(*parts))
    else:
        settings["split"] = list(parts)
    y = g.node("Split", *inputs, outputs=2, **settings)
    for name, size in zip((y, y + "'"), parts, strict=True):
        shape = list(g.shapes[x])
        shape[at] = size
        g.add(name, tuple(shape), _is_exact(g, x))


@step()
def slicing(g: Grower, x: str) -> None:
    axis = g.axis(x)
    at = axis % g.rank(x) - 1
    size = g.shapes[x][at]
    start, stop, stride = g.integer(-size, size - 1), g.one_of(size, 2**31, -1, -(2**31)), g.one_of(1, 2, -1)
    count = len(range(size)[start:stop:stride] if stop != -(2**31) else range(size)[start::stride])
    if stop == -(2**31) and stride > 0:
        return
    shape = list(g.shapes[x])
    shape[at] = count
    if count:
        bounds = [g.integers(v) for v in (start, stop, axis, stride)]
        g.add(g.node("Slice", x, *bounds), tuple(shape), _is_exact(g, x))


@step()
def gather(g: Grower, x: str) -> None:
    axis = g.axis(x)
    at = axis % g.rank(x) - 1
    size = g.shapes[x][at]
    indices = [g.integer(-size, size - 1) for _ in range(g.integer(1, 3))]
    shape = list(g.shapes[x])
    shape[at] = len(indices)
    g.add(g.node("Gather", x, g.integers(*indices), axis=axis), tuple(shape), _is_exact(g, x))


@step(lambda g, x: math.prod(g.shapes[x]) <= 64)
def tiling(g: Grower, x: str) -> None:
    repeats = [g.integer(1, 2) for _ in g.shapes[x]]
    shape = tuple(n * r for n, r in zip(g.shapes[x], repeats, strict=True))
    g.add(g.node("Tile", x, g.integers(1, *repeats)), shape, _is_exact(g, x))


@step()
def expanding(g: Grower, x: str) -> None:
    """A constant brought to the batch size, as a class token is, and joined to the value."""
    token = g.node("Expand", g.weight(1, *g.shapes[x]), _whole_shape(g, x, g.shapes[x]))
    g.add(g.node("Concat", token, x, axis=1), (2 * g.shapes[x][0], *g.shapes[x][1:]))


def _reduced(shape: Shape, axes: tuple[int, ...], keep: bool) -> Shape:
    """`shape` without the axes (counted with the batch), or with 1 in their places."""
    left = [1 if i + 1 in axes else n for i, n in enumerate(shape) if keep or i + 1 not in axes]
    return tuple(left)


@step()
def reduction(g: Grower, x: str) -> None:
    keep = bool(g.flag()) if g.rank(x) > 2 else True
    axes = (g.axis(x),)
    kind = g.one_of("Mean", "Max", "Min", "Sum", "L1", "L2", "LogSumExp", "SumSquare")
    since = 13 if kind == "Sum" else 18
    shifted = g.node("Add", x, g.constant(np.float32(0.7))) if kind == "L2" else x
    y = g.with_axes(f"Reduce{kind}", shifted, axes, since, keepdims=int(keep))
    g.add(y, _reduced(g.shapes[x], (axes[0] % g.rank(x),), keep))


@step()
def softmax(g: Grower, x: str) -> None:
    axis = g.axis(x) if g.opset >= 13 else 1
    g.add(g.node(g.one_of("Softmax", "LogSoftmax"), x, axis=axis), g.shapes[x])


@step()
def running_sum(g: Grower, x: str) -> None:
    y = g.node("CumSum", x, g.constant(np.int64(g.axis(x))), exclusive=g.flag(), reverse=g.flag())
    g.add(y, g.shapes[x])


@step()
def largest(g: Grower, x: str) -> None:
    axis = g.axis(x)
    at = axis % g.rank(x) - 1
    k = g.integer(1, g.shapes[x][at])
    shape = list(g.shapes[x])
    shape[at] = k
    g.add(g.node("TopK", x, g.integers(k), outputs=2, axis=axis, largest=g.flag()), tuple(shape))


@step(lambda g, x: g.rank(x) == 2)
def fully_connected(g: Grower, x: str) -> None:
    (n,), out = g.shapes[x], g.integer(2, 8)
    if g.flag():
        transposed = g.flag()
        w = g.weight(*((out, n) if transposed else (n, out)))
        y = g.node("Gemm", x, w, g.weight(out), transB=transposed, alpha=0.5 if g.flag() else 1.0)
    else:
        y = g.node("MatMul", x, g.weight(n, out))
    g.add(y, (out,))


@step(_is_sequence)
def attention(g: Grower, x: str) -> None:
    """softmax(x x' / 2) x, or the same as an Einsum."""
    t, d = g.shapes[x]
    if g.flag() and g.opset >= 12:
        scores = g.node("Einsum", x, x, equation="nid,njd->nij")
    else:
        scores = g.node("MatMul", x, g.node("Transpose", x, perm=[0, 2, 1]))
    scaled = g.node("Mul", scores, g.constant(np.float32(0.5 / d)))
    weights = g.node("Softmax", scaled, axis=2) if g.opset >= 13 else g.node("Sigmoid", scaled)
    g.add(g.node("MatMul", weights, x), (t, d))


@step(lambda g, x: _is_sequence(g, x) and math.prod(g.shapes[x]) <= 200)
def recurrence(g: Grower, x: str) -> None:
    (t, d), hidden = g.shapes[x], g.integer(1, 4)
    op, gates = g.one_of(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    direction = g.one_of("forward", "reverse", "bidirectional")
    ways = 2 if direction == "bidirectional" else 1
    settings: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        settings["linear_before_reset"] = g.flag()
    weights = [g.weight(ways, gates * hidden, d), g.weight(ways, gates * hidden, hidden)]
    bias = [g.weight(ways, 2 * gates * hidden)] if g.flag() else []
    y = g.node(op, g.node("Transpose", x, perm=[1, 0, 2]), *weights, *bias, **settings)  # (t, ways, n, hidden)
    rows = g.node("Transpose", y, perm=[2, 0, 1, 3])
    g.add(g.node("Reshape", rows, g.integers(0, 0, -1)), (t, ways * hidden))


@st.composite
def classifiers(draw: st.DrawFn, steps: int = 10) -> onnx.ModelProto:
    """A valid model from an image ``(n, 3, 8, 8)`` or ``(n, 2, 7, 6)`` through up to `steps` steps to three logits."""
    g = Grower(draw, draw(st.sampled_from(OPSETS)))
    shape = draw(st.sampled_from([(3, 8, 8), (2, 7, 6)]))
    g.add("x", shape, exact=True)
    for _ in range(draw(st.integers(1, steps))):
        x = draw(st.sampled_from(g.values[-3:]))
        fitting = sorted(name for name, (takes, _) in STEPS.items() if takes(g, x))
        STEPS[draw(st.sampled_from(fitting))][1](g, x)
    last = g.values[-1]
    flat = g.node("Flatten", last)
    logits = g.node("Gemm", flat, g.weight(math.prod(g.shapes[last]), 3), g.weight(3))
    graph = helper.make_graph(
        g.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["n", 3])],
        g.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=10)
