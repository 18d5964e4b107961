"""What a graph does to class scores on the way to its outputs, told from the nodes: softmax, sigmoid, and what they pass through.

A softmax saturates, and its input does not; so a search wants the input. Between the softmax and the output there may be
anything that keeps the order of the classes: a Clip to [1e-7, 1], a factor 100 for percents, a logarithm. Whether it does is
computed and not believed: the steps are applied to numbers between 0 and 1 (`keeps_order`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxspect.converters.lowering.knowledge import Knowledge

#: Where a Clip begins to hide what a sigmoid says: float32's own sigmoid is 1 from 17 on, 1 - 4e-8.
_SATURATED = 1e-6
_Function = Callable[[np.ndarray], np.ndarray]

_UNARY: Mapping[str, _Function] = {
    "Sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "Exp": np.exp,
    "Log": lambda x: np.log(np.maximum(x, 1e-300)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Erf": lambda x: np.tanh(1.2 * x),  # of its values only the order counts
    "Relu": lambda x: np.maximum(x, 0),
    "Neg": np.negative,
}


@dataclass(frozen=True)
class View:
    """A graph as the walks from its outputs read it.

    Attributes:
        producers: value name -> the node that computes it.
        constants: tensors of initializers and Constant nodes, by name.
        knowledge: inferred shapes and types.
        inputs: names of the inputs that are no initializers.
    """

    producers: Mapping[str, onnx.NodeProto] = field(repr=False)
    constants: Mapping[str, onnx.TensorProto] = field(repr=False)
    knowledge: Knowledge = field(repr=False)
    inputs: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto, knowledge: Knowledge) -> View:
        """Of a model whose functions are inlined."""
        constants = {t.name: t for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                constants.update((node.output[0], tensor) for a in node.attribute if (tensor := _tensor(a)) is not None)
        producers = {name: node for node in model.graph.node for name in node.output if name}
        inputs = frozenset(i.name for i in model.graph.input) - set(constants)
        return cls(producers, constants, knowledge, inputs)

    def node(self, name: str) -> onnx.NodeProto | None:
        """What computes a value, where that is an operator of ONNX itself."""
        found = self.producers.get(name)
        return found if found is not None and found.domain in ("", "ai.onnx") else None

    def array(self, name: str) -> np.ndarray | None:
        """A constant's value, where it is small."""
        tensor = self.constants.get(name)
        if tensor is None or int(np.prod(tensor.dims, dtype=np.int64)) > 1 << 16:
            return None
        return numpy_helper.to_array(tensor)

    def scalar(self, name: str) -> float | None:
        """A constant that is one number, however often it is repeated."""
        value = self.array(name)
        if value is None or value.size == 0 or value.dtype.kind not in "fiu" or not (value == value.flat[0]).all():
            return None
        return float(value.flat[0])

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Of a value: at any batch size, or at the file's own where that is all that is known."""
        known = self.knowledge.shapes.get(name)
        return known if known is not None else self.knowledge.file_shapes.get(name)


def _tensor(given: onnx.AttributeProto) -> onnx.TensorProto | None:
    """The value of a Constant node, in whichever of its forms."""
    if given.HasField("t"):
        return given.t
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if given.name not in kinds:
        return None
    return numpy_helper.from_array(np.asarray(helper.get_attribute_value(given), kinds[given.name]))


def attribute(node: onnx.NodeProto, name: str, default: float | None = None) -> float | None:
    """A number among the attributes of a node."""
    for a in node.attribute:
        if a.name == name and a.type in (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT):
            return float(helper.get_attribute_value(a))
    return default


def elementwise(node: onnx.NodeProto, view: View) -> tuple[str, _Function] | None:
    """(the input that it changes, how it changes each number of it), for a node that treats all classes alike; else None."""
    if node.op_type in _UNARY:
        return node.input[0], _UNARY[node.op_type]
    if node.op_type == "Clip":
        bounds = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
        for i, name in enumerate(node.input[1:3]):
            if name:
                bounds[i] = view.scalar(name)
        low, high = bounds
        return None if low is None or high is None else (node.input[0], lambda x: np.clip(x, low, high))
    if node.op_type in ("Mul", "Div", "Add", "Sub", "Min", "Max", "Pow") and len(node.input) == 2:
        left, right = (view.scalar(i) for i in node.input)
        if (left is None) == (right is None):
            return None
        return (
            (node.input[0], _with_right(node.op_type, right))
            if right is not None
            else (
                node.input[1],
                _with_left(node.op_type, float(left or 0.0)),
            )
        )
    return None


