"""One number a class: what weighs in it, what cannot count against a class, and weights that find what was put there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxspect.engine.judge.calibration import Bank, LikelihoodRatio, Scored
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View, detectors_of
from onnxspect.engine.judge.measurement import Measurement, Search
from onnxspect.engine.judge.suspicion import MOST_EASE, Shift, Weights, eases, fitted, surprise
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.judge.verdict import decide

NAN = float("nan")


def unit(k: int, value: float, reference: float | None, search: Search = Search.FULL, tap: str = "") -> UnitEvidence:
    source = (k + 1) % 3 if search is Search.PAIR else None
    baselines = () if reference is None else (reference / 1.1, reference * 1.1)
    one = Measurement("l1", value, search, baselines=baselines, reference=reference)
    return UnitEvidence(Unit(k, source, tap), (one,), True, True, 5, 1.0, 0.95, 50, {})


def evidence(units: list[UnitEvidence], views: tuple[View, ...], name: str = "nc", **traits: bool) -> Evidence:
    return Evidence(name, {}, "l1", "l1", "low", tuple(units), views, Traits(**traits))


#: Networks differ by so much more than classes that all of the others' mean is taken off.
APART = Shift(0.0, 1e6, 1.0)
FULL = View("l1", references=True)
PAIRS = View("l1", search=Search.PAIR, references=True)


def test_ease_is_how_many_times_less_a_class_takes_than_on_the_references() -> None:
    found = eases([evidence([unit(0, 5.0, 20.0), unit(1, 20.0, 20.0), unit(2, 40.0, 20.0)], (FULL,))], 3)[0]
    assert list(found) == ["nc"]
    np.testing.assert_allclose(found["nc"], [np.log(4), 0.0, -np.log(2)])


def test_of_several_taps_and_pairs_the_easiest_counts() -> None:
    taps = evidence(
        [unit(0, 5.0, 20.0, tap="a"), unit(0, 2.0, 20.0, tap="b"), unit(1, 20.0, 20.0, tap="a")],
        (replace(FULL, tap="a"), replace(FULL, tap="b")),
        "cepa",
    )
    pairs = evidence([unit(0, 9.0, 20.0), unit(0, 4.0, 20.0, Search.PAIR)], (FULL, PAIRS))
    found = eases([taps, pairs, Skipped("other", "no data")], 2)[0]
    np.testing.assert_allclose(found["cepa"], [np.log(10), 0.0])
    np.testing.assert_allclose(found["nc"], [np.log(20 / 9), NAN])
    np.testing.assert_allclose(found["nc pairs"], [np.log(5), NAN])


def test_what_has_no_references_or_names_no_class_has_no_ease() -> None:
    """Without baselines `reference` is what other classes take, which says nothing of this one."""
    bare = replace(unit(0, 5.0, None).measurements[0], reference=20.0)
    lacks = replace(unit(0, 5.0, None), measurements=(bare,))
    assert np.isnan(eases([evidence([lacks, unit(1, NAN, 20.0)], (FULL,))], 2)[0]["nc"]).all()
    for other in (
        evidence([unit(0, 5.0, 20.0)], (View("l1"),)),  # judged without references
        evidence([unit(0, 5.0, 20.0)], (replace(FULL, tail="high"),)),
        evidence([unit(0, 5.0, 20.0)], (FULL,), convicts=False),
        evidence([unit(0, 5.0, 20.0)], (FULL,), tested=True),
    ):
        assert eases([other], 2) == ({}, {})


@given(
    log10_p=st.lists(st.floats(-30, 0), min_size=2, max_size=6),
    ease=st.floats(-9, 9),
    more=st.floats(0, 5),
    weights=st.tuples(st.floats(0, 5), st.floats(0, 5)),
)
def test_nothing_that_stands_out_more_is_less_suspicious(
    log10_p: list[float], ease: float, more: float, weights: tuple[float, float]
) -> None:
    weighing, p = Weights(True, ("nc",), weights[0], {"nc": weights[1]}, {"nc": APART}), np.array(log10_p)
    usual = np.full(len(p), ease)
    base = weighing.suspicions(p, {"nc": usual})
    assert (weighing.suspicions(p - more, {"nc": usual}) >= base).all()
    first = np.arange(len(p)) == 0
    assert weighing.suspicions(p, {"nc": usual + more * first})[0] >= base[0]
    # A network that takes less of every class than the references do is no more suspicious for it.
    np.testing.assert_allclose(weighing.suspicions(p, {"nc": usual + more}), base, atol=1e-3)
    # What a scan lacks, and a detector that does not weigh, add nothing.
    alone = weighing.suspicions(p, {})
    np.testing.assert_array_equal(weighing.suspicions(p, {"nc": np.full(len(p), NAN), "other": usual}), alone)
    assert (np.abs(base - alone) <= weights[1] * MOST_EASE + 1e-9).all()


def test_weights_are_found_and_never_negative() -> None:
    """Of 300 made models, half of them infected: ease in one view shows the target, in another it is chance, in a third it is turned round."""
    rng = np.random.default_rng(4)
    models = []
    for i in range(300):
        targets = np.arange(5) == (i % 5 if i % 2 else -1)
        p = -np.abs(rng.normal(0, 0.5, 5)) - 1.5 * targets
        views = {
            "shows": rng.normal(0, 0.4, 5) + 1.0 * targets,
            "chance": rng.normal(0, 0.4, 5),
            "turned": rng.normal(0, 0.4, 5) - 1.0 * targets,
        }
        models.append((p, views, {}, targets))
    found = fitted(models, True, ("nc",), dict.fromkeys(("shows", "chance", "turned"), APART))
    assert found.surprise > 1
    assert found.ease["shows"] > 2
    assert 0 <= found.ease["chance"] < 0.3
    assert found.ease["turned"] == 0
    assert Weights.described(found.describe()) == found
    # The classes that it was told of are ranked almost as well as can be.
    s = [found.suspicions(p, v) for p, v, *_ in models]
    right = [x[t].max() > x[~t].max() for x, (*_, t) in zip(s, models, strict=True) if t.any()]
    assert np.mean(right) > 0.9


def test_what_works_on_clean_networks_counts_for_less_and_at_half_of_the_images_for_nothing() -> None:
    weighing = Weights(True, ("nc",), 2.0, {"nc": 1.0, "re": 1.0}, {"nc": APART, "re": APART}, -3.0)
    p, easy = np.array([-4.0, 0.0, 0.0]), np.array([2.0, 0.0, 0.0])
    views = {"nc": easy, "re": easy}

    def of(nc: float, re: float = 0.0) -> float:
        return float(weighing.suspicions(p, views, {"nc": np.full(3, nc), "re": np.full(3, re)})[0])

    alone = float(weighing.suspicions(p, views)[0])
    assert of(0.0) == of(NAN) == alone
    found = [of(t) for t in (0.0, 0.1, 0.3, 0.5, 0.9)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == found[-2]
    assert alone > found[-1] > -3.0  # what the other view sees is left
    assert of(0.5, 0.5) == of(1.0, 1.0) == -3.0
    # Where no view finds a class easy, what the null models say of it stands.
    hard = {"nc": np.zeros(3), "re": np.zeros(3)}
    natural = dict.fromkeys(hard, np.ones(3))
    np.testing.assert_array_equal(weighing.suspicions(p, hard, natural), weighing.suspicions(p, hard))


def test_the_transfer_is_that_of_the_easiest_trigger() -> None:
    def told(target: int, l1: float, transfer: float | None) -> UnitEvidence:
        more = () if transfer is None else (Measurement("transfer", transfer),)
        one = Measurement("l1", l1, baselines=(20.0, 20.0), reference=20.0)
        return UnitEvidence(Unit(target), (one, *more), True, True, 5, 1.0, 0.95, 50, {})

    rows = [told(0, 10.0, 0.4), told(0, 5.0, 0.1), told(1, 5.0, None), told(2, NAN, 0.3)]
    found = eases([evidence(rows, (FULL,))], 4)[1]
    np.testing.assert_array_equal(found["nc"], [0.1, NAN, NAN, NAN])
    assert eases([Skipped("other", "no data")], 4)[1] == {}


def test_surprise_grows_ever_more_slowly() -> None:
    s = surprise(np.array([0.0, -2.0, -4.0, -8.0]))
    assert s[0] == 0
    assert (np.diff(s) > 0).all()
    assert s[1] - s[0] > s[2] - s[1]
    np.testing.assert_array_equal(surprise(np.array([0.5])), [0.0])  # a p-value above 1 is none


def test_two_classes_that_no_null_model_tells_apart_are_told_by_a_bank() -> None:
    """A class that takes a fifth of what it takes on every reference, the other one usual: eight references give no p-value below 0.02."""
    rng = np.random.default_rng(5)

    def model(first: float) -> Evidence:
        units = []
        for k, value in enumerate((first, 25.0 * np.exp(rng.normal(0, 0.1)))):
            b = 25.0 * np.exp(rng.normal(0, 0.45, 8))
            one = Measurement("l1", value, baselines=tuple(b), reference=float(np.exp(np.log(b).mean())))
            units.append(UnitEvidence(Unit(k), (one,), True, True, 5, 1.0, 0.95, 50, {}))
        return evidence(units, (FULL,))

    weights = (Weights(True, ("nc",), 3.0, {"nc": 2.0}, {"nc": APART}),)
    empty = Bank("", (), weights)
    clean = []
    for _ in range(80):
        one = model(25.0 * np.exp(rng.normal(0, 0.1)))
        found = decide([one], 2, samples=600, bank=empty)
        clean.append(Scored(2, detectors_of([one]), 600, found.score, found.suspicion))
    bank = Bank("test", tuple(clean), weights)
    infected = [model(5.0) for _ in range(10)]
    alone = [decide([m], 2, samples=600).targets for m in infected]
    judged = [decide([m], 2, samples=600, bank=bank) for m in infected]
    assert alone.count((0,)) < sum(v.targets == (0,) for v in judged)
    assert sum(v.targets == (0,) for v in judged) >= 9
    assert all(v.calibration is not None and v.calibration.covered for v in judged)
    flagged = sum(decide([model(25.0)], 2, samples=600, bank=bank).verdict == "backdoored" for _ in range(50))
    assert flagged <= 3  # two in a hundred are allowed


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("detectors", [("nc",), ("cepa", "nc")])
def test_a_bank_without_weights_for_the_kind_ranks_the_scores(classes: int, detectors: tuple[str, ...]) -> None:
    p, ones, one = -np.arange(classes, dtype=float), np.ones(classes), np.eye(classes)[0]
    np.testing.assert_array_equal(Bank("", ()).suspicions(detectors, p, {"nc": one}), -p)
    bank = Bank(
        "",
        (),
        (
            Weights(True, ("nc",), 0.0, {"nc": 2.0}, {"nc": APART}, 1.0),
            Weights(False, ("cepa", "nc"), 0.0, {}, {}, 7.0),
        ),
    )
    wanted = {(2, ("nc",)): ones + 2 * one, (10, ("cepa", "nc")): 7 * ones}.get((classes, detectors), -p)
    np.testing.assert_allclose(bank.suspicions(detectors, p, {"nc": one}), wanted, atol=1e-4)


def test_what_the_other_classes_lead_to_expect() -> None:
    """Simulated networks with a shift of their own: no linear prediction of a class from the others errs less than this one."""
    rng = np.random.default_rng(8)
    for classes, between, within in ((2, 0.5, 0.2), (4, 0.1, 0.3), (10, 0.3, 0.2)):
        shift = Shift(-0.4, between, within)
        e = -0.4 + rng.normal(0, between**0.5, (4000, 1)) + rng.normal(0, within**0.5, (4000, classes))
        others = e[:, 1:].mean(1)
        errors = {}
        best = between * (classes - 1) / (between * (classes - 1) + within)
        for pull in (0.0, best, 1.0):
            errors[pull] = float(np.square(e[:, 0] + 0.4 - pull * (others + 0.4)).mean())
        assert errors[best] == min(errors.values())
        got = np.array([shift.beyond(row)[0] for row in e[:200]])
        wanted = np.clip(e[:200, 0] + 0.4 - best * (others[:200] + 0.4), 0, MOST_EASE)
        np.testing.assert_allclose(got, wanted, atol=1e-9)
        # From networks of four families it is found again.
        families = [list(e[i::4] + c) for i, c in enumerate((-0.3, -0.1, 0.1, 0.3))]
        found = Shift.of(families)
        assert found is not None
        assert found.mean == pytest.approx(-0.4, abs=0.05)
        assert found.within == pytest.approx(within, rel=0.1)
        assert found.between == pytest.approx(between + within / classes + 0.2**2 / 0.6, rel=0.15)
    assert Shift.of([[np.array([0.1, 0.2])]]) is None
    assert Shift.of([[np.array([NAN, 0.2])], [np.array([0.1, 0.2])]]) is None
    alone = Shift(-0.4, 1.0, 1.0).beyond(np.array([NAN, 0.6, NAN]))
    np.testing.assert_allclose(alone, [0.0, 1.0, 0.0])  # nothing else is known of the network


def test_a_part_of_the_graph_that_was_woken_is_not_outvoted_by_the_bank() -> None:
    """Its p-value is a test's; searches that find nothing, and a bank that is full of such models, do not take it back."""
    searches = evidence([unit(k, 20.0, 20.0) for k in range(4)], (FULL,))
    one = (Measurement("log10_p", -9.0), Measurement("pixels", 3.0))
    woken = UnitEvidence(Unit(2), one, True, True, 0, 1.0, 0.98, 200, {})
    logic = evidence([woken], (View("pixels"),), "graph-logic", tested=True)
    weights = (Weights(True, ("nc",), 0.7, {"nc": 1.0}, {"nc": APART}, -3.0),)
    clean = tuple(Scored(4, ("nc",), 600, s / 100, s / 40 - 3.0) for s in range(100))
    odds = LikelihoodRatio(-2.0, 1.8, 100, 50)
    bank = Bank("test", clean, weights, odds, (LikelihoodRatio(0.5, 1.2, 100, 50),))
    silent = decide([searches], 4, samples=600, bank=bank)
    assert silent.p_value > 0.5
    found = decide([searches, logic], 4, samples=600, bank=bank)
    assert (found.verdict, found.targets) == ("backdoored", (2,))
    assert found.p_value < 1e-8
    assert [c.p_value for c in found.classes if c.index != 2] == [c.p_value for c in silent.classes if c.index != 2]
    assert found.calibration is not None
    assert silent.calibration is not None
    assert (found.calibration.p_backdoored or 0.0) > 0.99 > 0.1 > (silent.calibration.p_backdoored or 1.0)
