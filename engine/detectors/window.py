"""Windows: how near an opaque patch of a given size brings every image to a class, wherever it is put.

The commonest trigger is a small patch that replaces what is there. Searched for by a mask that is made small (Neural Cleanse), it is one
minimum of many; here every place of the picture is tried with a window of a tenth of its side, and only what fills it is free. What counts is the
cross-entropy to the class that is left in the best window, in nats. A clean network of whose picture a hundredth is replaced keeps its answer;
one that was taught to obey a patch does not, nor one that obeys a pattern of which a window holds enough (checkerboards, some warps). Blends,
sinusoids and reflections it does not see.

A sieve keeps it cheap: all windows on a few images for a few steps, the best of them on more, then the neighbours of the best few. It takes fewer
passes a class than a search by a mask, and as many for any picture, since windows grow with it.

    value = left + OFFSET

with `left` the mean cross-entropy on the images of the last stage, compared with the other classes and with reference networks on a logarithmic
scale. Below `OFFSET` nats nearly all images are there, and less of it says no more. What reference networks leave counts as at most `FAR`: beyond
that a class is as far away as can be told, and how far differs between networks more than between classes.

Of the classes that take far less than on the references the patch is then fitted: windows of other sides are tried around, and the patch has the
first side at which it works, or the next one where that gains clearly more than the one after it. So what is shown of a patch has its place and size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from onnxspect.engine.detectors.base import (
    AtHand,
    Detector,
    Work,
    against_references,
    compared,
    on_all_references,
    one_class,
    targets_and_sources,
)
from onnxspect.engine.detectors.held_out import concerned, share_led, transferred
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.thresholds import HELD_OUT_SUCCESS
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.search.search import SearchConfig, choose_images, search
from onnxspect.engine.search.windows import FillWindows, Place, around, everywhere, shortfall, stamped
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger

NAME = "window"
#: Name of its statistic.
LEFT = "left"
#: Nats: added to what is left, below which a difference says nothing; and what a reference network leaves at most. History: docs/decisions.md.
OFFSET, FAR = 0.1, 3.0
#: How much classes differ by nature, in standard deviations of log(left + OFFSET): as much on nine clean networks of ten, or less. Some class of
#: every clean network is nearer than the others, so they are taken to differ by at least that, beside references too. History: docs/decisions.md.
NATURE = 0.41
#: Bytes of pictures with windows filled that are searched together, at most: what a search keeps is a few times that.
AT_ONCE = 2**28
#: Of a picture about so many windows are half a window apart, whatever its size.
_WINDOWS = 200


@dataclass(frozen=True)
class Stage:
    """One step of the sieve.

    Attributes:
        images: that windows are searched on.
        steps: gradient steps.
        rate: their length.
    """

    images: int
    steps: int
    rate: float

    @property
    def config(self) -> SearchConfig:
        """For the one search: any state counts, the best is kept, and it takes all its steps."""
        return SearchConfig(self.steps, self.images, self.rate, success=0.0, settle=self.steps + 1)


#: All windows; the best of them; the neighbours of the best few; the best one.
SIEVE = (Stage(4, 6, 1.0), Stage(8, 8, 0.7), Stage(12, 10, 0.7), Stage(24, 10, 0.5))
#: After the first stage one in so many windows is kept, and at least so many; after the second, so many and their neighbours.
KEPT, FEWEST_KEPT, FOREMOST = 8, 16, 3
#: A class that takes less than this share of what it takes on the references is fitted, of so many classes at most.
FITTED_BELOW, MOST_FITTED = 0.7, 4
#: How a patch of one side is fitted, and the largest side as a multiple of the window's.
FIT, LARGEST = Stage(16, 14, 0.7), 2.5
#: A patch works on so many of the images, and a side pays where it gains more than so many times what the next one does. History:
#: docs/decisions.md.
WORKS, ELBOW = 0.8, 1.3


@dataclass(frozen=True)
class Window(Detector):
    """The detector's settings.

    Attributes:
        share: side of a window, as a share of the picture's shorter side.
        held_out: on at most so many unseen clean samples a patch is validated.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.REPLACED)
    share: float = 0.11
    held_out: int = 500

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """The sieve of every class, on every network."""
        counts = (_WINDOWS, max(_WINDOWS // KEPT, FEWEST_KEPT), 9 * FOREMOST, 1)
        own = Work(classes, sum(n * s.steps * s.images for n, s in zip(counts, SIEVE, strict=True)), 1, task=NAME)
        return (*on_all_references([own], references), own)

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Sieve the windows of all classes, fit the patches of those that stand out, and try each on samples that no search saw."""
        targets, _ = targets_and_sources(at_hand)
        if not targets:
            return one_class(NAME)
        units = [Unit(t) for t in targets]
        side = window_side(at_hand.subject.image_shape[1:], self.share)
        baselines = [
            self._sieved(f"{NAME} on reference {i}", subject, at_hand, at_hand.reference_ledger, units, side, 0)
            for i, subject in enumerate(at_hand.references)
        ]
        if at_hand.references_alone:
            found = baselines[0]
        else:
            found = self._sieved(NAME, at_hand.subject, at_hand, at_hand.ledger, units, side, self.held_out)
        if baselines:
            found = against_references(found, [_as_far_as_can_be_told(units) for units in baselines], LEFT)
            if not at_hand.references_alone:
                found = self._fitted(at_hand, found, side)
            found = [transferred(u, at_hand.references, at_hand.held_out, self.held_out) for u in found]
        views = compared([View(LEFT, noise=NATURE)], bool(baselines), NATURE)
        settings = self.settings() | {"side": side, "references": len(baselines)}
        return Evidence(NAME, settings, LEFT, LEFT, "low", tuple(found), tuple(views), self.traits, silence="")

    def _sieved(
        self,
        name: str,
        subject: Subject,
        at_hand: AtHand,
        ledger: Ledger | None,
        units: Sequence[Unit],
        side: int,
        held_out: int,
    ) -> list[UnitEvidence]:
        """The best window of every class, of those that the ledger lacks searched now."""
        return _kept(name, at_hand, ledger, units, lambda unit: self._best(subject, at_hand, unit, side, held_out))

    def _best(self, subject: Subject, at_hand: AtHand, unit: Unit, side: int, held_out: int) -> UnitEvidence:
        """A class's best window: three stages of places, and the last one for its content alone."""
        size = subject.image_shape[1:]
        wide, fewer, near, one = SIEVE
        started = time.perf_counter()
        tried = _filled(subject, at_hand, unit, FillWindows(side, everywhere(size, side)), wide)
        tried = _filled(subject, at_hand, unit, tried.best(max(len(tried.places) // KEPT, FEWEST_KEPT)), fewer)
        ahead = around(tried.best(FOREMOST).places, size, side, _apart(side))
        tried = _filled(subject, at_hand, unit, FillWindows(side, ahead), near)
        tried = _filled(subject, at_hand, unit, tried.best(1), one)
        steps = sum(stage.steps for stage in SIEVE)
        return _as_evidence(subject, at_hand, unit, tried, held_out, steps, time.perf_counter() - started)

    def _fitted(self, at_hand: AtHand, found: Sequence[UnitEvidence], side: int) -> list[UnitEvidence]:
        """The units, with patches of their own size of those that stand out from the references."""
        ratio = {u.unit: m.relative for u in found if (m := u.measurement(LEFT)) and m.relative is not None}
        chosen = sorted((u for u in ratio if ratio[u] < FITTED_BELOW), key=lambda u: ratio[u])[:MOST_FITTED]
        placed = {u.unit: _place(u.trigger["mask"]) for u in found if u.unit in chosen}
        fitted = _kept(
            f"{NAME} fitted", at_hand, at_hand.ledger, chosen, lambda unit: self._fit(at_hand, unit, side, placed[unit])
        )
        better = {u.unit: u for u in fitted}
        return [_shown(u, better.get(u.unit)) for u in found]

    def _fit(self, at_hand: AtHand, unit: Unit, side: int, place: Place) -> UnitEvidence:
        """The patch near a window whose side is large enough, and no larger than pays."""
        started = time.perf_counter()
        size, apart = at_hand.subject.image_shape[1:], _apart(side)
        largest = min(round(LARGEST * side), *size)
        best: list[_Tried] = []
        before = side
        for k in range(max(2, side - apart), largest + 1, apart):
            middle = (place[0] + (before - k) // 2, place[1] + (before - k) // 2)
            aim = FillWindows(k, around([middle], size, k, apart, 2), shortfall)
            best.append(_filled(at_hand.subject, at_hand, unit, aim, FIT).only_best())
            place, before = best[-1].places[0], k
            if chosen_side([b.works for b in best]) < len(best) - 2:
                break
        found = best[chosen_side([b.works for b in best])]
        taken, seconds = FIT.steps * len(best), time.perf_counter() - started
        return _as_evidence(at_hand.subject, at_hand, unit, found, self.held_out, taken, seconds)


def window_side(size: Sequence[int], share: float) -> int:
    """Side of a window, in pixels of pictures of that size (height, width)."""
    return max(min(2, *size), int(share * min(size)))


def _apart(side: int) -> int:
    """Pixels between neighbours: a quarter of a window."""
    return max(1, (side + 1) // 4)


def chosen_side(measured_at: Sequence[tuple[float, float]]) -> int:
    """Which of several sides, from small to large, a patch has.

    The first at which it works (`WORKS`), or the next one where that gains more than `ELBOW` times what the one after it gains. Where none
    works, the one that works on most.

    Args:
        measured_at: of each side the share of the images that reach the target, and the mean margin by which they do.
    """
    able = [i for i, (success, _) in enumerate(measured_at) if success >= WORKS]
    if not able:
        return max(range(len(measured_at)), key=lambda i: measured_at[i])
    first = able[0]
    margins = [m for _, m in measured_at[first : first + 3]]
    gains = np.diff(np.maximum.accumulate(margins))
    return first + 1 if len(gains) == 2 and gains[0] > ELBOW * gains[1] and gains[0] > 0 else first


@dataclass(frozen=True)
class _Tried:
    """Windows after a stage, in the order of their places.

    Attributes:
        objective: that they were searched by: their side and places.
        content: free variables ``(place, channels, side, side)``.
        loss, success: on the stage's images ``(place,)``.
    """

    objective: FillWindows
    content: np.ndarray
    loss: np.ndarray
    success: np.ndarray

    @property
    def places(self) -> tuple[Place, ...]:
        """Where they are."""
        return self.objective.places

    def best(self, n: int) -> FillWindows:
        """The n with the least loss, to go on from where they are."""
        rows = np.sort(np.argsort(self.loss, kind="stable")[:n])
        places = tuple(self.places[i] for i in rows)
        return replace(self.objective, places=places, begin=self.content[rows])

    @property
    def works(self) -> tuple[float, float]:
        """(share of the images that reach the target, mean margin) of the first: for windows searched by `shortfall`."""
        return float(self.success[0]), -float(self.loss[0])

    def only_best(self) -> _Tried:
        """The one with the least loss."""
        row = int(np.argmin(self.loss))
        kept = slice(row, row + 1)
        return _Tried(self.best(1), self.content[kept], self.loss[kept], self.success[kept])


def _filled(subject: Subject, at_hand: AtHand, unit: Unit, objective: FillWindows, stage: Stage) -> _Tried:
    """Windows searched for one stage, and what is left in each; as many together as `AT_ONCE` holds."""
    one = 4 * int(np.prod(subject.image_shape)) * stage.images
    parts = objective.parts(max(1, AT_ONCE // one))
    tried = [_together(subject, at_hand, unit, part, stage) for part in parts]
    if len(tried) == 1:
        return tried[0]
    content, loss, success = (np.concatenate([getattr(t, n) for t in tried]) for n in ("content", "loss", "success"))
    return _Tried(objective, content, loss, success)


def _together(subject: Subject, at_hand: AtHand, unit: Unit, objective: FillWindows, stage: Stage) -> _Tried:
    """Windows that are searched in the same steps."""
    samples, run = at_hand.search_samples, at_hand.run
    [[result]] = search(subject, samples, [(unit,)], objective, stage.config, run, NAME)
    rows = choose_images(unit, samples, stage.images, run, NAME)
    images = torch.from_numpy(samples.images[rows])[None].to(subject.device)
    state = {"content": torch.from_numpy(result.trigger["content"])[None].to(subject.device)}
    with torch.no_grad():
        aim = torch.tensor([unit.target], device=subject.device)
        loss, success = objective.each(subject, state, objective.constants(subject, images), images, aim)
    left, reached = (v[0].cpu().numpy().astype(np.float64) for v in (loss, success))
    return _Tried(objective, result.trigger["content"], np.where(np.isfinite(left), left, np.inf), reached)


def _as_evidence(
    subject: Subject, at_hand: AtHand, unit: Unit, tried: _Tried, held_out: int, steps: int, seconds: float
) -> UnitEvidence:
    """The best of these windows, tried on unseen samples; none where the network has no finite answer to any."""
    best = tried.only_best()
    finite = bool(np.isfinite(best.loss[0]))
    arrays = stamped(best.places[0], best.content[0], subject.image_shape[1:])
    rows = concerned(unit, at_hand.held_out, held_out)
    success = (
        share_led(subject, Trigger.kept(unit.target, arrays), at_hand.held_out.images[rows]) if len(rows) else None
    )
    return UnitEvidence(
        unit=unit,
        measurements=measured(**{LEFT: float(best.loss[0]) + OFFSET}) if finite else (),
        found=finite,
        converged=finite,  # it takes a number of steps and not more: there is no rule to end by
        steps=steps,
        search_success=float(best.success[0]),
        held_out_success=success,
        held_out=len(rows),
        trigger=arrays,
        seconds=seconds,
    )


def _as_far_as_can_be_told(units: Sequence[UnitEvidence]) -> list[UnitEvidence]:
    """The units of a reference network, with no more than FAR left."""
    return [replace(u, measurements=measured(**{LEFT: min(u.value(LEFT), FAR + OFFSET)})) for u in units]


def _place(mask: np.ndarray) -> Place:
    """(top, left) of the window that a mask ``(1, height, width)`` is of."""
    _, rows, columns = np.nonzero(mask)
    return int(rows.min()), int(columns.min())


def _shown(unit: UnitEvidence, fitted: UnitEvidence | None) -> UnitEvidence:
    """The unit, with the patch that was fitted in the place of the window where that works as well on unseen samples."""
    if fitted is None or (fitted.held_out_success or 0.0) < min(unit.held_out_success or 0.0, HELD_OUT_SUCCESS):
        return unit
    return replace(
        unit,
        trigger=fitted.trigger,
        search_success=fitted.search_success,
        held_out_success=fitted.held_out_success,
        steps=unit.steps + fitted.steps,
        seconds=unit.seconds + fitted.seconds,
    )


def _kept(
    name: str,
    at_hand: AtHand,
    ledger: Ledger | None,
    units: Sequence[Unit],
    make: Callable[[Unit], UnitEvidence],
) -> list[UnitEvidence]:
    """What `make` finds of each unit, made of those that the ledger lacks and committed one by one."""
    done = ledger.units(name) if ledger is not None else {}
    at_hand.run.observer.start(name, len(units), sum(u.key in done for u in units))
    for unit in units:
        if unit.key not in done:
            done[unit.key] = make(unit)
            if ledger is not None:
                ledger.commit(name, [done[unit.key]])
            at_hand.run.observer.advance(name, f"class {unit.target}: {LEFT} {done[unit.key].value(LEFT):.3g}")
    at_hand.run.observer.finish(name)
    return [done[u.key] for u in units]
