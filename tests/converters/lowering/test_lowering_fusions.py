"""What exporters write out is computed in one kernel: the same values and gradients, and no tap lost."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from lowering_support import array, expect, model, node
from tolerances import OPERATION_32

from onnxspect.converters.lowering.fusions import rotate
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.parity import check_gradients, check_parity

HALF, ONE = np.float32(0.5), np.float32(1)
CONSTANTS = {
    "half": HALF,
    "one": ONE,
    "root2": np.float32(math.sqrt(2)),
    "inverse": np.float32(math.sqrt(0.5)),
    "rate": np.float32(math.sqrt(2 / math.pi)),
    "cubic": np.float32(0.044715),
    "three": np.float32(3),
    "other": np.float32(1.702),
}


def erf_gelu(order: str) -> list[onnx.NodeProto]:
    inner = node("Div", "a root2", "s") if order != "half last, scaled" else node("Mul", "inverse a", "s")
    nodes = [inner, node("Erf", "s", "e"), node("Add", "one e" if order == "half first" else "e one", "g")]
    if order == "half first":
        return [*nodes, node("Mul", "a half", "h"), node("Mul", "h g", "b")]
    if order == "half beside the gate":
        return [*nodes, node("Mul", "g half", "h"), node("Mul", "h a", "b")]
    return [*nodes, node("Mul", "a g", "h"), node("Mul", "h half", "b")]


def tanh_gelu(cube: str) -> list[onnx.NodeProto]:
    nodes = [node("Pow", "a three", "c")] if cube == "power" else [node("Mul", "a a", "q"), node("Mul", "a q", "c")]
    nodes += [node("Mul", "cubic c", "d"), node("Add", "a d", "e"), node("Mul", "rate e", "f"), node("Tanh", "f", "t")]
    return [*nodes, node("Add", "one t", "g"), node("Mul", "a g", "h"), node("Mul", "half h", "b")]


def roll(k: int, axis: int, end: int = 2**63 - 1) -> list[onnx.NodeProto]:
    def integers(name: str, value: int) -> onnx.NodeProto:
        return node("Constant", "", name, value_ints=[value])

    return [
        *(integers(name, v) for name, v in (("k", k), ("end", end), ("zero", 0), ("axis", axis))),
        node("Slice", "a k end axis", "first"),
        node("Slice", "a zero k axis", "second"),
        node("Concat", "first second", "b", axis=axis),
    ]


WRITTEN_OUT: dict[str, tuple[list[onnx.NodeProto], Callable[..., torch.Tensor]]] = {
    **{f"gelu, {o}": (erf_gelu(o), F.gelu) for o in ("half first", "half last, scaled", "half beside the gate")},
    **{f"gelu by tanh, {c}": (tanh_gelu(c), F.gelu) for c in ("power", "products")},
    "silu": ([node("Sigmoid", "a", "g"), node("Mul", "a g", "b")], F.silu),
    "silu, gate first": ([node("Sigmoid", "a", "g"), node("Mul", "g a", "b")], F.silu),
    "hard swish": ([node("HardSigmoid", "a", "g", alpha=1 / 6, beta=0.5), node("Mul", "a g", "b")], F.hardswish),
    "mish": ([node("Softplus", "a", "p"), node("Tanh", "p", "g"), node("Mul", "a g", "b")], F.mish),
    "roll": (roll(2, 1), rotate),
    "roll back": (roll(-1, 2), rotate),
    "roll up to the size": (roll(1, 2, 5), rotate),
    "roll of more than all": (roll(9, 1, 2**31 - 1), rotate),
    "roll back of more than all": (roll(-9, 1), rotate),
}


def calls(lowered: LoweredModel) -> list[object]:
    return [n.target for n in lowered.module.graph.nodes if n.op == "call_function"]


def around(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Something before and something behind, so that the value before is one that others could use."""
    return model([node("Neg", "x", "a"), *nodes, node("Neg", "b")], CONSTANTS, ("n", 4, 5), outputs=outputs)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_it_is_computed_in_one(name: str) -> None:
    nodes, function = WRITTEN_OUT[name]
    proto = around(nodes)
    x = 3 * array((3, 4, 5))
    lowered = expect(proto, x, OPERATION_32)
    assert calls(lowered) == [torch.neg, function, torch.neg]
    assert [tap.name for tap in cuts(lowered)] == ["a", "b"]
    check_parity(proto, lowered, x, taps=["a", "b"])
    check_gradients(lowered, x)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_value_inside_that_is_asked_for_stays(name: str) -> None:
    nodes, function = WRITTEN_OUT[name]
    inside = next(o for n in nodes if n.op_type != "Constant" for o in n.output)
    proto = around(nodes, outputs=("y", inside))
    lowered = expect(proto, 3 * array((3, 4, 5)), OPERATION_32)
    assert function not in calls(lowered)
    assert inside in lowered.values


