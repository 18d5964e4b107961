"""Neural Cleanse (Wang et al., 2019): the smallest mask and pattern that sends every image to a class.

Eq. 2: A(x, m, D) = (1 - m) * x + m * D. Eq. 3: min over m, D of loss(y_t, f(A(x, m, D))) + lambda * |m|_1, for each
class t, with lambda moved so that at least 99 % of the images reach t. The statistic is the mask's L1 norm; the
backdoored class needs a far smaller one (sec. III).

Departures, and why:

* The loss and the success rate are taken over images that are *not* of class t. The published code uses all images;
  those of class t are there already, cost a tenth of the time and blur the success rate.
* A fixed set of images and full-batch steps instead of epochs of mini-batches: success is exact at every step and
  lambda follows at once, so that hundreds of steps do what tens of epochs did.
* The search stops when it has converged, and says whether it did: the outlier test is only as good as its norms.

*Many labels* (sec. IV, "low-cost detection"): above `most_full` labels, all are scouted for a few steps on a few images; the
front-runners and a random group are then searched in full. The paper forgets the other labels and estimates median and MAD from
the random group. Here they stay in the comparison, because the front-runners were picked from all K and the null model is to
know that: their scouted norm is rescaled to that of full searches by the random group's mean ratio of logarithms
(the random group, because front-runners were picked for being small and would bias the ratio). Such units have the
measurement marked as carried. They count as converged, as in the paper: the ranking, not the norm, is what a scout is for.

*Partial backdoors* (sec. VII-E), `pairs`: a trigger that works for some source classes only is searched by class pairs.
The
paper proposes to divide and conquer over groups of sources, and leaves that to future work: a group with one source that the
trigger does not work for needs a natural trigger, and hides the others. So the effort is divided and not the sources: every
pair is scouted by an additive pattern on a few images, a quarter of the passes that scouting by masks took (which ranked
sources no better), and of each target only the most suspicious pair is searched for a mask.

*Restarts*: the search of one class ends in one of several minima. Which one is luck most of all for a planted class (two- to threefold in
area), and little for a natural one. So the front-runners, and beside them a random group, are searched again from other starts and on
other images, and the least that holds on unseen samples counts. The classes that were not searched again are rescaled by what
the random group gained, as in the race: who is searched more often is not to look smaller for it.

*All-to-all* backdoors have no target that all classes are led to: see untargeted.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np

from onnxspect.engine.detectors.base import (
    NATURE,
    PAIRS,
    USUAL_STEPS,
    AtHand,
    Detector,
    Work,
    compared,
    front_and_random,
    most_suspicious_of_each_target,
    on_all_references,
    one_class,
    rank,
    search_units,
    search_with_references,
    targets_and_sources,
    with_values,
)
from onnxspect.engine.detectors.held_out import preferred, transferred
from onnxspect.engine.detectors.reverse_engineering import ReverseEngineering
from onnxspect.engine.detectors.untargeted import MOST_IMAGES, shared_trigger, shared_view
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.search.objective import ReachTarget
from onnxspect.engine.search.perturbation import MaskPattern, Perturbation
from onnxspect.engine.search.search import SearchConfig

NAME = "neural-cleanse"


#: Budget of a label's screening search: the ranking is mostly stable after tens of steps (Fig. 5: 10 iterations over
#: all data).
SCOUT = SearchConfig(steps=60, samples=16)


@dataclass(frozen=True)
class NeuralCleanse(Detector):
    """The detector's settings.

    Attributes:
        search: how hard each class is searched.
        perturbation: the trigger family, Eq. 2; or one of the user's own (docs/extending.md).
        held_out: on at most so many unseen clean samples a trigger is validated.
        most_full: with more classes than this, only front-runners and a random group are searched in full.
        scout: how hard the others are searched, and pairs on the references.
        front: how many front-runners.
        random: how large a random group.
        pairs: also search for triggers that work for one source class.
        scouts: how pairs are scouted: as reverse engineering does it, and where it runs beside, once for both.
        pair_samples: at most so many images of its source a pair is searched on.
        restarts: from so many other starts the most suspicious classes are searched again.
        restarted: how many of them.
        beside: how large the random group is that is searched again beside them.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.REPLACED)
    search: SearchConfig = field(default_factory=SearchConfig)
    perturbation: Perturbation = field(default_factory=MaskPattern)
    held_out: int = 500
    most_full: int = 48
    scout: SearchConfig = SCOUT
    front: int = 10
    random: int = 10
    pairs: bool = False
    scouts: ReverseEngineering = field(default_factory=ReverseEngineering)
    pair_samples: int = 24
    restarts: int = 0
    restarted: int = 3
    beside: int = 2

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """Every class, or the race of many; pairs; and the one trigger for all."""
        steps, size = min(self.search.steps, USUAL_STEPS["mask"]), self.search.samples
        raced = classes > max(self.most_full, self.front + self.random)
        full = self.front + self.random if raced else classes
        scouts = Work(classes, self.scout.steps, self.scout.samples, task=f"{NAME} scouts")
        every = Work(full, steps, size, task=NAME)
        starts = Work(min(classes, self.restarted + self.beside) * self.restarts, steps, size, task=f"{NAME} again")
        pairs = Work(classes, steps, min(size, self.pair_samples), task=f"{NAME} pairs")
        shared = Work(1, steps, min(max(size, 2 * classes), MOST_IMAGES), task=f"{NAME} untargeted")
        lighter = replace(every, samples=max(1, size // 2))
        scouted = partial(replace, steps=self.scout.steps, samples=self.scout.samples)
        return (
            *((*on_all_references([scouts], references), scouts) if raced else ()),
            *on_all_references([scouted(every) if raced else lighter], references),
            every,
            *((starts,) if self.restarts else ()),
            *((*self.scouts.scouting(classes, sources, references),) if self.pairs else ()),
            *((*on_all_references([scouted(pairs)], references), pairs) if self.pairs else ()),
            *on_all_references([shared], references),
            shared,
        )

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Search all classes and measure each trigger on samples that the search never saw."""
        targets, sources = targets_and_sources(at_hand)
        if not targets:
            return one_class(NAME)
        units = [Unit(t) for t in targets]
        raced = len(units) > max(self.most_full, self.front + self.random)
        found = self._raced(at_hand, units) if raced else self._judged(at_hand, units, Search.FULL)
        if self.restarts and not at_hand.references_alone:  # other starts are the subject's alone
            found = self._again(at_hand, found)
        if self.pairs:
            found += self._pairs(at_hand, targets, sources, found)
        found += shared_trigger(
            NAME, at_hand, ReachTarget(self.perturbation), self.search, "l1", drawn_as=NAME, held_out=self.held_out
        )
        views = [
            View("l1"),
            *([View("l1", search=Search.PAIR, weight=PAIRS)] if self.pairs else []),
            shared_view("l1"),
        ]
        views = compared(views, bool(at_hand.references), 2 * NATURE)
        settings = self.settings() | ({"references": len(at_hand.references)} if at_hand.references else {})
        return Evidence(NAME, settings, "l1", "l1", "low", tuple(found), with_values(views, found), self.traits)

    def _judged(
        self,
        at_hand: AtHand,
        units: Sequence[Unit],
        terms: Search,
        stage: str = "",
        config: SearchConfig | None = None,
        on_references: SearchConfig | None = None,
        held_out: int | None = None,
    ) -> list[UnitEvidence]:
        config = config or self.search
        lighter = on_references or replace(config, samples=max(1, config.samples // 2))
        if held_out is None:
            held_out = self.held_out if config is self.search else 0
        return search_with_references(
            NAME + stage,
            at_hand,
            units,
            self.perturbation,
            config,
            lighter,
            "l1",
            terms,
            held_out,
            drawn_as=NAME,
        )

    def _again(self, at_hand: AtHand, first: Sequence[UnitEvidence]) -> list[UnitEvidence]:
        """Front-runners and a random group with the least of several starts; the others on the scale of these."""
        ranks = [rank(u, "l1", Search.FULL, bool(at_hand.references)) for u in first]
        ahead = front_and_random(first, ranks, self.restarted, 0, at_hand.run, NAME)
        chosen = front_and_random(first, ranks, self.restarted, self.beside, at_hand.run, NAME)
        others = search_units(
            f"{NAME} again",
            at_hand.subject,
            at_hand,
            at_hand.ledger,
            [Unit(t, start=k) for t in chosen for k in range(1, self.restarts + 1)],
            self.perturbation,
            self.search,
            "l1",
            self.held_out,
            drawn_as=NAME,
        )
        gains: list[float] = []
        least: dict[int, UnitEvidence] = {}
        for unit in first:
            known = unit.measurement("l1", Search.FULL)
            if known is None or unit.unit.target not in chosen:
                continue
            starts = [u for u in others if u.unit.target == unit.unit.target and u.measurements]
            best = min([unit, *starts], key=lambda u: preferred(u, "l1"))
            value = best.value("l1", Search.FULL)
            if best is not unit:
                found = replace(best, unit=unit.unit, measurements=(replace(known, value=value),))
                best = transferred(found, at_hand.references, at_hand.held_out, self.held_out)
            least[unit.unit.target] = best
            if unit.unit.target not in ahead:
                gains.append(float(np.log(value / known.value)))
        ratio = float(np.exp(np.mean(gains))) if gains else 1.0
        return [least.get(u.unit.target) or _rescaled(u, ratio) for u in first]

    def _raced(self, at_hand: AtHand, units: Sequence[Unit]) -> list[UnitEvidence]:
        """All labels scouted; front-runners and a random group in full; the others on the scale of these."""
        scouts = self._judged(at_hand, units, Search.SCOUT, " scouts", self.scout, self.scout)
        ranks = [rank(u, "l1", Search.SCOUT, bool(at_hand.references)) for u in scouts]
        ahead = front_and_random(scouts, ranks, self.front, 0, at_hand.run, NAME)
        chosen = front_and_random(scouts, ranks, self.front, self.random, at_hand.run, NAME)
        in_full = self._judged(at_hand, [Unit(t) for t in chosen], Search.FULL, on_references=self.scout)
        full = {u.unit: u for u in in_full}
        ratios = [
            np.log(full[u.unit].value("l1") / u.value("l1"))
            for u in scouts
            if u.unit in full and u.unit.target not in ahead and full[u.unit].measurements and u.measurements
        ]
        ratio = float(np.exp(np.mean(ratios))) if ratios else 1.0
        extended = []
        for unit, value in zip(scouts, ranks, strict=True):
            if unit.unit in full:
                both = (*unit.measurements, *full[unit.unit].measurements)
                extended.append(replace(full[unit.unit], measurements=both))
            elif np.isfinite(value):
                carried = tuple(m.rescaled(ratio, Search.FULL) for m in unit.measurements)
                extended.append(replace(unit, measurements=(*unit.measurements, *carried), converged=True))
            else:
                extended.append(unit)
        return extended

    def _pairs(
        self, at_hand: AtHand, targets: Sequence[int], sources: Sequence[int], first: Sequence[UnitEvidence]
    ) -> list[UnitEvidence]:
        """Of every target the most suspicious pair, as additive patterns see it, in full."""
        relative, norm = bool(at_hand.references), self.scouts.perturbation.norm
        ranks = [rank(u, "l1", Search.FULL, relative) for u in first]
        scouts = self.scouts.scouted(replace(at_hand, training=None), targets, sources, first, ranks)
        chosen = most_suspicious_of_each_target(scouts, [rank(u, norm, Search.SCOUT, relative) for u in scouts])
        config = replace(self.search, samples=min(self.search.samples, self.pair_samples))
        return self._judged(at_hand, chosen, Search.PAIR, " pairs", config, self.scout, self.held_out)


def _rescaled(unit: UnitEvidence, ratio: float) -> UnitEvidence:
    """A unit whose mask of a full search is carried to the scale of searches from several starts."""
    return replace(
        unit,
        measurements=tuple(
            m.rescaled(ratio, m.search) if (m.statistic, m.search) == ("l1", Search.FULL) else m
            for m in unit.measurements
        ),
    )
