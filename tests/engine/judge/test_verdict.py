"""`decide`: what is named, what is not, and what is said where nothing can be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tolerances import REORDERED_64, SOLVED_COARSELY_64

from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence, View, foremost
from onnxspect.engine.judge.measurement import Measurement, Search, measured
from onnxspect.engine.judge.null_model import leave_one_out
from onnxspect.engine.judge.thresholds import ALPHA, FEWEST_HELD_OUT, HELD_OUT_SUCCESS, fewest_trials
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.judge.verdict import Verdict, decide, speaks_for
from onnxspect.engine.search.search import Unit

#: Of a detector that compares training samples.
OF_SAMPLES = Traits(Family.SAMPLES, validated=False, leads_to_target=False)
CLEAN = np.exp(np.random.default_rng(0).normal(3.0, 0.3, 10))


def unit(target: int, value: float | None, held_out: float | None = 0.95, source: int | None = None) -> UnitEvidence:
    """What a converged search leaves; None as value where it found nothing."""
    return UnitEvidence(
        unit=Unit(target, source),
        measurements=() if value is None else measured(l1=value),
        found=value is not None,
        converged=value is not None,
        steps=100,
        search_success=1.0,
        held_out_success=held_out,
        held_out=50,
        trigger={},
    )


def evidence(
    values: np.ndarray | Sequence[float | None], name: str = "neural-cleanse", held_out: float | None = 0.95
) -> Evidence:
    units = tuple(unit(k, None if v is None else float(v), held_out) for k, v in enumerate(values))
    return Evidence(name, {}, "l1", "l1", "low", units)


def planted(value: float = 0.5, target: int = 3) -> np.ndarray:
    values = CLEAN.copy()
    values[target] = value
    return values


def test_clean() -> None:
    verdict = decide([evidence(CLEAN)], 10)
    assert (verdict.verdict, verdict.targets) == ("clean", ())
    assert verdict.p_value >= ALPHA
    assert verdict.score == max(-c.log10_p for c in verdict.classes) < 1
    assert len(verdict.classes) == 10
    assert [c.index for c in verdict.classes] == list(range(10))
    assert "no class stands out" in verdict.reasons[0]


def test_nothing_found_beside_what_no_search_reaches_says_nothing() -> None:
    """What no gradient sees past hides nothing that was found in spite of it."""
    plain, hidden = decide([evidence(CLEAN)], 10), ("a gate", "another output")
    verdict = decide([evidence(CLEAN)], 10, hidden=hidden)
    assert (verdict.verdict, verdict.targets, verdict.p_value) == ("inconclusive", (), plain.p_value)
    assert verdict.reasons[:2] == hidden
    known = decide([evidence(planted())], 10, hidden=hidden)
    assert (known.verdict, known.targets) == ("backdoored", (3,))
    assert set(hidden) < set(known.reasons)


def test_backdoored() -> None:
    verdict = decide([evidence(planted())], 10)
    assert (verdict.verdict, verdict.targets) == ("backdoored", (3,))
    assert verdict.p_value < ALPHA
    assert verdict.p_value == pytest.approx(leave_one_out(planted()).p_value[3])
    assert verdict.classes[3].statistic == {"neural-cleanse": 0.5}
    assert verdict.classes[3].mad_index["neural-cleanse"] == max(
        c.mad_index["neural-cleanse"] or 0.0 for c in verdict.classes
    )


def test_targets_are_sorted_by_certainty() -> None:
    values = planted(0.05, target=7)
    values[2] = 0.5
    verdict = decide([evidence(values)], 10)
    assert set(verdict.targets) == {2, 7}
    logs = [verdict.classes[k].log10_p for k in verdict.targets]
    assert logs == sorted(logs)
    assert "each of the classes" in verdict.reasons[0]


def test_no_detector_ran() -> None:
    verdict = decide([Skipped("cepa", "no gradients")], 10)
    assert (verdict.verdict, verdict.targets, verdict.p_value) == ("inconclusive", (), 1.0)
    assert any("cepa did not run: no gradients" in r for r in verdict.reasons)
    assert decide([], 10).verdict == "inconclusive"


def test_skipped_beside_one_that_ran() -> None:
    verdict = decide([Skipped("cepa", "no gradients"), evidence(planted())], 10)
    assert verdict.targets == (3,)
    assert any("cepa did not run" in r for r in verdict.reasons)
    # A detector that did not run tested nothing: it adds no Bonferroni factor.
    assert verdict.p_value == decide([evidence(planted())], 10).p_value


@pytest.mark.parametrize(("finished", "expected"), [(6, "inconclusive"), (7, "clean"), (10, "clean")])
def test_clean_needs_converged_searches(finished: int, expected: str) -> None:
    whole = evidence(CLEAN)
    units = tuple(replace(u, converged=i < finished) for i, u in enumerate(whole.units))
    verdict = decide([replace(whole, units=units)], 10)
    assert verdict.verdict == expected
    if expected == "inconclusive":
        assert any("4 of 10 searches had not converged" in r for r in verdict.reasons)


def test_a_backdoor_needs_no_converged_searches() -> None:
    whole = evidence(planted())
    units = tuple(replace(u, converged=False) for u in whole.units)
    assert decide([replace(whole, units=units)], 10).targets == (3,)


def test_too_few_triggers_found() -> None:
    verdict = decide([evidence([1.0, 20.0, 21.0, *[None] * 7])], 10)
    assert verdict.verdict == "inconclusive"
    assert any("only 3 of 10 searches" in r for r in verdict.reasons)
    assert verdict.classes[5].statistic == {"neural-cleanse": None}
    assert verdict.classes[5].p_value == 1.0


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes(classes: int) -> None:
    verdict = decide([evidence([0.1, 20.0, 21.0][:classes])], classes)
    assert (verdict.verdict, verdict.targets) == ("inconclusive", ())
    assert any(f"{classes} classes are too few" in r for r in verdict.reasons)


def test_a_trigger_that_does_not_carry_over_is_no_alarm() -> None:
    verdict = decide([evidence(planted(), held_out=HELD_OUT_SUCCESS - 0.01)], 10)
    assert verdict.targets == ()
    assert verdict.verdict != "backdoored"
    assert any("class 3 stands out, but its trigger does not work on unseen samples" in r for r in verdict.reasons)
    assert decide([evidence(planted(), held_out=HELD_OUT_SUCCESS)], 10).targets == (3,)


def held_out(found: Evidence, n: int) -> Evidence:
    """The same, its triggers tried on n unseen samples; on none where n is 0."""
    units = [replace(u, held_out=n, held_out_success=u.held_out_success if n else None) for u in found.units]
    return replace(found, units=tuple(units))


@pytest.mark.parametrize("n", [0, 1, 4, FEWEST_HELD_OUT - 1])
def test_without_enough_unseen_samples_nothing_is_named_or_cleared(n: int) -> None:
    """However small the trigger is: it may be one of these few images alone, and silence has confirmed nothing either."""
    suspicious = decide([held_out(evidence(planted()), n)], 10)
    assert (suspicious.verdict, suspicious.targets) == ("inconclusive", ())
    assert suspicious.p_value < ALPHA
    assert any(f"class 3 stands out, but {n or 'no'} unseen samples" in r for r in suspicious.reasons)
    silent = decide([held_out(evidence(CLEAN), n)], 10)
    assert (silent.verdict, silent.targets) == ("inconclusive", ())
    assert any(f"tried on {n} unseen samples (at least {FEWEST_HELD_OUT})" in r for r in silent.reasons)


def test_just_enough_unseen_samples() -> None:
    assert decide([held_out(evidence(planted()), FEWEST_HELD_OUT)], 10).targets == (3,)
    assert decide([held_out(evidence(CLEAN), FEWEST_HELD_OUT)], 10).verdict == "clean"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("level", [0.001, 0.02, 0.05, 0.5])
def test_fewest_trials_is_the_exact_binomial_bound(share: float, level: float) -> None:
    n = fewest_trials(share, level)
    assert stats.binomtest(n, n, share, alternative="greater").pvalue <= level
    assert n == 1 or stats.binomtest(n - 1, n - 1, share, alternative="greater").pvalue > level
    assert FEWEST_HELD_OUT == fewest_trials(HELD_OUT_SUCCESS, ALPHA) == 7


@pytest.mark.parametrize("bad", [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, 1.0)])
def test_fewest_trials_of_no_share(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        fewest_trials(*bad)


def test_a_trigger_that_was_not_tried_is_not_refuted_by_one_that_was() -> None:
    """One detector's trigger to the class fails, the other's was not tried: neither an alarm nor the all-clear."""
    failed = evidence(planted(0.05), held_out=0.1)
    untried = held_out(evidence(planted(0.05), "other"), 0)
    verdict = decide([failed, untried], 10)
    assert (verdict.verdict, verdict.targets) == ("inconclusive", ())


def test_evidence_that_is_no_trigger_needs_no_unseen_samples() -> None:
    """Training samples that a patch takes out of their class: nothing leads there, and nothing could be validated."""
    found = replace(held_out(evidence(planted(), "dtinspector"), 0), traits=OF_SAMPLES)
    assert decide([found], 10).targets == (3,)
    assert decide([replace(found, units=held_out(evidence(CLEAN), 0).units)], 10).verdict == "clean"


def test_too_few_samples_neither_convict_nor_acquit() -> None:
    lacking = ("too few clean samples: 18",)
    for values in (planted(), CLEAN):
        verdict = decide([evidence(values)], 10, too_few=lacking)
        assert (verdict.verdict, verdict.targets) == ("inconclusive", ())
        assert lacking[0] in verdict.reasons
    assert (
        "class 3 stands out, but among so few samples a clean class may: no alarm"
        in decide([evidence(planted())], 10, too_few=lacking).reasons
    )
    # What the training set shows does not come from the clean samples.
    by_training = replace(evidence(planted(), "dtinspector"), traits=OF_SAMPLES)
    verdict = decide([by_training], 10, too_few=lacking)
    assert verdict.targets == (3,)
    assert lacking[0] in verdict.reasons


def test_a_shared_trigger_is_tried_on_the_samples_of_all_its_sources() -> None:
    """Two unseen samples of each of ten classes are twenty for the one trigger; of one class alone they are two."""
    around = {s: (s + 1) % 10 for s in range(10)}

    def with_two(leads: dict[int, int]) -> Evidence:
        found = shared(CLEAN, 0.5, leads)
        units = [replace(u, held_out=2) if u.unit.shared else u for u in found.units]
        return replace(found, units=tuple(units))

    assert set(decide([with_two(around)], 10).targets) == set(range(10))
    assert decide([with_two({0: 1})], 10).verdict == "inconclusive"


def test_two_detectors_share_alpha() -> None:
    # The value whose p-value alone is three quarters of alpha: an alarm of one detector, none of one among two.
    low, high = 0.1, float(CLEAN.min())
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if leave_one_out(planted(middle)).p_value[3] < 0.75 * ALPHA else (low, middle)
    one = evidence(planted(low))
    assert decide([one], 10).targets == (3,)
    both = decide([one, evidence(CLEAN, "other")], 10)
    assert both.targets == ()
    # The harmonic mean of two, one of which knows nothing, less Landau's location for two.
    mean = (1 / (0.75 * ALPHA) + 1) / 2
    assert both.p_value == pytest.approx(1 / (mean - np.log(2) - 0.874), rel=SOLVED_COARSELY_64)


def test_detectors_that_agree_need_not_share() -> None:
    """Half of alpha from each of three: less than alpha together, where the least times three would be no alarm."""
    low, high = 0.1, float(CLEAN.min())
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if leave_one_out(planted(middle)).p_value[3] < 0.6 * ALPHA else (low, middle)
    verdict = decide([evidence(planted(low), name) for name in ("one", "two", "three")], 10)
    assert verdict.targets == (3,)
    assert 0.6 * ALPHA < verdict.p_value < ALPHA


def test_alpha_is_the_callers() -> None:
    p = leave_one_out(CLEAN).p_value
    assert decide([evidence(CLEAN)], 10, alpha=2.0).targets
    assert decide([evidence(CLEAN)], 10, alpha=float(p.min()) / 2).targets == ()


def test_the_most_suspicious_source_speaks_for_a_class() -> None:
    pairs = [unit(k, float(v) * (1 + s), source=s) for k, v in enumerate(planted()) for s in range(3) if s != k]
    verdict = decide([Evidence("pairs", {}, "l1", "l1", "low", tuple(pairs))], 10)
    assert verdict.targets == (3,)
    assert verdict.classes[3].statistic == {"pairs": 0.5}


def test_high_tail() -> None:
    found = replace(evidence(1 / planted()), tail="high")
    assert decide([found], 10).targets == (3,)


def test_relative_statistic_is_judged_and_the_papers_is_shown() -> None:
    """Against references a class is judged by its ratio; the report shows the norm itself."""
    whole = evidence(CLEAN)
    natural = np.exp(np.linspace(0.0, 3.0, 10))  # class 0 is reached twenty times as easily as class 9, by nature

    def judged(values: np.ndarray) -> Verdict:
        units = tuple(
            replace(u, measurements=(Measurement("l1", float(v * n), reference=float(n), spread=0.1),))
            for u, v, n in zip(whole.units, values, natural, strict=True)
        )
        return decide([replace(whole, units=units, views=(View("l1", references=True),))], 10)

    verdict = judged(planted(0.5, target=6))
    assert verdict.targets == (6,)
    assert verdict.classes[6].statistic == {"neural-cleanse": pytest.approx(0.5 * natural[6])}
    assert verdict.classes[6].reference == {"neural-cleanse": pytest.approx(natural[6])}
    assert judged(CLEAN).verdict == "clean"


def test_without_references_classes_are_not_taken_to_be_alike() -> None:
    """Nine classes within three per cent, and one a fifth below: nothing, where nobody can say how easy it is by nature."""
    tight = np.exp(np.random.default_rng(4).normal(3.0, 0.03, 10))
    tight[3] = np.exp(3.0 - 0.23)
    found = evidence(tight)
    assert decide([found], 10).targets == (3,)
    careful = replace(found, views=(View("l1", noise=0.15),))
    assert decide([careful], 10).verdict == "clean"
    tight[3] = np.exp(3.0 - 1.5)
    assert decide([replace(evidence(tight), views=careful.views)], 10).targets == (3,)


def shared(values: np.ndarray, cost: float, leads: dict[int, int], held_out: float = 0.9) -> Evidence:
    """A detector's K targeted searches, and one trigger for all classes that leads each source to a target."""
    whole = evidence(values)
    together = tuple(
        replace(
            unit(t, cost, held_out),
            unit=Unit(t, s, shared=True),
            measurements=(Measurement("l1", cost, Search.SHARED),),
        )
        for s, t in leads.items()
    )
    views = (View("l1"), View("l1", search=Search.SHARED, weight=0.1))
    return replace(whole, units=(*whole.units, *together), views=views)


