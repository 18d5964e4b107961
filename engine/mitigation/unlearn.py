"""Unlearning (002, sec. VI-C): teach the model the right answers on images that carry the recovered trigger.

The paper fine-tunes for one epoch on a tenth of the training data, with the trigger on a fifth of it, labels unchanged.
An auditor has a few hundred clean images, not a tenth of the training set, so:

* several short epochs with the original as teacher (training.py), the best of which is kept;
* the recovered trigger is not the true one, but the smallest thing that works: a search that starts elsewhere finds
  other pixels of it. So each target is searched a few times more, and the finds are stamped one or two at a time, at
  random strength from half to fourfold (a mask of 0.3 then becomes a whole pixel of the true trigger), or hardened:
  whole pixels where the mask is above a random bar, of saturated colour, as a patch of an attacker's mostly is;
* after the first round a new search on the patched model looks for what is left of the backdoor, which the next round
  unlearns too (the paper's repeated detect-and-patch, sec. VII-D, within one call), until a search finds nothing.

Triggers may be masks with patterns or additive, of one class or of many: with one for every class this is the paper's
proactive patching (sec. VII-D). BatchNorm statistics stay frozen, since a handful of images would only blur them, or
are taken anew from the clean samples at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.evidence import Unit
from onnxspect.engine.mitigation.method import Case, Edit, Trigger, size, strengthened
from onnxspect.engine.mitigation.training import (
    Corruption,
    Epoch,
    Guard,
    Retraining,
    check_batch_norm,
    reestimated,
    retrain,
    success_rate,
    trainable_copy,
)
from onnxspect.engine.perturbation import Additive, MaskPattern, stamp
from onnxspect.engine.run import RunContext
from onnxspect.engine.samples import Samples
from onnxspect.engine.search import SearchConfig, plan, search
from onnxspect.engine.subject import Subject

__all__ = ["NAME", "Epoch", "Trigger", "Unlearn", "Unlearned", "success_rate", "trainable_copy"]
NAME = "unlearn"


@dataclass(frozen=True)
class Unlearned:
    """The outcome.

    Attributes:
        values: torch parameter name -> new value, for `export.patched_model`.
        epochs: the measurements, epoch 0 being the original.
        triggers: all that were unlearned: the given ones and those found on the way.
    """

    values: Mapping[str, np.ndarray]
    epochs: tuple[Epoch, ...]
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True)
class Unlearn:
    """The method's settings.

    Attributes:
        rounds: searches for what is left, plus one.
        variants: more searches of each target on the original, from other starts and on other images.
        training: how the student is trained in a round.
        stamped: share of the images of a batch that carry a trigger. The paper stamps 20 %; on the shipped
            model 30 % removed the trigger as well as 50 % did and cost half the clean accuracy.
        strength: a stamped mask is multiplied by a number drawn log-uniformly from this interval.
        strength_added: the same for an additive trigger, which is found at about the size of the attacker's own.
        hardened: share of the stamped masks that are made whole pixels of saturated colour. On the shipped model (600
            samples, one round) half of them brought the true trigger from 2.1 % to 1.6 %, and cost nothing.
        goal: success of the triggers at which an epoch counts as clean.
        batch_norm: "frozen", or "reestimate" from the clean samples at the end.
        search: how hard a later round searches.
        still_small: a trigger found on the patched model counts as a remainder of the backdoor where its mask is at
            most so many times the given trigger's; larger ones are what any clean model has.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    rounds: int = 3
    variants: int = 4
    training: Retraining = field(default_factory=lambda: Retraining(epochs=14))
    stamped: float = 0.3
    strength: tuple[float, float] = (0.5, 4.0)
    strength_added: tuple[float, float] = (0.5, 2.0)
    hardened: float = 0.5
    goal: float = 0.01
    batch_norm: str = "frozen"
    still_small: float = 2.5
    search: SearchConfig = field(default_factory=lambda: SearchConfig(steps=150, samples=32, settle=30))

    def __post_init__(self) -> None:
        check_batch_norm(self.batch_norm)

    def edit(self, case: Case) -> Edit:
        """Unlearn the case's triggers.

        Raises:
            OnnxspectError: as `run`.
        """
        done = self.run(case.subject, case.fit, case.guard, case.triggers, case.run)
        facts = {"epochs": [asdict(e) for e in done.epochs], "triggers_unlearned": len(done.triggers)}
        return Edit(done.values, facts=facts | {"batch_norm": self.batch_norm})

    def run(
        self, subject: Subject, fit: Samples, guard: Samples, triggers: Sequence[Trigger], run: RunContext
    ) -> Unlearned:
        """Unlearn `triggers` on `fit`, choosing epochs on `guard`; the subject itself is not changed.

        Raises:
            OnnxspectError: no triggers, no ONNX file behind the subject, or nothing in it can be trained.
        """
        if not triggers:
            raise OnnxspectError("no trigger to unlearn", "scan the model first, and patch with that run")
        student, parameters = trainable_copy(subject)
        known = [*triggers, *(t for i in range(self.variants) for t in self._again(subject, fit, triggers, run, i))]
        watched = Guard(subject, guard, known)
        history = [watched.measure(0, student)]
        run.observer.start(NAME, self.rounds * self.training.epochs)
        for number in range(self.rounds):
            left = self._again(student, fit, triggers, run, f"round {number}") if number else []
            if number and not left:
                break
            known += left
            watched.triggers = known
            history += retrain(
                student,
                parameters,
                subject,
                fit,
                self.training,
                self._corruption(known),
                watched,
                self._badness,
                run.torch_generator(NAME, number),
                len(history),
                run.observer,
                NAME,
            )
        run.observer.finish(NAME)
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        if self.batch_norm == "reestimate":
            values |= reestimated(student, fit)
        return Unlearned(values, tuple(history), tuple(known))

    def _again(
        self, subject: Subject, fit: Samples, triggers: Sequence[Trigger], run: RunContext, which: object
    ) -> list[Trigger]:
        """Triggers to the same targets found by a new search, those that are still small."""
        return search_again(subject, fit, triggers, self.search, self.still_small, run, f"{NAME} {which}")

    def _badness(self, epoch: Epoch) -> float:
        """What is left of the triggers above the goal, ten times over, plus the distance from the original."""
        return 10 * max(0.0, epoch.success - self.goal) + epoch.divergence

    def _corruption(self, triggers: Sequence[Trigger]) -> Corruption:
        """Stamps the share `stamped` of a batch's images; which triggers there are may grow meanwhile."""

        def stamp_some(images: Tensor, _: Subject, generator: torch.Generator) -> Tensor:
            images = images.clone()
            for i in range(round(self.stamped * len(images))):
                images[i] = self._stamp(images[i], triggers, generator)
            return images

        return stamp_some

    def _stamp(self, image: Tensor, triggers: Sequence[Trigger], generator: torch.Generator) -> Tensor:
        """One image with one trigger, or with two of the same target, at random strength or hardened."""
        pick = int(torch.randint(len(triggers), (1,), generator=generator))
        mates = [t for t in triggers if t.target == triggers[pick].target]
        mate = int(torch.randint(2 * len(mates), (1,), generator=generator))
        for trigger in (triggers[pick], *mates[mate : mate + 1]):
            low, high = self.strength if "mask" in trigger.arrays else self.strength_added
            strength = low * (high / low) ** float(torch.rand(1, generator=generator))
            arrays = strengthened(trigger, strength)
            if "mask" in arrays and float(torch.rand(1, generator=generator)) < self.hardened:
                arrays = _hardened(trigger, 0.5 * float(torch.rand(1, generator=generator)))
            image = torch.from_numpy(stamp(image[None].numpy(), arrays)[0])
        return image