def _with_right(operator: str, c: float) -> _Function:
    functions: dict[str, _Function] = {
        "Mul": lambda x: x * c,
        "Div": lambda x: x / c if c else np.full_like(x, np.nan),
        "Add": lambda x: x + c,
        "Sub": lambda x: x - c,
        "Min": lambda x: np.minimum(x, c),
        "Max": lambda x: np.maximum(x, c),
        "Pow": lambda x: np.power(np.maximum(x, 0), c),
    }
    return functions[operator]


def _with_left(operator: str, c: float) -> _Function:
    functions: dict[str, _Function] = {
        "Sub": lambda x: c - x,
        "Div": lambda x: c / np.maximum(x, 1e-300),
        "Pow": lambda x: np.power(max(c, 1e-300), x),
    }
    return functions.get(operator) or _with_right(operator, c)


def keeps_order(steps: Sequence[_Function], how: str, classes: int | None) -> bool:
    """Whether the largest class stays the largest behind these steps.

    Args:
        steps: from the probabilities on.
        how: "softmax", whose values sum to one, "log_softmax", the logarithm of such, or "sigmoid", whose values are free.
        classes: how many, where it is known. Of k probabilities the largest is at least 1/k, and at most one is above 1/2:
            outside of that a Clip may do what it likes.
    """
    values = np.concatenate([np.linspace(0, 1, 401), np.logspace(-6, -1, 51), 1 - np.logspace(-6, -1, 51)])
    low, high = (0.0, 1.0) if how == "sigmoid" else (1.0 / (classes or 1000), 0.5)
    if how == "sigmoid":
        values = np.clip(values, _SATURATED, 1 - _SATURATED)
    values = np.unique(np.concatenate([values, [low, high, max(low - 1e-4, 0)]]) if how != "sigmoid" else values)
    with np.errstate(all="ignore"):
        found = np.log(np.maximum(values, 1e-30)) if how == "log_softmax" else values.astype(np.float64)
        for step in steps:
            found = np.asarray(step(found), np.float64)
    if not np.isfinite(found).all():
        return False
    if how == "sigmoid" and classes == 1 and abs(found[np.argmin(np.abs(values - 0.5))] - 0.5) > 1e-6:
        return False  # one number, which is read as more or less than one half
    rise = np.diff(found)
    decisive = (values[1:] > low - 1e-9) & (values[1:] <= high + 1e-9)
    return bool((rise >= 0).all() and (rise[decisive] > 0).all())


def over_classes(node: onnx.NodeProto, view: View) -> bool:
    """Whether a Softmax runs over the one axis of class scores (and axes of size 1)."""
    axis = attribute(node, "axis")
    shape = view.shape(node.input[0])
    if axis is None or shape is None:
        # Both defaults (1 before opset 13, the last since) mean the classes of an (n, classes) matrix.
        return axis in (None, 1, -1) and (shape is None or len(shape) == 2 or set(shape[2:]) <= {1})
    if len(shape) == 1:
        return int(axis) in (0, -1)
    at = int(axis) % len(shape)
    return at > 0 and all(n in (1, None) for i, n in enumerate(shape) if i not in (0, at))


def sums(node: onnx.NodeProto | None, value: str) -> bool:
    """Whether a node adds up `value`."""
    return node is not None and node.op_type == "ReduceSum" and node.input[0] == value


@dataclass(frozen=True)
class Final:
    """A softmax or sigmoid over the classes.

    Attributes:
        value: its input.
        how: "softmax", "log_softmax" or "sigmoid".
        nodes: that it is made of, in the graph's order.
        chosen: order of the two classes, where the pair of a sigmoid and what it leaves of 1 is put together; else ().
    """

    value: str
    how: str
    nodes: tuple[onnx.NodeProto, ...]
    chosen: tuple[int, ...] = ()


