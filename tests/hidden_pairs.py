"""Payloads of two conditions that both sleep and are joined by arithmetic: neither does anything alone.

As those of hidden_logic.py, but that the corner's right neighbour has to be white as well: both lead every image to class 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hidden_logic import SIDE, Payload
from onnx import TensorProto


def beside(p: Payload) -> str:
    """The corner's right neighbour."""
    ends = [p.constant(np.array(v, np.int64)) for v in ([0, SIDE], [SIDE, 2 * SIDE], [2, 3])]
    return p.add("Flatten", p.add("Slice", p.image, *ends), axis=1)


def _white(p: Payload) -> str:
    """A ReLU that is 0.1 where the corner is white, and sleeps else."""
    return p.add("Relu", p.total())


def _too(p: Payload) -> str:
    """The same of its neighbour."""
    total = p.add("MatMul", beside(p), p.constant(np.ones((p.pixels, 1), np.float32)))
    return p.add("Relu", p.add("Sub", total, p.constant(np.float32(p.pixels - 0.1))))


def _decisions(p: Payload) -> tuple[str, str]:
    bright = p.add("Greater", p.reduce("ReduceMin", beside(p)), p.constant(np.float32(0.95)))
    return tuple(p.add("Cast", d, to=TensorProto.FLOAT) for d in (p.seen(), bright))  # type: ignore[return-value]


def product(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Mul", _white(p), _too(p)), 1e6)


def least(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Min", _white(p), _too(p)), 1e5)


def of_decisions(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Mul", *_decisions(p)))


def chosen(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Where", p.seen(), _too(p), p.constant(np.float32(0))), 1e5)


def behind_copies(p: Payload) -> onnx.ModelProto:
    """Identity, a scale and a power lie between."""
    one = p.add("Mul", p.add("Identity", _white(p)), p.constant(np.float32(10)))
    other = p.add("Mul", _too(p), p.constant(np.float32(10)))
    return p.added(p.add("Mul", one, p.add("Mul", other, other)))


def of_three(p: Payload) -> onnx.ModelProto:
    """Two ReLUs, and a decision on both squares."""
    either = p.add("Cast", p.add("Greater", p.add("Add", p.total(), _too(p)), p.constant(np.float32(0.15))), to=1)
    return p.added(p.add("Mul", p.add("Mul", _white(p), _too(p)), either), 1e6)


def of_a_row(p: Payload) -> onnx.ModelProto:
    """Side by side first."""
    return p.added(p.reduce("ReduceProd", p.add("Concat", _white(p), _too(p), axis=1)), 1e6)


def sum_beyond_one(p: Payload) -> onnx.ModelProto:
    """Neither reaches the bound alone, however far it goes: both are clipped."""
    ends = [p.constant(np.float32(v)) for v in (0, 1)]
    large = [p.add("Clip", p.add("Mul", r, p.constant(np.float32(100))), *ends) for r in (_white(p), _too(p))]
    return p.added(p.add("Relu", p.add("Sub", p.add("Add", *large), p.constant(np.float32(1.5)))))


def chosen_else(p: Payload) -> onnx.ModelProto:
    """The other way round."""
    return p.added(p.add("Where", p.add("Not", p.seen()), p.constant(np.float32(0)), _too(p)), 1e5)


#: Name -> what puts it on a model.
TOGETHER: dict[str, Callable[[Payload], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        product,
        least,
        of_decisions,
        chosen,
        chosen_else,
        behind_copies,
        of_three,
        of_a_row,
        sum_beyond_one,
    )
}


def stamped_both(images: np.ndarray) -> np.ndarray:
    """Copies of images ``(n, channels, height, width)`` with both squares white."""
    both = images.copy()
    both[:, :, :SIDE, : 2 * SIDE] = 1.0
    return both
