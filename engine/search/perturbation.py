"""Perturbations: how a trigger candidate starts, is applied to images, and what it costs.

The leading dimension of every state tensor is the unit. A perturbation keeps its own bounds: whatever the optimiser
does to the state, `apply` gives valid pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.errors import OnnxspectError

State = dict[str, Tensor]


class Perturbation(ABC):
    """A family of input changes, optimised by the one search."""

    @abstractmethod
    def start(self, image_shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> State:
        """Leaves to optimise, one row a unit, drawn from that unit's own generator."""

    @abstractmethod
    def apply(self, state: State, images: Tensor) -> Tensor:
        """Perturbed pixels ``(unit, n, channels, height, width)`` in [0, 1] of images of that shape (or one unit's)."""

    @abstractmethod
    def cost(self, state: State) -> Tensor:
        """What is minimised beside the loss ``(unit,)``; differentiable."""

    @abstractmethod
    def trigger(self, state: State) -> dict[str, Tensor]:
        """The trigger in pixels, by name, leading dimension the unit."""


@dataclass(frozen=True)
class MaskPattern(Perturbation):
    """``x' = (1 - m) * x + m * pattern`` with one mask for all channels: Neural Cleanse (Wang et al., 2019), Eq. 2.

    Mask and pattern are ``(tanh(w) + 1) / 2`` of free variables, as in the authors' code: no clipping is needed and
    the gradient never vanishes at a bound that was only touched. Cost is the mask's L1 norm, Eq. 3.

    Attributes:
        start_mask: mask value that the search starts from everywhere. The authors start from uniform noise; a small
            even start reaches the same triggers in fewer steps, because nothing has first to be erased.
    """

    start_mask: float = 0.1

    def start(self, image_shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> State:
        """Mask logits ``(unit, 1, height, width)``, pattern logits ``(unit, channels, height, width)``."""
        channels, height, width = image_shape
        level = float(np.arctanh(2 * self.start_mask - 1))
        mask = torch.stack([level + 0.1 * torch.randn(1, height, width, generator=g) for g in generators])
        pattern = torch.stack([torch.rand(channels, height, width, generator=g) * 2 - 1 for g in generators])
        return {"mask": mask, "pattern": pattern}

    def apply(self, state: State, images: Tensor) -> Tensor:
        """Blend the pattern into the images by the mask."""
        mask, pattern = self._pixels(state)
        # In this order one pass over the images is enough, and the pattern's gradient is a plain sum over them.
        return torch.addcmul((mask * pattern)[:, None], images, (1 - mask)[:, None])

    def cost(self, state: State) -> Tensor:
        """The mask's L1 norm, in pixels."""
        return self._pixels(state)[0].flatten(1).sum(1)

    def trigger(self, state: State) -> dict[str, Tensor]:
        """`mask` ``(unit, 1, height, width)`` and `pattern` ``(unit, channels, height, width)``, both in [0, 1]."""
        mask, pattern = self._pixels(state)
        return {"mask": mask, "pattern": pattern}

    @staticmethod
    def _pixels(state: State) -> tuple[Tensor, Tensor]:
        return (torch.tanh(state["mask"]) + 1) / 2, (torch.tanh(state["pattern"]) + 1) / 2


@dataclass(frozen=True)
class Additive(Perturbation):
    """``x' = [x + v]_c``: one pattern added to all images of a unit and clipped to [0, 1] (RE, Xiang et al., 2020, Eq. 1).

    The search starts at v = 0, as RE's Algorithm 1 does. v itself stays in [-1, 1]: no pixel can be moved further.

    Attributes:
        norm: d(v), the cost: "l2" (RE, sec. 5.2.1), "l1" or "linf"; in units of the full pixel range.
    """

    norm: str = "l2"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise OnnxspectError(f"unknown norm {self.norm!r}", f"one of {', '.join(NORMS)}")

    def start(self, image_shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> State:
        """No change: zeros ``(unit, channels, height, width)``."""
        return {"delta": torch.zeros(len(generators), *image_shape)}

    def apply(self, state: State, images: Tensor) -> Tensor:
        """Add and clip."""
        return (images + state["delta"].clamp(-1, 1)[:, None]).clamp(0, 1)

    def remove(self, state: State, images: Tensor) -> Tensor:
        """Subtract and clip: m(x; -v) of RE, Eq. 5."""
        return (images - state["delta"].clamp(-1, 1)[:, None]).clamp(0, 1)

    def cost(self, state: State) -> Tensor:
        """The norm of v ``(unit,)``; its gradient at v = 0 is 0."""
        return NORMS[self.norm](state["delta"].clamp(-1, 1).flatten(1))

    def trigger(self, state: State) -> dict[str, Tensor]:
        """`delta` ``(unit, channels, height, width)`` in [-1, 1]."""
        return {"delta": state["delta"].clamp(-1, 1)}


#: The norms that an additive pattern can be measured by, each ``(unit, pixels) -> (unit,)``. The tiny constant keeps the
#: root differentiable at zero.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda v: (v.square().sum(1) + 1e-24).sqrt(),
    "l1": lambda v: v.abs().sum(1),
    "linf": lambda v: v.abs().amax(1),
}
