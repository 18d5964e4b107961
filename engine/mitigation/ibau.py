"""Adversarial unlearning (I-BAU; Zeng et al., 2022): no trigger needed, the worst one is made on the way.

Their minimax (Eq. 1): ``min_theta max_{|delta| <= C} 1/n sum_i loss(f_theta(x_i + delta), y_i)``: one change for all
images (universal), and weights for which no such change does harm. In each step the inner problem is solved by a few
gradient steps from where the last one ended, then the weights take a step on the changed images.

Departures, and why:

* Theirs adds to the outer gradient an implicit term, the dependence of delta on theta, by a fixed-point iteration. At
  an inner maximum the term vanishes (Danskin's theorem); with a warm start the iterate stays near one, and the term
  costs five more passes with second derivatives a step. It is left out.
* Besides the change that hurts most, changes towards each target class that a scan named are made (half of the time):
  the backdoor's direction is known, so it need not be found by chance.
* The original is the teacher on clean images (training.py), which few labels need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from onnxspect.engine.mitigation.fine_tune import fine_tuned
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.mitigation.training import Retraining, trainable_copy
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import UNTARGETED

NAME = "ibau"


@dataclass(frozen=True)
class AdversarialUnlearning:
    """The method's settings.

    Attributes:
        training: of the outer problem.
        radius: of the l2 ball of changes, per square root of the number of pixel values: their 10 for 32x32 colour
            images is 0.18.
        steps: inner gradient steps a batch.
        changed: share of the images of a batch that are changed.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    mends: ClassVar[bool] = True
    training: Retraining = field(default_factory=lambda: Retraining(epochs=12, from_teacher=0.9))
    radius: float = 0.12
    steps: int = 3
    changed: float = 0.5

    def __post_init__(self) -> None:
        require(self.radius > 0 and self.steps >= 1, "ibau takes at least one step in a ball with a radius above 0")
        require(0 <= self.changed <= 1, "the share of images that ibau changes lies between 0 and 1")

    def edit(self, given: PatchInput) -> Edit:
        """Train against universal changes.

        Raises:
            OnnxspectError: no ONNX file behind the subject, or nothing in it can be trained.
        """
        student, parameters = trainable_copy(given.subject)
        epochs = fine_tuned(given, student, parameters, self.training, NAME, NAME, _Adversary(self, given))
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        return Edit(values, facts={"epochs": epochs, "radius": self.radius})


class _Adversary:
    """The inner problem; keeps each change from batch to batch."""

    def __init__(self, settings: AdversarialUnlearning, given: PatchInput) -> None:
        self._settings = settings
        self._targets = sorted({t.target for t in given.triggers} - {UNTARGETED})
        shape = given.subject.image_shape
        self._bound = settings.radius * float(torch.Size(shape).numel()) ** 0.5
        self._changes: dict[int | None, Tensor] = {t: torch.zeros(shape) for t in (None, *self._targets)}

    def __call__(self, images: Tensor, student: Subject, generator: torch.Generator) -> Tensor:
        """Some of the images with the present worst change."""
        known = len(self._targets)
        draw = int(torch.randint(2 * known or 1, (1,), generator=generator))
        target = self._targets[draw] if draw < known else None
        n = round(self._settings.changed * len(images))
        if not n:
            return images
        change = self._ascend(images, student, target, generator)
        self._changes[target] = change
        changed = (images[:n] + change).clamp(0, 1)
        return torch.cat([changed, images[n:]])

    def _ascend(self, images: Tensor, student: Subject, target: int | None, generator: torch.Generator) -> Tensor:
        """A few normalised gradient steps of one change for all images, projected onto the ball."""
        change = self._changes[target].to(student.device)
        images = images.to(student.device)
        if not bool(change.any()):
            change = torch.randn(change.shape, generator=generator).to(student.device)
            change *= 0.1 * self._bound / change.norm()
        with torch.no_grad():
            answers = student(images).argmax(1)
        wanted = answers if target is None else torch.full_like(answers, target)
        sign = 1.0 if target is None else -1.0
        for _ in range(self._settings.steps):
            change = change.detach().requires_grad_(True)
            loss = functional.cross_entropy(student((images + change).clamp(0, 1)), wanted)
            (gradient,) = torch.autograd.grad(sign * loss, change)
            with torch.no_grad():
                change = change + 0.3 * self._bound * gradient / (gradient.norm() + 1e-12)
                change = change * min(1.0, self._bound / float(change.norm() + 1e-12))
        return change.detach().cpu()