def test_a_shared_trigger_names_every_class_that_it_leads_to() -> None:
    around = {s: (s + 1) % 10 for s in range(10)}
    verdict = decide([shared(CLEAN, 0.5, around)], 10)
    assert set(verdict.targets) == set(range(10))
    assert verdict.classes[4].held_out_success == {"neural-cleanse": 0.9}
    # As large as the targeted ones: a universal perturbation, which every model has.
    assert decide([shared(CLEAN, float(CLEAN.mean()), around)], 10).verdict == "clean"
    # It must pass held-out validation as well.
    assert decide([shared(CLEAN, 0.5, around, held_out=0.2)], 10).targets == ()
    # And it does not count among the classes' own searches, nor for the paper's rule.
    plain, beside = decide([evidence(CLEAN)], 10), decide([shared(CLEAN, 1e6, around)], 10)
    assert [c.anomaly for c in plain.classes] == [c.anomaly for c in beside.classes]
    assert [c.mad_index for c in plain.classes] == [c.mad_index for c in beside.classes]


def test_pairs_are_compared_with_pairs() -> None:
    """All-to-all: every class is reached from one source. No class stands out among classes, ten pairs among ninety do."""
    rng = np.random.default_rng(3)
    pairs = [
        unit(t, float(np.exp(rng.normal(3.0, 0.3))) * (0.05 if (s + 1) % 10 == t else 1.0), source=s)
        for t in range(10)
        for s in range(10)
        if s != t
    ]
    verdict = decide([Evidence("pairs", {}, "l1", "l1", "low", tuple(pairs))], 10)
    assert set(verdict.targets) == set(range(10))
    clean = [replace(u, measurements=measured(l1=float(np.exp(rng.normal(3.0, 0.3))))) for u in pairs]
    assert decide([Evidence("pairs", {}, "l1", "l1", "low", tuple(clean))], 10).verdict == "clean"


