"""STRIP: entropy by hand, calibration, and what it catches on a model whose backdoor survives blending."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CLASSES, quadrant_images
from patch_support import FIT, GUARD, UNSEEN, patch_trigger
from tolerances import FORMULA_64

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.strip import Calibrated, Strip
from onnxspect.engine.run import RunContext


def by_quadrant(pixels: np.ndarray) -> np.ndarray:
    """Logits of the tiny world: how bright each quadrant is; the checkerboard beats them all."""
    halves = pixels.reshape(len(pixels), 2, 4, 2, 4).mean((2, 4)).reshape(len(pixels), CLASSES)
    logits = 20 * halves
    board = pixels[:, 0, 1, 1] + pixels[:, 0, 2, 2] - pixels[:, 0, 1, 2] - pixels[:, 0, 2, 1]
    logits[:, 2] += 60 * np.maximum(board - 0.7, 0)
    return logits


def test_entropy_by_hand() -> None:
    """A model that answers evenly has log2(classes) bits, one that is sure has none."""
    even = Calibrated(Strip(blends=3), lambda x: np.zeros((len(x), 4)), FIT.images, 0.0, 1)
    np.testing.assert_allclose(even.entropy(UNSEEN.images[:5]), 2.0)
    sure = Calibrated(Strip(blends=3), lambda x: np.tile([100.0, 0, 0, 0], (len(x), 1)), FIT.images, 0.0, 1)
    np.testing.assert_allclose(sure.entropy(UNSEEN.images[:5]), 0.0, atol=FORMULA_64)


def test_stamped_images_are_caught_and_clean_ones_pass() -> None:
    ready = Strip(false_positives=0.05).calibrate(by_quadrant, quadrant_images(30, 4), RunContext())
    stamped = patch_trigger().apply(UNSEEN.images[UNSEEN.labels != 2])
    assert (by_quadrant(stamped).argmax(1) == 2).all()
    assert ready.rejects(stamped).mean() > 0.95
    assert ready.rejects(UNSEEN.images).mean() < 0.15


def test_the_threshold_is_the_quantile() -> None:
    """Of the calibration half no more than the share is rejected, and hardly fewer."""
    clean = quadrant_images(50, 4)
    strip = Strip(false_positives=0.1)
    ready = strip.calibrate(by_quadrant, clean, RunContext())
    order = RunContext().numpy_generator("strip", "halves").permutation(len(clean))
    rest = clean.images[np.sort(order[1::2])]
    assert ready.rejects(rest).mean() == pytest.approx(0.1, abs=1 / len(rest))


def test_twice_the_same() -> None:
    one, two = (Strip().calibrate(by_quadrant, GUARD, RunContext()) for _ in range(2))
    assert one.threshold == two.threshold
    np.testing.assert_array_equal(one.entropy(UNSEEN.images), two.entropy(UNSEEN.images))
    assert Strip().calibrate(by_quadrant, GUARD, RunContext(seed=1)).threshold != one.threshold


def test_refusals() -> None:
    with pytest.raises(OnnxspectError, match="3 clean samples are too few"):
        Strip().calibrate(by_quadrant, GUARD.take(np.arange(3)), RunContext())
    for settings in ({"blends": 0}, {"weight": 1.0}, {"false_positives": 0.0}):
        with pytest.raises(OnnxspectError, match="STRIP blends"):
            Strip(**settings)
