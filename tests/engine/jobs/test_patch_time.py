"""How long a patch takes is said before it starts; a budget leaves out what does not fit and stops a training between epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from patch_support import case_of, neuron_model, opened

from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.jobs.budget import Speed
from onnxspect.engine.jobs.patch import try_methods
from onnxspect.engine.jobs.patch_time import Clock, Timed, announced, expected, of_new_search
from onnxspect.engine.mitigation.method import PatchInput
from onnxspect.engine.mitigation.registry import AUTO, chosen
from onnxspect.engine.mitigation.remainder import Searches
from onnxspect.engine.mitigation.verify import Goals
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
    assert expected(chosen("unlearn")[0], given, Speed(2000.0, 0.0)).most == pytest.approx(times["unlearn"].most / 2)
    said = announced(chosen(AUTO), given, speed, Searches())
    assert all(m.name in said for m in chosen(AUTO))
    assert "at most" in said
    assert announced(chosen("prune"), given, speed, Searches()).startswith("prune takes about")


def test_what_the_budget_does_not_hold_is_left_out_and_said(given: PatchInput) -> None:
    told = Told()
    given = replace(given, run=replace(given.run, observer=told))
    speed = Speed(1000.0, 0.0)
    unlearn, prune = chosen("unlearn")[0], chosen("prune")[0]
    seconds = 1.01 * expected(prune, given, speed).least
    assert seconds < min(expected(unlearn, given, speed).least, of_new_search(given, speed, Searches()))
    clock = Clock(seconds, speed, Searches(), 0.0, lambda: 0.0)
    best, attempts = try_methods([unlearn, prune], given, "e", Goals(), clock=clock)
    assert best is not None
    assert best[0].method == "prune"
    assert best[0].withstands is None
    assert attempts[0].problem.startswith("left out: it takes about")
    assert any("does not hold a new search" in n for n in told.notices)


def test_a_training_is_stopped_when_the_budget_is_spent() -> None:
    clock = Clock(10.0, Speed(1.0, 0.0), Searches(), 100.0, lambda: 105.0)
    Timed(Silent(), clock).advance("unlearn")
    with pytest.raises(InconclusiveError, match=r"the budget of 10 s is spent"):
        Timed(Silent(), replace(clock, now=lambda: 110.1)).advance("unlearn")
