"""Pieces of work done side by side by threads, each with torch's threads for its own share of the cores.

torch spreads one operation over the cores, and the small operations of a search do not keep them busy: on two cores searches side by side take
a fifth less than one after the other (benchmarks/side_by_side.py). What a piece gives depends on the piece alone, so that
how many run at a time changes when results come, and not what they are.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Place = TypeVar("Place")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Place, Piece], Result], pieces: Sequence[Piece], places: Sequence[Place], threads: int = 0
) -> Iterator[Result]:
    """`work` of every piece, as many at a time as there are places; results in the order of the pieces.

    With one place it is done as results are asked for, in the calling thread. With several, a place is one thread's for as long as
    it lasts, and whoever stops asking, or an error, keeps pieces from being begun; those under way end, and nobody waits for them.

    Args:
        work: of a place and a piece; it may not change what other pieces read.
        pieces: of work.
        places: what a thread works with, such as a device.
        threads: torch's, in each of several places; 0 leaves the process's number.

    Raises:
        Exception: the first that `work` raises, in the order of the pieces.
    """
    if len(places) == 1:
        for piece in pieces:
            yield work(places[0], piece)
        return
    before = torch.get_num_threads()
    free: queue.SimpleQueue[Place] = queue.SimpleQueue()
    for place in places:
        free.put(place)
    here = threading.local()

    def begin() -> None:
        here.place = free.get_nowait()
        if threads:
            torch.set_num_threads(threads)  # of the calling thread, and of those that begin later

    pool = ThreadPoolExecutor(len(places), "onnxspect-work", begin)
    try:
        for done in [
            pool.submit(contextvars.copy_context().run, lambda piece=piece: work(here.place, piece)) for piece in pieces
        ]:
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(before)
