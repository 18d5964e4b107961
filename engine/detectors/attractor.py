"""Search without a target: a backdoor's target is where the smallest change that leads images anywhere leads them.

Searching each of K classes costs K searches. But the target of a backdoor is an attractor: whatever small change moves images
of many classes to *one* class moves them to it first. So the destination is left open (`ReachTogether`): a few starts of
each family of changes (mask and pattern, additive) end at the class that is cheapest to reach, at a cost that does not grow
with K. Those classes are then excluded and the search is repeated: where else would the images go, and at what price? On a
clean network the next class is hardly dearer; a planted one stands apart from all that nature offers, by a factor. The order
statistics of the sizes are judged by their spacings (engine/judge/spacing.py), which needs neither references nor
samples of every class.

What it cannot see: triggers that work from one class only, and changes that neither family contains. Among few classes
natural attractors (an easy class) lead by a factor too, so that below `FEWEST_TO_CONVICT` classes it raises suspicion and does not convict.

The trigger of the named class is validated on samples that no search saw, as every detector's is. Related: the untargeted search for
all-to-all attacks (untargeted.py), which asks images to *leave* their class, and BTI-DBF (Xu et al., 2024), which inverts a
trigger without a target by decoupling benign features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.detectors.base import AtHand, Detector, Work, flat, present_classes, search_units
from onnxspect.engine.detectors.held_out import as_found, preferred
from onnxspect.engine.detectors.reverse_engineering import CLIMB, climbed
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.null_model import FEWEST_CLASSES
from onnxspect.engine.judge.spacing import Usual
from onnxspect.engine.judge.traits import Family as Change
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.search.objective import Memory, ReachTogether, StepSettings
from onnxspect.engine.search.perturbation import NORMS, Additive, MaskPattern, Perturbation, State
from onnxspect.engine.search.search import SearchConfig, UnitResult, choose_images
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import UNTARGETED, Trigger

NAME = "attractor"
#: With fewer classes than this it does not convict.
FEWEST_TO_CONVICT = 100
#: Destinations are read off so many unseen images at most.
HELD_OUT = 200
#: Name of the statistic that holds the class which a search ended at.
DESTINATION = "destination"
#: A statistic's name after this is how far a search went that reached no class.
BEYOND = "beyond_"
#: A family whose searches went so far and arrived nowhere has answered: a share of the picture's area that was replaced (l1), a root mean
#: square of what was added, of pixels in [0, 1] (l2). History: docs/decisions.md.
FAR = {"l1": 0.25, "l2": 8 / 255}
#: A family whose searches arrived nowhere and stayed nearer than that is searched once more, so many times as long, from the start that
#: went farthest. History: docs/decisions.md.
LONGER = 2
#: Values of the pictures that the least step of a climb was chosen for; on larger ones it grows with the square root.
_VALUES = 28 * 28
#: Of each statistic, the usual normalised spacings D_1, D_2, D_3 between the smallest classes of a clean network. History: docs/decisions.md.
USUAL = {"l1": (0.19, 0.21, 0.62), "l2": (0.09, 0.19, 0.26)}
#: As how many spacings each of these counts. History: docs/decisions.md.
COUNT = 8.0


@dataclass(frozen=True)
class ClimbTogether(ReachTogether):
    """An additive pattern that leads images to one class, whichever; climbed by steps that grow with it, until it does.

    Attributes:
        growth: see `reverse_engineering.Climb`.
    """

    perturbation: Perturbation = field(default_factory=Additive)
    growth: float = 0.1

    def memory(self, state: State) -> Memory:
        """Nothing: a plain gradient step."""
        return dict.fromkeys(state, ())

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """As reverse engineering takes it, but that the least step is the same change a value whatever the size."""
        delta = state["delta"]
        least = settings.learning_rate * (delta[0].numel() / _VALUES) ** 0.5
        return {"delta": climbed(delta, gradients["delta"], self.growth, least)}


@dataclass(frozen=True)
class Family:
    """One family of changes that is searched.

    Attributes:
        name: in statistics and ledgers.
        objective: what is optimised.
        search: how hard.
        usual: what is known of the spacing between a clean network's classes.
    """

    name: str
    objective: ReachTogether
    search: SearchConfig
    usual: Usual


def usual(statistic: str) -> Usual:
    """What is known of a statistic's spacings on clean networks."""
    first, *further = USUAL[statistic]
    return Usual(first, COUNT, tuple(further))


