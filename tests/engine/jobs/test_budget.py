"""A scan within a budget: what fits is done, what does not is named, and nothing is started that cannot end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import quadrant_images, quadrant_subject
from hypothesis import given
from hypothesis import strategies as st

from onnxspect.engine.detectors.base import AtHand, Detector, Work
from onnxspect.engine.detectors.registry import PRESETS, chosen
from onnxspect.engine.errors import InconclusiveError, OnnxspectError
from onnxspect.engine.jobs import budget
from onnxspect.engine.jobs.budget import FILLED, Plan, Speed, measure_speed, parts, plan, works
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.reference import EPOCHS, count
from onnxspect.engine.subject.subject import InputSpec

SAMPLES = quadrant_images(40)
PLANS = [(name, chosen(name)) for name in reversed(PRESETS)]


def planned(seconds: float, speed: float = 1000.0, references: int = 3) -> Plan:
    return plan(seconds, PLANS, Speed(speed, speed), quadrant_subject(2), SAMPLES, references)


@given(st.floats(1, 1e7), st.floats(1, 1e5))
def test_what_is_planned_fits(seconds: float, speed: float) -> None:
    try:
        made = planned(seconds, speed)
    except InconclusiveError:
        return
    assert made.expected <= FILLED * seconds
    assert set(made.kept).isdisjoint(made.left_out)
    assert any(d.traits.convicts for d in chosen(made.preset) if d.name in made.kept)


def test_more_time_is_never_spent_on_less() -> None:
    order = list(PRESETS)
    found = [planned(s) for s in (200, 1000, 10_000, 100_000)]
    assert [order.index(p.preset) for p in found] == sorted(order.index(p.preset) for p in found)
    assert found[-1].preset == "thorough"
    assert not found[-1].left_out


def test_what_does_not_fit_is_named_with_its_time() -> None:
    made = next(p for s in range(20, 2000, 5) if (p := _or_none(s)) is not None)
    assert made.left_out
    for why in made.left_out.values():
        assert "left out" in why
        assert "budget" in why
    assert Plan.from_json(made.as_json()) == made


def test_references_are_paid_for_once_by_whichever_detector_comes_first() -> None:
    free, *with_references = chosen("thorough")[:1], *[d for d in chosen("thorough") if d.traits.references]
    speed = Speed(1000.0, 1000.0)
    detectors = [*free, *with_references]

    def searching(names: Sequence[str]) -> float:
        return sum(speed.seconds(w) for _, w in works([d for d in detectors if d.name in names], 4, 4, 3))

    dear = plan(1e9, [("all", detectors)], speed, quadrant_subject(2), SAMPLES, 3).expected
    trained = dear - searching([d.name for d in detectors])
    assert trained > 0
    for seconds in np.linspace(0.3, 0.99, 8) * dear / FILLED:
        made = plan(seconds, [("all", detectors)], speed, quadrant_subject(2), SAMPLES, 3)
        uses = any(d.traits.references for d in detectors if d.name in made.kept)
        assert made.expected == pytest.approx(searching(made.kept) + trained * uses)


def test_a_model_of_few_classes_pays_for_all_its_references() -> None:
    two = replace(quadrant_subject(2), classes=2)
    needs = [d for d in chosen("quick") if d.traits.references]
    for subject in (quadrant_subject(2), two):
        alone = sum(1e-3 * w.passes for d in needs for w in d.work(subject.classes, 4, 3))
        made = plan(1e9, [("all", needs)], Speed(1000.0, 1000.0), subject, SAMPLES, 3)
        networks = (made.expected - alone) * 1000.0 / (EPOCHS * len(SAMPLES))
        assert networks == pytest.approx(count(subject.classes))
    assert count(2) > count(4)


def _or_none(seconds: float) -> Plan | None:
    try:
        return planned(seconds)
    except InconclusiveError:
        return None


def test_where_nothing_fits_that_is_said_with_what_would_do() -> None:
    with pytest.raises(InconclusiveError, match="nothing fits into the 1 s that are left") as error:
        planned(1.0, speed=10.0)
    minutes = int(error.value.hint.split("--budget ")[1].split("m")[0])
    assert planned(60.0 * minutes, speed=10.0).kept


def test_every_detector_that_searches_says_how_much() -> None:
    silent = {d.name for d in chosen("thorough") if not d.work(10, 10, 3)}
    assert silent <= {"dtinspector", "training-difference", "graph-logic"}
    for detector in (*chosen("standard"), *chosen("quick", classes=1000)):
        for work in detector.work(1000, 1000, 0):
            assert work.passes > 0


def test_the_cost_of_many_classes_is_that_of_ten() -> None:
    (detector,) = (d for d in chosen("quick", classes=1000) if d.traits.convicts and d.work(10, 10, 0))
    few, many = (sum(w.passes for w in detector.work(k, k, 0)) for k in (10, 1000))
    assert many < 2 * few
    assert many <= 15_000


def test_speed_is_measured() -> None:
    speed = measure_speed(quadrant_subject(2), SAMPLES, RunContext(), with_references=True)
    assert speed.subject > 0
    assert speed.reference > 0
    assert speed.seconds([Work(1, 1, 100)]) == pytest.approx(100 / speed.subject)


class Patient(Detector):
    """Takes a year."""

    name = "patient"
    traits = Traits(references=False)

    def work(self, classes: int, sources: int, references: int) -> tuple[Work, ...]:
        return (Work(1e9, 1e9, 1000),)

    def run(self, at_hand: object) -> None:  # type: ignore[override]
        raise AssertionError("was started")


def test_a_scan_names_what_its_budget_left_out(tmp_path: Path) -> None:
    given_ = ["max-margin", "neural-cleanse", Patient()]
    report = scan(quadrant_subject(2), SAMPLES, tmp_path, "quick", given_, InputSpec(), budget=3600.0).report
    by_name = {d["name"]: d for d in report["detectors"]}
    assert by_name["neural-cleanse"]["status"] == "ran"
    assert by_name["patient"]["status"] == "skipped"
    assert any("patient" in reason and "budget" in reason for reason in report["reasons"])


def test_nothing_is_searched_where_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(InconclusiveError, match="nothing fits"):
        scan(quadrant_subject(2), SAMPLES, tmp_path, "quick", [Patient()], InputSpec(), budget=60.0)


def test_what_two_detectors_share_is_paid_for_once_and_by_whoever_is_left() -> None:
    both = [d for d in chosen("thorough") if d.name in ("neural-cleanse", "reverse-engineering")]
    (_, masks), (_, added) = works(both, 10, 10, 3)
    (_, alone), *_ = works(both[1:], 10, 10, 3)
    shared = {(w.task, w.on_references) for w in masks} & {(w.task, w.on_references) for w in alone}
    assert shared == {("reverse-engineering scouts", True), ("reverse-engineering scouts", False)}
    assert [w for w in alone if (w.task, w.on_references) not in shared] == added


def test_a_preset_that_cannot_hold_what_is_asked_for_is_passed_over(tmp_path: Path) -> None:
    """cepa's taps, with a budget: quick has no cepa."""
    report = scan(quadrant_subject(2), SAMPLES, tmp_path, "standard", (), InputSpec(), taps=["1"], budget=3600.0).report
    assert report["preset"] == "standard"


def test_where_no_gradient_reaches_the_pixels_no_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(*_: object) -> None:
        raise RuntimeError("the differentiated tensor appears to not have been used")

    monkeypatch.setattr(budget, "search", blind)
    at_hand = AtHand(quadrant_subject(2), SAMPLES, SAMPLES, RunContext(), None)
    with pytest.raises(OnnxspectError, match="cannot be measured"):
        parts(chosen("quick"), at_hand)
