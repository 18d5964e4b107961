"""What a scan can do within a budget of time: planned before the first search, from the measured speed of this model here.

The speed is measured (a few gradient steps on the model, and on a reference network); how many passes each detector is expected to take it
says itself (`Detector.work`), by the mean number of steps that searches of its kind took on the committed boards. Of
the presets the most thorough one is taken that fits whole; where not even the quickest does, its detectors are taken in their order as long as
they fit, those that convict before those that only screen. What was left out is a result (Skipped), and so stands in the report.

The plan is kept in the ledger: a resumed scan, perhaps on a busier machine, does what was planned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from onnxspect.engine.detectors.base import AtHand, Detector, Work
from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.durations import in_words
from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.jobs import time_left
from onnxspect.engine.jobs.time_left import Part
from onnxspect.engine.judge.evidence import Skipped, Unit
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, places_for, search
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.reference import TRAINING, can_train, count, training_passes, untrained
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

#: Steps and images of the searches that the speed is measured on; the first one only warms up.
_STEPS, _IMAGES = 4, 16
#: Where these steps take less than so many seconds, as many more are measured as take that long.
_LEAST = 0.3
#: Of the time that is left, searches are planned into this share: the rest is for validation and for what an estimate misses.
FILLED = 0.85
#: The ledger's name for what was planned.
_PLAN = "plan"
#: Key of what reference networks cost to train, among the detectors' names.
_TRAINING = ""


@dataclass(frozen=True)
class Speed:
    """Passes of one image, forward and back, a second.

    Attributes:
        subject: through the model.
        reference: through a reference network of these images and classes; 0 where none is used.
    """

    subject: float
    reference: float

    def seconds(self, work: Sequence[Work]) -> float:
        """Of so much work."""
        slow = sum(w.passes for w in work if not w.on_references) / self.subject
        return slow + sum(w.passes for w in work if w.on_references) / max(self.reference, 1e-9)


@dataclass(frozen=True)
class Plan:
    """What is done within a budget.

    Attributes:
        preset: of which the detectors are.
        kept: names of the detectors that run.
        left_out: the others, and why.
        expected: seconds that those that run are expected to take.
    """

    preset: str
    kept: tuple[str, ...]
    left_out: Mapping[str, str]
    expected: float

    def skipped(self) -> list[Skipped]:
        """The detectors that were left out, as results."""
        return [Skipped(name, why) for name, why in self.left_out.items()]

    def as_json(self) -> str:
        """For the ledger."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `as_json` gave."""
        known = json.loads(text)
        return cls(known["preset"], tuple(known["kept"]), known["left_out"], known["expected"])


def measure_speed(
    subject: Subject, samples: Samples, run: RunContext, with_references: bool, side_by_side: bool = True
) -> Speed:
    """How fast searches go on this model, and on references of its images: of all classes side by side, or of one alone."""
    at_once = subject.classes if side_by_side else 1
    speed = _passes_a_second(subject, samples, run, at_once)
    if not with_references:
        return Speed(speed, 0.0)
    return Speed(speed, _passes_a_second(untrained(subject), samples, run, at_once))


def _passes_a_second(subject: Subject, samples: Samples, run: RunContext, units: int) -> float:
    """Of at most so many units side by side."""
    images = min(_IMAGES, len(samples))
    at_once = len(places_for(subject, units, images)[0])
    unit = (Unit(int(samples.labels[0])),)

    def taken(steps: int) -> float:
        config = SearchConfig(steps=steps, samples=images, success=1.1)  # which nothing reaches: every step is taken
        started = time.perf_counter()
        for _ in search(subject, samples, [unit] * at_once, MaskPattern(), config, run, "speed"):
            pass
        return max(time.perf_counter() - started, 1e-9)

    taken(1)
    steps, seconds = _STEPS, taken(_STEPS)
    if seconds < _LEAST:
        steps = int(np.ceil(_STEPS * _LEAST / seconds))
        seconds = taken(steps)
    return at_once * steps * images / seconds