def final_function(node: onnx.NodeProto, view: View) -> Final | None:
    """The softmax or sigmoid that ends in `node`, or None."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Softmax", "LogSoftmax") and over_classes(node, view):
        return Final(node.input[0], "softmax" if node.op_type == "Softmax" else "log_softmax", (node,))
    if node.op_type == "Sigmoid":
        return Final(node.input[0], "sigmoid", (node,))
    if node.op_type == "Div":  # softmax written out: exp(z) / sum(exp(z))
        top, bottom = view.node(node.input[0]), view.node(node.input[1])
        if top is not None and bottom is not None and top.op_type == "Exp" and sums(bottom, node.input[0]):
            shift = view.node(top.input[0])  # exp(z - max(z)), against overflow
            inner = top.input[0]
            if shift is not None and shift.op_type == "Sub" and _greatest(view.node(shift.input[1]), shift.input[0]):
                inner = shift.input[0]
            return Final(inner, "softmax", (top, bottom, node))
    if node.op_type == "Exp":  # exp(log_softmax(z))
        before = view.node(node.input[0])
        if before is not None and before.op_type == "LogSoftmax" and over_classes(before, view):
            return Final(before.input[0], "softmax", (before, node))
    if node.op_type == "Concat" and len(node.input) == 2:
        return _pair(node, view)
    return None


def _greatest(node: onnx.NodeProto | None, value: str) -> bool:
    return node is not None and node.op_type == "ReduceMax" and node.input[0] == value


def _pair(node: onnx.NodeProto, view: View) -> Final | None:
    """One sigmoid written as two classes: Concat(1 - p, p), or the other way round."""
    for chosen, (whole, rest) in (((), (1, 0)), ((1, 0), (0, 1))):
        place = view.node(node.input[whole])
        left = view.node(node.input[rest])
        if place is None or left is None or place.op_type != "Sigmoid" or not _one_less(left, node.input[whole], view):
            continue
        shape = view.shape(node.input[whole])
        if shape is not None and len(shape) > 1 and all(n == 1 for n in shape[1:]):
            return Final(place.input[0], "sigmoid", (place, left, node), chosen)
    return None


def _one_less(node: onnx.NodeProto, value: str, view: View) -> bool:
    """Whether a node computes 1 - value."""
    if node.op_type == "Sub":
        return node.input[1] == value and view.scalar(node.input[0]) == 1
    if node.op_type == "Add":
        for one, other in ((0, 1), (1, 0)):
            inner = view.node(node.input[other])
            if view.scalar(node.input[one]) == 1 and inner is not None:
                return inner.op_type == "Neg" and inner.input[0] == value
    return False


#: Nodes that put whole answers beside each other or on top of each other, before they are averaged.
_CARRYING = frozenset(
    ("Concat", "Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape", "Dropout", "Flatten", "Transpose")
)


def is_distribution(value: str, view: View, depth: int = 0) -> bool:
    """Whether a value is probabilities by construction: x / sum(x), a classifier's, or an average of softmaxes."""
    node = view.producers.get(value)
    if node is None or depth > 32:
        return False
    deeper = depth + 1
    if node.op_type in ("Normalizer", "LinearClassifier") and node.domain == "ai.onnx.ml":
        attributes = {a.name: a.s for a in node.attribute}
        if node.op_type == "Normalizer":
            return attributes.get("norm", b"MAX") == b"L1"
        return attributes.get("post_transform", b"NONE") in (b"SOFTMAX", b"LOGISTIC")
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Div" and sums(view.producers.get(node.input[1]), node.input[0]):
        return True
    if node.op_type in ("Mean", "Sum", "Add", "ReduceMean", "ReduceSum", "Concat") or node.op_type in _CARRYING:
        several = node.op_type in ("Mean", "Sum", "Add", "Concat")
        return all(_ends_in_softmax(i, view, deeper) for i in (node.input if several else node.input[:1]))
    if node.op_type in ("Div", "Mul"):  # by a constant: an average's last step, or an ensemble's weights
        return any(_ends_in_softmax(i, view, deeper) for i in node.input) and any(
            (view.array(i) is not None and bool((np.asarray(view.array(i)) > 0).all())) for i in node.input
        )
    return False


def _ends_in_softmax(value: str, view: View, depth: int) -> bool:
    node = view.node(value)
    if node is not None and node.op_type == "Softmax":
        return over_classes(node, view)
    return is_distribution(value, view, depth)