def two_taps(first: np.ndarray, second: np.ndarray) -> Evidence:
    units = [replace(unit(k, float(v)), unit=Unit(k, tap="a")) for k, v in enumerate(first)]
    units += [replace(unit(k, float(v)), unit=Unit(k, tap="b")) for k, v in enumerate(second)]
    views = (View("l1", tap="a"), View("l1", tap="b"))
    return Evidence("taps", {}, "l1", "l1", "low", tuple(units), views)


def test_views_are_judged_apart_and_their_choice_is_paid_for() -> None:
    verdict = decide([two_taps(100 * CLEAN, planted())], 10)
    assert verdict.targets == (3,)
    p, q = (leave_one_out(values).p_value[3] for values in (planted(), 100 * CLEAN))
    assert verdict.p_value == pytest.approx(1 / ((1 / p + 1 / q) / 2 - np.log(2) - 0.874))
    assert verdict.p_value > 1.9 * p
    assert verdict.classes[3].statistic == {"taps": 0.5}
    # Taps have scales of their own: what is small at one tap only because the tap is must not stand out.
    assert decide([two_taps(100 * CLEAN, CLEAN)], 10).verdict == "clean"


def test_screening_raises_suspicion_and_names_nothing() -> None:
    screening = replace(evidence(planted(), "max-margin"), traits=Traits(convicts=False))
    verdict = decide([screening, evidence(CLEAN)], 10)
    assert (verdict.verdict, verdict.targets) == ("clean", ())
    assert any("max-margin finds class 3 suspicious" in r for r in verdict.reasons)
    # It costs the others nothing, either.
    assert verdict.p_value == decide([evidence(CLEAN)], 10).p_value
    alone = decide([replace(screening, units=evidence(CLEAN).units)], 10)
    assert (alone.verdict, alone.targets) == ("inconclusive", ())
    assert alone.reasons == (
        "max-margin can raise suspicion, but neither convict nor acquit alone: let another detector run too",
    )


