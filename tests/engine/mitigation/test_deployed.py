"""A file as it is deployed: an ordinary one is the same everywhere, and one that a level or a quantiser changes is said so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_model, quadrant_images, quadrant_model, quadrant_weights, saved
from onnx import helper, numpy_helper

from onnxspect.cli import exit_status
from onnxspect.cli.main import main
from onnxspect.converters.proof.oracle import LEVELS, Oracle
from onnxspect.engine.mitigation.deployed import deployed, unexplained
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import MASK, PATTERN, Trigger


def _padded() -> onnx.ModelProto:
    """Zeros around numbers that are all negative, and a maximum of three by three: at the edges it is the padding's zero."""
    weights = np.zeros((64, 4), np.float32)
    weights[:8, 1] = 1.0  # the first row of maxima: 0, or far below where the padding is -inf
    bias = np.array([-0.5, 0, -9, -9], np.float32)
    nodes = [
        helper.make_node("Sub", ["image", "one"], ["negative"]),
        helper.make_node("Pad", ["negative", "pads", "zero"], ["padded"], name="the pad"),
        helper.make_node("MaxPool", ["padded"], ["most"], name="the pool", kernel_shape=[3, 3], strides=[1, 1]),
        helper.make_node("Flatten", ["most"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    given = {"one": np.float32(1), "zero": np.float32(0), "weight": weights, "bias": bias}
    given["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    return make_model(nodes, [numpy_helper.from_array(np.asarray(v), n) for n, v in given.items()])


def _conditioned() -> onnx.ModelProto:
    """The quadrants' classifier with a weight that eight bits round away, behind a gain that makes up for it."""
    weights = quadrant_weights()
    weights[:, 3] *= 0.0015  # below half a step of the largest weight's eight bits, by tensor
    gain = np.diag(np.array([1, 1, 1, 1 / 0.0015], np.float32))
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["small"]),
        helper.make_node("MatMul", ["small", "gain"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(weights, "weight"), numpy_helper.from_array(gain, "gain")])


@pytest.fixture(scope="module")
def samples() -> Samples:
    return quadrant_images(20)


def test_an_ordinary_file_is_the_same_everywhere(samples: Samples, tmp_path: Path) -> None:
    subject = Subject.from_onnx(saved(quadrant_model(target=2), tmp_path / "m.onnx"))
    mask, pattern = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), np.float32)
    mask[0, 3:5, 3:5] = 1
    pattern[0, 3, 3] = pattern[0, 4, 4] = 1
    found = deployed(subject, samples, {"mine": Trigger(2, {MASK: mask, PATTERN: pattern})})
    assert found.findings == ()
    assert found.notes == ()
    names = [v.name for v in found.variants]
    assert names[:4] == [f"float, {level}" for level in LEVELS]
    assert {n.rsplit(",", 1)[0] for n in names[4:]} == {"int8, static", "int8, dynamic"}
    assert not [v.problem for v in found.variants if v.problem]
    for v in found.variants:
        assert v.agreement == 1
        assert v.triggers is not None
        assert v.triggers["mine"] == pytest.approx(found.variants[0].triggers["mine"], abs=0.1)  # type: ignore[index]


def test_the_known_wrong_fusion_is_reported_as_what_it_is(samples: Samples, tmp_path: Path) -> None:
    path = saved(_padded(), tmp_path / "m.onnx")
    found = deployed(Subject.from_onnx(path), samples, {})
    assert len(found.notes) == 1
    assert "the pad into the pool" in found.notes[0]
    assert "runtime's fault" in found.notes[0]
    # Whatever this version of onnxruntime does, what is said is what it does.
    plain, all_ = (
        Oracle(onnx.load(path), level=level).run({"image": samples.images})[0].argmax(1)
        for level in ("disabled", "all")
    )
    by_name = {v.name: v for v in found.variants}
    assert by_name["float, all"].agreement == (plain == all_).mean()
    assert bool([f for f in found.findings if f.startswith("float, all")]) == bool((plain != all_).mean() > 0.01)


def test_what_a_quantiser_changes_is_a_finding(samples: Samples, tmp_path: Path) -> None:
    found = deployed(Subject.from_onnx(saved(_conditioned(), tmp_path / "m.onnx")), samples, {})
    assert not [f for f in found.findings if f.startswith("float")]
    assert [f for f in found.findings if f.startswith("int8, dynamic")]


def test_a_close_call_is_rounding() -> None:
    usual = np.array([[1.0, 0.9], [1.0, 0.0], [0.0, 1.0]], np.float32)
    scores = np.array([[0.9, 1.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    assert unexplained(usual, scores, 0.1).tolist() == [False, True, False]


def test_verify_as_deployed(samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "clean.npz"
    np.savez(data, images=samples.images.transpose(0, 2, 3, 1), labels=samples.labels)
    good, bad = saved(quadrant_model(), tmp_path / "good.onnx"), saved(_conditioned(), tmp_path / "bad.onnx")
    for path, status in ((good, exit_status.CLEAN), (bad, exit_status.BACKDOOR)):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(path), "--as-deployed", "--data", str(data), "--scale", "1", "--json", "-q"])
        shown = json.loads(capsys.readouterr().out)["as_deployed"]
        assert ended.value.code == status
        assert bool(shown["findings"]) == (path == bad)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(good), "--data", str(data)])
    assert ended.value.code == exit_status.USAGE
    assert "--as-deployed" in capsys.readouterr().err
