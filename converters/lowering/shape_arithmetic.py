"""Shape arithmetic before anything runs: Shape -> Gather -> Mul -> Concat on sizes of which some are known.

ONNX computes shapes with ordinary operators. What they make of sizes that do not depend on the batch is worked out
here, element by element; an element that depends on the batch is unknown (None), or known to be at least 1 (POSITIVE):
there is no empty batch, which settles the checks for one that exporters write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Shape = tuple[int | None, ...]
_Vectors = Mapping[str, np.ndarray]
_Rule = Callable[[list[Any], Mapping[str, Any]], np.ndarray | None]


class _Positive:
    """An integer that is not known but is at least 1."""

    def __repr__(self) -> str:
        return "POSITIVE"


POSITIVE = _Positive()


def size(value: Any) -> int | None:
    """An element as an int; None where it is not known."""
    return None if value is None or value is POSITIVE else int(value)


def propagate(
    node: onnx.NodeProto, constants: _Vectors, partial: _Vectors, shapes: Mapping[str, Shape]
) -> np.ndarray | None:
    """The integers (or booleans) that `node` computes from shapes, as an object array; or None where nothing is known.

    Args:
        constants: values that are known entirely.
        partial: object arrays of rank 0 or 1, None or POSITIVE for each element that is unknown.
        shapes: of values; only sizes that do not depend on the batch.
    """
    if node.op_type == "Shape":
        # Axis 0 is taken to be the batch even where inference found a number: a Reshape to (1, ...) of a file made
        # for one image tells it so.
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        attributes = {a.name: a.i for a in node.attribute}
        known = [None, *shape[1:]] if len(shape) > 1 and node.input[0] not in constants else list(shape)
        values: list[Any] = [POSITIVE if n is None else n for n in known]
        return _vector(values[attributes.get("start", 0) : attributes.get("end", len(known))])
    if node.op_type == "Size":
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        batched = len(shape) > 1 and node.input[0] not in constants
        return _scalar(POSITIVE if batched or None in shape else math.prod(n or 0 for n in shape))
    rule = _RULES.get(node.op_type)
    if rule is None or not any(name in partial for name in node.input):
        return None
    inputs = [partial.get(name, constants.get(name)) if name else None for name in node.input]
    if any(value is None and name for value, name in zip(inputs, node.input, strict=True)):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        return rule(inputs, attributes)
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return None  # ill-formed: it is said when the node is lowered, or run


def _vector(values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def _scalar(value: Any) -> np.ndarray:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _gather(inputs: list[Any], attributes: Mapping[str, Any]) -> np.ndarray | None:
    data, indices = inputs
    if attributes.get("axis", 0) not in (0, -1) or data.ndim != 1 or indices.dtype == object or indices.ndim > 1:
        return None
    if indices.ndim == 0:
        return _scalar(data[int(indices)])
    return _vector([data[int(i)] for i in indices])


def _slice(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
    if len(inputs) < 3 or inputs[0].ndim != 1 or any(v is not None and v.dtype == object for v in inputs[1:]):
        return None
    start, end = int(inputs[1].reshape(-1)[0]), int(inputs[2].reshape(-1)[0])
    step = int(inputs[4].reshape(-1)[0]) if len(inputs) > 4 and inputs[4] is not None else 1
    size = len(inputs[0])
    return inputs[0][slice(start, None if step < 0 and end + size < 0 else end, step)]


def _concat(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
    if any(v.ndim != 1 for v in inputs):
        return None
    return _vector([x for v in inputs for x in v.tolist()])


def _unsqueeze(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
    return _vector([inputs[0].item()]) if inputs[0].ndim == 0 else None


def _squeeze(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
    return _scalar(inputs[0].item()) if inputs[0].size == 1 else None


def _reshape(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
    if len(inputs) < 2 or inputs[1].dtype == object:
        return None
    target = [int(v) for v in inputs[1].reshape(-1)]
    if inputs[0].size == 1 and target == []:
        return _scalar(inputs[0].item())
    if len(target) == 1 and target[0] in (-1, inputs[0].size):
        return _vector(inputs[0].reshape(-1).tolist())
    return None


def _same(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
    return inputs[0]


def _cast(inputs: list[Any], attributes: Mapping[str, Any]) -> np.ndarray | None:
    return inputs[0] if attributes.get("to") == TensorProto.INT64 else None


def _elementwise(function: Callable[[int, int], int], keeps_positive: bool = False) -> _Rule:
    def apply(a: Any, b: Any) -> Any:
        if size(a) is not None and size(b) is not None:
            return function(int(a), int(b))
        return POSITIVE if keeps_positive and _is_positive(a) and _is_positive(b) else None

    return _pairwise(apply)


def _comparison(function: Callable[[int, int], bool]) -> _Rule:
    def apply(a: Any, b: Any) -> Any:
        if size(a) is not None and size(b) is not None:
            return function(int(a), int(b))
        # At least 1 against something below it: every number from 1 on gives the same answer.
        if a is POSITIVE and size(b) is not None and b < 1:
            return function(1, int(b))
        if b is POSITIVE and size(a) is not None and a < 1:
            return function(int(a), 1)
        return None

    return _pairwise(apply)


def _pairwise(apply: Callable[[Any, Any], Any]) -> _Rule:
    def rule(inputs: list[Any], _attributes: Mapping[str, Any]) -> np.ndarray | None:
        if any(v.dtype.kind not in "Oi" for v in inputs):
            return None
        found = np.frompyfunc(apply, 2, 1)(*(v.astype(object) for v in inputs))
        return found if isinstance(found, np.ndarray) else _scalar(found)

    return rule


def _is_positive(value: Any) -> bool:
    return value is POSITIVE or (size(value) is not None and value > 0)


def _towards_zero(a: int, b: int) -> int:
    return a // b if (a < 0) == (b < 0) else -(-a // b)


_RULES: dict[str, _Rule] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Identity": _same,
    "Cast": _cast,
    "Add": _elementwise(lambda a, b: a + b, keeps_positive=True),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b, keeps_positive=True),
    "Div": _elementwise(_towards_zero),
    "Equal": _comparison(lambda a, b: a == b),
    "Less": _comparison(lambda a, b: a < b),
    "Greater": _comparison(lambda a, b: a > b),
}
