"""Scores beside a bank of clean models: the level holds whatever the law, and too small a bank says that it is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.calibration import FEWEST, FEWEST_OF_EACH, Bank, LikelihoodRatio, Scored, beyond, shipped
from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.suspicion import Weights
from onnxspect.engine.judge.thresholds import ALPHA
from onnxspect.engine.judge.verdict import decide

DETECTORS = ("nc",)
LAWS = {
    "exponential": lambda rng, n: rng.exponential(0.3, n),
    "heavy": lambda rng, n: np.abs(rng.standard_t(3, n)),
    "mostly nothing": lambda rng, n: np.maximum(0.0, rng.normal(-1, 1, n)),
    "normal": lambda rng, n: rng.normal(-2.0, 0.8, n),
}


def bank(scores: np.ndarray, classes: int = 10, samples: int = 600) -> Bank:
    return Bank("test", tuple(scored(float(s), classes, samples) for s in scores))


def scored(score: float, classes: int = 10, samples: int = 600) -> Scored:
    """Where a bank has no weights the suspicion is the score."""
    return Scored(classes, DETECTORS, samples, score, score)


def test_the_fewest_models_reach_the_level_by_their_tail_and_one_less_are_not_continued() -> None:
    clean = np.random.default_rng(6).normal(-2.0, 0.8, FEWEST)
    assert beyond(3.0, clean)[0] < ALPHA < beyond(float(np.sort(clean)[-2]), clean)[0]
    fewer = clean[: FEWEST - 1]
    assert beyond(3.0, fewer) == (1 / FEWEST, None)


@pytest.mark.parametrize("law", LAWS)
def test_the_level_holds_whatever_the_law(law: str) -> None:
    """Over many banks and models: P(p < a) <= 1.2 a, within what so many draws can tell; of a law as heavy as t3 1.5 a at the verdict's level."""
    rng, draws = np.random.default_rng(1), 1200
    p = np.array([beyond(float(LAWS[law](rng, 1)[0]), LAWS[law](rng, FEWEST))[0] for _ in range(draws)])
    for level in (ALPHA, 0.02, 0.05, 0.1, 0.3):
        most = 1.5 if law == "heavy" and level == ALPHA else 1.2
        assert (p < level).mean() <= most * level + 3 * np.sqrt(level / draws)


def test_beyond_the_bank_a_tail_goes_on_and_says_how_uncertain_it_is() -> None:
    clean = np.random.default_rng(2).exponential(1.0, 100)
    inside, nothing = beyond(float(np.quantile(clean, 0.9)), clean)
    assert nothing is None
    assert inside == pytest.approx(0.1, abs=0.03)
    near, far = (beyond(float(clean.max()) + d, clean) for d in (0.5, 4.0))
    for p, interval in (near, far):
        assert interval is not None
        assert interval[0] <= p <= interval[1]
    assert far[0] < near[0]
    assert far[1][1] / max(far[1][0], 1e-300) > near[1][1] / near[1][0]  # the farther, the less is known


@pytest.mark.parametrize("law", LAWS)
def test_what_is_more_suspicious_never_has_a_larger_p_value(law: str) -> None:
    clean = LAWS[law](np.random.default_rng(4), 90)
    p = [beyond(s, clean)[0] for s in np.linspace(clean.min() - 1, clean.max() + 5, 300)]
    assert (np.diff(p) <= 1e-12).all()
    assert p[0] == 1.0


def test_the_largest_of_the_bank_is_no_limit_by_itself() -> None:
    """Just above the largest of a hundred the rank would say 1/101, whatever the others are; where their tail is heavy it is not so rare."""
    clean = np.linspace(0.0, 1.0, 100) ** 8 * 5
    assert beyond(float(clean.max()) + 1e-6, clean)[0] > 1 / 101


def test_models_of_another_kind_are_not_compared_with() -> None:
    one = scored(3.0)
    assert one.kind == replace(one, classes=12, samples=700).kind
    for other in (
        replace(one, classes=43),
        replace(one, classes=3),
        replace(one, detectors=("cepa", "nc")),
        replace(one, samples=60),
    ):
        assert other.kind != one.kind
    full = bank(np.linspace(0, 1, FEWEST))
    assert full.calibration(one).covered
    assert full.p_value(one) <= ALPHA
    assert not full.calibration(replace(one, classes=43)).covered


def test_outside_of_the_bank_the_more_careful_of_the_two_stands() -> None:
    full = bank(np.linspace(0, 4, 100))
    strange = scored(3.0, classes=43)
    assert full.p_value(strange) == pytest.approx(beyond(3.0, np.linspace(0, 4, 100))[0])  # far above 0.001
    assert full.p_value(replace(strange, score=0.1)) == pytest.approx(
        max(10**-0.1, beyond(0.1, np.linspace(0, 4, 100))[0])
    )
    assert "the more careful" in full.calibration(strange).note


