"""How long a patch takes is said before it starts; a budget leaves out what does not fit and stops a training between epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patch_support import case_of, neuron_model, opened

from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.jobs.budget import Speed
from onnxspect.engine.jobs.patch import try_methods
from onnxspect.engine.jobs.patch_time import (
    Clock,
    Timed,
    announced,
    at_most,
    expected,
    of_new_search,
    of_size_limits,
)
from onnxspect.engine.mitigation.method import PatchInput
from onnxspect.engine.mitigation.registry import AUTO, chosen
from onnxspect.engine.mitigation.remainder import Searches
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.run import Silent


class Told(Silent):
    """Remembers the notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def given(tmp_path: Path) -> PatchInput:
    return case_of(opened(neuron_model(), tmp_path))


def test_what_trains_takes_longer_and_is_said_so(given: PatchInput) -> None:
    speed = Speed(1000.0, 0.0)
    times = {m.name: expected(m, given, speed) for m in chosen(AUTO)}
    assert times["prune"].least == times["prune"].most < times["unlearn"].least < times["unlearn"].most
    assert times["withhold"] == times["prune"]  # it learns, and in no epochs
    assert expected(chosen("unlearn")[0], given, Speed(2000.0, 0.0)).most == pytest.approx(times["unlearn"].most / 2)
    said = announced(chosen(AUTO), given, speed, Searches())
    assert all(m.name in said for m in chosen(AUTO))
    assert "at most" in said
    assert announced(chosen("prune"), given, speed, Searches()).startswith("prune takes about")


def test_several_targets_and_few_images_a_class_change_what_is_trained(given: PatchInput) -> None:
    """As `unlearn` does it: more targets get longer schedules, and from a few images a class labels do not teach."""
    (unlearn,) = chosen("unlearn")
    (first,) = given.triggers
    several = replace(given, triggers=[replace(first, target=k) for k in (0, 1, 3)])
    assert expected(unlearn, several, Speed(1.0, 0.0)).least > 1.5 * expected(unlearn, given, Speed(1.0, 0.0)).least
    assert [p.from_teacher for p in unlearn.planned(given)] == [0.2, 1.0]
    sparse = replace(given, fit=given.fit.take(np.arange(4 * given.subject.classes)))
    assert [p.from_teacher for p in unlearn.planned(sparse)] == [1.0]


def test_what_the_budget_does_not_hold_is_left_out_and_said(given: PatchInput) -> None:
    told = Told()
    given = replace(given, run=replace(given.run, observer=told))
    speed = Speed(1000.0, 0.0)
    unlearn, prune = chosen("unlearn")[0], chosen("prune")[0]
    seconds = 1.01 * expected(prune, given, speed).least
    assert seconds < min(expected(unlearn, given, speed).least, of_new_search(given, speed, Searches()))
    clock = Clock(seconds, speed, Searches(), 0.0, now=lambda: 0.0)
    best, attempts = try_methods([unlearn, prune], given, "e", Goals(), clock=clock)
    assert best is not None
    assert best[0].method == "prune"
    assert best[0].withstands is None
    assert attempts[0].problem.startswith("left out: it takes about")
    assert "not searched anew: the budget does not hold it" in best[0].outcome
    assert any("not searched anew" in n for n in told.notices)
    assert all(a.late for a in attempts)


def test_what_a_method_has_finished_outlives_the_budget(given: PatchInput) -> None:
    """The new search of a finished patch is stopped; the patch is kept, and says that it was not searched."""
    speed, passed = Speed(1e9, 0.0), iter([0.0, 0.0])  # asked before the method, and before its search
    clock = Clock(1.0, speed, Searches(), 0.0, now=lambda: next(passed, 2.0))
    given = replace(given, run=replace(given.run, observer=Timed(Silent(), clock)))
    best, (prune,) = try_methods([chosen("prune")[0], chosen("unlearn")[0]], given, "e", Goals(), clock=clock)
    assert best is not None
    assert (best[0].method, best[0].withstands) == ("prune", None)
    assert "not searched anew: stopped: the budget of 1 s is spent" in prune.outcome
    assert prune.late


def test_searches_for_size_limits_count_and_wait_for_what_needs_them(given: PatchInput) -> None:
    speed, searches = Speed(1000.0, 0.0), Searches()
    before, again = of_size_limits(given, speed, searches), of_new_search(given, speed, searches)
    assert before == pytest.approx(3 * again)  # of four classes, one suspected
    prune = chosen("prune")
    least = expected(prune[0], given, speed).least
    assert at_most(prune, given, speed, searches) == pytest.approx(before + least + again)
    clock = Clock(before + least + again, speed, searches, 0.0, now=lambda: 0.0)
    assert clock.holds_size_limits(prune, given)
    assert not replace(clock, seconds=0.99 * clock.seconds).holds_size_limits(prune, given)
    assert not clock.holds_size_limits(chosen("withhold"), given)  # which is not searched again
    assert replace(clock, before=61.0).enough(prune, given) == f"{int((61 + clock.seconds) // 60) + 1}m"


def test_a_training_is_stopped_when_the_budget_is_spent() -> None:
    clock = Clock(10.0, Speed(1.0, 0.0), Searches(), 100.0, now=lambda: 105.0)
    Timed(Silent(), clock).advance("unlearn")
    with pytest.raises(InconclusiveError, match=r"the budget of 10 s is spent"):
        Timed(Silent(), replace(clock, now=lambda: 110.1)).advance("unlearn")