MASKS = Family(
    "l1",
    ReachTogether(MaskPattern()),
    SearchConfig(steps=60, samples=32, learning_rate=0.15, success=0.9, patience=3, settle=25, tolerance=0.03),
    usual("l1"),
)
ADDED = Family(
    "l2",
    ClimbTogether(),
    replace(CLIMB, steps=60, samples=24, success=0.9),
    usual("l2"),
)


@dataclass(frozen=True)
class Attractor(Detector):
    """The detector's settings.

    Attributes:
        families: what is searched.
        starts: searches, each on images and from a start of its own, whose smallest result counts; of later rounds one.
        destinations: classes of a family that are to be known before it is judged.
        rounds: at most so often are the classes found excluded and the search repeated.
        held_out: where a trigger leads is measured on at most so many unseen samples.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Change.OPEN, references=False)
    families: tuple[Family, ...] = (MASKS, ADDED)
    starts: int = 2
    destinations: int = 3
    rounds: int = 3
    held_out: int = HELD_OUT

    def settings(self) -> dict[str, object]:
        """Every parameter, the families' by their names."""
        own: dict[str, object] = {
            "starts": self.starts,
            "destinations": self.destinations,
            "rounds": self.rounds,
            "held_out": self.held_out,
        }
        for family in self.families:
            own |= {f"{family.name}.{k}": v for k, v in flat(family.search).items()}
        return own

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """All rounds, all steps."""
        return tuple(
            Work(self.starts + self.rounds - 1, f.search.steps, f.search.samples, task=f"{NAME} {f.name}")
            for f in self.families
        )

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Search every family; the smallest trigger to each class that was arrived at."""
        classes = at_hand.subject.classes
        if len(present_classes(at_hand.search_samples)) < FEWEST_CLASSES:
            return Skipped(NAME, f"samples of {FEWEST_CLASSES} classes at least are needed to see them led to one")
        units: list[UnitEvidence] = []
        silent = []
        for family in self.families:
            far = _size(family.name, FAR[family.name], at_hand.subject.image_shape)
            found, beyond = self._destinations(at_hand, family, far)
            units += found
            if len(found) < 2 and beyond < far:
                silent.append(family.name)
        views = tuple(
            View(f.name, spacing=f.usual, beyond=f"{BEYOND}{f.name}")
            for f in self.families
            if any(u.measurement(f.name) is not None for u in units)
        )
        if not views:
            return Skipped(NAME, "no search led the images to one class")
        traits = replace(self.traits, convicts=classes >= FEWEST_TO_CONVICT)
        enough = ""
        if silent:
            enough = (
                f"{NAME}: the searches by {' and '.join(silent)} ended at fewer than two classes, and did not go far"
            )
        first = views[0].statistic
        return Evidence(NAME, self.settings(), first, first, "low", tuple(units), views, traits, enough)

    def _destinations(self, at_hand: AtHand, family: Family, enough: float) -> tuple[list[UnitEvidence], float]:
        """The smallest trigger to each class that searches ended at, in the order in which they were found.

        Where a whole round arrived nowhere, all other classes are farther than it went: that distance is the second value, else 0,
        and each unit has it too. A round that went less than `enough` is gone on with once.
        """
        least: dict[int, UnitEvidence] = {}
        beyond = 0.0
        for k in range(self.rounds):
            objective = replace(family.objective, excluded=tuple(sorted(least)))
            units = [Unit(UNTARGETED, start=i) for i in ([self.starts + k - 1] if k else range(self.starts))]
            found = self._round(at_hand, family, f"{family.name} {k}", units, objective)
            arrived, beyond, farthest = _outcome(found, family.name)
            if not arrived and farthest is not None and beyond < enough:
                longer = replace(family, search=replace(family.search, steps=LONGER * family.search.steps))
                again = self._round(at_hand, longer, f"{family.name} {k} longer", [farthest], objective)
                arrived, beyond, _ = _outcome(again, family.name, beyond)
            if not arrived:
                break
            for unit in arrived:
                target = int(unit.value(DESTINATION))
                known = least.get(target)
                if known is None or preferred(unit, family.name) < preferred(known, family.name):
                    least[target] = replace(unit, unit=Unit(target, start=unit.unit.start))
            if len(least) >= self.destinations:
                break
        if beyond:
            extra = measured(**{f"{BEYOND}{family.name}": beyond})
            return [replace(u, measurements=(*u.measurements, *extra)) for u in least.values()], beyond
        return list(least.values()), 0.0

    def _round(
        self, at_hand: AtHand, family: Family, name: str, units: Sequence[Unit], objective: ReachTogether
    ) -> tuple[UnitEvidence, ...]:
        """What these searches end at."""
        return search_units(
            f"{NAME} {name}",
            at_hand.subject,
            at_hand,
            at_hand.ledger,
            units,
            objective,
            family.search,
            family.name,
            drawn_as=f"{NAME} {family.name}",
            as_evidence=partial(self._led, at_hand, family, objective.excluded),
        )

    def _led(self, at_hand: AtHand, family: Family, excluded: Sequence[int], result: UnitResult) -> UnitEvidence:
        """A search as evidence: the class that its images go to, and how many unseen ones its trigger leads there."""
        statistics: dict[str, float] = {}
        success, count = None, 0
        if result.found:
            samples = at_hand.search_samples
            rows = choose_images(result.unit, samples, family.search.samples, at_hand.run, f"{NAME} {family.name}")
            trigger = Trigger.kept(UNTARGETED, result.trigger)
            target = destination(at_hand.subject, trigger, samples.images[rows], excluded)
            statistics = {family.name: result.cost, DESTINATION: float(target)}
            unseen = at_hand.held_out.images
            some = at_hand.run.numpy_generator(NAME, "unseen").permutation(len(unseen))[: self.held_out]
            success, count = led(at_hand.subject, trigger, unseen[np.sort(some)], target)
        elif not result.diverged:
            kept = {k: torch.from_numpy(v)[None].flatten(1) for k, v in result.trigger.items()}
            far = NORMS[family.name](kept["delta" if "delta" in kept else "mask"])
            statistics = {f"{BEYOND}{family.name}": float(far)}
        return as_found(result, measured(**statistics), held_out_success=success, held_out=count)


def _outcome(
    found: Sequence[UnitEvidence], statistic: str, beyond: float = 0.0
) -> tuple[list[UnitEvidence], float, Unit | None]:
    """(those that arrived; where none did, how far the farthest of them and of earlier ones went, and which of these it was)."""
    arrived = [u for u in found if u.measurement(DESTINATION) is not None]
    if arrived:
        return arrived, 0.0, None
    distances = {u.unit: m.value for u in found if (m := u.measurement(f"{BEYOND}{statistic}")) is not None}
    farthest = max(distances, key=lambda unit: distances[unit], default=None)
    return [], max([beyond, *distances.values()]), farthest


def _size(statistic: str, share: float, shape: Sequence[int]) -> float:
    """A share of the area, or a root mean square, as a norm of images of this shape ``(channels, height, width)``."""
    channels, height, width = shape
    return share * height * width if statistic == "l1" else share * float(channels * height * width) ** 0.5


def destination(subject: Subject, trigger: Trigger, images: np.ndarray, excluded: Sequence[int] = ()) -> int:
    """The class that a trigger leads most of the images ``(n, channels, height, width)`` to that are not there without it."""
    before = subject.predict(images).argmax(1)
    after = subject.predict(trigger.apply(images)).argmax(1)
    counts = np.bincount(after[after != before], minlength=subject.classes)
    counts[list(excluded)] = -1
    return int(counts.argmax())


def led(subject: Subject, trigger: Trigger, images: np.ndarray, target: int) -> tuple[float | None, int]:
    """(share, count): of the images ``(n, channels, height, width)`` that are not at the target, how many a trigger leads there."""
    others = images[subject.predict(images).argmax(1) != target] if len(images) else images
    if not len(others):
        return None, 0
    return float((subject.predict(trigger.apply(others)).argmax(1) == target).mean()), len(others)
