"""Two and three classes beside eight references: the level holds whatever the law of the noise, and a backdoor is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tolerances import REORDERED_64

from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence, View
from onnxspect.engine.judge.few_classes import FEWEST_REFERENCES, beside_references, least_seen
from onnxspect.engine.judge.measurement import Measurement
from onnxspect.engine.judge.null_model import FEWEST_CLASSES
from onnxspect.engine.judge.thresholds import ALPHA
from onnxspect.engine.judge.verdict import decide

REFERENCES = 8
LAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t10": lambda rng, shape: rng.standard_t(10, shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
    "left-skewed": lambda rng, shape: -rng.gumbel(size=shape),
}


def model(rng: np.random.Generator, classes: int, law: str, planted: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(the subject's values, the references'): classes differ by nature, networks by how much they take as a whole."""
    easy = rng.normal(0, 0.5, classes)
    logs = easy[:, None] + rng.normal(0, 0.4, REFERENCES + 1) + 0.2 * LAWS[law](rng, (classes, REFERENCES + 1))
    logs[0, 0] -= planted
    return np.exp(3 + logs[:, 0]), np.exp(3 + logs[:, 1:])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("classes", [2, 3])
def test_level(classes: int, law: str) -> None:
    """At most 1.2 times the nominal chance, within what 1,500 draws can tell."""
    rng = np.random.default_rng(classes)
    runs = 1500
    alarms = sum(beside_references(*model(rng, classes, law)).p_value.min() < ALPHA for _ in range(runs))
    assert alarms <= (1.2 * ALPHA + 3 * np.sqrt(ALPHA / runs)) * runs
    # Of two classes the test is exact under the normal law; of three it is conservative, which must lie below both others.
    assert alarms >= 0.3 * ALPHA * runs or classes == 3


@pytest.mark.parametrize("classes", [2, 3])
def test_power(classes: int) -> None:
    rng = np.random.default_rng(9)
    found = [beside_references(*model(rng, classes, "normal", planted=2.3)).p_value for _ in range(100)]
    assert np.mean([p[0] < ALPHA for p in found]) > 0.9
    assert np.mean([(p[1:] < ALPHA).any() for p in found]) < 0.05  # the others are not blamed for it


def test_what_it_takes_as_a_whole_is_no_evidence() -> None:
    values, baselines = model(np.random.default_rng(0), 2, "normal")
    first, second = beside_references(values, baselines), beside_references(values / 50, baselines)
    np.testing.assert_allclose(first.log10_p, second.log10_p, atol=REORDERED_64)


@pytest.mark.parametrize(
    ("values", "baselines"),
    [
        (np.array([1.0, np.nan]), np.ones((2, 8))),
        (np.array([1.0]), np.ones((1, 8))),
        (np.array([1.0, 2.0]), np.ones((2, FEWEST_REFERENCES - 1))),
        (np.array([1.0, 2.0]), np.empty((2, 0))),
        (np.array([1.0, 2.0]), np.where(np.eye(2, 8) > 0, np.nan, 1.0)[:, : FEWEST_REFERENCES + 1]),
    ],
)
def test_too_little_to_compare_with(values: np.ndarray, baselines: np.ndarray) -> None:
    assert (beside_references(values, baselines).p_value == 1).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_least_that_is_seen_is_where_the_alarm_begins(classes: int) -> None:
    _, baselines = model(np.random.default_rng(5), classes, "normal")
    times = least_seen(baselines, ALPHA)
    usual = np.exp(np.log(baselines).mean(1))
    for k in range(classes):
        below, above = (
            beside_references(usual * np.where(np.arange(classes) == k, 1 / (f * times[k]), 1), baselines)
            for f in (0.99, 1.01)
        )
        assert below.p_value[k] > ALPHA > above.p_value[k]
    assert np.isnan(least_seen(baselines[:, : FEWEST_REFERENCES - 1], ALPHA)).all()


def evidence(values: np.ndarray, baselines: np.ndarray) -> Evidence:
    units = tuple(
        UnitEvidence(
            Unit(k), (Measurement("l1", float(v), baselines=tuple(b), reference=1.0),), True, True, 5, 1.0, 0.95, 50, {}
        )
        for k, (v, b) in enumerate(zip(values, baselines.tolist(), strict=True))
    )
    return Evidence("nc", {}, "l1", "l1", "low", units, (View("l1", references=True),))


@pytest.mark.parametrize("classes", [2, 3])
def test_verdicts(classes: int) -> None:
    rng = np.random.default_rng(4)
    values, baselines = model(rng, classes, "normal")
    clean, infected = evidence(values, baselines), evidence(values * np.eye(1, classes)[0] * -0.97 + values, baselines)
    cleared = decide([clean], classes)
    assert cleared.verdict == "clean"
    times = least_seen(baselines, ALPHA).max()  # what its silence is worth is said beside it
    assert any(f"takes {times:.1f} times less than the class usually does" in r for r in cleared.reasons)
    assert decide([infected], classes).targets == (0,)
    # A trigger that fails on unseen samples is no alarm here either.
    failed = replace(infected, units=tuple(replace(u, held_out_success=0.1) for u in infected.units))
    assert decide([failed], classes).targets == ()
    # With too few references nothing is said.
    for found in (clean, infected):
        units = tuple(
            replace(u, measurements=tuple(replace(m, baselines=m.baselines[:3]) for m in u.measurements))
            for u in found.units
        )
        verdict = decide([replace(found, units=units)], classes)
        assert (verdict.verdict, verdict.targets) == ("inconclusive", ())
        assert any(f"{classes} classes are too few" in r for r in verdict.reasons)


@pytest.mark.parametrize("classes", [FEWEST_CLASSES, 10])
def test_classes_that_are_compared_with_each_other_need_no_such_word(classes: int) -> None:
    cleared = decide([evidence(*model(np.random.default_rng(4), classes, "normal"))], classes)
    assert cleared.verdict == "clean"
    assert not any("than the class usually does" in r for r in cleared.reasons)