def test_the_agreeing_detectors_are_named() -> None:
    verdict = decide([evidence(planted(0.05)), evidence(planted(0.05), "cepa"), evidence(CLEAN, "third")], 10)
    assert verdict.targets == (3,)
    assert any(r == "class 3: found by neural-cleanse, cepa" for r in verdict.reasons)
    assert verdict.classes[3].p_values["third"] > ALPHA


def test_only_the_suspicious_detectors_trigger_has_to_carry_over() -> None:
    both = [evidence(planted(0.05), held_out=0.1), evidence(CLEAN, "other", held_out=1.0)]
    assert decide(both, 10).targets == ()


def test_one_weak_detector_of_three_does_not_silence_the_others() -> None:
    weak = replace(evidence(CLEAN, "weak"), units=tuple(replace(u, converged=False) for u in evidence(CLEAN).units))
    strong = [evidence(CLEAN), evidence(CLEAN, "other")]
    verdict = decide([weak, *strong], 10)
    assert verdict.verdict == "clean"
    assert any("weak: 10 of 10 searches had not converged" in r for r in verdict.reasons)
    assert decide([weak], 10).verdict == "inconclusive"


def test_of_two_detectors_one_without_evidence_is_too_many() -> None:
    """A quick scan has two: where no search of one converged, what only that one finds was not looked for."""
    weak = replace(evidence(CLEAN, "weak"), units=tuple(replace(u, converged=False) for u in evidence(CLEAN).units))
    verdict = decide([weak, evidence(CLEAN)], 10)
    assert verdict.verdict == "inconclusive"
    assert any("weak: 10 of 10 searches had not converged" in r for r in verdict.reasons)
    assert decide([weak, evidence(planted(0.05))], 10).targets == (3,)