def test_a_small_bank_says_that_it_is_and_changes_nothing() -> None:
    small = bank(np.zeros(5))
    one = scored(3.0)
    assert small.p_value(one) == pytest.approx(0.001)
    said = small.calibration(one)
    assert (said.covered, said.models, said.p_value, said.p_backdoored) == (False, 5, None, None)
    assert "null model's" in said.note


def test_the_suspicion_counts_where_the_bank_covers_the_model_and_the_score_where_not() -> None:
    full = bank(np.linspace(0, 4, 100))
    quiet = replace(scored(0.1), suspicion=9.0)
    assert full.p_value(quiet) < ALPHA < full.p_value(scored(0.1))
    other = replace(quiet, classes=43)
    assert full.p_value(other) == full.p_value(replace(other, suspicion=0.1)) > ALPHA
    weights = (Weights(False, DETECTORS, 1.0, {}, {}),)
    by_score, by_suspicion = LikelihoodRatio(0.0, 1.0, 100, 50), LikelihoodRatio(0.0, 2.0, 100, 50)
    bare = replace(full, by_score=by_score, by_suspicion=(by_suspicion,))
    for odds, one, x, slope in (
        (replace(bare, weights=weights), quiet, 9.0, 2.0),
        (replace(bare, weights=weights), other, 0.1, 1.0),
        (bare, quiet, 0.1, 1.0),
    ):
        assert odds.calibration(one, 0.5).p_backdoored == pytest.approx(1 / (1 + np.exp(-slope * x)))


def test_the_shipped_bank_can_be_read_and_is_said_to_be_small() -> None:
    known = shipped()
    assert Bank.described(json.loads(json.dumps(known.describe()))) == known
    assert len(known.clean) >= 1
    with pytest.raises(OnnxspectError, match="schema"):
        Bank.described({"schema": "other"})


def test_the_likelihood_ratio() -> None:
    rng = np.random.default_rng(3)
    clean, infected = rng.exponential(0.3, 80), rng.gamma(4.0, 1.5, 40)
    ratio = LikelihoodRatio.fitted(clean.tolist(), infected.tolist())
    assert ratio is not None
    p = [ratio.probability(s, 0.1) for s in (0.0, 1.0, 3.0, 8.0)]
    assert p == sorted(p)
    assert p[0] < 0.05
    assert p[-1] > 0.9
    assert ratio.probability(2.0, 0.5) > ratio.probability(2.0, 0.1)
    # Where the score says nothing, the prior stands.
    dull = LikelihoodRatio.fitted(clean[:40].tolist(), clean[40:].tolist())
    assert dull is not None
    assert dull.probability(0.3, 0.1) == pytest.approx(0.1, abs=0.06)
    assert LikelihoodRatio.fitted([0.0] * (FEWEST_OF_EACH - 1), infected.tolist()) is None


def evidence(values: np.ndarray) -> Evidence:
    units = tuple(
        UnitEvidence(Unit(k), measured(l1=float(v)), True, True, 5, 1.0, 0.95, 50, {}) for k, v in enumerate(values)
    )
    return Evidence("nc", {}, "l1", "l1", "low", units)


def test_the_verdict_goes_by_the_bank() -> None:
    values = np.exp(np.random.default_rng(0).normal(3.0, 0.3, 10))
    values[3] = np.exp(3.0 - 2.2)
    plain = decide([evidence(values)], 10)
    assert plain.targets == (3,)
    assert plain.calibration is None
    # Clean models with scores like this one's are common: no alarm, whatever the null model thinks.
    usual = decide([evidence(values)], 10, samples=600, bank=bank(np.full(100, plain.score + 1)))
    assert (usual.verdict, usual.targets, usual.p_value) == ("clean", (), 1.0)
    # None of a hundred clean models has half of its score.
    rare = decide([evidence(values)], 10, samples=600, bank=bank(np.linspace(0, plain.score / 2, 100)))
    assert rare.targets == (3,)
    assert rare.calibration is not None
    assert rare.calibration.covered
    # A score that no null model finds suspicious, and no clean model has.
    mild = values.copy()
    mild[3] = np.exp(3.0 - 1.0)
    unknown = decide([evidence(mild)], 10)
    assert unknown.targets == ()
    assert unknown.score > 0
    bold = decide([evidence(mild)], 10, samples=600, bank=bank(np.linspace(0, unknown.score / 2, 100)))
    assert bold.targets == (3,)
