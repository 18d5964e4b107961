"""Objectives of sample-wise perturbations that share their effect at an internal layer: CEPA (Li et al., 2024), Eq. 1 to 3.

Every image x of a unit has its own perturbation delta_x; what they have in common is sought in the embedding
f(x).

* `CommonEmbedding` is the paper's: minimise mean of -log p_t(x + delta_x) + lambda * ||f(x + delta_x) - f(x) - mu||^2
  (Eq. 1) by steps in delta alternating with the closed form mu = mean of f(x + delta_x) - f(x) (Eq. 2).
* `Consensus` puts the sharing into the step instead of into the loss; see there.
* `CarryOver` is Eq. 3: perturb other images so that their embeddings move by a given mu.

mu is no variable of the search: by Eq. 2 it is a function of delta. Its gradient vanishes at Eq. 2's optimum (the
deviations from a mean sum to zero), so holding it fixed during a step, as the alternation does, changes nothing.

Perturbed images stay valid: after every step delta is clipped so that x + delta_x lies within `bounds`; the start is
zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onnxspect.engine.search.embedding import Embedding
from onnxspect.engine.search.objective import Measured, Memory, Objective, StepSettings, answered, cross_entropy
from onnxspect.engine.search.perturbation import State
from onnxspect.engine.subject.subject import Subject

#: Range of a pixel.
PIXEL = (0.0, 1.0)


@dataclass(frozen=True)
class SampleWise(Objective):
    """A perturbation of its own for each image; state `delta` ``(unit, n, channels, height, width)``, from zero.

    Attributes:
        embedding: the subject and the tap.
        bounds: smallest and largest value of a perturbed image; None for tensors without a range.
    """

    embedding: Embedding = field(repr=False)
    bounds: tuple[float, float] | None = PIXEL

    @property
    def bound(self) -> bool:
        """The tap is one subject's."""
        return True

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """Zeros (CEPA, sec. 3: sizes are kept small by starting from zero); no randomness."""
        return {"delta": torch.zeros_like(images)}

    def constants(self, subject: Subject, images: Tensor) -> State:
        """`clean`: the embeddings of the images ``(unit, n, features)``."""
        with torch.no_grad():
            clean = _at_least_float32(self.embedding(images.flatten(0, 1)))
            return {"clean": clean.view(*images.shape[:2], -1)}

    def at_target(self, subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
        """The share that the subject answers with the target as they are."""
        return answered(lambda given: self.embedding.both(given)[1], images, targets)

    def trigger(self, state: State) -> dict[str, Tensor]:
        """`delta` ``(unit, n, channels, height, width)``: every image's own."""
        return {"delta": state["delta"]}

    def _perturbed(self, state: State, images: Tensor) -> Tensor:
        """Images with their perturbation, which is first clipped, in place, to what valid images allow."""
        delta = state["delta"]
        if self.bounds is not None:
            low, high = self.bounds
            with torch.no_grad():
                delta.copy_((images + delta).clamp_(low, high).sub_(images))
        return images + delta

    def _evaluate(self, state: State, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the embedding as the graph has it, as ``(unit, n, features)``, the logits ``(unit, n, classes)``)."""
        units, n = images.shape[:2]
        raw, logits = self.embedding.both(self._perturbed(state, images).flatten(0, 1))
        return raw, _at_least_float32(raw).reshape(units, n, -1), logits.view(units, n, -1)


def _at_least_float32(values: Tensor) -> Tensor:
    """Values that a fast format computed, as float32: what is done with them is not."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def mean_norm(delta: Tensor) -> Tensor:
    """Mean l2 norm ``(unit,)`` of perturbations ``(unit, n, ...)``."""
    return delta.flatten(2).norm(dim=2).mean(1)


def reached(logits: Tensor, targets: Tensor) -> Tensor:
    """Share ``(unit,)`` of logits ``(unit, n, classes)`` whose largest is the unit's target."""
    return (logits.detach().argmax(2) == targets[:, None]).float().mean(1)


@dataclass(frozen=True)
class CommonEmbedding(SampleWise):
    """CEPA, Eq. 1 and 2.

    Departures. The update is Adam's where the paper says "gradient descent steps" without their length (plain steps of one
    length for all images and models do not exist: gradients differ by orders of magnitude). The cost that the search
    remembers its best state by, and that its stopping rule watches, is the mean norm of the deltas, as in the paper's
    rule; lambda multiplies the variance inside the loss. The search lowers lambda by 1.5 ** 1.5 instead of 1.5, and calls
    a unit converged only when lambda had been too high at least once.
    """

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Eq. 1 with mu by Eq. 2; the cost is the mean norm of the deltas, which has no gradient."""
        _, embeddings, logits = self._evaluate(state, images)
        shift = embeddings - constants["clean"]
        variance = (shift - shift.detach().mean(1, keepdim=True)).square().sum(2).mean(1)
        loss = cross_entropy(logits, targets).mean(1) + multiplier * variance
        return Measured(loss, mean_norm(state["delta"].detach()), reached(logits, targets))


@dataclass(frozen=True)
class Consensus(SampleWise):
    """Perturbations whose every step asks all embeddings to move the same way.

    The gradient of the cross-entropy at the tap, normalised for each image, is replaced by its mean over the images,
    normalised, plus `own` times the image's: the direction in which *all* embeddings of the unit are to move. What it
    takes of each image's pixels to move its embedding that way, the rest of the way back to the image tells; each image
    then takes a step of the same length along it. Steps grow by `growth`, so that a perturbation of any size is met
    within the same relative precision, and no step length has to fit the images.

    So consensus is there from the first step on. In Eq. 1 it is a penalty, and the search for each image's own adversarial
    perturbation satisfies the constraint before the penalty has begun to count.

    Attributes:
        own: weight of an image's own direction.
        growth: factor from one step's length to the next's.
        least: mean norm below which no perturbation counts as successful.
    """

    own: float = 0.2
    growth: float = 1.06
    least: float = 0.0

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Cross-entropy, with the gradient at the tap made common; the cost is the mean norm of the deltas."""
        raw, _, logits = self._evaluate(state, images)
        units, n = images.shape[:2]

        def shared(gradient: Tensor) -> Tensor:
            own = _directions(_at_least_float32(gradient).reshape(units, n, -1))
            common = _directions(own.mean(1, keepdim=True)) + self.own * own
            return common.reshape(gradient.shape).to(gradient.dtype)

        raw.register_hook(shared)
        loss = cross_entropy(logits, targets).sum(1)
        size = mean_norm(state["delta"].detach())
        success = torch.where(size >= self.least, reached(logits, targets), torch.zeros_like(size))
        return Measured(loss, size, success)

    def memory(self, state: State) -> Memory:
        """Nothing is remembered."""
        return {}

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """One step of length ``learning_rate * growth ** (step - 1)`` for every image, along its own gradient."""
        length = settings.learning_rate * self.growth ** (step - 1)
        direction = _directions(gradients["delta"].flatten(2)).view_as(state["delta"])
        return {"delta": state["delta"].detach() - length * direction}


@dataclass(frozen=True)
class CarryOver(SampleWise):
    """CEPA, Eq. 3: delta_x = argmin ||f(x + delta) - (f(x) + mu)||^2 + v ||delta||^2, with v = 0 as in the paper.

    The loss is relative to ||mu||^2; one unit at a time, since each has its own mu. Steps are normalised for each image
    and shrink to nothing over `steps`, for a path of length `reach` in all.

    Attributes:
        shift: mu, ``(features,)``.
        reach: l2 length of all steps together.
        steps: how many.
    """

    shift: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    reach: float = 1.0
    steps: int = 40

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Loss and cost are the mean squared distance to the shifted embedding, in units of ||mu||^2."""
        _, embeddings, logits = self._evaluate(state, images)
        off = (embeddings - constants["clean"] - self.shift).square().sum(2) / self.shift.square().sum().clamp_min(
            1e-12
        )
        return Measured(off.sum(1), off.detach().mean(1), reached(logits, targets))

    def memory(self, state: State) -> Memory:
        """Nothing is remembered."""
        return {}

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """One step for every image along its own gradient; lengths fall linearly to zero."""
        length = 2 * self.reach / self.steps * (1 - (step - 0.5) / self.steps).clamp_min(0.0)
        direction = _directions(gradients["delta"].flatten(2)).view_as(state["delta"])
        return {"delta": state["delta"].detach() - length * direction}


def _directions(vectors: Tensor) -> Tensor:
    """Vectors ``(..., features)`` at length 1; zero stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-20)
