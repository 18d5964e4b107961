"""What every detector shares: its inputs, and the loop over units with its ledger.

A detector is a frozen dataclass of settings whose `run` turns what is at hand into Evidence, or says why it can't.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, ClassVar

import numpy as np

from onnxspect.engine.detectors.held_out import held_out_validation, transferred
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Measurement, Search
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.objective import Objective
from onnxspect.engine.search.perturbation import Perturbation
from onnxspect.engine.search.search import Choose, SearchConfig, UnitResult, plan, search, units_at_once
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import Unreached
from onnxspect.engine.trigger import DISPLACEMENT, UNTARGETED


@dataclass(frozen=True)
class AtHand:
    """What a scan has.

    Attributes:
        subject: the classifier.
        search_samples: clean samples to search on.
        held_out: clean samples for the held-out validation of triggers; may be empty.
        run: seed and observer.
        ledger: where finished units are kept and found again; None keeps nothing.
        references: clean networks (reference.py) that give each class its baseline; none compares classes with each
            other only.
        reference_ledger: the ledger of the references' units.
        training: the training set, perhaps poisoned, where the user has given it.
        classes: the classes that triggers are searched to; none stands for all.
        beyond: what no search along gradients reaches, where that has been looked at.
        references_alone: only the references are searched, to be kept for scans to come (jobs/references.py); the subject is then
            the first of them, and stands in for a model.
    """

    subject: Subject
    search_samples: Samples
    held_out: Samples
    run: RunContext
    ledger: Ledger | None = None
    references: Sequence[Subject] = ()
    reference_ledger: Ledger | None = None
    training: Samples | None = None
    classes: tuple[int, ...] = ()
    beyond: Unreached | None = None
    references_alone: bool = False

    @property
    def targets(self) -> Sequence[int]:
        """The classes that triggers are searched to, in increasing order."""
        return sorted(self.classes) if self.classes else range(self.subject.classes)


@dataclass(frozen=True)
class Work:
    """Searches that a detector is about to do, as far as that can be known before.

    Attributes:
        units: how many.
        steps: gradient steps that such a unit usually takes.
        samples: images a step.
        on_references: on reference networks, which are faster than most models.
        task: how the tasks begin that an observer is told of meanwhile, without " on reference 0": a task advances once a unit.
    """

    units: float
    steps: float
    samples: int
    on_references: bool = False
    task: str = ""

    @property
    def passes(self) -> float:
        """Passes of one image, forward and back."""
        return self.units * self.steps * self.samples


def on_all_references(work: Sequence[Work], references: int) -> tuple[Work, ...]:
    """The same work on each of so many reference networks; nothing where there are none."""
    return tuple(replace(w, units=references * w.units, on_references=True) for w in work if references)


class Detector(ABC):
    """One way to detect a backdoor."""

    #: Its name in reports, ledgers and on the command line.
    name: ClassVar[str]
    #: What it is: what it needs, what its triggers do.
    traits: ClassVar[Traits] = Traits()

    @abstractmethod
    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Search for backdoors; what a resumed run finds in the ledger is not done again."""

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """What it is expected to search, for a scan with a budget; nothing where it takes no time, or does not say.

        Args:
            classes: of the model.
            sources: classes that there are samples of.
            references: reference networks that it is compared with.
        """
        return ()

    def settings(self) -> dict[str, object]:
        """Every parameter, flat ("search.steps"), for the report and the store."""
        return flat(self)


def flat(settings: Any) -> dict[str, object]:
    """A dataclass of settings, perhaps nested, as one flat mapping."""
    found: dict[str, object] = {}
    for name, value in vars(settings).items():
        if is_dataclass(value) and not isinstance(value, type):
            found |= {f"{name}.{k}": v for k, v in asdict(value).items()}
        else:
            found[name] = value
    return found


#: Gradient steps that a unit takes in the mean: of masks, of added patterns, of CEPA, of warps. History: docs/decisions.md.
USUAL_STEPS = {"mask": 164, "added": 35, "cepa": 32, "moved": 84}
#: How much classes differ by nature, in standard deviations of log l2 norms; twice as much in mask areas, which grow as
#: the square of a length. Without references classes are taken to differ by at least that. History: docs/decisions.md.
NATURE = 0.15
_MASK, _ADDED = 0.19, 0.125
#: The same of displacements. History: docs/decisions.md.
_MOVED = 0.21
#: The usual deviation of each judged statistic and search between the classes of one network, beyond the references, on a log
#: scale; 0 for any other. History: docs/decisions.md.
TYPICAL = {
    **dict.fromkeys((("l1", Search.FULL), ("l1", Search.SHARED)), _MASK),
    **dict.fromkeys((("l2", Search.FULL), ("l2", Search.SHARED)), _ADDED),
    ("l1", Search.PAIR): 0.24,
    ("l2", Search.PAIR): 0.19,
    ("delta_norm", Search.FULL): 0.105,
    (DISPLACEMENT, Search.FULL): _MOVED,
}
#: Weight of the view of pairs in the multiplicity correction, beside that of triggers from all classes, which most
#: attacks have.
PAIRS = 0.5
#: A finished unit as evidence.
AsEvidence = Callable[[UnitResult], UnitEvidence]


