"""Unlearning (002, sec. VI-C): teach the model the right answers on images that carry the recovered trigger.

The paper fine-tunes for one epoch on a tenth of the training data, with the trigger on a fifth of it, labels unchanged.
An auditor has a few hundred clean images, not a tenth of the training set, so:

* several short epochs, the best of which is kept: the recovered trigger's success and the clean accuracy are measured
  after each on clean samples that are not trained on;
* the target of every image, stamped or not, is a mixture of its label and what the *original* model says of the clean
  image (distillation). It holds the model's other behaviour in place, which few labels cannot; and because the
  original answers for any image, the few images can be shifted and mixed without end;
* the recovered trigger is not the true one, but the smallest thing that works: a search that starts elsewhere finds
  other pixels of it. So each target is searched a few times more, and the finds are stamped one or two at a time, at
  random strength from half to fourfold (a mask of 0.3 then becomes a whole pixel of the true trigger);
* after the first round a new search on the patched model looks for what is left of the backdoor, which the next round
  unlearns too (the paper's repeated detect-and-patch, sec. VII-D, within one call).

BatchNorm statistics stay frozen: a handful of images would only blur them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional

from onnxspect.converters.writeback import TRAINABLE, roles
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.evidence import Unit
from onnxspect.engine.perturbation import MaskPattern, stamp
from onnxspect.engine.run import RunContext
from onnxspect.engine.samples import Samples
from onnxspect.engine.search import SearchConfig, plan, search
from onnxspect.engine.subject import Subject

NAME = "unlearn"


@dataclass(frozen=True)
class Trigger:
    """A recovered trigger: the class it leads to, and its arrays (`mask` and `pattern`, or `delta`)."""

    target: int
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Epoch:
    """What was measured after one epoch, on clean samples kept apart.

    Attributes:
        epoch: 0 is the original.
        accuracy: clean accuracy.
        divergence: mean Kullback-Leibler divergence, in nats, of the answers from the original's on clean samples. It
            moves long before the accuracy of a few hundred samples does, so it is what chooses the epoch.
        success: of the trigger that works best, among samples that the original does not take for the target anyway.
    """

    epoch: int
    accuracy: float
    divergence: float
    success: float


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
        epochs: so many a round.
        batch_size: images a step.
        learning_rate: Adam's.
        stamped: share of the images of a batch that carry a trigger. The paper stamps 20 %; on the shipped
            model 30 % removed the trigger as well as 50 % did and cost half the clean accuracy.
        from_teacher: weight of the original model's answers against the labels.
        strength: a stamped mask is multiplied by a number drawn log-uniformly from this interval.
        shift: pixels by which a training image is moved at most, each way.
        mixed: share of the images that are mixed with another one (mixup) before the original is asked.
        goal: success of the triggers at which an epoch counts as clean.
        search: how hard a later round searches.
        still_small: a trigger found on the patched model counts as a remainder of the backdoor where its mask is at
            most so many times the given trigger's; larger ones are what any clean model has.
    """

    rounds: int = 3
    variants: int = 4
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    stamped: float = 0.3
    from_teacher: float = 0.9
    strength: tuple[float, float] = (0.5, 4.0)
    shift: int = 2
    mixed: float = 0.5
    goal: float = 0.01
    still_small: float = 2.5
    search: SearchConfig = field(default_factory=lambda: SearchConfig(steps=150, settle=30))

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
        before = subject.predict(guard.images)
        history = [_measure(0, student, guard, known, before)]
        run.observer.start(NAME, self.rounds * self.epochs)
        for number in range(self.rounds):
            left = self._again(student, fit, triggers, run, f"round {number}") if number else []
            if number and not left:
                break
            known += left
            history += self._round(student, parameters, fit, guard, before, subject, known, run, number, len(history))
        run.observer.finish(NAME)
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        return Unlearned(values, tuple(history), tuple(known))

    def _again(
        self, subject: Subject, fit: Samples, triggers: Sequence[Trigger], run: RunContext, which: object
    ) -> list[Trigger]:
        """Triggers to the same targets found by a new search, those that are still small."""
        sizes = {t.target: _size(t) for t in triggers}
        units = [Unit(t) for t in sorted(sizes)]
        found = search(subject, fit, plan(units, 1), MaskPattern(), self.search, run, f"{NAME} {which}")
        new = [Trigger(r.unit.target, r.trigger) for results in found for r in results if r.found]
        return [t for t in new if _size(t) <= self.still_small * sizes[t.target]]

    def _round(
        self,
        student: Subject,
        parameters: Mapping[str, torch.nn.Parameter],
        fit: Samples,
        guard: Samples,
        before: np.ndarray,
        teacher: Subject,
        triggers: Sequence[Trigger],
        run: RunContext,
        number: int,
        first: int,
    ) -> list[Epoch]:
        """Train with a falling step; leaves the weights of the best epoch in place."""
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters.values(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        generator = run.torch_generator(NAME, number)
        best: Epoch | None = None
        best_values: list[Tensor] = []
        history = []
        for epoch in range(first, first + self.epochs):
            self._epoch(student, fit, teacher, triggers, optimizer, generator)
            schedule.step()
            now = _measure(epoch, student, guard, triggers, before)
            history.append(now)
            if best is None or self._badness(now) < self._badness(best):
                best, best_values = now, [p.detach().clone() for p in parameters.values()]
            run.observer.advance(NAME, f"accuracy {now.accuracy:.1%}, trigger {now.success:.1%}")
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), best_values, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(False)
        return history

    def _badness(self, epoch: Epoch) -> float:
        """What is left of the triggers above the goal, ten times over, plus the distance from the original."""
        return 10 * max(0.0, epoch.success - self.goal) + epoch.divergence

    def _epoch(
        self,
        student: Subject,
        fit: Samples,
        teacher: Subject,
        triggers: Sequence[Trigger],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        order = torch.randperm(len(fit), generator=generator)
        everything, labels = torch.from_numpy(fit.images), torch.from_numpy(fit.labels)
        for rows in order.split(self.batch_size):
            images, hard = self._augment(everything[rows], labels[rows], student.classes, generator)
            with torch.no_grad():
                soft = teacher(images.to(teacher.device)).softmax(1).cpu()
            for i in range(round(self.stamped * len(rows))):
                images[i] = self._stamp(images[i], triggers, generator)
            wanted = (1 - self.from_teacher) * hard + self.from_teacher * soft
            loss = functional.cross_entropy(student(images.to(student.device)), wanted.to(student.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _augment(
        self, images: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images ``(n, ...)`` shifted together and partly mixed with each other; and their labels as probabilities."""
        shift = torch.randint(-self.shift, self.shift + 1, (2,), generator=generator).tolist()
        images = torch.roll(images, shift, (2, 3))
        other = torch.randperm(len(images), generator=generator)
        keep = torch.rand(len(images), generator=generator) * 0.5 + 0.5
        keep = torch.where(torch.rand(len(images), generator=generator) < self.mixed, keep, torch.ones_like(keep))
        weight = keep.view(-1, 1, 1, 1)
        hard = functional.one_hot(labels, classes).float()
        hard = keep[:, None] * hard + (1 - keep[:, None]) * hard[other]
        return weight * images + (1 - weight) * images[other], hard

    def _stamp(self, image: Tensor, triggers: Sequence[Trigger], generator: torch.Generator) -> Tensor:
        """One image with one trigger, or with two of the same target, at random strength."""
        pick = int(torch.randint(len(triggers), (1,), generator=generator))
        mates = [t for t in triggers if t.target == triggers[pick].target]
        mate = int(torch.randint(2 * len(mates), (1,), generator=generator))
        for trigger in (triggers[pick], *mates[mate : mate + 1]):
            arrays = dict(trigger.arrays)
            low, high = self.strength
            strength = low * (high / low) ** float(torch.rand(1, generator=generator))
            for name, most in (("mask", 1.0), ("delta", np.inf)):
                if name in arrays:
                    arrays[name] = np.minimum(arrays[name] * np.float32(strength), np.float32(most))
            image = torch.from_numpy(stamp(image[None].numpy(), arrays)[0])
        return image


def success_rate(subject: Subject, samples: Samples, trigger: Trigger, before: np.ndarray) -> float:
    """Share of the samples, of other classes and not taken for the target without it, that the trigger sends there.

    Args:
        subject: whose answers count.
        samples: clean.
        trigger: stamped on them.
        before: logits ``(n, classes)`` of the original on the clean samples.
    """
    rows = np.flatnonzero((samples.labels != trigger.target) & (before.argmax(1) != trigger.target))
    if not len(rows):
        raise OnnxspectError(f"no samples of any class but {trigger.target} to measure the trigger on")
    answers = subject.predict(stamp(samples.images[rows], dict(trigger.arrays))).argmax(1)
    return float((answers == trigger.target).mean())


def _measure(epoch: int, student: Subject, guard: Samples, triggers: Sequence[Trigger], before: np.ndarray) -> Epoch:
    now = student.predict(guard.images)
    old, new = log_softmax(before, axis=1), log_softmax(now, axis=1)
    return Epoch(
        epoch,
        accuracy=float((now.argmax(1) == guard.labels).mean()),
        divergence=float((np.exp(old) * (old - new)).sum(1).mean()),
        success=max(success_rate(student, guard, t, before) for t in triggers),
    )


def _size(trigger: Trigger) -> float:
    """L1 norm of a mask, or of an additive trigger."""
    return float(np.abs(trigger.arrays["mask" if "mask" in trigger.arrays else "delta"]).sum())


def trainable_copy(subject: Subject) -> tuple[Subject, dict[str, torch.nn.Parameter]]:
    """A copy of the subject, and those of its parameters that are weights (not BatchNorm statistics or constants).

    Raises:
        OnnxspectError: there is no ONNX file behind it, or nothing in it can be trained.
    """
    if subject.lowered is None or subject.file is None:
        raise OnnxspectError(f"{subject.name}: no ONNX file behind this subject", "export it first")
    module = copy.deepcopy(subject.lowered.module)
    found = roles(subject.file.proto, subject.lowered)
    parameters = {n: p for n, p in module.named_parameters() if found.get(n) in TRAINABLE}
    if not parameters:
        raise OnnxspectError(f"{subject.name}: no weight in it can be trained and written back")
    return replace(subject, module=module), parameters
