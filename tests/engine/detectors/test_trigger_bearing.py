"""Trigger-bearing samples: filters against the covariance they stand for, divisions, contents by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CLASSES, quadrant_images
from hypothesis import given
from hypothesis import strategies as st
from tolerances import OPERATION_32, ROUNDING_32

from onnxspect.engine.detectors.trigger_bearing import (
    RIDGES,
    SEPARATE,
    centred,
    divide,
    divided,
    foreign,
    matched_filters,
    shared_pixels,
    trigger_of,
)

TARGET = 2


@given(st.integers(0, 2**16), st.integers(3, 40), st.integers(2, 12))
def test_filters_are_those_of_the_covariance(seed: int, n: int, pixels: int) -> None:
    rng = np.random.default_rng(seed)
    natural = rng.normal(size=(n, pixels)) * rng.uniform(0.1, 2, pixels)
    d = rng.normal(size=pixels)
    covariance = natural.T @ natural / n
    for ridge, found in zip(RIDGES, matched_filters(d, natural), strict=True):
        level = ridge * np.trace(covariance) / pixels
        expected = np.linalg.solve(covariance + level * np.eye(pixels), d)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=OPERATION_32)


def test_filters_of_images_without_variance_are_the_difference() -> None:
    d = np.array([3.0, 4.0])
    for found in matched_filters(d, np.zeros((5, 2))):
        np.testing.assert_allclose(found, [0.6, 0.8])


@given(st.integers(0, 2**16), st.floats(0.1, 0.9), st.floats(12, 100))
def test_two_groups_far_apart_are_divided_between_them(seed: int, share: float, distance: float) -> None:
    rng = np.random.default_rng(seed)
    upper = np.arange(200) < share * 200
    scores = rng.normal(size=200) + distance * upper
    found = divide(scores, 0)
    assert found.separation > SEPARATE
    assert ((scores > found.threshold) == upper).all()
    assert found.above(scores).mean() == pytest.approx(upper.mean())


def test_one_group_is_not_two() -> None:
    rng = np.random.default_rng(0)
    assert all(divide(rng.normal(size=500), 0).separation < SEPARATE for _ in range(20))
    assert divide(np.ones(50), 0).separation == 0.0


def test_the_filter_that_separates_best_is_taken() -> None:
    rng = np.random.default_rng(0)
    upper = np.arange(200) < 80
    scores = np.stack([rng.normal(size=200), rng.normal(size=200) + 20 * upper, rng.normal(size=200) + 5 * upper])
    best, division = divided(scores, 0)
    assert best == 1
    assert ((scores[1] > division.threshold) == upper).all()


def test_images_are_centred_by_class() -> None:
    samples = quadrant_images(5)
    flat = centred(samples.images, samples.labels)
    for c in range(CLASSES):
        np.testing.assert_allclose(flat[samples.labels == c].mean(0), 0, atol=ROUNDING_32)


@pytest.mark.parametrize("sources", ["own", "one", "all", "some"])
def test_what_trigger_bearing_samples_share_is_found_whatever_their_content(sources: str) -> None:
    samples = quadrant_images(40, seed=3)
    means = {c: samples.images[samples.labels == c].mean(0) for c in range(CLASSES)}
    shown = {"own": [TARGET], "one": [0], "all": [0, 1, 3], "some": [0, 0, 0, 1]}[sources]
    trigger = np.zeros((1, 8, 8), np.float32)
    trigger[0, ::2, ::2] = 0.1
    counts = {c: 10 * shown.count(c) for c in set(shown)}
    rows = np.concatenate([np.flatnonzero(samples.labels == c)[:n] for c, n in counts.items()])
    others = samples.images[samples.labels == TARGET][20:]
    found = trigger_of(samples.images[rows] + trigger, others, means, TARGET)
    # A mixture takes a part of the trigger for content; where one class or an even draw is shown, what is left is noise.
    np.testing.assert_allclose(found, trigger, atol=0.05 if sources == "some" else 0.015)


def test_shared_pixels_are_those_that_clean_images_have_not() -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(0, 1, (40, 2, 4, 4)).astype(np.float32)
    clean[:, :, 0, 0] = 0.3  # every image has it
    images = rng.uniform(0, 1, (30, 2, 4, 4)).astype(np.float32)
    images[:, :, 0, 0] = 0.3
    images[:, :, 1, 2] = 0.9
    images[:, 0, 3, 3] = 0.9  # in one of two channels only
    mask, pattern = shared_pixels(images, clean)
    assert np.argwhere(mask[0]).tolist() == [[1, 2]]
    np.testing.assert_allclose(pattern[:, 1, 2], 0.9)
    assert foreign(pattern, clean[:0]).all()