def search_units(
    name: str,
    subject: Subject,
    at_hand: AtHand,
    ledger: Ledger | None,
    units: Sequence[Unit],
    objective: Objective | Perturbation,
    config: SearchConfig,
    statistic: str,
    held_out: int = 500,
    choose: Choose | None = None,
    drawn_as: str | None = None,
    as_evidence: AsEvidence | None = None,
) -> tuple[UnitEvidence, ...]:
    """Search the units that the ledger lacks, commit each batch as it is done, return all in order.

    Args:
        name: under which the ledger keeps them and the observer reports them.
        subject: the classifier (the scanned one, or a reference).
        at_hand: samples, seed and observer.
        ledger: may be None.
        units: what to search.
        objective, config, choose: see `search`.
        statistic: the name that a unit's cost gets.
        held_out: on at most so many unseen clean samples a trigger is validated.
        drawn_as: the name that randomness is drawn under; `name` by default.
        as_evidence: what makes evidence of a finished unit; `held_out_validation` by default.
    """
    run = at_hand.run
    done = ledger.units(name) if ledger is not None else {}
    batches = plan(units, units_at_once(subject, len(at_hand.search_samples), config.samples))
    waiting = [b for b in batches if any(u.key not in done for u in b)]
    run.observer.start(name, len(units), sum(u.key in done for u in units))
    for results in search(subject, at_hand.search_samples, waiting, objective, config, run, drawn_as or name, choose):
        finished = [
            as_evidence(r)
            if as_evidence is not None
            else held_out_validation(subject, r, at_hand.held_out, statistic, held_out)
            for r in results
        ]
        if ledger is not None:
            ledger.commit(name, finished)
        done |= {e.unit.key: e for e in finished}
        for e in finished:
            value = e.value(statistic)
            found = "none found" if np.isnan(value) else f"{statistic} {value:.3g}"
            known = [u.value(statistic) for u in done.values() if u.measurement(statistic) is not None]
            least = f" (least so far {min(known):.3g})" if len(known) > 1 else ""
            run.observer.advance(name, f"{_in_words(e.unit)}: {found}{least}")
    run.observer.finish(name)
    return tuple(done[u.key] for u in units)


def _in_words(unit: Unit) -> str:
    if unit.target == UNTARGETED:
        return "every class to another"
    return f"class {unit.target}" if unit.source is None else f"{unit.source} to {unit.target}"


def present_classes(samples: Samples) -> set[int]:
    """The classes that have samples."""
    return {int(c) for c in np.unique(samples.labels)}


def targets_and_sources(at_hand: AtHand) -> tuple[list[int], list[int]]:
    """(the classes that samples of another class can be led to, the classes that have samples), both in order."""
    present = present_classes(at_hand.search_samples)
    return [t for t in at_hand.targets if present - {t}], sorted(present)


def one_class(name: str) -> Skipped:
    """What a detector says where `targets_and_sources` gives no target."""
    return Skipped(name, "the samples are all of one class, so there is none to lead to another")


def search_with_references(
    name: str,
    at_hand: AtHand,
    units: Sequence[Unit],
    objective: Objective | Perturbation,
    config: SearchConfig,
    on_references: SearchConfig,
    statistic: str,
    terms: Search,
    held_out: int,
    drawn_as: str,
    plain: Objective | None = None,
    unreached: float | None = None,
) -> list[UnitEvidence]:
    """Units searched on every reference and on the subject; each with its cost, and what that is on the references.

    Args:
        name: of the detector and its stage, in the ledgers.
        at_hand: what there is.
        units: what to search.
        objective: on the subject.
        config: how hard, on the subject.
        on_references: how hard on these: a baseline is a mean over networks and needs no fine convergence.
        statistic: that a unit's cost is.
        terms: on which it is searched, as its measurement says.
        held_out, drawn_as: see `search_units`.
        plain: objective on the references, where it differs.
        unreached: what a class counts with that no change within the perturbation's bounds leads to; None for no statistic.
    """
    baselines = [
        search_units(
            f"{name} on reference {i}",
            subject,
            at_hand,
            at_hand.reference_ledger,
            units,
            plain or objective,
            on_references,
            statistic,
            0,
            drawn_as=drawn_as,
        )
        for i, subject in enumerate(at_hand.references)
    ]
    if unreached is not None:
        baselines = [_counting(units, statistic, unreached) for units in baselines]
    if at_hand.references_alone:
        searched = baselines[0]
    else:
        searched = search_units(
            name,
            at_hand.subject,
            at_hand,
            at_hand.ledger,
            units,
            objective,
            config,
            statistic,
            held_out,
            drawn_as=drawn_as,
        )
    if unreached is not None:
        searched = _counting(searched, statistic, unreached)
    found = [replace(u, measurements=tuple(replace(m, search=terms) for m in u.measurements)) for u in searched]
    if not baselines:
        return found
    compared = against_references(found, baselines, statistic)
    return [transferred(u, at_hand.references, at_hand.held_out, held_out) for u in compared]