def test_searches_that_needed_no_trigger_are_not_silence() -> None:
    """Their images were of the class already: found and converged, and nothing was looked for."""
    whole = evidence(CLEAN)
    units = tuple(replace(u, measurements=()) if u.unit.target < 7 else u for u in whole.units)
    verdict = decide([replace(whole, units=units)], 10)
    assert verdict.verdict == "inconclusive"
    assert any("only 3 of 10 searches reached their class" in r for r in verdict.reasons)


def test_a_trigger_from_one_class_speaks_where_it_is_far_smaller() -> None:
    """One class always takes a little less than all of them; a partial backdoor takes far less."""
    whole, near, far = unit(2, 4.0), unit(2, 3.0, source=1), unit(2, 1.0, source=0)
    name = whole.measurements[0].statistic
    assert foremost([near, whole], name) == [whole, near]
    assert foremost([whole, near, far], name) == [far, whole, near]


def by_itself(log10_p: float, held_out: float | None, target: int = 5, held_out_samples: int = 50) -> Evidence:
    """What a detector leaves whose units bring the p-value of a test of their own."""
    found = replace(unit(target, 9.0, held_out), held_out=held_out_samples)
    traits = Traits(Family.GRAPH, references=False, tested=True)
    units = (replace(found, measurements=measured(l1=9.0, log10_p=log10_p)),)
    return Evidence("graph-logic", {}, "l1", "l1", "low", units, traits=traits)


