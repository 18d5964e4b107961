"""Difficulty of the task: suspicions are standardised by it before they are ranked, so that hard tasks raise no more alarms than easy ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxspect.engine.judge.calibration import FEWEST, PRIOR, Bank, LikelihoodRatio, Scored, beyond
from onnxspect.engine.judge.difficulty import Difficulty
from onnxspect.engine.judge.suspicion import Weights

DETECTORS = ("cepa", "nc")
TRUE = Difficulty(slope=4.0, hardest=0.25)


def drawn(rng: np.random.Generator, difficulty: np.ndarray, usual: float = -3.0) -> np.ndarray:
    """Suspicions of clean models."""
    return usual + TRUE.slope * difficulty + rng.laplace(0.0, 0.2, len(difficulty))


def bank(rng: np.random.Generator, hard: int = 40, easy: int = 60) -> Bank:
    difficulty = np.array([0.22] * hard + [0.03] * easy)
    clean = [
        Scored(10, DETECTORS, 600, 0.0, float(s), float(d))
        for s, d in zip(drawn(rng, difficulty), difficulty, strict=True)
    ]
    return Bank("test", tuple(clean), (Weights(False, DETECTORS, 1.0, {}, {}, difficulty=TRUE),))


def test_the_slope_is_found_and_kinds_differ_by_a_constant() -> None:
    rng = np.random.default_rng(0)
    kinds = []
    for usual, hardest in ((-3.0, 0.25), (2.0, 0.1)):
        difficulty = rng.uniform(0.0, hardest, 2000)
        kinds.append((drawn(rng, difficulty, usual), difficulty))
    found = Difficulty.fitted(kinds)
    assert found.slope == pytest.approx(TRUE.slope, abs=0.2)
    assert found.hardest == max(float(d.max()) for _, d in kinds)


@pytest.mark.parametrize("rise", [0.0, -3.0])
def test_where_harder_tasks_are_no_more_suspicious_or_all_are_alike_nothing_is_taken_off(rise: float) -> None:
    rng = np.random.default_rng(1)
    difficulty = np.full(80, 0.1) if not rise else rng.uniform(0, 0.2, 80)
    suspicion = rng.normal(-3.0, 0.1, 80) + rise * difficulty
    found = Difficulty.fitted([(suspicion, difficulty)])
    assert found.slope == 0.0
    np.testing.assert_array_equal(found.beyond(suspicion, difficulty), suspicion)


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0, 1), st.floats(0, 9))
def test_within_one_difficulty_distances_stay(suspicions: list[float], difficulty: float, slope: float) -> None:
    of = np.array(suspicions)
    found = Difficulty(slope, 0.3).beyond(of, np.full(len(of), difficulty))
    np.testing.assert_allclose(np.diff(found), np.diff(of), atol=1e-9)
    assert (found <= of).all()


def test_the_level_holds_for_hard_and_for_easy_tasks_apart_which_raw_ranks_do_not() -> None:
    rng, level, draws = np.random.default_rng(2), 0.05, 400
    shares: dict[tuple[bool, float], list[float]] = {}
    for _ in range(draws):
        known = bank(rng, hard=30, easy=70)
        plain = replace(known, weights=(replace(known.weights[0], difficulty=None),))
        for d in (0.03, 0.22):
            one = Scored(10, DETECTORS, 600, 0.0, float(drawn(rng, np.array([d]))[0]), d)
            for less, of in ((True, known), (False, plain)):
                shares.setdefault((less, d), []).append(of.p_value(one))
    found = {k: float((np.array(p) < level).mean()) for k, p in shares.items()}
    assert found[True, 0.22] <= 1.2 * level + 3 * np.sqrt(level / draws)
    assert found[True, 0.03] <= 1.2 * level + 3 * np.sqrt(level / draws)
    assert found[False, 0.22] > 2 * level  # a third of the bank raises nearly all of its alarms
    assert found[False, 0.03] < 0.02


def test_easy_tasks_do_not_make_a_model_of_a_hard_one_rarer() -> None:
    """Of many easy tasks, all alike, and some hard ones, which vary: what is rare among all is not among those that vary."""
    rng, hard = np.random.default_rng(7), FEWEST
    spread = [Scored(10, DETECTORS, 600, 0.0, float(s), 0.2) for s in rng.normal(-2.0, 0.8, hard)]
    alike = [Scored(10, DETECTORS, 600, 0.0, -2.0, 0.03) for _ in range(hard)]
    law = replace(TRUE, slope=0.0)
    weights = replace(bank(rng).weights[0], difficulty=law)
    both, of_hard = (Bank("test", tuple(clean), (weights,)) for clean in (spread + alike, spread))
    for suspicion in (-1.5, -0.5, 0.5):
        one = Scored(10, DETECTORS, 600, 0.0, suspicion, 0.2)
        assert both.p_value(one) >= of_hard.p_value(one)
        assert both.calibration(one).p_value == both.p_value(one)
    one = Scored(10, DETECTORS, 600, 0.0, -1.5, 0.2)
    assert both.p_value(one) == of_hard.p_value(one) > 1.8 * beyond(-1.5, [s.suspicion for s in both.clean])[0]


def test_what_is_far_out_on_an_easy_task_is_usual_on_a_hard_one() -> None:
    known = bank(np.random.default_rng(3))
    easy = Scored(10, DETECTORS, 600, 0.0, -2.2, 0.03)
    assert known.p_value(easy) < 0.02 < 0.2 < known.p_value(replace(easy, difficulty=0.22))


def test_where_the_difficulty_is_not_known_suspicions_are_ranked_as_they_are() -> None:
    known = bank(np.random.default_rng(4))
    one = Scored(10, DETECTORS, 600, 0.0, -1.9)
    assert known.p_value(one) == beyond(-1.9, [s.suspicion for s in known.clean])[0]
    unknown = replace(known, clean=tuple(replace(s, difficulty=None) for s in known.clean[:50]) + known.clean[50:])
    assert len(unknown.clean) - 50 < FEWEST
    assert unknown.p_value(replace(one, difficulty=0.2)) == beyond(-1.9, [s.suspicion for s in known.clean])[0]


def test_nothing_is_extrapolated_to_harder_tasks_and_it_is_said() -> None:
    known = bank(np.random.default_rng(5))
    hardest = Scored(10, DETECTORS, 600, 0.0, 0.5, TRUE.hardest)
    harder = replace(hardest, difficulty=0.6)
    assert known.p_value(harder) == known.p_value(hardest)
    assert "harder" not in known.calibration(hardest).note
    assert "this task is harder than theirs (errors 60%, theirs at most 25%)" in known.calibration(harder).note


def test_a_bank_keeps_its_law() -> None:
    known = bank(np.random.default_rng(6))
    again = Bank.described(known.describe())
    assert again == known
    assert again.weights[0].difficulty == TRUE


def test_what_is_likely_follows_from_the_suspicion_by_the_curve_of_its_weights() -> None:
    odds = LikelihoodRatio(-3.0, 2.0, 100, 40)
    known = replace(bank(np.random.default_rng(7)), by_suspicion=(odds,))
    one = Scored(10, DETECTORS, 600, 0.0, 1.0, 0.03)
    assert known.calibration(one).p_backdoored == odds.probability(1.0, PRIOR)
    assert replace(known, by_suspicion=(None,)).calibration(one).p_backdoored is None
