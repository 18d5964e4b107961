"""Maximum margin (MM-BD; Wang et al., 2024): needs no data at all.

For each class t the largest margin that any valid input has is searched for by gradient ascent from a few random images:

    r_t = max over x in [0, 1]^d of  z_t(x) - max_{j != t} z_j(x).

Training on a trigger that alone decides the class raises the target's margin above what natural features reach. MM-BD fits
a Gamma law to the margins of the other classes and asks whether the largest is too large for it, by the law of the
largest of K: `gamma_order.gamma_order` is that rule (of one reciprocal norm a class), kept beside as `gamma_log10_p`. The
verdict judges the same statistic with the null model that it uses everywhere.

It is a screening test that costs seconds, and it does not convict alone (`Traits.convicts` is False): the margin is as large
as the class is easy, and classes differ by nature (docs/decisions.md has what was measured).

Departure: Adam with projection onto [0, 1] after each step (learning rate 0.1, a fixed number of steps) instead of gradient
ascent with momentum; the margins' scale, which differs by orders of magnitude between networks, then does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.detectors.base import AtHand, Detector, Work, search_units
from onnxspect.engine.detectors.held_out import as_found
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.gamma_order import gamma_order
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.null_model import FEWEST_CLASSES
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.search.objective import Measured, Memory, Objective, StepSettings
from onnxspect.engine.search.perturbation import State
from onnxspect.engine.search.search import SearchConfig, UnitResult
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

NAME = "max-margin"
STATISTIC = "max_margin"
#: Two starts whose margins differ by less than this share have found the same maximum.
AGREE = 0.05


@dataclass(frozen=True)
class Margin(Objective):
    """Images whose margin for the unit's target is to be as large as possible; the cost is minus the largest.

    Attributes:
        starts: random images, even noise in [0, 1], that are climbed from.
    """

    starts: int = 16

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """`images` ``(unit, start, channels, height, width)``: the given images lend no more than their shape."""
        shape = (self.starts, *images.shape[2:])
        return {"images": torch.stack([torch.rand(shape, generator=g) for g in generators])}

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Minus the sum of the margins as the loss, minus the largest as the cost; nothing constrains the search."""
        margins = self._margins(subject, state["images"], targets)
        return Measured(-margins.sum(1), -margins.amax(1), torch.ones_like(margins[:, 0]))

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """A step of Adam, then back into [0, 1]."""
        return {k: v.clamp_(0, 1) for k, v in super().update(state, gradients, memory, step, settings).items()}

    def trigger(self, state: State) -> dict[str, Tensor]:
        """The images that were found."""
        return {"images": state["images"]}

    @staticmethod
    def _margins(subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
        """``(unit, start)``."""
        units, starts = images.shape[:2]
        logits = subject(images.flatten(0, 1)).view(units, starts, -1)
        own = targets[:, None, None].expand(units, starts, 1)
        return logits.gather(2, own).squeeze(2) - logits.scatter(2, own, -torch.inf).amax(2)


@dataclass(frozen=True)
class MaxMargin(Detector):
    """The detector's settings.

    Attributes:
        search: steps and learning rate; the rest does not apply.
        objective: how many starts.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.ANY_INPUT, references=False, convicts=False, validated=False)
    search: SearchConfig = field(
        default_factory=lambda: SearchConfig(steps=60, samples=1, learning_rate=0.1, betas=(0.9, 0.999), multiplier=0.0)
    )
    objective: Margin = field(default_factory=Margin)

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """All steps of every class."""
        return (Work(classes, self.search.steps, self.objective.starts, task=NAME),)

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """The largest margin of every class; no sample is used."""
        subject = at_hand.subject
        if len(at_hand.targets) < FEWEST_CLASSES:
            return Skipped(NAME, f"{len(at_hand.targets)} classes are too few to compare (at least {FEWEST_CLASSES})")
        blank = Samples(np.zeros((1, *subject.image_shape), np.float32), np.zeros(1, np.int64))
        without_data = replace(at_hand, search_samples=blank, held_out=blank.take(np.zeros(0, np.int64)))
        units = [Unit(target=t) for t in at_hand.targets]
        found = search_units(
            NAME,
            subject,
            without_data,
            at_hand.ledger,
            units,
            self.objective,
            self.search,
            STATISTIC,
            choose=lambda _: np.zeros(1, np.int64),
            as_evidence=lambda result: _as_evidence(subject, result),
        )
        margins = Evidence.values(found, STATISTIC)
        known = int(np.isfinite(margins).sum())
        if known < FEWEST_CLASSES:
            return Skipped(
                NAME,
                f"only {known} of {subject.classes} classes could be made the answer of any input: "
                "the model hardly heeds its input, or answers NaN",
            )
        gamma = gamma_order(1 / margins[:, None])
        extended = tuple(
            replace(u, measurements=(*u.measurements, *measured(gamma_log10_p=float(gamma.log10_p[i]))))
            if u.measurements
            else u
            for i, u in enumerate(found)
        )
        views = (View(STATISTIC, "high"),)
        return Evidence(NAME, self.settings(), STATISTIC, STATISTIC, "high", extended, views, self.traits)


def _as_evidence(subject: Subject, result: UnitResult) -> UnitEvidence:
    """The largest margin as a statistic, where it is positive; the image that has it as the trigger's picture."""
    images = result.trigger["images"]
    target = torch.tensor([result.unit.target], device=subject.device)
    with torch.no_grad():
        given = torch.from_numpy(images).to(subject.device)[None]
        margins = np.sort(Margin._margins(subject, given, target)[0].float().cpu().numpy().astype(np.float64))[::-1]
    best = float(margins[0])
    reached = bool(np.isfinite(best) and best > 0)
    agree = len(margins) < 2 or margins[1] >= (1 - AGREE) * best
    return as_found(
        result,
        measured(**{STATISTIC: best}) if reached else (),
        found=reached,
        converged=bool(reached and agree),
        search_success=float(reached),
        trigger={},
    )
