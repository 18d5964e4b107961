"""Every decision of a graph is ruled on: proved harmless, measured harmless, or measured to change the class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import make_model, quadrant_images, saved
from hidden_logic import PAYLOADS, TARGET, Payload
from onnx import helper, numpy_helper

from onnxspect.cli import exit_status
from onnxspect.cli.main import main
from onnxspect.converters.lowering.bounds import bounds
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.program import Program
from onnxspect.engine.subject.referee import Ruling, rulings
from onnxspect.engine.subject.subject import Subject
from onnxspect.models import zoo


def _model() -> onnx.ModelProto:
    """A classifier with a comparison that cannot fall the other way, one that changes nothing, and one that chooses the answer."""
    node = helper.make_node
    weights = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    given = {
        "weights": weights,
        "two": np.float32(2),
        "half": np.float32(0.5),
        "none": np.zeros((1, 4), np.float32),
        "row": np.array([[0, 90, 0, 0]], np.float32),
    }
    corner = {"starts": [0, 0], "ends": [2, 2], "axes": [2, 3]}
    nodes = [
        node("Flatten", ["image"], ["f"]),
        node("MatMul", ["f", "weights"], ["z"]),
        node("Slice", ["image", *corner], ["corner"]),
        node("ReduceMean", ["corner"], ["m4"], axes=[1, 2, 3], keepdims=1),
        node("Flatten", ["m4"], ["m"]),
        node("Less", ["m", "two"], ["always"], name="always"),
        node("Where", ["always", "z", "row"], ["z1"]),
        node("Greater", ["m", "half"], ["idle"], name="idle"),
        node("Where", ["idle", "none", "none"], ["zero"]),
        node("Add", ["z1", "zero"], ["z2"]),
        node("Less", ["m", "half"], ["live"], name="live"),
        node("Where", ["live", "z2", "row"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in given.items()]
    return make_model(nodes, tensors + [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in corner.items()])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ruling]:
    path = saved(_model(), tmp_path_factory.mktemp("referee") / "m.onnx")
    return {r.node: r for r in rulings(Subject.from_onnx(path), quadrant_images(6))}


def test_what_no_image_can_turn_is_proved(found: dict[str, Ruling]) -> None:
    assert found["always"].proved
    assert "whatever the image is" in found["always"].said


def test_what_changes_nothing_is_measured(found: dict[str, Ruling]) -> None:
    assert not found["idle"].proved
    assert found["idle"].falls == "both ways"
    assert found["idle"].changes == 0


def test_what_can_change_the_class_is_said(found: dict[str, Ruling]) -> None:
    assert found["live"].changes is not None
    assert found["live"].changes > 0.3
    assert found["live"].falls == "both ways"


def test_what_a_decision_reads_is_shown(found: dict[str, Ruling]) -> None:
    assert all(r.box == (0, 1, 0, 1) and r.pixels == 4 / 64 for r in found.values())


def test_bounds_hold_every_image() -> None:
    lowered = lower(onnx.load(zoo.path("fashion_mnist_clean")), ["linear"])
    program = Program(lowered.module)
    (end,) = (n for n in program.steps if n.name == lowered.values["linear"])
    low, high = torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28)
    interval = bounds(program, end, low, high)
    assert interval is not None
    images = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for batch in (images, low, high, images.round()):
        value = lowered.module(batch)
        assert bool((value >= interval.low).all() and (value <= interval.high).all())
    assert bool((interval.high > interval.low).all())


def test_info_shows_dormant_logic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(PAYLOADS["comparison"](Payload(onnx.load(zoo.path("fashion_mnist_clean")))), tmp_path / "p.onnx")
    data = str(zoo.path("fashion_mnist_test"))
    with pytest.raises(SystemExit) as ended:
        main(["info", str(path), "--logic", "--data", data, "--json"])
    assert ended.value.code == exit_status.CLEAN
    shown = json.loads(capsys.readouterr().out)["logic"]
    assert shown["images"] == "given"
    (greater,) = (d for d in shown["decisions"] if d["operator"] == "Greater")
    assert greater["leads_to"] == TARGET
    assert greater["box"] == [0, 2, 0, 2]
    assert greater["changes"] > 0.5
    assert "the same on every image" in greater["said"]


def test_info_says_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["info", str(zoo.path("fashion_mnist_clean")), "--logic"])
    assert "nothing in this graph compares or chooses" in " ".join(capsys.readouterr().out.split())
