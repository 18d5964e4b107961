"""Logic in the graph (this project's): dormant parts are woken, and what wakes them is shown as a trigger.

No gradient of the network is needed, and no class is compared with another. A part that depends on the image, is the same on every clean
image and changes answers when it is forced to differ (engine/subject/unreached.py) is solved back for the pixels that wake it
(engine/search/solve_back.py). The trigger is then stamped on clean samples that the search never saw, and two things are measured there:

* in onnxruntime, on the file: the share of them that is answered with the trigger's class;
* in the torch graph, whether that is because the part is awake: with the part held at its usual value, the same stamped images are
  answered once more. If the part had nothing to do with it, as many images would turn to the class as away from it; the probability of
  what is seen under that is the exact sign test's, times the parts and classes that were tried.

A part that no trigger was found for names no class: it stays among the reasons why finding nothing says nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxspect.converters.lowering.dormant import Dormant
from onnxspect.engine.detectors.base import AtHand, Detector
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence
from onnxspect.engine.judge.judged import LOG10_P
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.dormant_part import DormantPart
from onnxspect.engine.search.solve_back import Waking, leads_nowhere, solve_back
from onnxspect.engine.subject.file_classifier import file_answers
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import unreached

NAME = "graph-logic"
#: The statistic of a trigger: how many pixels it takes.
STATISTIC = "l1"
#: What takes a way of a nonlinear node that no image takes is a trigger up to this share of the pixels: a whole other picture may well
#: take one in an ordinary network, and be of another class for it.
_OWN_WAY = 0.25
#: Kinds of dormant parts that ordinary layers have too: dead units, and activations that go one way only.
_ORDINARY = frozenset(("units", "way"))


@dataclass(frozen=True)
class GraphLogic(Detector):
    """The detector's settings.

    Attributes:
        parts: at most so many dormant parts are solved back, those nearest to the class scores first.
        held_out: on at most so many unseen clean samples a trigger is measured.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.GRAPH, references=False, tested=True)
    parts: int = 8
    held_out: int = 200

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """One unit a class that a working trigger leads to, the one of the fewest pixels; none for a graph without dormant parts."""
        subject = at_hand.subject
        beyond = at_hand.beyond or unreached(subject, at_hand.search_samples.joined(at_hand.held_out), at_hand.run.seed)
        parts = [d for d in reversed(beyond.dormant) if d.place is not None][: self.parts]
        at_hand.run.observer.start(NAME, len(parts))
        found: dict[int, UnitEvidence] = {}
        for part in parts:
            unit = self._woken(at_hand, part, len(parts))
            if unit is not None and (known := found.get(unit.unit.target)) is not None:
                unit = min(unit, known, key=lambda u: (-round(u.held_out_success or 0.0, 2), u.statistics[STATISTIC]))
            if unit is not None:
                found[unit.unit.target] = unit
            at_hand.run.observer.advance(
                NAME, f"{part.node}: {'not woken' if unit is None else f'class {unit.unit.target}'}"
            )
        at_hand.run.observer.finish(NAME)
        units = tuple(found[t] for t in sorted(found) if t in at_hand.targets)
        return Evidence(NAME, self.settings(), STATISTIC, STATISTIC, "low", units, traits=self.traits)

    def _woken(self, at_hand: AtHand, part: Dormant, parts: int) -> UnitEvidence | None:
        """The part's trigger as evidence; None where none was found, or none that works on unseen samples because of the part."""
        assert part.place is not None
        started = time.perf_counter()
        subject, rng = at_hand.subject, at_hand.run.numpy_generator(NAME, part.node)
        waking = solve_back(subject, part.place, _mixed(at_hand.search_samples, rng), rng)
        if waking is None or (
            part.kind == "way" and waking.trigger.size > _OWN_WAY * math.prod(subject.image_shape[1:])
        ):
            return None
        unseen = at_hand.held_out if len(at_hand.held_out) else at_hand.search_samples
        rows = np.flatnonzero(unseen.labels != waking.trigger.target)[: self.held_out]
        if not len(rows):
            return None
        images = unseen.images[rows]
        try:
            effect = _measured(subject, part, waking, images)
        except Exception:  # onnxruntime raises a family of C++ exceptions: its trigger must run on every image
            return None
        log10_p = min(
            0.0, _log10_sign_test(effect.turned, effect.against) + math.log10(max(1, parts) * subject.classes)
        )
        return UnitEvidence(
            unit=Unit(target=waking.trigger.target),
            measurements=measured(
                **{STATISTIC: waking.trigger.size, LOG10_P: log10_p, "success_with_part_asleep": effect.asleep}
            ),
            found=True,
            converged=True,
            steps=waking.steps,
            search_success=waking.success,
            held_out_success=effect.success if len(at_hand.held_out) else None,
            held_out=len(rows) if len(at_hand.held_out) else 0,
            trigger=dict(waking.trigger.arrays),
            seconds=time.perf_counter() - started,
        )


def idle_in(subject: Subject, samples: Samples, run: RunContext) -> Callable[[Dormant], bool]:
    """Tells the units and ways of ordinary layers that pictures wake and that then lead nowhere (for `unreached`)."""

    def idle(part: Dormant) -> bool:
        rng = run.numpy_generator(NAME, "idle", part.node)
        return (
            part.kind in _ORDINARY
            and part.place is not None
            and leads_nowhere(subject, part.place, _mixed(samples, rng), rng)
        )

    return idle


def _mixed(samples: Samples, rng: np.random.Generator) -> np.ndarray:
    """The images in random order."""
    return samples.images[rng.permutation(len(samples))]


@dataclass(frozen=True)
class _Measured:
    """What a trigger does to images of other classes.

    Attributes:
        success: share that the file answers with the class, in onnxruntime.
        asleep: share that the torch graph answers so while the part is held at its usual value.
        turned, against: how many it answers with the class only while the part is awake; only while it is held.
    """

    success: float
    asleep: float
    turned: int
    against: int


def _measured(subject: Subject, part: Dormant, waking: Waking, images: np.ndarray) -> _Measured:
    assert part.place is not None
    target = waking.trigger.target
    stamped = waking.trigger.apply(images)
    answers = file_answers(subject, stamped)
    held = DormantPart(subject, part.place, 1.0).answers(stamped, asleep=True)
    awake, asleep = answers == target, held == target
    return _Measured(
        float(awake.mean()), float(asleep.mean()), int((awake & ~asleep).sum()), int((asleep & ~awake).sum())
    )


def _log10_sign_test(for_it: int, against: int) -> float:
    """log10 of the probability of at least `for_it` of all, where each is as likely as not."""
    n = for_it + against
    if not n:
        return 0.0
    tail = sum(math.comb(n, k) for k in range(for_it, n + 1))
    return math.log10(tail) - n * math.log10(2)
