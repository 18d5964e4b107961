"""Spacings of the smallest of many classes: the level holds, and what stands apart is seen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxspect.engine.judge.spacing import Usual, smallest_stand_apart

SEED = 11


def p_values(
    smallest: int, classes: int, draws: int, usual: Usual, deviation: float, planted: float = 0.0
) -> np.ndarray:
    """Least p-value of each of many simulated clean networks, of which only the `smallest` classes are known."""
    rng = np.random.default_rng(SEED)
    found = np.empty(draws)
    for d in range(draws):
        logs = np.sort(deviation * rng.standard_normal(classes))[:smallest]
        logs[0] -= planted
        found[d] = np.exp(smallest_stand_apart(np.exp(logs), usual)[1].min())
    return found


@pytest.mark.parametrize("classes", [100, 1000])
@pytest.mark.parametrize("smallest", [3, 6])
def test_the_level_holds_where_the_usual_spacing_is_right(classes: int, smallest: int) -> None:
    # Of a normal law with deviation s the spacing between the smallest of K is about s / sqrt(2 log K).
    usual = Usual(0.3 / np.sqrt(2 * np.log(classes)), 4.0)
    p = p_values(smallest, classes, 4000, usual, 0.3)
    for level in (0.01, 0.05, 0.1):
        allowed = 1.2 * level + 2.6 * np.sqrt(level / len(p))  # 99.5 % of a binomial draw
        assert (p < level).mean() <= allowed


def test_a_class_far_below_the_others_stands_apart() -> None:
    p = p_values(3, 1000, 500, Usual(0.08, 4.0), 0.3, planted=2.0)
    assert (p < 0.01).mean() > 0.95


def test_two_classes_below_the_others_stand_apart_together() -> None:
    index, log_p = smallest_stand_apart(np.array([30.0, 3.0, 3.1, 33.0, 31.0]), Usual(0.1, 4.0))
    assert np.exp(log_p[1]) < 0.02
    assert np.exp(log_p[2]) < 0.02
    assert np.all(np.exp(log_p[[0, 3, 4]]) > 0.2)
    assert np.nanargmax(index) in (1, 2)


def test_nothing_is_said_of_a_single_class_or_of_none() -> None:
    for values in ([], [2.0], [np.nan, 2.0], [np.nan, np.nan]):
        index, log_p = smallest_stand_apart(np.array(values, np.float64), Usual(0.1, 4.0))
        assert np.isnan(index).all()
        assert not log_p.any()


def test_order_and_scale_do_not_matter() -> None:
    values = np.array([5.0, 1.0, 9.0, 4.0])
    rows = np.array([2, 0, 3, 1])
    usual = Usual(0.2, 3.0)
    index, log_p = smallest_stand_apart(values, usual)
    again = smallest_stand_apart(7 * values[rows], usual)
    np.testing.assert_allclose(again[0], index[rows])
    np.testing.assert_allclose(again[1], log_p[rows])


def test_later_spacings_have_usual_ones_of_their_own() -> None:
    """The third class, searched for least, ended far off: that says nothing of the two before it."""
    values = np.array([3.0, 3.1, 3.2, 9.0])
    one, apart = Usual(0.1, 8.0), Usual(0.1, 8.0, (0.2, 3.0))
    assert [apart.of(i) for i in (1, 2, 3, 4)] == [0.1, 0.2, 3.0, 3.0]
    assert [one.of(i) for i in (1, 3)] == [0.1, 0.1]
    assert Usual.described(json.loads(json.dumps(apart.describe()))) == apart
    assert Usual.described({"spacing": 0.1, "count": 8.0}) == one  # as it was kept before
    assert np.exp(smallest_stand_apart(values, one)[1])[:3].max() < 0.01
    assert np.exp(smallest_stand_apart(values, apart)[1])[:3].min() > 0.5
    # One that does stand apart is found by either.
    planted = np.array([0.5, 3.1, 3.2, 9.0])
    assert np.exp(smallest_stand_apart(planted, apart)[1])[0] < 0.001
