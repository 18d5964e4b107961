"""Neural Cleanse (002, Wang et al. 2019): the smallest mask and pattern that sends every image to a class.

Eq. 2: A(x, m, D) = (1 - m) * x + m * D. Eq. 3: min over m, D of loss(y_t, f(A(x, m, D))) + lambda * |m|_1, for each
class t, with lambda moved so that at least 99 % of the images reach t. The statistic is the mask's L1 norm; the
backdoored class needs a far smaller one (sec. III).

Departures, and why:

* The loss and the success rate are taken over images that are *not* of class t. The published code uses all images;
  those of class t are there already, cost a tenth of the time and blur the success rate.
* A fixed set of images and full-batch steps instead of epochs of mini-batches: success is exact at every step and
  lambda follows at once, so that hundreds of steps do what tens of epochs did.
* The search stops when it has converged, and says whether it did: the outlier test is only as good as its norms.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from onnxspect.engine.evidence import Evidence, Unit, UnitEvidence
from onnxspect.engine.perturbation import MaskPattern, stamp
from onnxspect.engine.run import RunContext
from onnxspect.engine.samples import Samples
from onnxspect.engine.search import SearchConfig, UnitResult, plan, search, units_at_once
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject import Subject

NAME = "neural-cleanse"


@dataclass(frozen=True)
class NeuralCleanse:
    """The detector's settings.

    Attributes:
        search: how hard each class is searched.
        perturbation: the trigger family, Eq. 2.
        held_out: at most so many unseen clean samples measure whether a trigger carries over.
    """

    search: SearchConfig = field(default_factory=SearchConfig)
    perturbation: MaskPattern = field(default_factory=MaskPattern)
    held_out: int = 500

    def run(
        self,
        subject: Subject,
        found_on: Samples,
        held_out: Samples,
        run: RunContext,
        ledger: Ledger | None = None,
        references: Sequence[Subject] = (),
        reference_ledger: Ledger | None = None,
    ) -> Evidence:
        """Search all classes and measure each trigger on samples that the search never saw.

        Args:
            subject: the classifier.
            found_on: clean samples to search on.
            held_out: clean samples for the second look; may be empty.
            run: seed and observer.
            ledger: where finished units are kept and found again; None keeps nothing.
            references: clean networks (reference.py) that give each class its baseline; none compares classes with
                each other only.
            reference_ledger: the same for the references' units.
        """
        present = {int(c) for c in np.unique(found_on.labels)}
        units = [Unit(target=t) for t in range(subject.classes) if present - {t}]
        # A baseline is a mean over networks and needs no fine convergence; its own scale cancels in the comparison.
        lighter = replace(self, search=replace(self.search, samples=max(1, self.search.samples // 2)))
        baselines = [
            lighter._search(r, found_on, held_out, units, run, reference_ledger, f"{NAME} on reference {i}")
            for i, r in enumerate(references)
        ]
        found = self._search(subject, found_on, held_out, units, run, ledger, NAME)
        if not references:
            return Evidence(NAME, self.settings(), "l1", "l1", "low", found)
        settings = self.settings() | {"references": len(references)}
        return Evidence(NAME, settings, "relative_l1", "l1", "low", _relative(found, baselines))

    def settings(self) -> dict[str, object]:
        """Every parameter, flat, for the report and the store."""
        flat = {f"search.{k}": v for k, v in asdict(self.search).items()}
        flat |= {f"perturbation.{k}": v for k, v in asdict(self.perturbation).items()}
        return flat | {"held_out": self.held_out}

    def _search(
        self,
        subject: Subject,
        found_on: Samples,
        held_out: Samples,
        units: Sequence[Unit],
        run: RunContext,
        ledger: Ledger | None,
        name: str,
    ) -> tuple[UnitEvidence, ...]:
        done = ledger.units(name) if ledger is not None else {}
        batches = plan(units, units_at_once(subject.device, len(found_on), self.search.samples))
        waiting = [b for b in batches if any(u.key not in done for u in b)]
        run.observer.start(name, len(units), sum(u.key in done for u in units))
        for results in search(subject, found_on, waiting, self.perturbation, self.search, run, NAME):
            finished = [self._second_look(subject, r, held_out) for r in results]
            if ledger is not None:
                ledger.commit(name, finished)
            done |= {e.unit.key: e for e in finished}
            for e in finished:
                l1 = e.statistics.get("l1")
                found = "none found" if l1 is None else f"L1 {l1:.1f}"
                run.observer.advance(name, f"class {e.unit.target}: {found}")
        run.observer.finish(name)
        return tuple(done[u.key] for u in units)

    def _second_look(self, subject: Subject, result: UnitResult, held_out: Samples) -> UnitEvidence:
        """The trigger's effect on clean samples of other classes that the search never saw."""
        rows = np.flatnonzero(held_out.labels != result.unit.target)[: self.held_out]
        success = None
        if len(rows) and result.found:
            answers = subject.predict(stamp(held_out.images[rows], result.trigger)).argmax(1)
            success = float((answers == result.unit.target).mean())
        return UnitEvidence(
            unit=result.unit,
            statistics={"l1": result.cost} if result.found else {},
            found=result.found,
            converged=result.converged,
            steps=result.steps,
            search_success=result.success,
            held_out_success=success,
            held_out=len(rows),
            trigger=result.trigger,
            seconds=result.seconds,
        )


def _relative(found: Sequence[UnitEvidence], baselines: Sequence[Sequence[UnitEvidence]]) -> tuple[UnitEvidence, ...]:
    """`reference_l1` (geometric mean over the references) and `relative_l1` added to each unit's statistics.

    A class that no reference could be led to gets the references' median: it is judged all the same.
    """
    logs = np.array([[np.log(u.statistics.get("l1", np.nan)) for u in units] for units in baselines])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns are what the next line is for
        baseline = np.nanmean(logs, axis=0)
    baseline = np.where(np.isnan(baseline), np.nanmedian(baseline), baseline)
    told = []
    for unit, reference in zip(found, np.exp(baseline), strict=True):
        statistics = dict(unit.statistics)
        if "l1" in statistics and np.isfinite(reference):
            statistics |= {"reference_l1": float(reference), "relative_l1": statistics["l1"] / float(reference)}
        told.append(replace(unit, statistics=statistics))
    return tuple(told)
