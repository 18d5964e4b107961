"""Which detectors a scan runs: by preset, by what is at hand, by the user's choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxspect.engine.detectors.base import Detector
from onnxspect.engine.detectors.registry import NAMES, PRESETS, chosen
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.models import zoo


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str) -> None:
    detectors = chosen(preset)
    names = [d.name for d in detectors]
    assert names == [n for n in NAMES if n in names]  # one order, whatever the preset
    assert "neural-cleanse" in names
    assert any(d.traits.convicts for d in detectors)
    assert all(isinstance(d, Detector) and d.settings() for d in detectors)


def test_a_training_set_brings_its_detectors_in() -> None:
    theirs = {"dtinspector", "training-difference"}
    assert not theirs & {d.name for d in chosen("standard")}
    assert theirs <= {d.name for d in chosen("quick", with_training_set=True)}


def test_a_more_thorough_preset_runs_at_least_as_much() -> None:
    sets = [{d.name for d in chosen(p)} for p in ("quick", "standard", "thorough")]
    assert sets[0] <= sets[1] <= sets[2]
    # The first can do nothing without a training set, the second convicts among many classes only.
    assert sets[2] == set(NAMES) - {"training-difference", "attractor"}


def test_the_user_chooses() -> None:
    assert [d.name for d in chosen("quick", ["cepa", "max-margin"])] == ["max-margin", "cepa"]
    assert [d.name for d in chosen("quick", ["cepa"], with_training_set=True)] == ["cepa"]


def test_unknown_words_name_what_there_is() -> None:
    with pytest.raises(OnnxspectError, match="guesswork") as error:
        chosen("standard", ["guesswork"])
    assert "neural-cleanse" in error.value.hint
    with pytest.raises(OnnxspectError, match="eternal"):
        chosen("eternal")


def test_no_reference_network_is_trained_for_a_detector_that_compares_with_none(tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    with np.load(zoo.path("fashion_mnist_test")) as archive:
        np.savez(few, images=archive["images"][::10], labels=archive["labels"][::10])
    report = scan(zoo.path("fashion_mnist_clean"), few, tmp_path / "run", "quick", ["max-margin"]).report
    assert report["detectors"][0]["status"] == "ran"
    assert not list((tmp_path / "run").rglob("reference-*.npz"))
