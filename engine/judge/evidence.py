"""What a detector hands over: statistics, triggers and their effect. Evidence names no culprit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from onnxspect.engine.judge.measurement import Measurement, Search
from onnxspect.engine.judge.spacing import Usual
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.trigger import UNTARGETED, Trigger, in_pixels


@dataclass(frozen=True, order=True)
class Unit:
    """One thing to search for: a trigger to `target`, from all other classes or from `source` alone, maybe at a tap.

    Attributes:
        target: the class; UNTARGETED for any class but an image's own.
        source: the only class that it is to lead there; None for all others.
        tap: where it perturbs.
        shared: found as one trigger for all classes (UNTARGETED), which leads `source` to `target` and others elsewhere.
        start: which of several searches for the same, each on images and from a start of its own.
    """

    target: int
    source: int | None = None
    tap: str = ""
    shared: bool = False
    start: int = 0

    @property
    def key(self) -> str:
        """Its name in the store."""
        to = "other" if self.target == UNTARGETED else self.target
        pair = f"{'any' if self.source is None else self.source}->{to}{'*' if self.shared else ''}"
        pair += f"#{self.start}" if self.start else ""
        return f"{pair}@{self.tap}" if self.tap else pair


@dataclass(frozen=True)
class UnitEvidence:
    """What was found for one unit.

    Attributes:
        unit: target class, and source class for a pair.
        measurements: its statistics; none where the search found nothing. Of one that was scouted first the search in full
            stands last.
        found: a trigger that meets the constraint was found.
        converged: the search met its stopping rule within its budget.
        steps: gradient steps spent.
        search_success: share of the search images that the trigger sends to the target.
        held_out_success: the same on clean samples that the search never saw; None where there are none.
        held_out: how many such samples.
        trigger: arrays by name: `mask` and `pattern`, or `delta`; `difference` where it was read off the training set.
        seconds: wall time.
    """

    unit: Unit
    measurements: tuple[Measurement, ...]
    found: bool
    converged: bool
    steps: int
    search_success: float
    held_out_success: float | None
    held_out: int
    trigger: Mapping[str, np.ndarray] = field(repr=False)
    seconds: float = 0.0

    @property
    def in_pixels(self) -> bool:
        """Whether its trigger is a change of pixels: some are changes of an inner layer."""
        return in_pixels(self.trigger)

    @property
    def stampable(self) -> Trigger | None:
        """Its trigger, where that is one change of the pixels of any image; an embedded perturbation has no such form."""
        return Trigger.kept(self.unit.target, self.trigger, self.unit.source) if self.in_pixels else None

    def measurement(self, statistic: str, search: Search | None = None) -> Measurement | None:
        """One of its measurements; None where it has none such.

        Args:
            statistic: its name.
            search: how it was searched; None for its most thorough search.
        """
        able = [m for m in self.measurements if m.statistic == statistic and search in (None, m.search)]
        return able[-1] if able else None

    def value(self, statistic: str, search: Search | None = None) -> float:
        """The value of `measurement`; NaN where there is none."""
        found = self.measurement(statistic, search)
        return float("nan") if found is None else found.value

    @property
    def statistics(self) -> dict[str, float]:
        """The values of `measurement` by the name of their statistic."""
        return {m.statistic: self.value(m.statistic) for m in self.measurements}

    def size(self, statistic: str, search: Search | None = None) -> float:
        """How small its trigger is: relative to the reference networks where there are any, else the statistic itself."""
        relative = [m.relative for m in self.measurements if m.relative is not None and not m.carried]
        own = self.measurement(statistic, search)
        return min(relative, default=np.inf if own is None else own.value)


#: A trigger from one class alone shows that the backdoor is partial where it is smaller than the one from all classes
#: by this factor. History: docs/decisions.md.
PARTIAL = 0.5


def foremost(units: Sequence[UnitEvidence], statistic: str, search: Search | None = None) -> list[UnitEvidence]:
    """A class's units, the most informative one first: the smallest (`UnitEvidence.size`), but one from a single class
    before one from all classes only where it is smaller by PARTIAL."""
    return sorted(units, key=lambda u: u.size(statistic, search) * (1.0 if u.unit.source is None else 1 / PARTIAL))


@dataclass(frozen=True)
class View:
    """One statistic of a detector's units, which the null model judges among the classes.

    Attributes:
        statistic: its name in UnitEvidence.measurements.
        tail: "low" where small values are suspicious, "high" where large ones are.
        tap: only units at this tap; "" for units without one.
        log: judged on a logarithmic scale (norms, ratios); else as it is.
        noise: deviation that measuring alone gives on that scale; classes are taken to differ by at least as much.
        search: how the values were searched. Of a shared trigger there is one value, which is judged against the full
            searches of the same statistic.
        references: judged against what the statistic is on clean reference networks.
        weight: its share of the error in the multiplicity correction over several views.
        typical: deviation that the statistic usually has between the classes of one network (beyond the references,
            where it has any), on the scale that is judged (spread.py); 0 where it is not known.
        spacing: only the smallest classes were measured, and are judged by their spacings (spacing.py); what is usual for these.
        beyond: name of how far a search went that reached no further class, where one did: any other class's value is larger.
    """

    statistic: str
    tail: str = "low"
    tap: str = ""
    log: bool = True
    noise: float = 0.0
    search: Search = Search.FULL
    references: bool = False
    weight: float = 1.0
    typical: float = 0.0
    spacing: Usual | None = None
    beyond: str = ""

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        spacing = None if self.spacing is None else self.spacing.describe()
        return {**asdict(self), "search": str(self.search), "spacing": spacing}

    @classmethod
    def described(cls, row: Mapping[str, Any]) -> View:
        """What `describe` wrote.

        Raises:
            KeyError, TypeError, ValueError: the row is not one.
        """
        spacing = row.get("spacing")
        usual = None if spacing is None else Usual.described(spacing)
        return cls(**{**row, "search": Search(row["search"]), "spacing": usual})


@dataclass(frozen=True)
class Evidence:
    """All that one detector found on one subject.

    Attributes:
        detector: its name.
        settings: every parameter that the result depends on.
        statistic: name of the statistic that the null model is to judge.
        paper_statistic: name of the one that the paper's own rule judges.
        tail: "low" where small values are suspicious, "high" where large ones are.
        units: one row a unit, in the order of the plan.
        views: all that the null model is to judge, where there is more than `statistic`; the multiplicity correction
            for several of them is `decide`'s.
        traits: what the detector is.
        silence: why finding nothing proves nothing, where the detector itself can tell: "" where it does prove something; None leaves it
            to the rule for searches of every class.
        notes: what it did otherwise than it was set to, in sentences; no part of what is judged.
    """

    detector: str
    settings: Mapping[str, Any]
    statistic: str
    paper_statistic: str
    tail: str
    units: tuple[UnitEvidence, ...]
    views: tuple[View, ...] = ()
    traits: Traits = field(default_factory=Traits)
    silence: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[View, ...]:
        """The views; the one of `statistic` where none are listed."""
        return self.views or (View(self.statistic, self.tail),)

    def seen_by(self, view: View) -> tuple[UnitEvidence, ...]:
        """The units that a view judges among themselves."""
        return tuple(
            u
            for u in self.units
            if u.measurement(view.statistic, view.search) is not None
            and not u.unit.shared
            and (not view.tap or u.unit.tap == view.tap)
        )

    @staticmethod
    def values(units: Sequence[UnitEvidence], statistic: str, search: Search | None = None) -> np.ndarray:
        """One of their statistics, ``(unit,)``, NaN for units without it."""
        return np.array([u.value(statistic, search) for u in units], np.float64)

    @staticmethod
    def normal(units: Sequence[UnitEvidence], view: View) -> np.ndarray:
        """What a view's statistic is on the references, ``(unit,)``, NaN where that is not known or not wanted."""
        found = [u.measurement(view.statistic, view.search) if view.references else None for u in units]
        return np.array([np.nan if m is None or m.reference is None else m.reference for m in found], np.float64)

    @staticmethod
    def baselines(units: Sequence[UnitEvidence], view: View) -> np.ndarray:
        """A view's statistic on each reference ``(unit, reference)``, NaN where a reference lacks it; no columns where none was kept."""
        found = [u.measurement(view.statistic, view.search) for u in units]
        rows = [() if m is None else m.baselines for m in found]
        most = max(map(len, rows), default=0)
        return np.array([[*row, *[np.nan] * (most - len(row))] for row in rows], np.float64).reshape(len(rows), most)

    @property
    def seconds(self) -> float:
        """Wall time of all units."""
        return sum(u.seconds for u in self.units)

    @property
    def steps(self) -> int:
        """Gradient steps of all units."""
        return sum(u.steps for u in self.units)

    @property
    def id(self) -> str:
        """A name for this evidence that depends on its content and on nothing else."""
        digest = hashlib.sha256(f"{self.detector}|{sorted(self.settings.items())}".encode())
        for u in self.units:
            digest.update(f"{u.unit}|{[m.describe() for m in u.measurements]}".encode())
            for name in sorted(u.trigger):
                digest.update(np.ascontiguousarray(u.trigger[name]).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Skipped:
    """A detector that did not run, and why: a result and not an error."""

    detector: str
    reason: str


def detectors_of(evidence: Sequence[Evidence | Skipped]) -> tuple[str, ...]:
    """The names of the detectors that may name a class, in order: what a score depends on."""
    return tuple(
        sorted(e.detector for e in evidence if isinstance(e, Evidence) and e.traits.convicts and not e.traits.tested)
    )
