"""How long a patch will take, said before it starts, and the clock that keeps it to a budget.

The speed is measured on the model (jobs/budget.py). How many passes a method takes is known of those that train: epochs times images, in
each of its rounds and schedules, of which one round of the first is the least and all of them are the most. What trains nothing is counted
as a number of passes over the clean samples. A training is stopped between two epochs, a new search between two triggers; what
has begun on the graph is not. What a method has finished by then is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnxspect.engine.durations import in_words
from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.jobs.budget import Speed
from onnxspect.engine.mitigation.method import Method, PatchInput
from onnxspect.engine.mitigation.remainder import Searches, compared, images_of
from onnxspect.engine.mitigation.training import Retraining
from onnxspect.engine.run import Observer

#: Passes, forward and back, that an image of a training epoch costs: the student's, the teacher's answer, and stamping with moving triggers.
_A_TRAINED_IMAGE = 2.5
#: Passes over the clean samples, forward alone (a third of a pass), that a method takes which trains nothing.
_EVALUATIONS = 40


class BudgetSpentError(InconclusiveError):
    """The time that the user gave is over."""


@dataclass(frozen=True)
class Expected:
    """Seconds that something is expected to take: at least, and at most."""

    least: float
    most: float


def expected(method: Method, given: PatchInput, speed: Speed) -> Expected:
    """How long a method takes, its new search not counted."""
    planned = getattr(method, "planned", None)
    training = getattr(method, "training", Retraining())
    if not method.trains or (training is None and planned is None):
        seconds = _EVALUATIONS * len(given.clean) / 3 / speed.subject
        return Expected(seconds, seconds)
    plans = planned(given) if planned is not None else [training]
    each = [p.epochs * min(p.images, len(given.fit)) * _A_TRAINED_IMAGE / speed.subject for p in plans]
    variants, searches = getattr(method, "variants", 0), getattr(method, "search", None)  # searches before the training
    before = variants * of_new_search(given, speed, searches) if isinstance(searches, Searches) else 0.0
    return Expected(before + each[0], before + getattr(method, "rounds", 1) * sum(each))


def of_new_search(given: PatchInput, speed: Speed, searches: Searches) -> float:
    """Seconds of searching a patched file for what is left."""
    targets = len({t.target for t in given.triggers})
    return targets * searches.masks.steps * images_of(searches.masks, given.subject, given.fit) / speed.subject


def of_size_limits(given: PatchInput, speed: Speed, searches: Searches) -> float:
    """Seconds of searching classes without an attack, which says how large a trigger may be."""
    classes = compared(given.triggers, given.subject.classes)
    return classes * searches.masks.steps * images_of(searches.masks, given.subject, given.fit) / speed.subject


def announced(methods: Sequence[Method], given: PatchInput, speed: Speed, searches: Searches) -> str:
    """What is said before a patch starts."""
    times = [expected(m, given, speed) for m in methods]
    if len(methods) == 1:
        return f"{methods[0].name} takes about {_span(times[0].least, times[0].most)} here"
    again, before = of_new_search(given, speed, searches), of_size_limits(given, speed, searches)
    names = ", ".join(m.name for m in methods)
    return (
        f"{names} are tried in turn, up to the first that leaves nothing to wish for: about {in_words(before + times[0].least + again)} if the "
        f"first does, {in_words(at_most(methods, given, speed, searches))} at most"
    )


def at_most(methods: Sequence[Method], given: PatchInput, speed: Speed, searches: Searches) -> float:
    """Seconds that all methods take, each to its end and with a new search of what it leaves."""
    again = of_new_search(given, speed, searches)
    return of_size_limits(given, speed, searches) + sum(
        expected(m, given, speed).most + (again if m.mends else 0.0) for m in methods
    )


def _span(least: float, most: float) -> str:
    low, high = in_words(least), in_words(most)
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Clock:
    """What is left of a budget.

    Attributes:
        seconds: of the budget.
        speed: measured.
        searches: of the new search.
        started: when it began to run.
        before: seconds that opening and measuring took.
        now: the time, for tests.
    """

    seconds: float
    speed: Speed
    searches: Searches
    started: float
    before: float = 0.0
    now: Callable[[], float] = field(default=time.monotonic, repr=False)

    @property
    def left(self) -> float:
        """Seconds that are left; negative where it has run out."""
        return self.seconds - (self.now() - self.started)

    def left_out(self, method: Method, given: PatchInput) -> str:
        """Why a method is not begun; "" where it may be."""
        least = expected(method, given, self.speed).least
        if least <= self.left:
            return ""
        return (
            f"left out: it takes about {in_words(least)} here, and {in_words(max(self.left, 0.0))} of the budget of "
            f"{in_words(self.seconds)} are left"
        )

    def holds_size_limits(self, methods: Sequence[Method], given: PatchInput) -> bool:
        """Whether the searches for the size limits fit into what is left, with a method and the new search that asks for them."""
        least = min((expected(m, given, self.speed).least for m in methods if m.mends), default=math.inf)
        needed = of_size_limits(given, self.speed, self.searches) + least
        return needed + of_new_search(given, self.speed, self.searches) <= self.left

    def enough(self, methods: Sequence[Method], given: PatchInput) -> str:
        """A budget that holds all methods, as --budget takes it: what was used before the first, and the most that they take."""
        return f"{math.ceil((self.before + at_most(methods, given, self.speed, self.searches)) / 60)}m"

    def holds_search(self, given: PatchInput) -> bool:
        """Whether a new search fits into what is left."""
        return of_new_search(given, self.speed, self.searches) <= self.left


class Timed:
    """An observer that stops what it observes when the budget is spent.

    Args:
        observer: is told everything.
        clock: the budget's.
    """

    def __init__(self, observer: Observer, clock: Clock) -> None:
        self._observer, self._clock = observer, clock

    def notice(self, text: str) -> None:
        """Handed on."""
        self._observer.notice(text)

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Handed on."""
        self._observer.start(task, total, done)

    def advance(self, task: str, detail: str = "") -> None:
        """Handed on.

        Raises:
            InconclusiveError: the budget is spent.
        """
        self._observer.advance(task, detail)
        if self._clock.left < 0:
            self._observer.finish(task)
            raise BudgetSpentError(
                f"stopped: the budget of {in_words(self._clock.seconds)} is spent",
                "give --budget more, or a faster device",
            )

    def finish(self, task: str) -> None:
        """Handed on."""
        self._observer.finish(task)
