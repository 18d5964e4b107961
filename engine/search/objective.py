"""Objectives: what the one search minimises, and how a step is taken. A detector supplies one and reads the result.

For each unit u the search minimises ``loss_u + lambda_u * cost_u`` over the leaves of a state, subject to
``success_u >= success``. `ReachTarget` is the objective of every trigger that is one change for all images (Neural Cleanse, Wang et al., 2019, Eq. 3;
RE, Xiang et al., 2020, Eq. 7-9): the loss of the perturbed images to the unit's target, the perturbation's own cost, the share of images
that reach the target. Other detectors (CEPA's sample-wise perturbations) write their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from onnxspect.engine.search.perturbation import Perturbation, State
from onnxspect.engine.subject.precision import as_searched
from onnxspect.engine.subject.subject import Subject

Loss = Callable[[Tensor, Tensor], Tensor]
#: What an update rule remembers of each leaf (Adam's two moments).
Memory = dict[str, tuple[Tensor, ...]]


class StepSettings(Protocol):
    """The part of SearchConfig that an update rule reads."""

    @property
    def learning_rate(self) -> float:
        """Length of a step."""

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's."""


@dataclass(frozen=True)
class Measured:
    """One evaluation of the objective, each ``(unit,)``; `loss` and `cost` are differentiable.

    Attributes:
        loss: what leads to the target.
        cost: what is kept small; the search multiplies it by lambda.
        success: share of the images that reach the target.
    """

    loss: Tensor
    cost: Tensor
    success: Tensor


