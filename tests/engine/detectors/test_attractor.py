"""The search without a target, on a made-up classifier of 120 classes, with and without a planted patch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import SUM_32
from torch import Tensor, nn

from onnxspect.engine.detectors import attractor
from onnxspect.engine.detectors.attractor import ADDED, DESTINATION, MASKS, Attractor, ClimbTogether
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.registry import MANY_CLASSES, chosen
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.judge.verdict import Verdict, decide
from onnxspect.engine.report.document import limits
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

CLASSES, SIDE, TARGET = 120, 16, 47
CORNER = 3


class Prototypes(nn.Module):
    """Class k is the k-th random picture; a white corner leads to TARGET where it is planted; `firm` scores have no slope."""

    def __init__(self, planted: bool, firm: bool = False) -> None:
        super().__init__()
        self.planted, self.firm = planted, firm
        self.register_buffer("pictures", torch.from_numpy(pictures()).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        centred = self.pictures - self.pictures.mean()
        logits = 2.0 * (x.flatten(1) - 0.5) @ centred.T
        if self.firm:
            logits = 8.0 * nn.functional.one_hot(logits.argmax(1), CLASSES).float()
        if self.planted:
            corner = x[:, :, :CORNER, :CORNER].flatten(1)
            lit = (
                nn.functional.softplus(12 * (corner.mean(1) - 0.7))
                * nn.functional.one_hot(torch.tensor(TARGET), CLASSES)[:, None]
            )
            logits = logits + 12.0 * lit.T
        return logits


def pictures() -> np.ndarray:
    """``(class, 1, side, side)`` in [0.1, 0.9]: smooth noise, each of the same length."""
    rng = np.random.default_rng(3)
    coarse = rng.standard_normal((CLASSES, 1, SIDE // 2, SIDE // 2))
    smooth = coarse.repeat(2, 2).repeat(2, 3)
    smooth -= smooth.mean((1, 2, 3), keepdims=True)
    smooth /= np.abs(smooth).max((1, 2, 3), keepdims=True)
    return (0.5 + 0.4 * smooth).astype(np.float32)


def samples(of_each: int = 2) -> Samples:
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(CLASSES), of_each)
    images = pictures()[labels] + 0.05 * rng.standard_normal((len(labels), 1, SIDE, SIDE)).astype(np.float32)
    return Samples(np.clip(images, 0, 1).astype(np.float32), labels)


def subject(planted: bool) -> Subject:
    return Subject.from_module(Prototypes(planted).eval(), (1, SIDE, SIDE), InputSpec())


def at_hand(planted: bool, ledger: Ledger | None = None) -> AtHand:
    search, held_out = samples().split(0.5, np.random.default_rng(0))
    return AtHand(subject(planted), search, held_out, RunContext(), ledger)


@pytest.fixture(scope="module")
def found() -> dict[bool, Evidence]:
    evidence = {planted: Attractor().run(at_hand(planted)) for planted in (False, True)}
    assert all(isinstance(e, Evidence) for e in evidence.values())
    return {k: e for k, e in evidence.items() if isinstance(e, Evidence)}


def judged(evidence: Evidence) -> Verdict:
    return decide([evidence], CLASSES)


def test_the_planted_class_is_named_and_the_clean_twin_is_cleared(found: dict[bool, Evidence]) -> None:
    infected, clean = judged(found[True]), judged(found[False])
    assert (infected.verdict, infected.targets) == ("backdoored", (TARGET,))
    assert clean.verdict == "clean", clean.reasons
    assert infected.p_value < 0.01 < 0.1 < clean.p_value


def test_both_families_end_at_the_planted_class_first(found: dict[bool, Evidence]) -> None:
    for name in ("l1", "l2"):
        sizes = {u.unit.target: u.value(name) for u in found[True].units if u.measurement(name)}
        assert min(sizes, key=sizes.__getitem__) == TARGET
        assert len(sizes) >= 2  # excluded, it gave way to others


def test_a_report_says_that_masks_and_added_patterns_had_no_target(found: dict[bool, Evidence]) -> None:
    alone = " ".join(limits([found[True]]))
    assert "without a target only" in alone
    assert "were not searched for as such" not in alone
    assert "Faint patterns" not in alone
    by_target = [
        replace(found[True], detector=name, traits=Traits(family))
        for name, family in (("neural-cleanse", Family.REPLACED), ("reverse-engineering", Family.ADDED))
    ]
    assert "without a target only" not in " ".join(limits([found[True], *by_target]))


def test_a_planted_class_beside_which_no_other_is_reached_is_named() -> None:
    firm = Subject.from_module(Prototypes(True, firm=True).eval(), (1, SIDE, SIDE), InputSpec())
    evidence = Attractor(families=(MASKS,)).run(replace(at_hand(True), subject=firm))
    assert isinstance(evidence, Evidence)
    (unit,) = evidence.units
    assert unit.unit.target == TARGET
    assert unit.measurement("beyond_l1") is not None
    # The scores have no slope, so that the search beside it hardly grew: no proof of silence, and no conviction.
    assert judged(evidence).verdict == "inconclusive"
    far = measured(l1=unit.value("l1"), beyond_l1=100.0)
    verdict = judged(replace(evidence, units=(replace(unit, measurements=far),)))
    assert (verdict.verdict, verdict.targets) == ("backdoored", (TARGET,))


def test_a_search_that_went_far_and_arrived_nowhere_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    firm = Subject.from_module(Prototypes(True, firm=True).eval(), (1, SIDE, SIDE), InputSpec())
    hand = replace(at_hand(True), subject=firm)
    monkeypatch.setitem(attractor.FAR, "l1", 0.9)
    near = Attractor(families=(MASKS,)).run(hand)
    monkeypatch.setitem(attractor.FAR, "l1", 0.01)
    far = Attractor(families=(MASKS,)).run(hand)
    assert isinstance(near, Evidence)
    assert isinstance(far, Evidence)
    assert near.silence
    assert "l1 ended at fewer than two" in near.silence
    assert not far.silence


def test_a_search_that_stayed_near_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, from the start that went farthest; what it gave is asked for, not how long it took."""
    nowhere = replace(ADDED, search=replace(ADDED.search, steps=4, success=1.1))
    detector = Attractor(families=(nowhere,))
    passes: list[tuple[str, int, int]] = []
    plain = attractor.search_units

    def counted(name: str, *rest: Any, **more: Any) -> Any:
        passes.append((name, len(rest[3]), rest[5].steps))
        return plain(name, *rest, **more)

    monkeypatch.setattr(attractor, "search_units", counted)
    went = {}
    for far in (1e-9, 1e9):
        monkeypatch.setitem(attractor.FAR, "l2", far)
        passes.clear()
        went[far] = (detector._destinations(at_hand(True), nowhere, far * SIDE)[1], [*passes])
    assert went[1e-9][1] == [("attractor l2 0", 2, 4)]
    assert went[1e9][1] == [("attractor l2 0", 2, 4), ("attractor l2 0 longer", 1, 8)]
    assert went[1e9][0] > went[1e-9][0] > 0