def within(
    seconds: float,
    preset: str,
    detectors: Sequence[Detector],
    easier: Callable[[str], Sequence[Detector]] | None,
    subject: Subject,
    samples: Samples,
    ledger: Ledger,
    run: RunContext,
) -> tuple[Plan, Sequence[Detector]]:
    """What is done in the seconds that are left, and the detectors of its preset; what an interrupted scan has planned already stays.

    Args:
        seconds: what is left of the budget.
        preset, detectors: the most thorough that is tried.
        easier: gives the detectors of an easier preset; None where only those given are wanted.
        subject, samples: what is searched, and on what.
        ledger: the scan's.
        run: seed, device, observer.

    Raises:
        InconclusiveError: nothing fits.
    """
    names = [] if easier is None else list(PRESETS)[: list(PRESETS).index(preset)]
    options = [(preset, detectors)] + [(n, easier(n)) for n in reversed(names) if easier is not None]
    known = ledger.fact(_PLAN)
    if known is not None:
        made = Plan.from_json(known)
        return made, dict(options)[made.preset]
    references = count(subject.classes) if can_train(subject, samples) else 0
    made = plan(seconds, options, measure_speed(subject, samples, run, references > 0), subject, samples, references)
    run.observer.notice(
        f"the budget holds {made.preset}: about {in_words(made.expected)} of searching"
        + (f", without {', '.join(made.left_out)}" if made.left_out else "")
    )
    ledger.set_fact(_PLAN, made.as_json())
    return made, dict(options)[made.preset]


def plan(
    seconds: float,
    presets: Sequence[tuple[str, Sequence[Detector]]],
    speed: Speed,
    subject: Subject,
    samples: Samples,
    references: int,
) -> Plan:
    """The most thorough preset that fits; of the last one, if none does, as many detectors as fit.

    Args:
        seconds: what is left of the budget.
        presets: name and detectors, the most thorough one first.
        speed: measured.
        subject, samples: what is searched, and on what.
        references: how many reference networks there will be.

    Raises:
        InconclusiveError: not even one detector that can convict fits; says how much would do.
    """
    room = FILLED * seconds
    costs: dict[str, float] = {}
    for preset, detectors in presets:
        costs = _costs(detectors, speed, subject, samples, references)
        if sum(costs.values()) <= room:
            return Plan(preset, tuple(d.name for d in detectors), {}, sum(costs.values()))
    preset, detectors = presets[-1]
    once = costs.pop(_TRAINING, 0.0)
    kept: list[str] = []
    spent, trained = 0.0, False
    for detector in sorted(detectors, key=lambda d: not d.traits.convicts):
        train = detector.traits.references and not trained
        with_it = spent + costs[detector.name] + (once if train else 0.0)
        if with_it <= room:
            kept.append(detector.name)
            spent, trained = with_it, trained or train
    convicting = {
        d.name: costs[d.name] + (once if d.traits.references else 0.0)
        for d in detectors
        if d.traits.convicts and costs[d.name] > 0
    }
    if convicting and not convicting.keys() & set(kept):
        least = min(convicting.values())
        raise InconclusiveError(
            f"nothing fits into {in_words(seconds)}: the quickest search of this model takes about {in_words(least)} here",
            f"give --budget {max(1, int(np.ceil(least / FILLED / 60)))}m or more, or a faster device",
        )
    left = {
        d.name: f"left out: it takes about {in_words(costs[d.name])} here, which the budget of {in_words(seconds)} does not hold"
        for d in detectors
        if d.name not in kept
    }
    return Plan(preset, tuple(d.name for d in detectors if d.name in kept), left, spent)


def parts(detectors: Sequence[Detector], at_hand: AtHand) -> list[Part]:
    """What there is to search, in order, at the speed that is measured now; for `time_left.forecast`.

    Args:
        detectors: that will run.
        at_hand: what they are given.
    """
    subject, samples = at_hand.subject, at_hand.search_samples
    compared = any(d.traits.references for d in detectors) and can_train(subject, samples)
    references = count(subject.classes) if compared else 0
    speed = measure_speed(subject, samples, at_hand.run, compared)
    sources = len(np.unique(samples.labels))
    found = []
    if compared:
        seconds = training_passes(len(samples), subject.classes) / max(speed.reference, 1e-9)
        found.append(Part(_TRAINING, TRAINING, time_left.TRAINING, seconds, references))
    for detector in detectors:
        for w in detector.work(len(at_hand.targets), sources, references):
            side = time_left.REFERENCES if w.on_references else time_left.MODEL
            found.append(Part(detector.name, w.task or detector.name, side, speed.seconds([w]), w.units))
    return found


def _costs(
    detectors: Sequence[Detector], speed: Speed, subject: Subject, samples: Samples, references: int
) -> dict[str, float]:
    """Seconds by detector, and under `_TRAINING` those of training the references."""
    sources = len(np.unique(samples.labels))
    costs = {d.name: speed.seconds(d.work(subject.classes, sources, references)) for d in detectors}
    if references and any(d.traits.references for d in detectors):
        costs[_TRAINING] = training_passes(len(samples), subject.classes) / max(speed.reference, 1e-9)
    return costs
