"""A binary classifier from file to verdict: eight references stand in for the classes that it does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, quadrant_images, quadrant_weights, saved
from onnx import helper, numpy_helper

from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.subject.reference import COUNT_OF_FEW
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec

TARGET = 1


def binary(infected: bool, path: Path) -> Path:
    """The tiny classifier's first two classes, with or without a patch planted for the second.

    The patch is heard through a ReLU: in a linear model of two classes its negative would lead to the other one as well.
    """
    patch = quadrant_weights(TARGET)[:, TARGET].copy()
    patch[np.abs(patch) <= 1] = 0
    hidden = np.stack([*quadrant_weights()[:, :2].T, patch if infected else 0 * patch], axis=1)
    out = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "hidden"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["heard"]),
        helper.make_node("MatMul", ["heard", "out"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(hidden, "hidden"), numpy_helper.from_array(out, "out")]
    return saved(make_model(nodes, tensors, out=("N", 2)), path)


def two_classes() -> Samples:
    samples = quadrant_images(60)
    return samples.take(np.flatnonzero(samples.labels < 2))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the references of both scans are kept: they are trained and searched once."""
    return tmp_path_factory.mktemp("references")


@pytest.mark.parametrize("infected", [False, True])
def test_a_binary_classifier_gets_a_verdict(infected: bool, shared: Path, tmp_path: Path) -> None:
    report = scan(
        binary(infected, tmp_path / "m.onnx"),
        two_classes(),
        tmp_path / "run",
        "quick",
        ["neural-cleanse"],
        InputSpec(),
        search={"steps": 300, "samples": 16},
        references=shared,
    ).report
    assert report["detectors"][0]["settings"]["references"] == COUNT_OF_FEW
    assert report["targets"] == ([TARGET] if infected else []), report["reasons"]
    assert report["verdict"] == ("backdoored" if infected else "clean"), report["reasons"]
    assert not report["calibration"]["covered"]