def test_a_test_of_its_own_names_a_class_without_any_comparison() -> None:
    verdict = decide([by_itself(-12.0, 1.0)], 10)
    assert (verdict.verdict, verdict.targets) == ("backdoored", (5,))
    assert verdict.p_value == pytest.approx(1e-12)
    assert "wakes logic" in verdict.reasons[0]
    assert "graph logic" in verdict.classes[5].kind
    # Nor do two classes or few samples matter to it.
    assert decide([by_itself(-12.0, 1.0, target=1)], 2, too_few=("few",)).targets == (1,)
    # Beside detectors that find nothing it counts as one of several.
    both = decide([by_itself(-12.0, 1.0), evidence(CLEAN)], 10)
    assert both.targets == (5,)
    assert both.classes[5].p_value == pytest.approx(2e-12)


@pytest.mark.parametrize(("log10_p", "held_out"), [(-12.0, 0.4), (-1.0, 1.0)])
def test_a_trigger_that_does_not_work_or_not_by_the_part_names_none(log10_p: float, held_out: float) -> None:
    assert decide([by_itself(log10_p, held_out), evidence(CLEAN)], 10).targets == ()


def test_silence_of_a_test_of_its_own_changes_nothing() -> None:
    silent = Evidence(
        "graph-logic", {}, "l1", "l1", "low", (), traits=Traits(Family.GRAPH, references=False, tested=True)
    )
    for values in (CLEAN, planted()):
        alone, beside = decide([evidence(values)], 10), decide([silent, evidence(values)], 10)
        assert (alone.verdict, alone.targets, alone.p_value) == (beside.verdict, beside.targets, beside.p_value)
    assert decide([silent], 10).verdict == "inconclusive"


