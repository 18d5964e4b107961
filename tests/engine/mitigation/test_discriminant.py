"""The discriminant behind the input filter: against closed forms, and honest about images it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import OPERATION_32, REORDERED_64

from onnxspect.engine.mitigation.activation_profile import profile
from onnxspect.engine.mitigation.discriminant import Discriminant, Shift, fitted


def drawn(n: int, features: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, features)).astype(np.float32)


def at(clean: np.ndarray, shift: np.ndarray) -> list[list[Shift]]:
    return [[Shift.of(clean, clean + s, np.arange(len(clean)), len(shift))] for s in shift]


def direction(found: Discriminant, target: int = 0) -> np.ndarray:
    return np.asarray(found.weights[:, target] / np.linalg.norm(found.weights[:, target]))


@given(st.integers(0, 50), st.sampled_from([12, 200]))
def test_the_direction_is_that_of_the_closed_form(seed: int, features: int) -> None:
    """Few features and many (X'X and XX'): one formula, solved directly."""
    rng = np.random.default_rng(seed)
    clean = (drawn(60, features, seed) @ rng.normal(size=(features, features))).astype(np.float32)
    shift = rng.normal(size=features).astype(np.float32)
    ridge = 0.5
    found = fitted(clean, clean[:0], at(clean, shift[None]), ridge)
    scale = clean.std(0) + 1e-3 * clean.std(0).max()
    z = ((clean - clean.mean(0)) / scale).astype(np.float64)
    rows = np.concatenate([z, z])  # the stamped images' residuals are the clean ones'
    covariance = rows.T @ rows / len(rows)
    amount = ridge * np.trace(covariance) / min(rows.shape)
    expected = np.linalg.solve(covariance + amount * np.eye(features), shift / scale) / scale
    np.testing.assert_allclose(direction(found), expected / np.linalg.norm(expected), atol=2e-3)


def test_what_clean_images_vary_by_counts_less() -> None:
    """Two neurons answer to the trigger alike; one of them varies on clean images together with a third."""
    clean = drawn(400, 3, 0)
    clean[:, 1] = clean[:, 0] + 0.1 * clean[:, 1]
    found = fitted(clean, clean[:0], at(clean, np.array([[1.0, 0.0, 1.0]], np.float32)), 1e-3)
    weights = direction(found)
    assert weights[1] < -0.5 * weights[0]  # it tells what of neuron 0 is content
    assert weights[0] > 2 * weights[2] > 0


@pytest.mark.parametrize("features", [8, 500])
def test_scores_are_in_deviations_of_images_it_has_not_seen(features: int) -> None:
    """With more features than images the fitted images' own scores would be far from the mark."""
    clean, others = drawn(150, features, 1), drawn(2000, features, 2)
    shift = np.zeros((2, features), np.float32)
    shift[0, 0], shift[1, 1] = 4.0, 4.0
    found = fitted(clean, clean[:0], at(clean, shift), 0.3)
    assert found.clean.shape == (150, 2)
    scores = found.scores(others)
    np.testing.assert_allclose(found.clean.mean(0), 0, atol=REORDERED_64)
    np.testing.assert_allclose(found.clean.std(0), 1, atol=REORDERED_64)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.3)
    np.testing.assert_allclose(scores.std(0), 1, atol=0.2)
    stamped = found.scores(others + shift[0])
    assert (stamped[:, 0] - scores[:, 0]).mean() > 2
    assert abs((stamped[:, 1] - scores[:, 1]).mean()) < 0.7


def test_a_silent_layer_and_a_single_image_give_finite_scores() -> None:
    constant = np.ones((5, 3), np.float32)
    found = fitted(constant, constant, at(constant, np.ones((1, 3), np.float32)), 0.3)
    assert np.isfinite(found.scores(constant)).all()
    one = fitted(constant[:1], constant, at(constant[:1], np.ones((1, 3), np.float32)), 0.3)
    assert np.isfinite(one.scores(constant)).all()


def test_the_profile_takes_the_neurons_with_the_largest_gap() -> None:
    clean = drawn(100, 200, 3)
    first, second = np.zeros((2, 200), np.float32)
    first[[3, 9]], second[50] = 5.0, 4.0
    neurons, weights = profile(clean, [[clean.mean(0) + first], [clean.mean(0) + second]], 0.01)
    assert set(neurons) >= {3, 9, 50}
    assert len(neurons) == 4
    scale = clean.std(0) + 1e-3 * clean.std(0).max()
    np.testing.assert_allclose(weights, 0.5 / scale[neurons], rtol=OPERATION_32)
