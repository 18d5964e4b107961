"""A Clip that no clean image reaches the end of hides nothing, unless something takes its slope off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIDE, make_model, saved
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import fx

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.observation import operator_of
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program
from onnxspect.converters.lowering.saturation import only_saturates
from onnxspect.converters.lowering.taps import results

HIDDEN, CHANNEL = 6, 2


def model(end: str, taken_off: float, nonlinear: str = "Clip") -> onnx.ModelProto:
    """The image, a layer whose channels lie between 1 and 5, Clip to [0, 6] (or Abs), the scores.

    Args:
        end: "" for the scores of the clipped layer alone; "beside" adds ten times the difference of another copy of the layer, times
            `taken_off`, and the clipped one to the last score.
        taken_off: 1 takes the slope off exactly.
        nonlinear: Clip, or Abs, which goes on the other way.
    """
    rng = np.random.default_rng(0)
    weight = rng.uniform(-1, 1, (SIDE * SIDE, HIDDEN)).astype(np.float32)
    weight *= 2 / np.abs(weight).sum(0)
    bias = (3 - weight.sum(0) / 2).astype(np.float32)  # pixels in [0, 1] move each channel by 1 at most, from 3
    last = np.zeros((HIDDEN, CLASSES), np.float32)
    last[CHANNEL, -1] = 10.0
    constants = {
        "weight": weight,
        "bias": bias,
        "head": rng.standard_normal((HIDDEN, CLASSES)).astype(np.float32),
        "last": last,
        "share": np.float32(taken_off),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    node = helper.make_node
    bounds = ["zero", "six"] if nonlinear == "Clip" else []
    nodes = [
        node("Flatten", ["image"], ["flat"]),
        node("Gemm", ["flat", "weight", "bias"], ["layer"]),
        node(nonlinear, ["layer", *bounds], ["clipped"]),
        node("MatMul", ["clipped", "head"], ["logits" if not end else "scores"]),
    ]
    if end:
        nodes += [
            node("Gemm", ["flat", "weight", "bias"], ["copy"]),
            node("Mul", ["copy", "share"], ["scaled"]),
            node("Sub", ["scaled", "clipped"], ["difference"]),
            node("MatMul", ["difference", "last"], ["payload"]),
            node("Add", ["scores", "payload"], ["logits"]),
        ]
    return make_model(nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])


def hides_nothing(proto: onnx.ModelProto, folder: Path, side: int = 1) -> bool:
    file = read_onnx(saved(proto, folder / "m.onnx"))
    lowered = lower(file.proto, [logits_of(file.proto).value])
    program = Program(lowered.module)
    (node,) = [n for n in lowered.module.graph.nodes if n.op == "call_function" and operator_of(n) in ("Clip", "Abs")]
    source = next(a for a in node.args if isinstance(a, fx.Node))
    images = [torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    asleep = torch.zeros(1, HIDDEN, dtype=torch.bool)
    asleep[:, CHANNEL] = True
    limit = torch.full((1, HIDDEN), 6.0 if side > 0 else 0.0)
    place = Place(source, asleep, limit, "up" if side > 0 else "down", side, node, asleep.float())
    return only_saturates(program, results(lowered)[0], place, images)


@pytest.mark.parametrize("side", [1, -1])
def test_an_ordinary_clip_hides_nothing(tmp_path: Path, side: int) -> None:
    assert hides_nothing(model("", 1.0), tmp_path, side)


@pytest.mark.parametrize("side", [1, -1])
def test_a_difference_of_two_ways_does(tmp_path: Path, side: int) -> None:
    """Exactly zero on every clean image, and ten times what lies beyond the Clip on others."""
    assert not hides_nothing(model("beside", 1.0), tmp_path, side)


def test_what_turns_back_is_no_saturation(tmp_path: Path) -> None:
    assert not hides_nothing(model("", 1.0, "Abs"), tmp_path, -1)


@given(st.floats(0.8, 1.2))
def test_a_slope_that_is_nearly_taken_off_counts_as_taken_off(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    assert not hides_nothing(model("beside", share), tmp_path_factory.mktemp("model"))
