"""What a detector hands over: statistics, triggers and their effect. Evidence names no culprit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxspect.engine.judge.spacing import Usual
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
        statistics: by name, e.g. {"l1": 12.7}; absent where the search found nothing.
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
    statistics: Mapping[str, float]
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

    def size(self, statistic: str) -> float:
        """How small its trigger is: relative to the reference networks where there are any, else the statistic itself."""
        relative = [v for k, v in self.statistics.items() if k.startswith("relative_")]
        return min(relative, default=self.statistics.get(statistic, np.inf))


#: A trigger from one class alone shows that the backdoor is partial where it is smaller than the one from all classes
#: by this factor. History: docs/decisions.md.
PARTIAL = 0.5


def foremost(units: Sequence[UnitEvidence], statistic: str) -> list[UnitEvidence]:
    """A class's units, the most informative one first: the smallest (`UnitEvidence.size`), but one from a single class
    before one from all classes only where it is smaller by PARTIAL."""
    return sorted(units, key=lambda u: u.size(statistic) * (1.0 if u.unit.source is None else 1 / PARTIAL))


@dataclass(frozen=True)
class View:
    """One statistic of a detector's units, which the null model judges among the classes.

    Attributes:
        statistic: its name in UnitEvidence.statistics.
        tail: "low" where small values are suspicious, "high" where large ones are.
        tap: only units at this tap; "" for units without one.
        log: judged on a logarithmic scale (norms, ratios); else as it is.
        noise: deviation that measuring alone gives on that scale; classes are taken to differ by at least as much.
        reference: name of what the statistic is on clean reference networks; "" where there are none.
        spread: name of how much that differs between them.
        reliability: name of how much of what units differ by on them is not chance.
        among: the view is of the shared trigger, one value, which is judged against the classes' values of this
            statistic; "" for a view whose units are judged among themselves.
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
    reference: str = ""
    spread: str = ""
    reliability: str = ""
    among: str = ""
    weight: float = 1.0
    typical: float = 0.0
    spacing: Usual | None = None
    beyond: str = ""

    def with_reference(self, raw: str) -> View:
        """The same, judged against what the statistic `raw` is on the reference networks."""
        return replace(self, reference=f"reference_{raw}", spread=f"spread_{raw}", reliability=f"reliability_{raw}")


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
        convicts: False for a screening detector, which raises suspicion but names no class on its own.
        leads_to_target: what the triggers do; False where they take images *out of* the unit's class.
        validated: whether a trigger must carry over to held-out samples before it names a class; False where what was found is
            no trigger that leads there.
        silence: why finding nothing proves nothing, where the detector itself can tell: "" where it does prove something; None leaves it
            to the rule for searches of every class.
    """

    detector: str
    settings: Mapping[str, Any]
    statistic: str
    paper_statistic: str
    tail: str
    units: tuple[UnitEvidence, ...]
    views: tuple[View, ...] = ()
    convicts: bool = True
    leads_to_target: bool = True
    validated: bool = True
    silence: str | None = None

    @property
    def judged(self) -> tuple[View, ...]:
        """The views; the one of `statistic` where none are listed."""
        return self.views or (View(self.statistic, self.tail),)

    def seen_by(self, view: View) -> tuple[UnitEvidence, ...]:
        """The units that a view judges among themselves."""
        return tuple(
            u
            for u in self.units
            if view.statistic in u.statistics and not u.unit.shared and (not view.tap or u.unit.tap == view.tap)
        )

    @staticmethod
    def values(units: Sequence[UnitEvidence], statistic: str) -> np.ndarray:
        """One of their statistics, ``(unit,)``, NaN for units without it."""
        return np.array([u.statistics.get(statistic, np.nan) for u in units], np.float64)

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
            digest.update(f"{u.unit}|{sorted(u.statistics.items())}".encode())
            for name in sorted(u.trigger):
                digest.update(np.ascontiguousarray(u.trigger[name]).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Skipped:
    """A detector that did not run, and why: a result and not an error."""

    detector: str
    reason: str