def test_a_trigger_that_no_unseen_sample_follows_is_no_alarm() -> None:
    """Exactly none of them: not the same as not tried."""
    verdict = decide([evidence(planted(), held_out=0.0)], 10)
    assert verdict.targets == ()
    assert any("class 3 stands out, but its trigger does not work on unseen samples" in r for r in verdict.reasons)


def test_four_classes_are_enough() -> None:
    assert decide([evidence([20.0, 21.0, 22.0, 20.5])], 4).verdict == "clean"


def test_a_p_value_of_alpha_is_no_alarm() -> None:
    p = decide([evidence(planted())], 10).p_value
    assert decide([evidence(planted())], 10, alpha=p).targets == ()
    assert decide([evidence(planted())], 10, alpha=float(np.nextafter(p, 1))).targets == (3,)


def test_each_detectors_own_p_value_is_shown() -> None:
    verdict = decide([evidence(planted()), evidence(CLEAN, "other")], 10)
    for name, values in (("neural-cleanse", planted()), ("other", CLEAN)):
        shown = [c.p_values[name] for c in verdict.classes]
        np.testing.assert_allclose(shown, leave_one_out(values).p_value, rtol=REORDERED_64)


def test_one_class_is_named_by_what_it_takes_to_reach() -> None:
    assert decide([evidence(planted())], 10).reasons == ("class 3 is reached by a far smaller change than the others",)


def test_classes_that_only_the_training_set_shows_are_named_so() -> None:
    found = [
        replace(evidence(planted(0.05), name), traits=OF_SAMPLES) for name in ("dtinspector", "training-difference")
    ]
    for some in (found[:1], found[1:], found):
        verdict = decide(some, 10)
        assert verdict.targets == (3,)
        assert verdict.reasons[0] == "class 3 stands out by its training samples"
        assert not any("far smaller change" in r for r in verdict.reasons)
    # Where a search leads there, too, that is what is said.
    both = decide([*found, evidence(planted(0.05))], 10)
    assert both.reasons[0] == "class 3 is reached by a far smaller change than the others"


def test_the_most_suspicious_source_speaks_for_a_class_in_the_high_tail() -> None:
    pairs = [unit(k, float(1 / v) / (1 + s), source=s) for k, v in enumerate(planted()) for s in range(3) if s != k]
    verdict = decide([Evidence("pairs", {}, "l1", "l1", "high", tuple(pairs))], 10)
    assert verdict.targets == (3,)
    assert verdict.classes[3].statistic == {"pairs": 2.0}


def test_of_a_shared_triggers_sources_the_best_validated_speaks() -> None:
    """Two sources are led to one class: the row with the higher held-out success is the class's."""
    found = shared(CLEAN, 0.5, {s: (s + 1) % 10 for s in range(10)})
    second = replace(found.units[-1], unit=Unit(4, 8, shared=True), held_out_success=0.7)
    first = next(u for u in found.units if u.unit == Unit(4, 3, shared=True))
    for order in ((second, *found.units), (*found.units, second)):
        verdict = decide([replace(found, units=order)], 10)
        assert verdict.classes[4].held_out_success == {"neural-cleanse": first.held_out_success}


def test_what_speaks_for_a_class() -> None:
    p_values = {"sure": ALPHA / 2, "at the limit": ALPHA, "silent": 1.0}
    assert [speaks_for(p_values, d) for d in p_values] == [True, False, False]
    nobody = {"one": ALPHA, "other": 0.5}  # the user asked for the class: then all do
    assert all(speaks_for(nobody, d) for d in nobody)
