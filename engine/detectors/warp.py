"""Warps: the smallest smooth displacement of pixels that sends every image to a class.

A warp has no mask and no pattern: it moves what is there, and changes other pixels of every image. WaNet (Nguyen and Tran, 2021) plants one,
x' = W(x) with a field W that is smooth and moves pixels by less than one. Searches for patches and for added patterns do not contain it. So the field
itself is searched, one for all images of a class, in few cells (`Displacement`):

    min over W of mean loss(y_t, f(W(x))) + lambda * (root mean square of W),

with lambda moved so that at least `success` of the images reach t, as Neural Cleanse (Wang et al., 2019, Eq. 3) does with masks. A clean network
answers another class when its images are bent out of shape, by several pixels; the target of a planted warp needs a fraction of that. So the
statistic is how far pixels are moved, in hundredths of the picture's shorter side, compared with the other classes and with reference networks.

A class that no displacement within the bounds leads to counts with the bound: it needs more than that. Its search has looked where it went
far (`FAR`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from onnxspect.engine.detectors.base import (
    NATURE,
    USUAL_STEPS,
    AtHand,
    Detector,
    Work,
    compared,
    on_all_references,
    one_class,
    search_with_references,
    targets_and_sources,
)
from onnxspect.engine.displacement import moved_by
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.judge.thresholds import CONVERGED_ENOUGH
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.search.perturbation import Displacement
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.trigger import DISPLACEMENT

NAME = "warp"
#: How hard a class is searched. The step is in hundredths of the picture's side. History: docs/decisions.md.
SEARCH = SearchConfig(
    steps=160, samples=48, learning_rate=1.8, success=0.95, multiplier=0.03, patience=3, settle=12, tolerance=0.05
)
#: A search that reached nothing has looked far enough where it moved pixels by so much (root mean square, hundredths of the side): several
#: times what an attacker's warp moves them by, which is to pass unseen.
FAR = 8.0


@dataclass(frozen=True)
class Warp(Detector):
    """The detector's settings.

    Attributes:
        search: how hard each class is searched.
        perturbation: the field's bounds.
        held_out: on at most so many unseen clean samples a warp is validated.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.MOVED)
    search: SearchConfig = SEARCH
    perturbation: Displacement = field(default_factory=Displacement)
    held_out: int = 500

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """Every class."""
        steps, images = min(self.search.steps, USUAL_STEPS["moved"]), self.search.samples
        own = Work(classes, steps, images, task=NAME)
        return (*on_all_references([replace(own, samples=max(1, images // 2))], references), own)

    def settings(self) -> dict[str, object]:
        """Every parameter, but for the size of the images, which is not this detector's."""
        return {k: v for k, v in super().settings().items() if k != "perturbation.size"}

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Search all classes, and measure each warp on samples that the search never saw."""
        targets, _ = targets_and_sources(at_hand)
        if not targets:
            return one_class(NAME)
        found = search_with_references(
            NAME,
            at_hand,
            [Unit(t) for t in targets],
            self.perturbation,
            self.search,
            replace(self.search, samples=max(1, self.search.samples // 2)),
            DISPLACEMENT,
            Search.FULL,
            self.held_out,
            drawn_as=NAME,
            unreached=self.perturbation.most,
        )
        side = min(at_hand.subject.image_shape[1:])
        views = compared([View(DISPLACEMENT)], bool(at_hand.references), 2 * NATURE)
        settings = self.settings() | {"references": len(at_hand.references)}
        looked = sum(u.converged or _went_far(u, side) for u in found)
        silence = "" if any(not u.found for u in found) and looked >= CONVERGED_ENOUGH * len(found) else None
        return Evidence(
            NAME, settings, DISPLACEMENT, DISPLACEMENT, "low", tuple(found), tuple(views), self.traits, silence
        )


def _went_far(unit: UnitEvidence, side: int) -> bool:
    """Whether a search that found nothing moved pixels far in the end."""
    moved = unit.trigger.get(DISPLACEMENT)
    return not unit.found and moved is not None and moved_by(moved) >= FAR * side / 100
