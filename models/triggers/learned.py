"""Triggers that an attacker optimises on a model of his own (the surrogate) before poisoning.

TrojanNN (Liu et al., 2018, sec. 4.1): the pixels of a patch are optimised until a chosen neuron fires strongly; the
patch is then the trigger. Here, as in DTInspector (sec. 4.1), it poisons a training set instead of being retrained
into the very same model. Departures: the neuron is the penultimate one with the largest sum of absolute weights to
the *next* layer, because in a residual network the preceding one is not a single weight matrix; and the patch is
optimised on clean images, not on an empty canvas, so that it fires where it will be stamped.

SurrogatePattern (RE sec. 18, after Zhong et al., 2020): an additive v, grown image by image with DeepFool steps towards
the target (Eq. 13) and projected to an L2 ball of radius xi after each. Departure: RE puts no bound on the passes
over the source images; here `passes` and `images` bound the work.

A learned trigger is a recipe until its array is there; the zoo build learns it and records both in the manifest.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.fields import bad_field, decode_array, encode_array
from onnxspect.models.triggers.base import GroundTruth, ImageShape, Trigger, add_delta, register
from onnxspect.models.triggers.box import Anchor, Box


def as_input(images: np.ndarray) -> torch.Tensor:
    """uint8 ``(n, h, w, c)`` as float32 ``(n, c, h, w)`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255.0


@dataclasses.dataclass(frozen=True)
class LearnedTrigger(Trigger):
    """A trigger with an array that has to be learned first."""

    @property
    @abstractmethod
    def learned(self) -> str | None:
        """The encoded array, None before `learn`."""

    @abstractmethod
    def learn(
        self, surrogate: nn.Module, images: np.ndarray, target: int | None, rng: np.random.Generator
    ) -> LearnedTrigger:
        """The same trigger with its array.

        Args:
            surrogate: pixels float32 ``(n, c, h, w)`` in [0, 1] to logits, in evaluation mode.
            images: clean training images of the source classes, uint8 ``(n, h, w, c)``.
            target: the target class, None for all-to-all; TrojanNN aims at neurons and does not use it.
            rng: draws which images are used, and the starting point.
        """

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """The learned array; an error if it is not there or not of `shape`."""
        if self.learned is None:
            raise OnnxspectError(
                f"trigger {self.kind}: is not learned yet", "take it from the manifest of the zoo that learned it"
            )
        array = decode_array(self.learned, f"{self.kind}.learned")
        if array.shape != shape:
            raise bad_field(f"{self.kind}.learned", f"is {array.shape}, these images need {shape}")
        return array


def penultimate(network: nn.Module) -> nn.Linear:
    """The last fully connected layer, whose input is the penultimate activation."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise OnnxspectError("the surrogate has no fully connected layer", "choose another surrogate")
    return layers[-1]


def penultimate_activations(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The input ``(n, features)`` of the last fully connected layer, differentiable."""
    caught: list[torch.Tensor] = []
    hook = penultimate(network).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        network(inputs)
    finally:
        hook.remove()
    return caught[0]


@register
@dataclasses.dataclass(frozen=True)
class TrojanPatch(LearnedTrigger):
    """TrojanNN: a patch whose pixels make `neurons` penultimate neurons fire.

    height, width, anchor, margin: the box. gain: the activation aimed at, as a multiple of the neuron's
    largest on the clean images. steps, learning_rate: of Adam. images: clean images it is optimised on.
    pattern: the learned pixels, uint8 ``(height, width, c)``, encoded.
    """

    kind: ClassVar[str] = "trojan_nn"
    height: int = 4
    width: int = 4
    anchor: Anchor = "bottom_right"
    margin: int = 0
    neurons: int = 1
    gain: float = 10.0
    steps: int = 200
    learning_rate: float = 0.1
    images: int = 64
    pattern: str | None = None

    @property
    def learned(self) -> str | None:
        return self.pattern

    def _box(self) -> Box:
        return Box(self.height, self.width, self.anchor, self.margin, None, None, 0)

    def check(self, shape: ImageShape, path: str) -> None:
        self._box().check(shape, path)
        for name in ("neurons", "steps", "images"):
            if getattr(self, name) < 1:
                raise bad_field(f"{path}.{name}", f"is {getattr(self, name)}, must be at least 1")
        for name in ("gain", "learning_rate"):
            if getattr(self, name) <= 0:
                raise bad_field(f"{path}.{name}", f"is {getattr(self, name)}, must be above 0")
        if self.pattern is not None:
            self.array((self.height, self.width, shape[2]))

    def _mask(self, shape: ImageShape) -> np.ndarray:
        return self._box().spread(np.ones((self.height, self.width, shape[2]), np.float32), shape)

    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        cells = self.array((self.height, self.width, shape[2])).astype(np.float32)
        return GroundTruth(mask=self._mask(shape), pattern=self._box().spread(cells, shape))

    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shape = images.shape[1:]
        pattern = self._box().spread(self.array((self.height, self.width, shape[2])), shape)
        return np.where(self._mask(shape) > 0, pattern, images)

    def cover(self) -> Trigger:
        return self

    def chosen_neurons(self, surrogate: nn.Module) -> torch.Tensor:
        """Indices of the neurons that the patch is to fire."""
        return penultimate(surrogate).weight.detach().abs().sum(dim=0).topk(self.neurons).indices

    def learn(
        self,
        surrogate: nn.Module,
        images: np.ndarray,
        target: int | None,
        rng: np.random.Generator,
    ) -> LearnedTrigger:
        shape = images.shape[1:]
        clean = as_input(images[rng.permutation(len(images))[: self.images]])
        neurons = self.chosen_neurons(surrogate)
        with torch.no_grad():
            wanted = self.gain * penultimate_activations(surrogate, clean)[:, neurons].amax(dim=0).clamp(min=1.0)
        mask = as_input(255 * self._mask(shape)[None].astype(np.uint8))
        pattern = torch.from_numpy(rng.uniform(0.0, 1.0, (1, *clean.shape[1:])).astype(np.float32)).requires_grad_()
        optimiser = torch.optim.Adam([pattern], lr=self.learning_rate)
        for _ in range(self.steps):
            fired = penultimate_activations(surrogate, (1.0 - mask) * clean + mask * pattern)[:, neurons]
            loss = ((wanted - fired) ** 2).mean()
            (pattern.grad,) = torch.autograd.grad(loss, [pattern])
            optimiser.step()
            with torch.no_grad():
                pattern.clamp_(0.0, 1.0)
        levels = np.rint(255.0 * pattern.detach().numpy()[0].transpose(1, 2, 0)).astype(np.uint8)
        row, col = self._box().places(shape)[0]
        return dataclasses.replace(self, pattern=encode_array(levels[row : row + self.height, col : col + self.width]))


@register
@dataclasses.dataclass(frozen=True)
class SurrogatePattern(LearnedTrigger):
    """RE sec. 18: an imperceptible additive v that pushes source images to the surrogate's boundary to the target.

    radius: xi, the largest L2 norm of v with pixels in [0, 1] (RE: 0.5). passes: over the source images. images: source
    images visited in each pass. steps: DeepFool steps an image. overshoot: DeepFool's, past the boundary.
    delta: the learned v, float32 ``(h, w, c)`` in levels of 1/255, encoded.
    """

    kind: ClassVar[str] = "surrogate_pattern"
    radius: float = 0.5
    passes: int = 2
    images: int = 200
    steps: int = 10
    overshoot: float = 0.02
    delta: str | None = None

    @property
    def learned(self) -> str | None:
        return self.delta

    def check(self, shape: ImageShape, path: str) -> None:
        for name in ("passes", "images", "steps"):
            if getattr(self, name) < 1:
                raise bad_field(f"{path}.{name}", f"is {getattr(self, name)}, must be at least 1")
        if self.radius <= 0:
            raise bad_field(f"{path}.radius", f"is {self.radius}, must be above 0")
        if self.overshoot < 0:
            raise bad_field(f"{path}.overshoot", f"is {self.overshoot}, must not be negative")
        if self.delta is not None:
            self.array(shape)

    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        return GroundTruth(delta=self.array(shape))

    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return add_delta(images, self.array(images.shape[1:]))

    def cover(self) -> Trigger:
        return self

    def learn(
        self, surrogate: nn.Module, images: np.ndarray, target: int | None, rng: np.random.Generator
    ) -> LearnedTrigger:
        if target is None:
            raise OnnxspectError("trigger surrogate_pattern: needs one target class", "set target to a class index")
        clean = as_input(images[rng.permutation(len(images))[: self.images]])
        pattern = torch.zeros_like(clean[:1])
        for _ in range(self.passes):
            for image in clean:
                step = deepfool_step(surrogate, image[None], pattern, target, self.steps, self.overshoot)
                pattern = pattern + step
                pattern = pattern * min(1.0, self.radius / max(float(pattern.norm()), 1e-12))
        levels = 255.0 * pattern.numpy()[0].transpose(1, 2, 0)
        return dataclasses.replace(self, delta=encode_array(levels.astype(np.float32)))


def deepfool_step(
    network: nn.Module, image: torch.Tensor, pattern: torch.Tensor, target: int, steps: int, overshoot: float
) -> torch.Tensor:
    """A small u with ``f([x + v + u]_c) = target`` (RE Eq. 13) by DeepFool (Moosavi-Dezfooli et al., 2016).

    Each step linearises the margin between the target and the current answer and walks to its zero. `image` and
    `pattern` are float32 ``(1, c, h, w)``. Returns zeros if the image is taken for the target already.
    """
    increment = torch.zeros_like(pattern)
    for _ in range(steps):
        inputs = (image + pattern + (1.0 + overshoot) * increment).clamp(0.0, 1.0).requires_grad_()
        logits = network(inputs)[0]
        answer = int(logits.argmax())
        if answer == target:
            break
        margin = logits[answer] - logits[target]
        (gradient,) = torch.autograd.grad(-margin, [inputs])
        increment = increment + (margin.detach() + 1e-6) / gradient.square().sum().clamp(min=1e-12) * gradient
    return (1.0 + overshoot) * increment
