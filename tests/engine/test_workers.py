"""Pieces of work side by side: each once, in order, with its share of torch's threads; and an end that waits for nobody."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from onnxspect.engine.workers import in_order


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    """Whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


@pytest.mark.parametrize("places", [1, 2, 3, 8])
def test_every_piece_is_done_once_and_in_order(places: int) -> None:
    begun: list[int] = []

    def work(place: int, piece: int) -> tuple[int, int]:
        begun.append(piece)
        time.sleep(0.002 * ((7 * piece) % 5))
        return piece, place

    found = list(in_order(work, range(20), range(places)))
    assert [piece for piece, _ in found] == list(range(20))
    assert sorted(begun) == list(range(20))
    assert {place for _, place in found} <= set(range(places))


def test_as_many_at_a_time_as_there_are_places() -> None:
    meeting = threading.Barrier(3, timeout=10)  # which nobody passes alone
    assert list(in_order(lambda place, _: (meeting.wait(), place)[1] >= 0, range(3), range(3))) == [True] * 3
    assert set(in_order(lambda _, __: threading.current_thread(), range(2), [None])) == {threading.main_thread()}


def test_each_has_its_share_of_the_cores() -> None:
    assert set(in_order(lambda _, __: torch.get_num_threads(), range(6), range(2), threads=2)) == {2}
    assert set(in_order(lambda _, __: torch.get_num_threads(), range(6), range(1), threads=2)) == {4}


def test_what_the_caller_has_set_holds_there_too() -> None:
    kept: contextvars.ContextVar[str] = contextvars.ContextVar("kept", default="")
    kept.set("here")
    assert set(in_order(lambda _, __: kept.get(), range(4), range(2))) == {"here"}


def test_the_first_error_in_order_ends_it_and_begins_no_more() -> None:
    begun: list[int] = []

    def work(_: int, piece: int) -> int:
        begun.append(piece)
        time.sleep(0.01)
        if piece in (2, 3):
            raise ValueError(f"piece {piece}")
        return piece

    pieces = in_order(work, range(100), range(2))
    assert [next(pieces), next(pieces)] == [0, 1]
    with pytest.raises(ValueError, match="piece 2"):
        next(pieces)
    time.sleep(0.05)
    assert len(begun) < 10


def test_whoever_stops_asking_waits_for_nobody() -> None:
    end = threading.Event()
    begun: list[int] = []

    def work(_: int, piece: int) -> int:
        begun.append(piece)
        if piece:
            end.wait(20)
        return piece

    pieces = in_order(work, range(50), range(2))
    assert next(pieces) == 0
    started = time.monotonic()
    pieces.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5
    end.set()
    time.sleep(0.05)
    assert len(begun) <= 4