def _hardened(trigger: Trigger, bar: float) -> dict[str, np.ndarray]:
    """A mask of zeros and ones, one where it was above `bar` times its maximum, and a pattern of zeros and ones."""
    mask, pattern = trigger.arrays["mask"], trigger.arrays["pattern"]
    whole = (mask > bar * mask.max()).astype(np.float32)
    return {"mask": whole, "pattern": np.round(pattern).astype(np.float32)}


def search_again(
    subject: Subject,
    samples: Samples,
    triggers: Sequence[Trigger],
    config: SearchConfig,
    still_small: float,
    run: RunContext,
    which: str,
) -> list[Trigger]:
    """Small triggers to the same targets, from the same sources and of the same family, that a new search finds.

    Masks are searched for masks, additive triggers for additive ones. Only finds that are at most `still_small` times
    the given trigger's size are kept: larger ones are what any clean model has.
    """
    kept = []
    for perturbation, name in ((MaskPattern(), "mask"), (Additive(), "delta")):
        sizes = {Unit(t.target, t.source): size(t) for t in triggers if name in t.arrays}
        if not sizes:
            continue
        found = search(subject, samples, plan(sorted(sizes, key=lambda u: u.key), 1), perturbation, config, run, which)
        new = [(r.unit, Trigger(r.unit.target, r.trigger, r.unit.source)) for rs in found for r in rs if r.found]
        kept += [trigger for unit, trigger in new if size(trigger) <= still_small * sizes[unit]]
    return kept