def _counting(units: Sequence[UnitEvidence], statistic: str, unreached: float) -> tuple[UnitEvidence, ...]:
    """The units, those that found nothing with a value all the same."""
    nothing = (Measurement(statistic, unreached),)
    return tuple(u if u.found or u.measurements else replace(u, measurements=nothing) for u in units)


def compared(views: Sequence[View], with_references: bool, nature: float) -> list[View]:
    """The views, judged against the references; without any, by no finer measure than what classes differ by nature.

    Args:
        views: of a detector.
        with_references: whether there are any.
        nature: of statistics of this kind, see `NATURE`.
    """
    if with_references:
        return [replace(v, references=True, typical=TYPICAL.get((v.statistic, v.search), 0.0)) for v in views]
    return [replace(v, noise=max(v.noise, nature)) for v in views]


def with_values(views: Sequence[View], units: Sequence[UnitEvidence]) -> tuple[View, ...]:
    """The views whose statistic some unit has."""
    return tuple(v for v in views if any(u.measurement(v.statistic, v.search) is not None for u in units))


def rank(unit: UnitEvidence, statistic: str, search: Search, relative: bool) -> float:
    """By what units are ranked: the value, or its ratio to the references; infinite where it is not known."""
    found = unit.measurement(statistic, search)
    value = None if found is None else found.relative if relative else found.value
    return float("inf") if value is None else value


def most_suspicious_of_each_target(units: Sequence[UnitEvidence], ranks: Sequence[float]) -> list[Unit]:
    """For every target the unit with the smallest finite rank, in the order of the targets."""
    best: dict[int, tuple[float, Unit]] = {}
    for unit, value in zip(units, ranks, strict=True):
        target = unit.unit.target
        if np.isfinite(value) and (target not in best or value < best[target][0]):
            best[target] = (value, unit.unit)
    return [best[t][1] for t in sorted(best)]


def front_and_random(
    units: Sequence[UnitEvidence], ranks: Sequence[float], front: int, random: int, run: RunContext, detector: str
) -> list[int]:
    """Targets that are worth a full search: the `front` smallest of a first pass, and as many random others as `random`.

    Neural Cleanse (Wang et al., 2019), sec. IV: the random ones estimate what is normal.
    """
    ranked = [t for _, t in sorted((value, u.unit.target) for u, value in zip(units, ranks, strict=True))]
    ahead, others = ranked[:front], sorted(ranked[front:])
    drawn = run.numpy_generator(detector, "random targets").permutation(len(others))[:random]
    return sorted([*ahead, *(others[i] for i in drawn)])


def against_references(
    units: Sequence[UnitEvidence], baselines: Sequence[Sequence[UnitEvidence]], statistic: str
) -> list[UnitEvidence]:
    """The units with what is normal for each of them, as clean reference networks have it.

    A measurement gets the value on each reference, and as what is normal their geometric mean; where there are two
    references, the same for all units, their spread (the standard deviation of their logarithms) and reliability (the share of
    the variance of the units' means that is not this spread's). A unit that no reference could be led to gets the units'
    median: it is judged all the same. Units without the statistic stay as they are.

    Args:
        units: of the subject.
        baselines: the same units on each reference, in the same order.
        statistic: which.
    """
    values = np.array([[u.value(statistic) or np.nan for u in found] for found in baselines], np.float64)
    logs = np.array([[np.log(v) for v in row] for row in values], np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns are what the next line is for
        mean = np.nanmean(logs, axis=0)
        mean = np.where(np.isnan(mean), np.nanmedian(mean), mean)
        spread = float(np.nanmean(np.nanstd(logs, axis=0, ddof=1))) if len(logs) > 1 else np.nan
    common: tuple[float | None, float | None] = (None, None)
    if np.isfinite(spread):
        differ = float(mean.var(ddof=1)) if len(mean) > 1 else 0.0
        common = (spread, max(0.0, 1 - spread**2 / len(logs) / differ) if differ > 0 else 0.0)
    extended = []
    for unit, log, of_each in zip(units, mean, values.T, strict=True):
        if np.isfinite(log):
            of_references, normal = tuple(of_each.tolist()), float(np.exp(log))
            known = [
                replace(m, baselines=of_references, reference=normal, spread=common[0], reliability=common[1])
                if m.statistic == statistic
                else m
                for m in unit.measurements
            ]
            unit = replace(unit, measurements=tuple(known))
        extended.append(unit)
    return extended
