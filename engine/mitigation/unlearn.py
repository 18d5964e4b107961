"""Unlearning (Neural Cleanse, Wang et al., 2019, sec. VI-C): teach the model the right answers on images that carry the recovered trigger.

The paper fine-tunes for one epoch on a tenth of the training data, with the trigger on a fifth of it, labels unchanged.
An auditor has a few hundred clean images, not a tenth of the training set, so:

* several short epochs with the original as teacher (training.py), the best of which is kept;
* the recovered trigger is not the true one, but the smallest thing that works: a search that starts elsewhere finds
  other pixels of it. So each target is searched a few times more, and the finds are stamped one or two at a time, at
  random strength from half to fourfold (a mask of 0.3 then becomes a whole pixel of the true trigger), or hardened:
  whole pixels where the mask is above a random threshold, of saturated colour, as an attacker's patch mostly is;
* half of the stamped triggers move: they follow the student within twice the recovered trigger's size (adversary.py),
  since whatever opens the backdoor, the attacker's own trigger above all, lies near what the search has found;
* there are two training schedules. In the first the labels teach, and what is kept is a moving average of the student,
  since labels make its weights oscillate. Other images of a batch are warped or blended a little, a label-preserving
  augmentation (augmentation.py), for backdoors that open to what no search recovers (WaNet's). On few images of a hard task
  labels cost two or three points of accuracy, and a hundred held-out samples do not show it; the divergence of the
  answers from the original's (Epoch.divergence) does. Where it is too large, the original teaches alone, at a
  temperature that holds its unlikely classes in place as well;
* after the first round a new search on the patched model looks for what is left of the backdoor, which the next round
  unlearns too (the paper's repeated detect-and-patch, sec. VII-D, within one call), until a search finds nothing.

Triggers may be masks with patterns or additive, of one class or of many: with one for every class this is the paper's
proactive patching (sec. VII-D). BatchNorm statistics stay frozen, since a handful of images would only blur them, or
are taken anew from the clean samples at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.adversary import MovingTrigger
from onnxspect.engine.mitigation.augmentation import blended, squared, warped
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.remainder import Searches, search_again
from onnxspect.engine.mitigation.settings import require
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
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import LARGEST_SIZE_LIMIT, Trigger, stamp

__all__ = ["NAME", "Epoch", "Trigger", "Unlearn", "Unlearned", "success_rate", "trainable_copy"]
NAME = "unlearn"


@dataclass(frozen=True)
class Schedule:
    """A training schedule: how a student is trained, and on what. Where its numbers come from: docs/decisions.md.

    Attributes:
        name: for people.
        training: in a round.
        stamped: share of the images of a batch that carry a trigger (the paper: 20 %).
        augmented: share of the images of a batch that are warped or blended with another one, labels preserved.
        squared: share that get a small square anywhere, labels preserved, for patches that are not the recovered one.
        divergence: the schedule counts as failed where the kept epoch's answers are further from the original's, in
            nats (Epoch.divergence).
    """

    name: str
    training: Retraining
    stamped: float = 0.3
    augmented: float = 0.0
    squared: float = 0.0
    divergence: float = float("inf")

    def among(self, targets: int) -> Schedule:
        """The schedule where the triggers of so many targets share its stamped images: longer, and with more of them."""
        stamped = max(self.stamped, min(MOST_STAMPED, self.stamped * targets**0.2))
        training = replace(self.training, epochs=round(self.training.epochs * targets**0.4))
        return replace(self, stamped=stamped, training=training)

    def hopeless(self, epochs: Sequence[Epoch]) -> bool:
        """Whether it will not come within its divergence, by what its epochs so far have shown."""
        return len(epochs) >= TRIED and epochs[-1].divergence > TOO_FAR * self.divergence


#: A schedule is given up when after so many epochs the student is at more than so many times its `divergence`: it
#: starts as the original, and hardly comes back from there.
TRIED, TOO_FAR = 5, 1.25
#: Labels teach only with so many images a class.
FEWEST_LABELLED = 5
#: Share of a batch that several targets' triggers are stamped on at most.
MOST_STAMPED = 0.6

#: Labels make the student's weights oscillate, so a moving average over some four epochs is kept. History:
#: docs/decisions.md.
LABELS = Schedule("labels teach", Retraining(epochs=14, from_teacher=0.2, average=0.99), augmented=0.4, divergence=0.05)
#: Distillation alone. History of its learning rate: docs/decisions.md.
ORIGINAL = Schedule(
    "the original teaches", Retraining(epochs=25, from_teacher=1.0, temperature=2.0), stamped=0.4, squared=0.3
)


@dataclass(frozen=True)
class Unlearned:
    """The outcome.

    Attributes:
        values: torch parameter name -> new value, for `export.patched_model`.
        epochs: the measurements, epoch 0 being the original.
        triggers: all that were unlearned: the given ones and those found on the way.
        rounds: how many there were.
        schedule: the schedule whose values these are.
        kept: the epoch whose values these are.
    """

    values: Mapping[str, np.ndarray]
    epochs: tuple[Epoch, ...]
    triggers: tuple[Trigger, ...]
    rounds: int
    schedule: Schedule
    kept: Epoch


@dataclass(frozen=True)
class Unlearn:
    """The method's settings.

    Attributes:
        rounds: searches for what is left, plus one.
        variants: more searches of each target on the original, from other starts and on other images.
        schedules: schedules, tried in this order, each from the original on, until one costs no more than it may.
        strength: a stamped mask is multiplied by a number drawn log-uniformly from this interval.
        strength_added: the same for an additive trigger, which is found at about the size of the attacker's own.
        hardened: share of the stamped masks that are made whole pixels of saturated colour.
        goal: success of the triggers at which an epoch counts as clean.
        batch_norm: "frozen", or "reestimate" from the clean samples at the end.
        moving: share of the stamped images whose trigger moves with the student (adversary.py).
        reach: a moving trigger may grow to so many times its recovered size.
        steps: gradient steps that one of them takes before each batch.
        search: how hard triggers are searched for, on the original and in later rounds.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    mends: ClassVar[bool] = True
    rounds: int = 3
    variants: int = 1
    schedules: tuple[Schedule, ...] = (LABELS, ORIGINAL)
    strength: tuple[float, float] = (0.5, 4.0)
    strength_added: tuple[float, float] = (0.5, 2.0)
    hardened: float = 0.5
    goal: float = 0.01
    batch_norm: str = "frozen"
    moving: float = 0.5
    reach: float = 2.0
    steps: int = 2
    search: Searches = field(default_factory=Searches)

    def __post_init__(self) -> None:
        check_batch_norm(self.batch_norm)
        require(self.variants >= 0 and self.steps >= 0, "unlearn makes 0 variants and steps or more")
        require(
            0 < self.strength[0] <= self.strength[1] and 0 < self.strength_added[0] <= self.strength_added[1],
            "strengths of unlearn are above 0, the smaller first",
        )
        require(
            min(self.hardened, self.goal, self.moving) >= 0 and max(self.hardened, self.goal, self.moving) <= 1,
            "shares of unlearn lie between 0 and 1",
        )
        require(self.reach > 0, "the reach of unlearn is above 0")
        if self.rounds < 1 or not self.schedules:
            raise OnnxspectError("unlearning needs at least one round and one schedule")

    def edit(self, given: PatchInput) -> Edit:
        """Unlearn the given triggers.

        Raises:
            OnnxspectError: as `run`.
        """
        done = self.run(given.subject, given.fit, given.guard, given.triggers, given.run, given.accuracy_lost)
        facts = {"epochs": [asdict(e) for e in done.epochs], "triggers_unlearned": len(done.triggers)}
        facts |= {"rounds": done.rounds, "schedule": done.schedule.name, "kept_epoch": done.kept.epoch}
        return Edit(done.values, facts=facts | {"batch_norm": self.batch_norm})

    def run(
        self,
        subject: Subject,
        fit: Samples,
        guard: Samples,
        triggers: Sequence[Trigger],
        run: RunContext,
        accuracy_lost: float = 0.01,
    ) -> Unlearned:
        """Unlearn `triggers` on `fit`, choosing epochs on `guard`; the subject itself is not changed.

        Args:
            subject: the infected classifier.
            fit, guard: clean samples to learn from, and to choose by.
            triggers: recovered.
            run: seed, device, observer.
            accuracy_lost: clean accuracy that a schedule may cost on `guard`, or the next one is tried.

        Raises:
            OnnxspectError: no triggers, no ONNX file behind the subject, or nothing in it can be trained.
        """
        if not triggers:
            raise OnnxspectError("no trigger to unlearn", "scan the model first, and patch with that run")
        trainable_copy(subject)  # what cannot be trained is refused before the searches
        known = [*triggers, *(t for i in range(self.variants) for t in self._again(subject, fit, triggers, run, i))]
        for schedule in self._able(triggers, len(fit) / subject.classes):
            done = self._trained(subject, fit, guard, known, run, schedule)
            # Half a sample of slack, as in verify.Verification.failures.
            lost = done.epochs[0].accuracy - done.kept.accuracy
            if lost <= accuracy_lost + 0.5 / len(guard) and done.kept.divergence <= schedule.divergence:
                break
        return done

    def planned(self, given: PatchInput) -> list[Retraining]:
        """How it trains, schedule by schedule: for as many targets and images a class as there are."""
        return [s.training for s in self._able(given.triggers, len(given.fit) / given.subject.classes)]

    def _able(self, triggers: Sequence[Trigger], images: float) -> list[Schedule]:
        """The schedules for these triggers' targets and so many images a class: from too few labels teach nothing but these images."""
        without = [s for s in self.schedules if s.training.from_teacher == 1]
        able = without if without and images < FEWEST_LABELLED else self.schedules
        return [s.among(len({t.target for t in triggers})) for s in able]

    def _trained(
        self,
        subject: Subject,
        fit: Samples,
        guard: Samples,
        known: Sequence[Trigger],
        run: RunContext,
        schedule: Schedule,
    ) -> Unlearned:
        """All rounds of one schedule."""
        student, parameters = trainable_copy(subject)
        known = list(known)
        watched = Guard(subject, guard, known)
        history = [watched.measure(0, student)]
        task = f"{NAME}, {schedule.name}"
        run.observer.start(task, self.rounds * schedule.training.epochs)
        for number in range(self.rounds):
            left = self._again(student, fit, known, run, f"round {number}") if number else []
            if number and not left:
                break
            known += left
            watched.triggers = known
            rounds = number + 1
            latest = retrain(
                student,
                parameters,
                subject,
                fit,
                schedule.training,
                self._corruption(known, fit, schedule),
                watched,
                self._badness,
                run.torch_generator(NAME, number),
                len(history),
                run.observer,
                task,
                hopeless=schedule.hopeless,
                leading=_of_sources(known, fit),
            )
            history += latest
            if schedule.hopeless(latest):
                break
        run.observer.finish(task)
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        if self.batch_norm == "reestimate":
            values |= reestimated(student, fit)
        kept = min(latest, key=self._badness)
        return Unlearned(values, tuple(history), tuple(known), rounds, schedule, kept)

    def _again(
        self, subject: Subject, fit: Samples, triggers: Sequence[Trigger], run: RunContext, which: object
    ) -> list[Trigger]:
        """Triggers to the same targets found by a new search, those that are small enough to be the backdoor's."""
        found = search_again(subject, fit, triggers, run, f"{NAME} {which}", self.search)
        return [f.trigger for f in found if f.remains]

    def _badness(self, epoch: Epoch) -> float:
        """Success of the triggers above the goal, times ten, plus that of stronger ones, plus the divergence from the original."""
        return 10 * max(0.0, epoch.success - self.goal) + epoch.stronger + epoch.divergence

    def _corruption(self, triggers: Sequence[Trigger], fit: Samples, schedule: Schedule) -> Corruption:
        """Stamps a share of a batch's images, some with a trigger that moves; and augments others, labels preserved."""
        others = torch.from_numpy(fit.images)
        foes = [MovingTrigger(t, fit, min(self.reach, t.size_limit), self.steps) for t in triggers]

        def stamp_some(images: Tensor, student: Subject, generator: torch.Generator) -> Tensor:
            images = images.clone()
            n = round(schedule.stamped * len(images))
            half = n + round(schedule.augmented * len(images) / 2)
            images[n:half] = warped(images[n:half], generator)
            images[half : 2 * half - n] = blended(images[half : 2 * half - n], others, generator)
            rest = len(images) - round(schedule.squared * len(images))
            images[rest:] = squared(images[rest:], generator)
            moving = round(self.moving * n)
            if moving:
                foe = foes[int(torch.randint(len(foes), (1,), generator=generator))]
                arrays = foe.advance(student, generator)
                images[:moving] = torch.from_numpy(stamp(images[:moving].numpy(), arrays))
            for i in range(moving, n):
                images[i] = self._stamp(images[i], triggers, generator)
            return images

        return stamp_some

    def _stamp(self, image: Tensor, triggers: Sequence[Trigger], generator: torch.Generator) -> Tensor:
        """One image with one trigger, or with two of the same target, at random strength or hardened."""
        pick = int(torch.randint(len(triggers), (1,), generator=generator))
        mates = [t for t in triggers if t.target == triggers[pick].target]
        mate = int(torch.randint(2 * len(mates), (1,), generator=generator))
        for trigger in (triggers[pick], *mates[mate : mate + 1]):
            low, high = self.strength if trigger.masked else self.strength_added
            if trigger.smallest:  # else it has the size of the training set's own trigger, and no bound applies
                high = max(1.0, high * min(1.0, trigger.size_limit / LARGEST_SIZE_LIMIT))
            strength = low * (high / low) ** float(torch.rand(1, generator=generator))
            form = trigger.strengthened(strength)
            if trigger.masked and float(torch.rand(1, generator=generator)) < self.hardened:
                form = trigger.hardened(0.5 * float(torch.rand(1, generator=generator)))
            image = torch.from_numpy(form.apply(image[None].numpy())[0])
        return image


def _of_sources(triggers: Sequence[Trigger], fit: Samples) -> np.ndarray | None:
    """Rows of the classes that triggers with a source move; None where no trigger has one.

    They head each batch, where the triggers are stamped: of ten classes a batch of 32 would stamp one image of the source.
    """
    rows = np.flatnonzero(np.isin(fit.labels, [t.source for t in triggers if t.source is not None]))
    return rows if len(rows) else None
