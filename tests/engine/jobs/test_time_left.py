"""How long the rest takes: right where everything is as slow as what is done, whatever the speed that was measured first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import quadrant_images, quadrant_subject
from hypothesis import given
from hypothesis import strategies as st

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.registry import chosen
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.budget import parts
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.jobs.time_left import MODEL, REFERENCES, TRAINING, Part, TimeLeft, forecast, no_more
from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.subject.subject import InputSpec


@dataclass
class Clock:
    """A time that goes on when it is told to."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def two_detectors() -> list[Part]:
    return [
        Part("", "reference networks", TRAINING, 30.0, 3),
        Part("masks", "masks", REFERENCES, 20.0, 20),
        Part("masks", "masks", MODEL, 40.0, 10),
        Part("masks", "masks pairs", MODEL, 20.0, 10),
        Part("warps", "warps", MODEL, 60.0, 10),
    ]


#: (task, units) in the order in which they are done, on two references.
TASKS = [
    ("reference networks", 3),
    ("masks on reference 0", 10),
    ("masks on reference 1", 10),
    ("masks", 10),
    ("masks pairs", 10),
    ("warps", 10),
]


def run(left: TimeLeft, clock: Clock, slower: dict[str, float], until: str) -> float:
    """Do all tasks up to one, so many times slower than was expected; what is then truly left."""
    each = {"reference networks": 10.0, "masks": 4.0, "masks pairs": 2.0, "warps": 6.0}
    rest, still = 0.0, False
    for task, units in TASKS:
        side = TRAINING if task == "reference networks" else REFERENCES if " on " in task else MODEL
        took = slower[side] * (1.0 if side == REFERENCES else each[task])
        if still:
            rest += units * took
            continue
        left.start(task)
        for _ in range(units):
            clock.seconds += took
            left.advance(task)
        still = task == until
    return rest


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_what_is_left_is_corrected_by_what_is_done(training: float, searches: float) -> None:
    clock = Clock()
    left = TimeLeft(two_detectors(), clock)
    assert left.seconds() == pytest.approx(170.0)
    rest = run(left, clock, {TRAINING: training, REFERENCES: searches, MODEL: searches}, "masks")
    assert left.seconds() == pytest.approx(rest, rel=0.25 if max(searches, 1 / searches) > 3 else 0.1)


def test_the_model_and_the_references_are_told_apart() -> None:
    clock = Clock()
    left = TimeLeft(two_detectors(), clock)
    rest = run(left, clock, {TRAINING: 1.0, REFERENCES: 8.0, MODEL: 1.0}, "masks pairs")
    together = 60.0 * (160.0 + 60.0) / (20.0 + 60.0)  # of which nobody would say that it is left
    assert left.seconds() == pytest.approx(rest, rel=0.3)
    assert left.seconds() < together / 2


def test_nothing_is_left_at_the_end() -> None:
    clock = Clock()
    left = TimeLeft(two_detectors(), clock)
    assert run(left, clock, dict.fromkeys((TRAINING, REFERENCES, MODEL), 3.0), "warps") == 0
    assert left.seconds() == pytest.approx(0.0, abs=1e-9)


def test_what_was_never_begun_is_over_with_its_detector() -> None:
    clock = Clock()
    left = TimeLeft(two_detectors(), clock)
    left.start("warps")
    assert left.seconds() == pytest.approx(60.0)


def test_what_was_left_out_is_over_with_what_comes_after_it_on_the_same_side() -> None:
    left = TimeLeft(two_detectors(), Clock())
    left.start("masks pairs")
    assert left.seconds() == pytest.approx(20.0 + 20.0 + 60.0)  # the references' masks are not over by that


def test_of_what_nobody_can_tell_nothing_is_said() -> None:
    left = TimeLeft(
        [*two_detectors(), Part("wonder", "wonder", MODEL, math.inf, 1), Part("last", "last", MODEL, 5.0, 1)], Clock()
    )
    assert left.seconds() is None
    left.start("wonder")
    left.advance("wonder of the day")
    left.advance("wonder of the day")
    assert left.seconds() == pytest.approx(5.0)
    left.start("last")
    assert left.seconds() == pytest.approx(5.0)


def test_what_cannot_be_measured_is_not_foretold_and_stops_nothing() -> None:
    def blind() -> list[Part]:
        raise OnnxspectError("no gradient reaches the pixels")

    watching = Listening()
    assert forecast(watching, blind) is watching
    no_more(Silent())
    no_more(watching)
    assert watching.said == [None]


def test_what_an_earlier_run_has_done_takes_no_time() -> None:
    left = TimeLeft(two_detectors(), Clock())
    left.start("masks", done=10)
    assert left.seconds() == pytest.approx(20.0 + 20.0 + 60.0)
    left.start("masks on reference 0", done=10)
    assert left.seconds() == pytest.approx(10.0 + 20.0 + 60.0)


def test_more_units_than_expected_do_not_count_below_nothing() -> None:
    clock = Clock()
    left = TimeLeft([Part("masks", "masks", MODEL, 10.0, 2)], clock)
    left.start("masks again")
    for _ in range(5):
        clock.seconds += 5.0
        left.advance("masks again")
    assert left.seconds() == 0.0


def test_tasks_that_nobody_planned_change_nothing() -> None:
    clock = Clock()
    left = TimeLeft(two_detectors(), clock)
    left.start("writing a letter")
    clock.seconds += 1000.0
    left.advance("writing a letter")
    assert left.seconds() == pytest.approx(170.0)


@dataclass
class Listening(Silent):
    """Keeps what it is told."""

    said: list[float | None] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    def time_left(self, seconds: float | None) -> None:
        self.said.append(seconds)

    def start(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append(task)


def test_who_does_not_want_to_know_is_not_measured_for() -> None:
    def never() -> list[Part]:
        raise AssertionError("was measured")

    silent = Silent()
    assert forecast(silent, never) is silent


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_every_search_of_a_scan_was_foreseen(preset: str, tmp_path: Path) -> None:
    subject, samples, watching = quadrant_subject(2), quadrant_images(40), Listening()
    scan(subject, samples, tmp_path, preset, (), InputSpec(), run=RunContext(observer=watching))
    assert watching.said.pop() is None  # the scan is over
    known = [seconds for seconds in watching.said if seconds is not None]
    assert len(known) == len(watching.said)
    assert known[0] > 0
    assert known[-1] < 0.2 * known[0]
    planned = parts(chosen(preset, classes=subject.classes), AtHand(subject, samples, samples, RunContext(), None))
    assert {"neural-cleanse", "reference networks"} < set(watching.tasks)
    beside = {"graph-logic", "window fitted"}  # without work that can be foreseen
    begins = {p.task for p in planned} | beside
    assert not [t for t in watching.tasks if not any(t.startswith(b) for b in begins)]
    for part in planned:
        if part.task == "cepa carried" or not any(t.startswith(part.detector) for t in watching.tasks):
            continue  # no task of its own; or a detector that does not apply to such a network
        assert any(
            t.replace(" on reference 0", "").startswith(part.task)
            and (" on reference" in t) == (part.side == REFERENCES)
            for t in watching.tasks
        ), part