NOT_THESE: dict[str, list[onnx.NodeProto]] = {
    "another value's sigmoid": [node("Sigmoid", "x", "g"), node("Mul", "a g", "b")],
    "a sigmoid of a multiple": [node("Mul", "a other", "s"), node("Sigmoid", "s", "g"), node("Mul", "a g", "b")],
    "another hard sigmoid": [node("HardSigmoid", "a", "g", alpha=0.2, beta=0.5), node("Mul", "a g", "b")],
    "the tanh of another value's softplus": [
        *(node("Softplus", "x", "p"), node("Tanh", "p", "g"), node("Mul", "a g", "b"))
    ],
    "erf of another scale": [
        *(node("Div", "a other", "s"), node("Erf", "s", "e"), node("Add", "one e", "g")),
        *(node("Mul", "a g", "h"), node("Mul", "h half", "b")),
    ],
    "no half": [
        *(node("Div", "a root2", "s"), node("Erf", "s", "e"), node("Add", "one e", "g")),
        *(node("Mul", "a g", "h"), node("Mul", "h other", "b")),
    ],
    "a cube of another value": [
        *(node("Mul", "a x", "q"), node("Mul", "a q", "c"), node("Mul", "cubic c", "d"), node("Add", "a d", "e")),
        *(node("Mul", "rate e", "f"), node("Tanh", "f", "t"), node("Add", "one t", "g")),
        *(node("Mul", "a g", "h"), node("Mul", "half h", "b")),
    ],
    "a roll that stops early": roll(1, 1, 3),
    "a roll joined along another axis": [*roll(2, 1)[:-1], node("Concat", "first first", "b", axis=2)],
}


@pytest.mark.parametrize("name", NOT_THESE)
def test_what_only_looks_like_it_is_left_alone(name: str) -> None:
    lowered = expect(around(NOT_THESE[name]), 3 * array((3, 4, 5)), OPERATION_32)
    fused = {function for _, function in WRITTEN_OUT.values()}
    assert not fused & set(calls(lowered))


def test_pieces_in_the_other_order_are_no_roll() -> None:
    nodes = roll(2, 1)
    nodes[-1] = node("Concat", "second first", "b", axis=1)  # the value itself
    lowered = expect(around(nodes), array((3, 4, 5)))
    assert rotate not in calls(lowered)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("k", [-5, -3, -1, 0, 1, 3, 5])
def test_rotate_is_the_two_slices(size: int, k: int) -> None:
    x = torch.arange(2 * size).reshape(2, size)
    assert torch.equal(rotate(x, k, 1), torch.cat([x[:, k:], x[:, :k]], 1))


def test_a_gelu_stored_in_float16_is_recognised() -> None:
    constants = {k: v.astype(np.float16) for k, v in CONSTANTS.items()}
    nodes = [node("Cast", "x", "a", to=10), *erf_gelu("half first"), node("Cast", "b", to=1)]
    proto = model(nodes, constants, ("n", 4, 5))
    lowered = lower(proto)
    assert F.gelu in calls(lowered)
    check_parity(proto, lowered)
