"""How long a scan will still take: what is left to search, at the speed that the searches so far have had.

What each detector is about to search it says itself (`Detector.work`), and the speed is measured before the first search (budget.py). Both are
rough: searches end early, and other programs take their share. So the seconds that were expected of what is done are compared
with those that it took, on the model, on the references and in training these apart, and what is left is corrected by that ratio.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import Forecasting, Observer

#: The measured speed counts as much as so large a share of the whole scan, once it is done, in the ratio of what took how long.
_BEFORE = 0.03
#: The ratio of everything counts as much as so large a share of the whole scan in that of one side.
_TOGETHER = 0.05
_ON_REFERENCE = re.compile(r" on reference \d+")
#: Sides.
MODEL, REFERENCES, TRAINING = "model", "references", "training"


@dataclass
class Part:
    """Searches of one kind.

    Attributes:
        detector: whose they are.
        task: how the observer's tasks begin that are of this kind, without " on reference 0".
        side: what they are done on: MODEL or REFERENCES; TRAINING of what is trained.
        seconds: that they are expected to take at the speed that was measured; infinite where nobody can tell.
        units: how many they are.
        done: how many are done.
    """

    detector: str
    task: str
    side: str
    seconds: float
    units: float
    done: float = 0.0

    @property
    def left(self) -> float:
        """Of the expected seconds those that are still to come."""
        return self.seconds * max(0.0, 1 - self.done / self.units) if self.units else 0.0


class TimeLeft:
    """What is left of some parts.

    Args:
        parts: in the order in which they are searched.
        now: the time, for tests.
    """

    def __init__(self, parts: Iterable[Part], now: Callable[[], float] = time.monotonic) -> None:
        self._parts = [p for p in parts if p.seconds > 0 and p.units > 0]
        self._total = sum(p.seconds for p in self._parts if p.seconds < math.inf)
        self._now, self._before = now, now()
        sides = {p.side for p in self._parts}
        self._took, self._expected = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)

    def start(self, task: str, done: int = 0) -> None:
        """A task begins, `done` units of which an earlier run has done: earlier detectors are over, and what stands before it on its side."""
        self._pass(task)
        part = self._part(task)
        if part is not None:
            part.done += done
            for earlier in self._parts[: self._parts.index(part)]:
                if earlier.detector != part.detector or earlier.side == part.side:
                    earlier.done = earlier.units

    def advance(self, task: str) -> None:
        """A unit of a task is done."""
        self._pass(task)
        part = self._part(task)
        if part is not None:
            unit = part.seconds / part.units
            self._expected[part.side] += unit if part.done < part.units and unit < math.inf else 0.0
            part.done += 1

    def seconds(self) -> float | None:
        """Of the rest; None where there is something to come of which nobody can tell how long it takes."""
        left = [p for p in self._parts if p.done < p.units]
        if any(p.seconds == math.inf for p in left):
            return None
        return sum(self._ratio(p.side) * p.left for p in left)

    def _pass(self, task: str) -> None:
        """The time since the last event was spent on this task."""
        now, part = self._now(), self._part(task)
        if part is not None and part.seconds < math.inf:
            self._took[part.side] += now - self._before
        self._before = now

    def _ratio(self, side: str) -> float:
        """Seconds that a side takes for each that was expected."""
        before, together = _BEFORE * self._total, _TOGETHER * self._total
        alike = {side} if side == TRAINING else self._took.keys() - {TRAINING}  # training says nothing of searches
        all_of_it = (sum(self._took[s] for s in alike) + before) / (sum(self._expected[s] for s in alike) + before)
        return (self._took[side] + together * all_of_it) / (self._expected[side] + together)

    def _part(self, task: str) -> Part | None:
        """The one that a task is of: that whose name is the longest with which it begins."""
        plain = _ON_REFERENCE.sub("", task)
        able = [p for p in self._parts if (p.side == REFERENCES) == (plain != task) and plain.startswith(p.task)]
        return max(able, key=lambda p: len(p.task), default=None)


@dataclass
class Forecast:
    """An observer that hears before each event how long the rest will take.

    Attributes:
        observer: is told everything.
        left: what is left.
    """

    observer: Forecasting
    left: TimeLeft = field(repr=False)

    def notice(self, text: str) -> None:
        """Handed on."""
        self.observer.notice(text)

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Handed on, after the time that is left."""
        self.left.start(task, done)
        self.observer.time_left(self.left.seconds())
        self.observer.start(task, total, done)

    def advance(self, task: str, detail: str = "") -> None:
        """Handed on, after the time that is left."""
        self.left.advance(task)
        self.observer.time_left(self.left.seconds())
        self.observer.advance(task, detail)

    def finish(self, task: str) -> None:
        """Handed on."""
        self.observer.finish(task)


def forecast(observer: Observer, parts: Callable[[], Iterable[Part]]) -> Observer:
    """The observer; one that wants to know how long the rest takes is told so from now on, until `no_more`.

    Where that cannot be measured it is not told, and nothing else changes.

    Args:
        observer: of a scan.
        parts: what there is to search, asked for only then: it takes a measurement.
    """
    if not isinstance(observer, Forecasting):
        return observer
    try:
        return Forecast(observer, TimeLeft(parts()))
    except OnnxspectError:
        return observer


def no_more(observer: Observer) -> None:
    """Whatever an observer was told of the time that is left, it is over."""
    if isinstance(observer, Forecasting):
        observer.time_left(None)
