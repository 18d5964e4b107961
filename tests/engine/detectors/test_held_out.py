"""What a trigger does on networks that never met the attacker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSES, PATCH, SIDE, quadrant_images, quadrant_subject

from onnxspect.engine.detectors.held_out import transferred
from onnxspect.engine.judge.evidence import Unit, UnitEvidence
from onnxspect.engine.judge.measurement import TRANSFER, measured
from onnxspect.engine.report import words

TARGET = 2
SAMPLES = quadrant_images(20)
CLEAN = [quadrant_subject(), quadrant_subject(scale=2.0)]


def unit(mask: np.ndarray, pattern: np.ndarray, source: int | None = None) -> UnitEvidence:
    trigger = {"mask": mask.astype(np.float32), "pattern": pattern.astype(np.float32)}
    return UnitEvidence(Unit(TARGET, source), measured(l1=float(mask.sum())), True, True, 9, 1.0, 0.95, 60, trigger)


def planted() -> UnitEvidence:
    """The checkerboard that the infected classifier hears; too small to be a bright quadrant."""
    mask, pattern = np.zeros((1, SIDE, SIDE)), np.zeros((1, SIDE, SIDE))
    mask[0][PATCH] = 1
    pattern[0][PATCH] = np.indices((SIDE, SIDE))[0][PATCH] % 2
    return unit(mask, pattern)


def natural() -> UnitEvidence:
    """The whole picture becomes one of the class: its quadrant bright, all else dark."""
    row, column = divmod(TARGET, 2)
    pattern = np.zeros((1, SIDE, SIDE))
    half = SIDE // 2
    pattern[0, row * half : (row + 1) * half, column * half : (column + 1) * half] = 1
    return unit(np.ones((1, SIDE, SIDE)), pattern)


def test_a_natural_feature_works_on_clean_networks_and_a_planted_one_does_not() -> None:
    shares = [transferred(u, CLEAN, SAMPLES).value(TRANSFER) for u in (planted(), natural())]
    assert shares == [0.0, 1.0]
    measurement = transferred(natural(), CLEAN, SAMPLES).measurement(TRANSFER)
    assert measurement is not None
    assert measurement.baselines == (1.0, 1.0)
    assert measurement.reference is None  # shown, not judged


def test_it_is_measured_on_the_images_that_the_trigger_is_for() -> None:
    """Of one source class, whose images a trigger that does nothing leaves where they are."""
    nothing = np.zeros((1, SIDE, SIDE))
    others = [k for k in range(CLASSES) if k != TARGET]
    assert [transferred(unit(nothing, nothing, k), CLEAN, SAMPLES).value(TRANSFER) for k in [*others, TARGET]] == [
        0,
        0,
        0,
        1,
    ]
    assert (
        transferred(unit(nothing, nothing, 1), CLEAN, SAMPLES.take(np.flatnonzero(SAMPLES.labels != 1))).measurement(
            TRANSFER
        )
        is None
    )


def test_nothing_is_said_without_references_or_without_a_trigger() -> None:
    for given, networks in ((planted(), []), (replace(planted(), trigger={}), CLEAN)):
        assert transferred(given, networks, SAMPLES) is given


@pytest.mark.parametrize(
    ("on_references", "end"),
    [(0.02, "it is this model that answers to it."), (0.6, "looks like by nature."), (None, "")],
)
def test_the_report_says_it(on_references: float | None, end: str) -> None:
    said = words.transfer({"on_references": on_references, "held_out_success": 0.9})
    assert said.endswith(end)
    assert bool(said) == (on_references is not None)
    assert words.transfer({"held_out_success": 0.9}) == ""  # a report of an older version
