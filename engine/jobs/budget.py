"""What a scan can do within a budget of time: planned before the first search, from the measured speed of this model here.

The speed is measured (a few gradient steps on the model, and on a reference network); how many passes each detector is expected to take it
says itself (`Detector.work`), by the mean number of steps that searches of its kind took on the committed boards. Of
the presets the most thorough one is taken that fits whole; where not even the quickest does, its detectors are taken in their order as long as
they fit, those that convict before those that only screen. What was left out is a result (Skipped), and so stands in the report.

The plan is kept in the ledger: a resumed scan, perhaps on a busier machine, does what was planned.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from onnxspect.engine.detectors.base import AtHand, Detector, Work
from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.durations import in_words
from onnxspect.engine.errors import InconclusiveError, OnnxspectError
from onnxspect.engine.jobs import time_left
from onnxspect.engine.jobs.time_left import Part
from onnxspect.engine.judge.evidence import Skipped, Unit
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, places_for, search, units_at_once
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
    """Of at most so many units side by side, in batches as searches have them.

    Raises:
        OnnxspectError: no gradient reaches the pixels, so nothing can be searched for in them.
    """
    images = min(_IMAGES, len(samples))
    places = len(places_for(subject, units, images)[0])
    together = max(1, min(units // places, units_at_once(subject, len(samples), images)))
    batch = tuple(Unit(int(samples.labels[0]), start=i) for i in range(together))

    def taken(steps: int) -> float:
        config = SearchConfig(steps=steps, samples=images, success=1.1)  # which nothing reaches: every step is taken
        started = time.perf_counter()
        try:
            for _ in search(subject, samples, [batch] * places, MaskPattern(), config, run, "speed"):
                pass
        except RuntimeError as error:
            raise OnnxspectError(
                f"{subject.name}: how fast searches go cannot be measured: {str(error).splitlines()[0]:.200}",
                "leave --budget away",
            ) from error
        return max(time.perf_counter() - started, 1e-9)

    taken(1)
    steps, seconds = _STEPS, taken(_STEPS)
    if seconds < _LEAST:
        steps = int(np.ceil(_STEPS * _LEAST / seconds))
        seconds = taken(steps)
    return places * together * steps * images / seconds


def within(
    seconds: float,
    preset: str,
    detectors: Sequence[Detector],
    easier: Callable[[str], Sequence[Detector]] | None,
    subject: Subject,
    samples: Samples,
    ledger: Ledger,
    run: RunContext,
    used: float = 0.0,
) -> tuple[Plan, Sequence[Detector]]:
    """What is done in the seconds that are left, and the detectors of its preset; what an interrupted scan has planned already stays.

    Args:
        seconds: what is left of the budget.
        preset, detectors: the most thorough that is tried.
        easier: gives the detectors of an easier preset; None where only those given are wanted.
        subject, samples: what is searched, and on what.
        ledger: the scan's.
        run: seed, device, observer.
        used: seconds of the budget that are over.

    Raises:
        InconclusiveError: nothing fits.
    """
    options = [(preset, detectors)]
    if easier is not None:
        for name in reversed(list(PRESETS)[: list(PRESETS).index(preset)]):
            with contextlib.suppress(OnnxspectError):  # what was asked for besides is not in that preset
                options.append((name, easier(name)))
    known = ledger.fact(_PLAN)
    if known is not None:
        made = Plan.from_json(known)
        return made, dict(options)[made.preset]
    references = count(subject.classes) if can_train(subject, samples) else 0
    speed = measure_speed(subject, samples, run, references > 0)
    made = plan(seconds, options, speed, subject, samples, references, used)
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
    used: float = 0.0,
) -> Plan:
    """The most thorough preset that fits; of the last one, if none does, as many detectors as fit.

    Args:
        seconds: what is left of the budget.
        presets: name and detectors, the most thorough one first.
        speed: measured.
        subject, samples: what is searched, and on what.
        references: how many reference networks there will be.
        used: seconds of the budget that are over.

    Raises:
        InconclusiveError: not even one detector that can convict fits; says how much would do.
    """
    room = FILLED * seconds

    def costs(some: Sequence[Detector]) -> dict[str, float]:
        return _costs(some, speed, subject, samples, references)

    for preset, detectors in presets:
        whole = sum(costs(detectors).values())
        if whole <= room:
            return Plan(preset, tuple(d.name for d in detectors), {}, whole)
    preset, detectors = presets[-1]
    kept: list[Detector] = []
    spent = 0.0
    for detector in sorted(detectors, key=lambda d: not d.traits.convicts):
        with_it = sum(costs([*kept, detector]).values())
        if with_it <= room:
            kept.append(detector)
            spent = with_it
    alone = {d.name: costs([d]) for d in detectors}
    convicting = {
        d.name: sum(alone[d.name].values()) for d in detectors if d.traits.convicts and alone[d.name][d.name] > 0
    }
    names = [d.name for d in kept]
    if convicting and not convicting.keys() & set(names):
        least = min(convicting.values())
        raise InconclusiveError(
            f"nothing fits into the {in_words(max(0.0, seconds))} that are left of the budget: the quickest search of this model takes about "
            f"{in_words(least)} here",
            f"give --budget {max(1, int(np.ceil((used + least / FILLED) / 60)))}m or more, or a faster device",
        )
    left = {
        d.name: f"left out: it takes about {in_words(alone[d.name][d.name])} here, which the budget of {in_words(used + seconds)} does not hold"
        for d in detectors
        if d.name not in names
    }
    return Plan(preset, tuple(d.name for d in detectors if d.name in names), left, spent)


def parts(detectors: Sequence[Detector], at_hand: AtHand, references: int | None = None) -> list[Part]:
    """What there is to search, in order, at the speed that is measured now; for `time_left.forecast`.

    Args:
        detectors: that will run.
        at_hand: what they are given.
        references: how many reference networks there are; None where they are yet to be trained.

    Raises:
        OnnxspectError: the speed cannot be measured.
    """
    subject, samples = at_hand.subject, at_hand.search_samples
    compared = any(d.traits.references for d in detectors) and can_train(subject, samples)
    trained = references is not None
    networks = references if references is not None else count(subject.classes) if compared else 0
    planned = {d.name: w for d, w in works(detectors, len(at_hand.targets), len(np.unique(samples.labels)), networks)}
    speed = measure_speed(subject, samples, at_hand.run, networks > 0) if any(planned.values()) else Speed(1.0, 1.0)
    found = []
    if compared and not trained:
        found.append(Part(_TRAINING, TRAINING, time_left.TRAINING, _of_training(speed, subject, samples), networks))
    for name, work in planned.items():
        for w in work:
            side = time_left.REFERENCES if w.on_references else time_left.MODEL
            found.append(Part(name, w.task or name, side, speed.seconds([w]), w.units))
        if not work:
            found.append(Part(name, name, time_left.MODEL, math.inf, 1))
    return found


def works(
    detectors: Sequence[Detector], classes: int, sources: int, references: int
) -> list[tuple[Detector, list[Work]]]:
    """What each detector is to search; what two of them share (how pairs are scouted) is the first one's."""
    known: set[tuple[str, bool]] = set()
    found = []
    for detector in detectors:
        own = [w for w in detector.work(classes, sources, references) if (w.task, w.on_references) not in known]
        known |= {(w.task, w.on_references) for w in own if w.task}
        found.append((detector, own))
    return found


def _costs(
    detectors: Sequence[Detector], speed: Speed, subject: Subject, samples: Samples, references: int
) -> dict[str, float]:
    """Seconds by detector, and under `_TRAINING` those of training the references."""
    each = works(detectors, subject.classes, len(np.unique(samples.labels)), references)
    costs = {d.name: speed.seconds(w) for d, w in each}
    if references and any(d.traits.references for d in detectors):
        costs[_TRAINING] = _of_training(speed, subject, samples)
    return costs


def _of_training(speed: Speed, subject: Subject, samples: Samples) -> float:
    """Seconds of training all references."""
    return training_passes(len(samples), subject.classes) / max(speed.reference, 1e-9)
