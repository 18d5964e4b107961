"""What interval bounds prove that no image does: ways of nonlinear nodes, and only such as none takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIDE, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from piecewise import CHANNELS, HIGH, LOW, Looked, model
from torch import Tensor

from onnxspect.converters.lowering.bounds import bounds
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.program import Program, unchanged
from onnxspect.converters.lowering.regimes import Regimes
from onnxspect.converters.lowering.taps import results

node = helper.make_node


def test_a_clip_of_a_positive_sum_is_never_cut_below() -> None:
    """All weights and the bias are positive, and what they weigh is a ReLU: whatever the image is, the sum is positive."""
    weights = np.abs(np.random.default_rng(0).normal(size=(CHANNELS, 1, 3, 3))) * 0.01
    weights[4] *= -3
    never = Looked(model(weights, np.full(CHANNELS, 0.05), "Clip")).never(LOW)
    below = never[-1.0].flatten(2).all(2)[0]
    assert below.tolist() == [c != 4 for c in range(CHANNELS)]
    far = Looked(model(weights * 1000, np.full(CHANNELS, 0.05), "Clip")).never(LOW)
    assert not far[1.0].flatten(2).any(2)[0, 0]


@pytest.mark.parametrize("end", [True, False])
def test_what_is_proved_is_not_tried(end: bool) -> None:
    """The ways that are forced, on images: none below, where the ends of the pixels are known."""
    weights = np.abs(np.random.default_rng(0).normal(size=(CHANNELS, 1, 3, 3))) * 0.01
    looked = Looked(model(weights, np.full(CHANNELS, 0.05), "Clip"))
    regimes = Regimes(looked.between)
    images = [torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    for image in images:
        looked.program.run(image, regimes.observe)
    forced = regimes.tries(looked.program, looked.logits, images, (LOW, HIGH) if end else None)
    ways = {t.note[2] for t in forced if t.node is looked.node}
    assert (-1.0 in ways) is not end


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["Relu", "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "Abs", "Max", "Min"]),
    st.floats(0, 1),
    st.floats(-3, 8),
)
def test_no_image_does_what_is_proved_that_none_does(seed: int, operator: str, positive: float, bias: float) -> None:
    """Neither a random image nor one that is climbed to leaves the way."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(CHANNELS, 1, 3, 3)) * 10 ** rng.uniform(-2, 0.5)
    weights = np.where(rng.random(weights.shape) < positive, np.abs(weights), weights)
    looked = Looked(model(weights, bias + 0.1 * rng.normal(size=CHANNELS), operator, seed))
    image = torch.from_numpy(rng.random((1, 1, SIDE, SIDE), dtype=np.float32))
    never = looked.never(image)
    x, value, slope = looked.at(image)
    for sign, proved in never.items():
        for other in (LOW, HIGH, torch.rand(1, 1, SIDE, SIDE), _climbed(looked, image, sign)):
            x_there, there, slope_there = looked.at(other)
            beyond = proved & (sign * (x_there - x) > 0)
            kept = (slope_there == slope) | (there == value + slope * (x_there - x))  # the corner itself
            assert bool(kept[beyond].all())


def _climbed(looked: Looked, image: Tensor, sign: float) -> Tensor:
    """An image that moves the operand far."""
    at = image.clone()
    for _ in range(5):
        at.requires_grad_(True)
        with torch.enable_grad():
            env = looked.program.run(at, unchanged, keep=True)
            (slope,) = torch.autograd.grad(env[looked.source].sum(), at)
        at = (at.detach() + sign * 0.3 * slope.sign()).clamp(0, 1)
    return at


def _cast(kind: int) -> list[onnx.NodeProto]:
    return [node("Mul", ["image", "far"], ["m"]), node("Cast", ["m"], ["c"], to=kind), node("Cast", ["c"], ["x"], to=1)]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(
            lambda: [node("Sub", ["image", "half"], ["s"]), node("LeakyRelu", ["s"], ["x"], alpha=-1.0)], id="slope"
        ),
        pytest.param(lambda: [node("Sub", ["image", "half"], ["s"]), node("Elu", ["s"], ["x"], alpha=-1.0)], id="Elu"),
        pytest.param(lambda: _cast(TensorProto.UINT8), id="leaves its type"),
        pytest.param(
            lambda: [
                node("Sub", ["image", "half"], ["s"]),
                node("Cast", ["s"], ["b"], to=TensorProto.BOOL),
                node("Cast", ["b"], ["x"], to=1),
            ],
            id="test for zero",
        ),
        pytest.param(
            lambda: [
                node("ReduceMean", ["image"], ["m"], axes=[0, 1, 2, 3], keepdims=0),
                node("Mul", ["m", "three"], ["m3"]),
                node("Cast", ["m3"], ["i"], to=TensorProto.INT64),
                node("Gather", ["table", "i"], ["x"]),
            ],
            id="place by the image",
        ),
    ],
)
def test_what_may_not_rise_has_no_bounds(nodes: Callable[[], list[onnx.NodeProto]]) -> None:
    """Bounds from the two ends would be wrong: in the middle each is another value than between them."""
    constants: dict[str, Any] = {
        "far": np.float32(1000),
        "half": np.float32(0.5),
        "three": np.float32(3),
        "table": np.array([0, 9, 5, 1], np.float32),
        "none": np.zeros((1, CLASSES), np.float32),
    }
    behind = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Flatten", ["image"], ["f"]),
        node("ReduceMean", ["f"], ["mean"], axes=[1], keepdims=1),
        node("Mul", ["mean", "sum"], ["gated"]),
        node("Add", ["gated", "none"], ["logits"]),
    ]
    proto = make_model([*nodes(), *behind], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])
    lowered = lower(proto, ["logits"])
    assert bounds(Program(lowered.module), results(lowered)[0], LOW, HIGH) is None