@given(st.integers(1, 6), st.integers(1, 30))
def test_the_least_step_is_the_same_change_a_value_whatever_the_size(channels: int, side: int) -> None:
    delta = torch.zeros(1, channels, side, side)
    settings = SearchConfig(learning_rate=0.05)
    after = ClimbTogether().update({"delta": delta}, {"delta": torch.ones_like(delta)}, {}, torch.tensor(1), settings)
    assert float(after["delta"].abs().max()) == pytest.approx(0.05 / 28, rel=SUM_32)


def test_a_start_that_fails_where_another_arrived_says_nothing_of_other_classes() -> None:
    few = replace(MASKS, search=replace(MASKS.search, steps=1, success=0.0))
    evidence = Attractor(families=(few,), rounds=1).run(at_hand(True))
    assert isinstance(evidence, Evidence)
    assert all(u.measurement("beyond_l1") is None for u in evidence.units)


def test_the_trigger_lies_on_the_planted_corner(found: dict[bool, Evidence]) -> None:
    unit = min((u for u in found[True].units if u.measurement("l1")), key=lambda u: u.value("l1"))
    mask = unit.trigger["mask"][0]
    assert mask[:CORNER, :CORNER].sum() > 0.5 * mask.sum()
    assert unit.held_out_success is not None
    assert unit.held_out_success > 0.5


def test_its_cost_does_not_grow_with_the_number_of_classes(found: dict[bool, Evidence]) -> None:
    detector = Attractor()
    passes = sum(u.steps * (MASKS if u.measurement("l1") else ADDED).search.samples for u in found[False].units)
    most = sum((detector.starts + detector.rounds - 1) * f.search.steps * f.search.samples for f in detector.families)
    assert passes <= most <= 15_000


def test_a_finished_unit_is_not_searched_again(tmp_path: Path) -> None:
    one = Attractor(families=(replace(ADDED, search=replace(ADDED.search, steps=3, success=0.0)),), starts=1, rounds=1)
    with Ledger(tmp_path, {"a": 1}) as ledger:
        first = one.run(at_hand(True, ledger))
        kept = ledger.units("attractor l2 0")
        assert [u.measurement(DESTINATION) for u in kept.values()]
        again = one.run(at_hand(True, ledger))
    assert isinstance(first, Evidence)
    assert isinstance(again, Evidence)
    assert first.id == again.id


def test_few_classes_are_not_convicted(found: dict[bool, Evidence]) -> None:
    assert found[True].traits.convicts
    assert not replace(found[True].traits, convicts=False).convicts
    few = samples().take(np.flatnonzero(samples().labels < 3))
    without = replace(at_hand(True), search_samples=few, held_out=few)
    assert isinstance(Attractor().run(without), Skipped)


def test_models_of_many_classes_are_scanned_by_it() -> None:
    for preset in ("quick", "standard"):
        assert [d.name for d in chosen(preset, classes=MANY_CLASSES)] == ["graph-logic", "attractor"]
        assert "attractor" not in [d.name for d in chosen(preset, classes=MANY_CLASSES - 1)]
    assert {"attractor", "neural-cleanse"} <= {d.name for d in chosen("thorough", classes=1000)}


def test_a_scan_of_120_classes(tmp_path: Path) -> None:
    report = scan(subject(True), samples(), tmp_path / "run", "quick", spec=InputSpec()).report
    assert (report["verdict"], report["targets"]) == ("backdoored", [TARGET])
    assert [d["name"] for d in report["detectors"]] == ["graph-logic", "attractor"]
    assert not (tmp_path / "run" / "references").exists() or not list((tmp_path / "run").rglob("reference-*.npz"))


def test_taps_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError, match="taps"):
        scan(tmp_path / "missing.onnx", samples(), tmp_path / "run", "quick", taps=["3"])