class Objective(ABC):
    """What is searched for. The leading dimension of every tensor is the unit."""

    def on(self, image_shape: tuple[int, int, int]) -> Objective:
        """The same objective for images of this shape (channels, height, width)."""
        return self

    @property
    def bound(self) -> bool:
        """Whether it holds what lies on one device or belongs to one subject, so that no copy of the subject does as well."""
        return False

    @abstractmethod
    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """Leaves to optimise, one row a unit, each drawn from that unit's own generator.

        Args:
            subject: the classifier.
            images: ``(unit, n, channels, height, width)``.
            generators: one a unit.
        """

    def constants(self, subject: Subject, images: Tensor) -> State:
        """What is computed once from the images and stays fixed, one row a unit; nothing by default."""
        return {}

    def at_target(self, subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
        """Share ``(unit,)`` of the images ``(unit, n, ...)`` that reach each unit's target without any perturbation.

        0 by default, for objectives without a target that images are to reach.
        """
        return torch.zeros(len(targets), device=targets.device)

    @abstractmethod
    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Evaluate a state on images ``(unit, n, channels, height, width)`` with targets and multipliers ``(unit,)``."""

    def memory(self, state: State) -> Memory:
        """What the update rule remembers at the start: zeros for Adam's moments."""
        return {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in state.items()}

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """The next state; `memory` is changed in place. By default Adam (Kingma and Ba, Alg. 1).

        Gradients are finite: the search has turned what is not into zeros. `step` counts from one, a tensor ``()`` of
        float64 on the device: an update must not ask the host for its value.
        """
        b1, b2 = settings.betas
        moved: State = {}
        for name, tensor in state.items():
            gradient = gradients[name]
            first, second = memory[name]
            first.mul_(b1).add_(gradient, alpha=1 - b1)
            second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            rate = settings.learning_rate / (1 - b1**step)
            change = first / ((second / (1 - b2**step)).sqrt_().add_(1e-8))
            moved[name] = tensor.detach() - rate * change
        return moved

    @abstractmethod
    def trigger(self, state: State) -> dict[str, Tensor]:
        """What the report and the patches get of a state, by name, leading dimension the unit."""


def laid_out(pixels: Tensor) -> Tensor:
    """`pixels` ``(n, channels, height, width)`` in the memory layout that convolutions are fastest in; the same values.

    On a CPU that is channels last: forward and input-backward passes took 7 to 33 % less time on grey images, and the
    same time on colour ones (eight networks, one thread, benchmarks/search.py measures it). On a GPU: see
    `precision.as_searched`.
    """
    return pixels.to(memory_format=torch.channels_last) if pixels.device.type == "cpu" else as_searched(pixels)


def answered(classifier: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
    """Share ``(unit,)`` of the images ``(unit, n, ...)`` that a classifier answers with their unit's target ``(unit,)``."""
    given = images.flatten(0, 1)
    with torch.no_grad():  # an internal tensor in the place of the pixels may have fewer axes
        answers = classifier(laid_out(given) if given.ndim == 4 else given).argmax(1).view(images.shape[:2])
    return (answers == targets[:, None]).float().mean(1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy ``(unit, n)`` of logits ``(unit, n, classes)`` to each unit's target ``(unit,)``: Neural Cleanse, Eq. 3."""
    units, n, classes = logits.shape
    labels = targets[:, None].expand(units, n).reshape(-1)
    return functional.cross_entropy(logits.reshape(-1, classes), labels, reduction="none").view(units, n)


def leave_class(logits: Tensor, own: Tensor) -> Tensor:
    """-log(1 - p_own) ``(unit, n)`` of logits ``(unit, n, classes)`` and own classes ``(unit, n)``.

    Small as soon as *any* other class is likely, so it prefers none of them.
    """
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(2, own[..., None], False)
    return torch.logsumexp(logits, 2) - torch.logsumexp(logits.masked_fill(~others, -torch.inf), 2)


@dataclass(frozen=True)
class ReachTarget(Objective):
    """One perturbation for all images of a unit, which are to reach the unit's target.

    Attributes:
        perturbation: the family of input changes.
        loss: ``(logits (unit, n, classes), targets (unit,)) -> (unit, n)``.
        untargeted: images are to leave the class that the subject gives them, for any other; targets and `loss` do not count.
    """

    perturbation: Perturbation
    loss: Loss = cross_entropy
    untargeted: bool = False

    def on(self, image_shape: tuple[int, int, int]) -> ReachTarget:
        """With the perturbation for images of this shape."""
        return replace(self, perturbation=self.perturbation.on(image_shape))

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """The perturbation's own."""
        channels, height, width = images.shape[2:]
        return self.perturbation.start((channels, height, width), generators)

    def constants(self, subject: Subject, images: Tensor) -> State:
        """The classes ``(unit, n)`` that untargeted images are to leave."""
        if not self.untargeted:
            return {}
        with torch.no_grad():
            answers = subject(laid_out(images.flatten(0, 1))).argmax(1)
        return {"own": answers.view(images.shape[:2])}

    def at_target(self, subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
        """The share that the subject answers with the target as they are; 0 where there is none."""
        return super().at_target(subject, images, targets) if self.untargeted else answered(subject, images, targets)

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Mean loss over the images, the perturbation's cost, the share that goes where it should."""
        units, n = images.shape[:2]
        logits = subject(laid_out(self.perturbation.apply(state, images).flatten(0, 1))).view(units, n, -1)
        answers = logits.detach().argmax(2)
        if self.untargeted:
            own = constants["own"]
            loss, there = leave_class(logits, own), answers != own
        else:
            loss, there = self.loss(logits, targets), answers == targets[:, None]
        return Measured(loss.mean(1), self.perturbation.cost(state), there.float().mean(1))

    def trigger(self, state: State) -> dict[str, Tensor]:
        """The perturbation's own."""
        return self.perturbation.trigger(state)


@dataclass(frozen=True)
class ReachTogether(ReachTarget):
    """One perturbation for all images of a unit, which are to reach *one* class, whichever: the search names it.

    A backdoor's target is where the smallest change that leads images anywhere leads them. With p_t(x_i) the probability of class
    t for the i-th perturbed image, and the mean over the images that the subject does not answer with t as they are,

        loss = -(1/b) log sum over t of exp(b * mean_i log p_t(x_i))

    is a soft minimum over t of the cross-entropy to t. With b = 1 answers that are spread evenly over all classes are optimal;
    a larger b makes the images agree. Its gradient costs the same for ten classes and for a thousand.

    Attributes:
        sharpness: b.
        excluded: classes that do not count as a destination: where else would the images go?
    """

    sharpness: float = 4.0
    excluded: tuple[int, ...] = ()

    def constants(self, subject: Subject, images: Tensor) -> State:
        """1 where an image may be led to a class ``(unit, n, classes)``: not to the one that it is answered with as it is."""
        units, n = images.shape[:2]
        with torch.no_grad():
            logits = subject(laid_out(images.flatten(0, 1)))
        free = torch.ones_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 0.0)
        free[:, list(self.excluded)] = 0.0
        return {"free": free.view(units, n, -1)}

    def at_target(self, subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
        """0: no image counts for the class that it is answered with."""
        return Objective.at_target(self, subject, images, targets)

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """The soft minimum, the perturbation's cost, and the largest share of images that go to one class."""
        units, n = images.shape[:2]
        logits = subject(laid_out(self.perturbation.apply(state, images).flatten(0, 1))).view(units, n, -1)
        free = constants["free"]
        counted = free.sum(1)
        mean = (free * torch.log_softmax(logits, 2)).sum(1) / counted.clamp_min(1)
        # A class that hardly any image can be led to is no destination.
        able = counted >= n / 2
        loss = -torch.logsumexp((self.sharpness * mean).masked_fill(~able, -torch.inf), 1) / self.sharpness
        there = torch.zeros_like(logits).scatter_(2, logits.detach().argmax(2, keepdim=True), 1.0) * free
        success = (there.sum(1) / counted.clamp_min(1)).masked_fill(~able, 0.0).amax(1)
        return Measured(loss, self.perturbation.cost(state), success)
