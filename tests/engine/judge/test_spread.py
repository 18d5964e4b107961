"""The moderated t: a network's deviation between classes, from its own classes, from what is usual, from other detectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Measurement
from onnxspect.engine.judge.null_model import NO_PRIOR, Prior, against_reference, leave_one_out
from onnxspect.engine.judge.spread import FACTOR_DF, PRIOR_DF, SEEN_DF, spreads
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext

CLASSES = 10


def evidence(name: str, view: View, values: np.ndarray, sources: bool = False, references: bool = True) -> Evidence:
    units = tuple(
        UnitEvidence(
            unit=Unit(i, (i + 1) % CLASSES if sources else None),
            measurements=(Measurement(view.statistic, float(v), reference=1.0 if references else None),),
            found=True,
            converged=True,
            steps=1,
            search_success=1.0,
            held_out_success=1.0,
            held_out=10,
            trigger={},
        )
        for i, v in enumerate(values)
    )
    return Evidence(name, {}, view.statistic, view.statistic, "low", units, (view,))


def view(typical: float = 0.2) -> View:
    return View("norm", typical=typical, references=True)


def smallest(logs: np.ndarray, prior: Prior) -> float:
    return float(against_reference(np.exp(logs), np.ones(CLASSES), prior=prior).p_value.min())


def test_the_level_is_kept_where_deviations_vary_as_the_prior_says() -> None:
    """Variances scaled inverse chi-squared, classes normal: the chance of p < a on a clean model is a, or a little below."""
    rng = RunContext(0).numpy_generator("spread")
    prior = Prior(0.2, 5.0)
    deviations = prior.deviation * np.sqrt(prior.df / rng.chisquare(prior.df, 1000))
    p = np.array([smallest(d * rng.standard_normal(CLASSES), prior) for d in deviations])
    for level in (0.02, 0.05):
        assert 0.6 * level < (p < level).mean() < level + 2.5 * np.sqrt(level / len(p))


def test_an_outlier_of_known_scale_is_surer() -> None:
    rng = RunContext(1).numpy_generator("spread")
    gained = []
    for _ in range(50):
        logs = 0.2 * rng.standard_normal(CLASSES)
        logs[3] -= 1.5
        gained.append(np.log10(smallest(logs, NO_PRIOR)) - np.log10(smallest(logs, Prior(0.2, 5.0))))
    assert np.median(gained) > 0.7  # five times less chance


@given(st.floats(0.05, 0.5), st.integers(0, 2**31 - 1))
def test_a_prior_that_counts_for_nothing_changes_nothing(deviation: float, seed: int) -> None:
    logs = 0.2 * np.random.default_rng(seed).standard_normal(CLASSES)
    one, other = (against_reference(np.exp(logs), np.ones(CLASSES), prior=p) for p in (NO_PRIOR, Prior(deviation, 0.0)))
    np.testing.assert_array_equal(one.log10_p, other.log10_p)


@given(st.floats(0.0, 1.0), st.integers(0, 2**31 - 1))
def test_classes_that_agree_by_chance_are_not_believed(tight: float, seed: int) -> None:
    """The tighter the classes lie, the more the prior counts: never less likely by chance than with the prior's share alone."""
    logs = 0.01 * tight * np.random.default_rng(seed).standard_normal(CLASSES)
    logs[0] -= 0.1  # far out among these, half a deviation of what is usual
    assert smallest(logs, Prior(0.2, 5.0)) > 0.9


def test_without_references_nothing_is_known_beforehand() -> None:
    logs = np.linspace(0, 1, CLASSES)
    none = np.full(CLASSES, np.nan)
    judged = against_reference(np.exp(logs), none, prior=Prior(0.01, 50.0))
    np.testing.assert_array_equal(judged.log10_p, leave_one_out(np.exp(logs)).log10_p)


def test_a_network_whose_classes_differ_is_known_by_its_other_detectors() -> None:
    rng = RunContext(2).numpy_generator("spread")
    normal = rng.standard_normal(CLASSES)
    wide = [evidence(n, view(), np.exp(0.6 * normal)) for n in ("a", "b")]
    seen = spreads([*wide, evidence("c", view(), np.exp(0.2 * normal))])
    squared = seen.ratios["a"]
    assert squared == pytest.approx(seen.ratios["b"])
    assert squared == pytest.approx(9 * seen.ratios["c"])
    prior = seen.prior("c", view())
    assert prior.df == PRIOR_DF
    assert prior.deviation == pytest.approx(
        0.2 * np.sqrt((FACTOR_DF + 2 * SEEN_DF * squared) / (FACTOR_DF + 2 * SEEN_DF))
    )
    assert seen.prior("c", view(typical=0.0)) == NO_PRIOR
    assert spreads([wide[0]]).prior("a", view()).deviation == 0.2  # itself is no witness


def test_the_verdict_knows_a_network_by_its_other_detectors_too() -> None:
    """But for those that test a finding by itself, and compare no classes."""
    normal = RunContext(2).numpy_generator("spread").standard_normal(CLASSES)
    one, other = (evidence(n, view(), np.exp(0.6 * normal)) for n in ("a", "b"))
    alone, beside, tested = (
        [c.p_values["a"] for c in decide(found, CLASSES).classes]
        for found in ([one], [one, other], [one, replace(other, traits=replace(other.traits, tested=True))])
    )
    assert min(beside) > min(alone)  # a network whose classes differ more than is usual
    assert tested == alone


def test_shares_have_what_is_usual_and_say_nothing_of_sizes() -> None:
    values = RunContext(2).numpy_generator("spread").uniform(0.1, 0.3, CLASSES)
    shares = replace(view(), log=False, references=False, typical=0.1)
    seen = spreads([evidence("a", view(), np.exp(values)), evidence("b", shares, values)])
    assert set(seen.ratios) == {"a"}
    assert seen.prior("b", shares) == Prior(0.1, PRIOR_DF)
    low = values.copy()
    low[3] -= 1.0
    bare, known = (leave_one_out(low, log=False, noise=0.1, prior=p).log10_p[3] for p in (NO_PRIOR, Prior(0.1, 5.0)))
    assert known < bare < 0


def test_an_infected_class_does_not_widen_what_is_known() -> None:
    normal = RunContext(3).numpy_generator("spread").standard_normal(CLASSES)
    clean, infected = 0.2 * normal, 0.2 * normal
    infected[4] -= 3.0
    before, after = (spreads([evidence("a", view(), np.exp(x))]).ratios["a"] for x in (clean, infected))
    assert after < 2 * before


def test_pairs_shared_triggers_and_bare_statistics_say_nothing_of_it() -> None:
    values = np.exp(RunContext(4).numpy_generator("spread").standard_normal(CLASSES))
    assert spreads([evidence("a", view(), values, sources=True)]).ratios == {}
    assert spreads([evidence("a", view(typical=0.0), values)]).ratios == {}
    assert spreads([evidence("a", view(), values, references=False)]).ratios == {}
    assert spreads([evidence("a", view(), values[:3])]).ratios == {}
