"""Perturbations: how a trigger candidate starts, is applied to images, and what it costs.

The leading dimension of every state tensor is the unit. A perturbation keeps its own bounds: whatever the optimiser
does to the state, `apply` gives valid pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.displacement import displaced_each
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.trigger import DISPLACEMENT

State = dict[str, Tensor]

#: Images up to so many pixels a side are perturbed pixel by pixel.
PIXEL_BY_PIXEL = 64
#: Of larger ones, cells a side that a mask (or an additive pattern), and the pattern under a mask, are searched in at most. A
#: trigger is a share of the picture: in single pixels of 224 x 224 a search finds what the network answers to noise.
MASK_CELLS, PATTERN_CELLS = 32, 64
#: Cells a side, at most, that a displacement is searched in: a warp is smooth. History: docs/decisions.md.
DISPLACEMENT_CELLS = 10


class Perturbation(ABC):
    """A family of input changes, optimised by the one search."""

    def on(self, image_shape: tuple[int, int, int]) -> Perturbation:
        """The same family for images of this shape (channels, height, width): large ones may want coarser changes."""
        return self

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
        enlarged: (height, width) of images that are searched in coarser cells (`on`); None for pixel by pixel.
    """

    start_mask: float = 0.1
    enlarged: tuple[int, int] | None = None

    def on(self, image_shape: tuple[int, int, int]) -> MaskPattern:
        """In cells, where the images are larger than PIXEL_BY_PIXEL."""
        height, width = image_shape[1:]
        return replace(self, enlarged=(height, width) if max(height, width) > PIXEL_BY_PIXEL else None)

    def start(self, image_shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> State:
        """Mask logits ``(unit, 1, height, width)``, pattern logits ``(unit, channels, height, width)``; or cells of these."""
        channels, height, width = image_shape
        level = float(np.arctanh(2 * self.start_mask - 1))
        shape, finer = (height, width), (height, width)
        if self.enlarged is not None:
            shape, finer = (
                (cells(height, MASK_CELLS), cells(width, MASK_CELLS)),
                (
                    cells(height, PATTERN_CELLS),
                    cells(width, PATTERN_CELLS),
                ),
            )
        mask = torch.stack([level + 0.1 * torch.randn(1, *shape, generator=g) for g in generators])
        pattern = torch.stack([torch.rand(channels, *finer, generator=g) * 2 - 1 for g in generators])
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

    def _pixels(self, state: State) -> tuple[Tensor, Tensor]:
        mask, pattern = (torch.tanh(state["mask"]) + 1) / 2, (torch.tanh(state["pattern"]) + 1) / 2
        return enlarge(mask, self.enlarged), enlarge(pattern, self.enlarged)


@dataclass(frozen=True)
class Additive(Perturbation):
    """``x' = [x + v]_c``: one pattern added to all images of a unit and clipped to [0, 1] (RE, Xiang et al., 2020, Eq. 1).

    The search starts at v = 0, as RE's Algorithm 1 does. v itself stays in [-1, 1]: no pixel can be moved further.

    Attributes:
        norm: d(v), the cost: "l2" (RE, sec. 5.2.1), "l1" or "linf"; in units of the full pixel range.
        enlarged: see `MaskPattern`.
    """

    norm: str = "l2"
    enlarged: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise OnnxspectError(f"unknown norm {self.norm!r}", f"one of {', '.join(NORMS)}")

    def on(self, image_shape: tuple[int, int, int]) -> Additive:
        """In cells, where the images are larger than PIXEL_BY_PIXEL."""
        height, width = image_shape[1:]
        return replace(self, enlarged=(height, width) if max(height, width) > PIXEL_BY_PIXEL else None)

    def start(self, image_shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> State:
        """No change: zeros ``(unit, channels, height, width)``, or cells of these."""
        channels, *size = image_shape
        if self.enlarged is not None:
            size = [cells(side, MASK_CELLS) for side in size]
        return {"delta": torch.zeros(len(generators), channels, *size)}

    def apply(self, state: State, images: Tensor) -> Tensor:
        """Add and clip."""
        return (images + self._pixels(state)[:, None]).clamp(0, 1)

    def remove(self, state: State, images: Tensor) -> Tensor:
        """Subtract and clip: m(x; -v) of RE, Eq. 5."""
        return (images - self._pixels(state)[:, None]).clamp(0, 1)

    def cost(self, state: State) -> Tensor:
        """The norm of v ``(unit,)``; its gradient at v = 0 is 0."""
        return NORMS[self.norm](self._pixels(state).flatten(1))

    def trigger(self, state: State) -> dict[str, Tensor]:
        """`delta` ``(unit, channels, height, width)`` in [-1, 1]."""
        return {"delta": self._pixels(state)}

    def _pixels(self, state: State) -> Tensor:
        return enlarge(state["delta"].clamp(-1, 1), self.enlarged)


@dataclass(frozen=True)
class Displacement(Perturbation):
    """Every pixel is taken from another place, the same for all images of a unit: a warp (WaNet; Nguyen and Tran, 2021, sec. 3.2).

    The field is linear between the centres of DISPLACEMENT_CELLS cells a side, hence smooth, and is in hundredths of the picture's shorter
    side, so that a warp is as large on any picture. The search starts at none.

    Attributes:
        size: (height, width) of the images.
        most: no cell is moved further, along either axis.
    """

    size: tuple[int, int] = (28, 28)
    most: float = 25.0

    def on(self, image_shape: tuple[int, int, int]) -> Displacement:
        """For images of that size."""
        return replace(self, size=image_shape[1:])

    def start(self, image_shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> State:
        """No change: zeros ``(unit, 2, rows, columns)``."""
        rows, columns = (cells(side, DISPLACEMENT_CELLS) for side in image_shape[1:])
        return {"field": torch.zeros(len(generators), 2, rows, columns)}

    def apply(self, state: State, images: Tensor) -> Tensor:
        """The images, moved."""
        return displaced_each(images, self._pixels(state))

    def cost(self, state: State) -> Tensor:
        """How far a pixel is moved (root mean square), in hundredths of the shorter side; its gradient where nothing moves is 0."""
        return (self._field(state).square().sum(1).mean((1, 2)) + 1e-24).sqrt()

    def trigger(self, state: State) -> dict[str, Tensor]:
        """`displacement` ``(unit, 2, height, width)``, in pixels."""
        return {DISPLACEMENT: self._pixels(state)}

    def _field(self, state: State) -> Tensor:
        return enlarge(state["field"].clamp(-self.most, self.most), self.size)

    def _pixels(self, state: State) -> Tensor:
        return self._field(state) * (min(self.size) / 100)


#: The norms that an additive pattern can be measured by, each ``(unit, pixels) -> (unit,)``. The tiny constant keeps the
#: root differentiable at zero.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda v: (v.square().sum(1) + 1e-24).sqrt(),
    "l1": lambda v: v.abs().sum(1),
    "linf": lambda v: v.abs().amax(1),
}


def cells(side: int, most: int) -> int:
    """Into how many cells a side of `side` pixels is cut: the finest even cut with at most `most`."""
    return -(-side // -(-side // most))


def enlarge(values: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Cells ``(unit, channels, rows, columns)`` as pixels ``(unit, channels, height, width)``, linear between the cells' centres.

    As two products with matrices: torch's own interpolation has no deterministic gradient on a GPU.
    """
    if size is None or tuple(values.shape[2:]) == tuple(size):
        return values
    down, across = (_between(n, side, values.device) for n, side in zip(values.shape[2:], size, strict=True))
    return down @ values @ across.T


@lru_cache(maxsize=64)
def _between(n: int, side: int, device: torch.device) -> Tensor:
    """Weights ``(side, n)`` of n cells at each of `side` pixels; a row sums to one."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) * n / side - 0.5
    place = place.clamp(0, n - 1)
    below = place.floor().long().clamp(max=max(n - 2, 0))
    share = place - below
    weights = torch.zeros(side, n, dtype=torch.float64)
    rows = torch.arange(side)
    weights[rows, below] += 1 - share
    weights[rows, (below + 1).clamp(max=n - 1)] += share
    return weights.float().to(device)
