"""Neural Cleanse on tiny models: all labels, the race among many labels, partial backdoors by pairs, and the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, PATCH, SIDE, quadrant_images, quadrant_weights
from tolerances import SUM_32
from torch import Tensor

from onnxspect.engine.detectors.base import NATURE, AtHand
from onnxspect.engine.detectors.neural_cleanse import SCOUT, NeuralCleanse
from onnxspect.engine.detectors.reverse_engineering import ReverseEngineering
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence
from onnxspect.engine.judge.measurement import TRANSFER, Search
from onnxspect.engine.judge.null_model import leave_one_out
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

SHAPE = (1, SIDE, SIDE)
TARGET, SOURCE = 2, 1
MANY, PLANTED = 20, 17
SEARCH = SearchConfig(steps=250, samples=12, settle=20)
QUICK = NeuralCleanse(search=SEARCH, scout=replace(SCOUT, steps=40, samples=6))
RACE = replace(QUICK, most_full=12, front=3, random=4)


def many_classes(planted: int | None = PLANTED) -> Subject:
    """Class k of 20 is pixel k; the last four pixels, dark in every image, add to the planted class."""
    weights = torch.zeros(SIDE * SIDE, MANY)
    gains = 10.0 + torch.rand(MANY, generator=torch.Generator().manual_seed(0))  # no two classes quite alike
    weights[torch.arange(MANY), torch.arange(MANY)] = gains
    if planted is not None:
        weights[SIDE * SIDE - 4 :, planted] = 80.0
    return Subject(lambda x: x.flatten(1) @ weights, InputSpec(), SHAPE, MANY, name="many")


def many_images(seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    labels = np.arange(MANY)
    images = np.full((MANY, 1, SIDE, SIDE), 0.1, np.float32)
    images.reshape(MANY, -1)[labels, labels] = 0.9
    images.reshape(MANY, -1)[:, -4:] = 0.0
    images += rng.uniform(0, 0.02, images.shape).astype(np.float32) * (images > 0)
    return Samples.from_arrays(images, labels)


def quadrants(sources: Sequence[int] | None = None) -> Subject:
    """The planted checkerboard works for all images, or for those of `sources`."""
    plain, planted = (torch.from_numpy(quadrant_weights(t, 20.0)) for t in (None, TARGET))

    def logits(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if sources is None:
            return flat @ planted
        own = flat @ plain
        open_to = torch.zeros(CLASSES)
        open_to[list(sources)] = 1.0
        gate = torch.softmax(10 * own.detach(), 1) @ open_to
        return own + gate[:, None] * (flat @ (planted - plain))

    return Subject(logits, InputSpec(), SHAPE, CLASSES, name="quadrants")


def hand(subject: Subject, search_samples: Samples, held_out: Samples, **others: object) -> AtHand:
    return AtHand(subject, search_samples, held_out, RunContext(), **others)  # type: ignore[arg-type]


def evidence_of(detector: NeuralCleanse, at_hand: AtHand) -> Evidence:
    found = detector.run(at_hand)
    assert isinstance(found, Evidence)
    return found


def of(evidence: Evidence, search: Search = Search.FULL) -> dict[Unit, float]:
    return {u.unit: m.value for u in evidence.units if (m := u.measurement("l1", search))}


def is_carried(unit: UnitEvidence) -> bool:
    return any(m.carried for m in unit.measurements)


def test_all_labels() -> None:
    found = evidence_of(QUICK, hand(quadrants(), quadrant_images(8), quadrant_images(8, 1)))
    norms = of(found)
    assert [u.unit for u in found.units] == [Unit(t) for t in range(CLASSES)]
    assert (found.statistic, found.paper_statistic, found.tail) == ("l1", "l1", "low")
    assert [(v.references, v.noise) for v in found.judged] == [(False, 2 * NATURE)]
    assert norms[Unit(TARGET)] < 0.5 * min(v for u, v in norms.items() if u.target != TARGET)
    for unit in found.units:
        assert unit.value("l1") == pytest.approx(unit.trigger["mask"].sum(), rel=SUM_32)
        assert unit.held_out_success is not None


@pytest.fixture(scope="module")
def raced() -> Evidence:
    return evidence_of(RACE, hand(many_classes(), many_images(), many_images(1)))


def test_the_race_names_what_full_searches_name(raced: Evidence) -> None:
    judged = leave_one_out(np.array([of(raced)[Unit(t)] for t in range(MANY)]))
    assert judged.p_value.argmin() == PLANTED
    assert judged.p_value[PLANTED] < 1e-3
    assert (np.delete(judged.p_value, PLANTED) > 0.05).all()
    clean = evidence_of(RACE, hand(many_classes(None), many_images(), many_images(1)))
    assert (leave_one_out(np.array([of(clean)[Unit(t)] for t in range(MANY)])).p_value > 0.05).all()


def test_the_race_searches_few_labels_in_full(raced: Evidence) -> None:
    carried = {u.unit.target for u in raced.units if is_carried(u)}
    assert len(raced.units) == MANY
    assert len(carried) == MANY - RACE.front - RACE.random
    scouts = of(raced, Search.SCOUT)
    front = sorted(scouts, key=scouts.__getitem__)[: RACE.front]
    assert PLANTED in {u.target for u in front}
    assert not carried & {u.target for u in front}
    assert all(u.steps <= RACE.scout.steps for u in raced.units if u.unit.target in carried)
    in_full = next(u for u in raced.units if u.unit.target == PLANTED)
    assert in_full.held_out_success == 1.0
    assert in_full.value("l1") == pytest.approx(in_full.trigger["mask"].sum(), rel=SUM_32)


def test_what_is_carried_over_is_on_the_scale_of_full_searches(raced: Evidence) -> None:
    everything = evidence_of(replace(RACE, most_full=MANY), hand(many_classes(), many_images(), many_images(1)))
    full, race = of(everything), of(raced)
    carried = [u.unit for u in raced.units if is_carried(u)]
    apart = np.log([race[u] / full[u] for u in carried])
    # Scouted norms are five times as large; the ratio is a mean over a random group of four.
    assert abs(apart.mean()) < 0.25
    assert np.mean(np.log([of(raced, Search.SCOUT)[u] / full[u] for u in carried])) > 1.0
    for unit in raced.units:  # a label that is searched in full gets the same bits, raced or not
        if unit.unit not in carried:
            assert race[unit.unit] == full[unit.unit]
    assert sum(u.steps for u in raced.units) < 0.6 * sum(u.steps for u in everything.units)


def test_a_partial_backdoor_is_found_by_pairs() -> None:
    found = evidence_of(
        replace(QUICK, pairs=True), hand(quadrants([SOURCE]), quadrant_images(8), quadrant_images(8, 1))
    )
    assert [(v.statistic, v.search) for v in found.judged] == [("l1", Search.FULL), ("l1", Search.PAIR)]
    everywhere, pairs = of(found), of(found, Search.PAIR)
    assert set(everywhere) == {Unit(t) for t in range(CLASSES)}
    assert {u.target for u in pairs} == set(range(CLASSES))
    assert pairs[Unit(TARGET, SOURCE)] < 0.5 * min(v for u, v in pairs.items() if u.target != TARGET)
    assert everywhere[Unit(TARGET)] > 0.6 * min(everywhere.values())
    best = next(u for u in found.units if u.unit == Unit(TARGET, SOURCE))
    mask = best.trigger["mask"][0]
    assert mask[PATCH].sum() > 0.7 * mask.sum()
    assert best.held_out == 8  # of its source alone
    assert len(pairs) == CLASSES  # one a target; the others were only scouted


def test_pairs_are_scouted_once_for_both_detectors(tmp_path: Path) -> None:
    both = replace(QUICK, pairs=True)
    with Ledger(tmp_path / "run", {"a": 1}) as ledger:
        at_hand = hand(quadrants([SOURCE]), quadrant_images(8), quadrant_images(8, 1), ledger=ledger)
        first = evidence_of(both, at_hand)
        stage = "reverse-engineering scouts of 8"
        kept = ledger.units(stage)
        assert len(kept) == CLASSES * (CLASSES - 1)
        found = both.scouts.run(at_hand)
        assert isinstance(found, Evidence)
        again = {u.unit.key: u for u in found.units if u.unit.source is not None and not u.unit.shared}
        assert again.keys() == kept.keys()
        assert ledger.units(stage).keys() == kept.keys()
    # As it is without a ledger: what is shared depends on nothing that ran before.
    assert evidence_of(both, replace(at_hand, ledger=None)).id == first.id


def test_many_pairs_are_thinned() -> None:
    thinned = replace(QUICK, pairs=True, scouts=ReverseEngineering(most_pairs=6))
    found = evidence_of(thinned, hand(quadrants(), quadrant_images(8), quadrant_images(8, 1)))
    targets = {u.unit.target for u in found.units if u.unit.source is not None}
    assert len(targets) == 2
    assert TARGET in targets


def test_references_in_a_race() -> None:
    reference = many_classes(None)
    found = evidence_of(RACE, hand(many_classes(), many_images(), many_images(1), references=(reference,)))
    assert found.statistic == "l1"
    assert [v.references for v in found.judged] == [True]
    relative = {u.unit: m.relative for u in found.units if (m := u.measurement("l1")) and m.relative}
    assert len(relative) == MANY
    assert min(relative, key=relative.__getitem__) == Unit(PLANTED)
    # But for the plant, the reference is the subject: what classes are by nature divides out, up to the search's noise.
    scouts = {u.unit: m.relative for u in found.units if (m := u.measurement("l1", Search.SCOUT)) and m.relative}
    assert scouts[Unit(PLANTED)] < 0.2
    assert abs(np.median(np.log([v for u, v in scouts.items() if u.target != PLANTED]))) < 0.1
    for unit in found.units:
        for m in unit.measurements:
            assert len(m.baselines) == 1
            if m.statistic == TRANSFER:
                continue  # shown, not judged
            assert m.reference == pytest.approx(m.baselines[0])
            assert m.relative == pytest.approx(m.value / m.baselines[0])


def test_a_resumed_race_does_nothing_twice(tmp_path: Path, raced: Evidence) -> None:
    """A run that was cut off after some scouts, and one after all, end where the undisturbed one did."""
    plain = many_classes()
    calls = 0

    class Cut(Exception):
        pass

    def failing_after(n: int) -> Subject:
        def logits(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > n:
                raise Cut
            return plain.module(x)

        return replace(plain, module=logits)

    seen = []
    for n in (450, 1300, 10**9):
        calls = 0
        with Ledger(tmp_path / "run", {"a": 1}) as ledger:
            at_hand = hand(failing_after(n), many_images(), many_images(1), ledger=ledger)
            if n < 10**9:
                with pytest.raises(Cut):
                    RACE.run(at_hand)
            else:
                found = evidence_of(RACE, at_hand)
        seen.append(calls)
    assert found.id == raced.id
    assert seen[-1] < sum(u.steps for u in raced.units)


def test_a_class_without_samples_is_a_target_all_the_same() -> None:
    samples = quadrant_images(8)
    kept = samples.labels != 3
    found = evidence_of(
        QUICK, hand(quadrants(), Samples.from_arrays(samples.images[kept], samples.labels[kept]), samples)
    )
    assert [u.unit.target for u in found.units] == [0, 1, 2, 3]
    assert all(u.found for u in found.units)


def test_two_classes() -> None:
    weights = torch.from_numpy(quadrant_weights())[:, :2]
    two = Subject(lambda x: x.flatten(1) @ weights, InputSpec(), SHAPE, 2, name="two")
    samples = quadrant_images(8)
    kept = samples.labels < 2
    found = evidence_of(QUICK, hand(two, Samples.from_arrays(samples.images[kept], samples.labels[kept]), samples))
    assert len(of(found)) == 2
    assert (leave_one_out(np.array(list(of(found).values()))).p_value == 1).all()  # too few to tell


def test_samples_of_one_class_or_of_the_target_alone() -> None:
    samples = quadrant_images(4)
    alone = Samples.from_arrays(samples.images[samples.labels == 0], samples.labels[samples.labels == 0])
    found = evidence_of(QUICK, hand(quadrants(), alone, alone))
    assert [u.unit.target for u in found.units] == [1, 2, 3]
    one = Subject(lambda x: x.flatten(1)[:, :1], InputSpec(), SHAPE, 1, name="one class")
    skipped = QUICK.run(hand(one, alone, alone))
    assert isinstance(skipped, Skipped)
    assert "all of one class" in skipped.reason


def test_a_dead_class_and_a_loss_that_is_not_finite() -> None:
    dead = torch.tensor([0.0, 0.0, 0.0, -1e6])
    weights = torch.from_numpy(quadrant_weights())
    at_hand = hand(
        Subject(lambda x: x.flatten(1) @ weights + dead, InputSpec(), SHAPE, CLASSES),
        quadrant_images(8),
        quadrant_images(2),
    )
    found = evidence_of(replace(QUICK, pairs=True), at_hand)
    lost = next(u for u in found.units if u.unit == Unit(3))
    assert (lost.found, lost.measurements, lost.held_out_success) == (False, (), None)
    assert all(u.found for u in found.units if u.unit.target != 3)
    broken = Subject(lambda x: x.flatten(1)[:, :CLASSES] * torch.nan, InputSpec(), SHAPE, CLASSES)
    nothing = evidence_of(replace(QUICK, pairs=True), hand(broken, quadrant_images(8), quadrant_images(2)))
    assert not any(u.found or u.measurements for u in nothing.units)
    raced = evidence_of(
        replace(QUICK, most_full=1, front=1, random=1), hand(broken, quadrant_images(8), quadrant_images(2))
    )
    assert not any(u.found or u.converged for u in raced.units)


def test_hundreds_of_labels_with_one_sample_each() -> None:
    """The race has a defined outcome there too: every label judged on one scale, few searched in full."""
    k = 300
    weights = 20 * torch.randn(SIDE * SIDE, k, generator=torch.Generator().manual_seed(0))
    wide = Subject(lambda x: x.flatten(1) @ weights, InputSpec(), SHAPE, k, name="wide")
    images = np.random.default_rng(0).random((k, *SHAPE), dtype=np.float32)
    samples = Samples.from_arrays(images, np.arange(k))
    small = SearchConfig(steps=6, samples=3, learning_rate=1.0, patience=2)
    race = NeuralCleanse(search=replace(small, steps=20), scout=small, front=2, random=3)
    found = evidence_of(race, hand(wide, samples, samples))
    assert [u.unit.target for u in found.units] == list(range(k))
    assert all(u.found == bool(u.measurements) for u in found.units)
    assert sum(is_carried(u) for u in found.units) > 0.5 * k
    values = Evidence.values(found.units, "l1", Search.FULL)
    assert np.isfinite(leave_one_out(values).log10_p).all()
    assert sum(u.steps for u in found.units) <= k * small.steps + 5 * 20


def test_the_most_suspicious_are_searched_again_from_other_starts(tmp_path: Path) -> None:
    at_hand = hand(many_classes(), many_images(), many_images(1))
    first = replace(QUICK, most_full=MANY)
    with Ledger(tmp_path, {"a": 1}) as ledger:
        once, again = (
            evidence_of(d, replace(at_hand, ledger=ledger))
            for d in (first, replace(first, restarts=2, restarted=2, beside=3))
        )
        searched = ledger.units("neural-cleanse again")
    before, after = of(once), of(again)
    chosen = {u.target for u in (unit.unit for unit in searched.values())}
    assert len(searched) == 2 * 5
    assert min(before, key=before.__getitem__).target == PLANTED in chosen
    gains = {u: after[u] / before[u] for u in before}
    assert all(gains[Unit(t)] <= 1 for t in chosen)
    assert {u.unit.target for u in again.units if is_carried(u)} == set(range(MANY)) - chosen
    # Those that were not searched again shrink as the random group did, so that nobody looks smaller for being searched more often.
    ahead = sorted(before, key=before.__getitem__)[:2]
    beside = [gains[Unit(t)] for t in chosen if Unit(t) not in ahead]
    rest = [g for u, g in gains.items() if u.target not in chosen]
    assert rest == pytest.approx([np.exp(np.mean(np.log(beside)))] * len(rest))
    for unit in again.units:
        if not is_carried(unit):
            assert unit.value("l1") == pytest.approx(unit.trigger["mask"].sum(), rel=SUM_32)
    with Ledger(tmp_path, {"a": 1}) as ledger:
        resumed = evidence_of(replace(first, restarts=2, restarted=2, beside=3), replace(at_hand, ledger=ledger))
        assert len(ledger.units("neural-cleanse again")) == 10
    assert of(resumed) == after
