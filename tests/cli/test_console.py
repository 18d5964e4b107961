"""What progress looks like where stderr is no terminal: how far a task is, and how long the rest will take."""

from __future__ import annotations

import json

import pytest

from onnxspect.cli import console
from onnxspect.cli.console import Progressing
from onnxspect.cli.json_lines import JsonLines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the console reads; a test moves it."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_how_far_and_how_long(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progressing()
    progress.start("search", 10, 2)
    clock[0] += 6
    progress.advance("search", "class 2: l1 9.1")
    clock[0] += 2
    progress.advance("search", "class 3: [l1] 8")
    progress.finish("search")
    progress.advance("search", "late")
    assert capsys.readouterr().err.splitlines() == [
        "search: 10 to do, 2 done before",
        "search 3/10, 42 s left: class 2: l1 9.1",  # six seconds for one, seven to go: what was done before took none
        "search 4/10, 24 s left: class 3: [l1] 8",
        "search: late",
    ]


def test_where_the_time_of_everything_is_known_that_is_said(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progressing()
    progress.start("search", 10)
    progress.time_left(200.0)
    clock[0] += 20  # it is counted down meanwhile
    progress.advance("search", "class 0")
    clock[0] += 1000
    progress.advance("search", "class 1")
    assert capsys.readouterr().err.splitlines()[1:] == [
        "search 1/10, 3 min left in all: class 0",
        "search 2/10, 0 s left in all: class 1",
    ]


def test_events_say_what_is_left_once(capsys: pytest.CaptureFixture[str]) -> None:
    events = JsonLines()
    events.start("search", 2)
    events.time_left(12.34)
    events.advance("search", "class 0")
    events.finish("search")
    said = [json.loads(line).get("left") for line in capsys.readouterr().err.splitlines()]
    assert said == [None, 12.3, None]


def test_the_last_one_promises_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progressing()
    progress.start("search", 1)
    clock[0] += 3
    progress.advance("search", "class 0: none found")
    assert capsys.readouterr().err.splitlines()[1] == "search 1/1: class 0: none found"


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progressing(quiet=True)
    progress.start("search", 1)
    progress.advance("search", "class 0")
    progress.finish("search")
    progress.notice("anything")
    assert capsys.readouterr().err == ""
