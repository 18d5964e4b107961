"""A trigger: one change that can be made to the pixels of any image, and the class that it leads to.

There are three forms, by the names of their arrays:

* `mask` and `pattern`: ``x' = (1 - m) x + m p`` (Wang et al., 2019, Eq. 2);
* `delta`: ``x' = x + d``;
* `displacement`: every pixel is taken from another place, ``x'(r, c) = x(r + d_0, c + d_1)`` (displacement.py).

In any form the result is clipped to [0, 1]. This module has that formula, for numpy and for torch alike, and no other has it
(but for the searches' own perturbations, which optimise unbounded variables in place of masks and patterns).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar, cast, overload

import numpy as np

from onnxspect.engine.displacement import displaced, displaced_each, moved_by
from onnxspect.engine.errors import OnnxspectError

if TYPE_CHECKING:  # a report that is shown again needs no torch, which takes seconds to load
    from torch import Tensor

#: The target of a trigger that leads images anywhere but to their own class.
UNTARGETED = -1
#: The largest `Trigger.size_limit`: beyond that multiple of the recovered size a trigger need not be the same backdoor's.
LARGEST_SIZE_LIMIT = 2.5
MASK, PATTERN, DELTA, DISPLACEMENT = "mask", "pattern", "delta", "displacement"
#: The arrays of each form; the first is what makes it strong, and names the form.
FORMS = ((MASK, PATTERN), (DELTA,), (DISPLACEMENT,))

Array = TypeVar("Array", np.ndarray, "Tensor")


def bounds(name: str, size: tuple[int, ...]) -> tuple[float, float]:
    """Between which values an array of a trigger lies: MASK, PATTERN, DELTA (or a difference of images), or DISPLACEMENT.

    Args:
        name: of the array.
        size: of the images (height, width).
    """
    if name == DISPLACEMENT:
        return -float(max(size)), float(max(size))
    return (0.0, 1.0) if name in (MASK, PATTERN) else (-1.0, 1.0)


def shapes(name: str, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Which shapes an array of a trigger may have on images of that shape ``(channels, height, width)``."""
    if name == DISPLACEMENT:
        return ((2, *image_shape[1:]),)
    return (image_shape, (1, *image_shape[1:])) if name == MASK else (image_shape,)


class Aimed(ABC):
    """What changes images so that a classifier takes them for a class.

    Attributes:
        target: class index; UNTARGETED for what takes every image to some class that is not its own (an all-to-all
            backdoor's).
        source: the class whose images it moves, or None for all.
    """

    target: int
    source: int | None

    @abstractmethod
    def apply(self, images: np.ndarray) -> np.ndarray:
        """Images ``(n, channels, height, width)`` in [0, 1] with the change made to them."""

    def counts_on(self, labels: np.ndarray, answers: np.ndarray | None = None) -> np.ndarray:
        """Which images its success is counted on, bool ``(n,)``.

        Args:
            labels: of the images ``(n,)``.
            answers: classes that the original gives them without a trigger ``(n,)``; those that are there already
                do not count.

        Those of its source, where there are any; without a target, those that are answered right.
        """
        if self.target == UNTARGETED:
            return np.ones(len(labels), bool) if answers is None else answers == labels
        counted = labels != self.target
        if answers is not None:
            counted &= answers != self.target
        if self.source is not None and (counted & (labels == self.source)).any():
            counted &= labels == self.source
        return np.asarray(counted)

    def leads(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which changed images it has led where it leads, bool ``(n,)``, by their answers and labels ``(n,)``."""
        return np.asarray(answers != labels if self.target == UNTARGETED else answers == self.target)


@dataclass(frozen=True)
class Trigger(Aimed):
    """A recovered trigger: the class it leads to, and its arrays.

    Attributes:
        target, source: see `Aimed`.
        arrays: `mask` ``(1 or channels, height, width)`` and `pattern` ``(channels, height, width)``, both in [0, 1],
            or `delta` ``(channels, height, width)`` in [-1, 1], or `displacement` ``(2, height, width)`` in pixels.
        size_limit: largest size, as a multiple of its own, up to which a trigger to the same class is attributed to the
            backdoor; larger ones are what any clean model has (mitigation/remainder.py measures it).
        smallest: it was searched for as the smallest that works. One that was read off a training set has the size that it
            has there, which may be more than a class needs that no attack has touched: its limit may be less than 1.
    """

    target: int
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    source: int | None = None
    size_limit: float = LARGEST_SIZE_LIMIT
    smallest: bool = True

    @classmethod
    def kept(cls, target: int, arrays: Mapping[str, np.ndarray], source: int | None = None) -> Trigger:
        """A trigger from all the arrays that a ledger keeps of it, which may be more than its own.

        Raises:
            OnnxspectError: there is no change of pixels among them.
        """
        names = form_of(arrays)
        if not names:
            raise OnnxspectError(
                f"no trigger in pixels among {', '.join(sorted(arrays)) or 'no arrays'}",
                "arrays mask and pattern, or delta, or displacement",
            )
        return cls(target, {n: np.asarray(arrays[n]) for n in names}, source)

    @property
    def form(self) -> str:
        """MASK, DELTA or DISPLACEMENT."""
        return form_of(self.arrays)[0]

    @property
    def masked(self) -> bool:
        """Whether it blends a pattern in by a mask; else it is added, or moves pixels."""
        return self.form == MASK

    @property
    def mask(self) -> np.ndarray:
        """``(1 or channels, height, width)`` in [0, 1]; of a trigger of another form there is none (OnnxspectError)."""
        return self._array(MASK)

    @property
    def pattern(self) -> np.ndarray:
        """``(channels, height, width)`` in [0, 1]; of a trigger of another form there is none (OnnxspectError)."""
        return self._array(PATTERN)

    @property
    def delta(self) -> np.ndarray:
        """``(channels, height, width)`` in [-1, 1]; of a trigger of another form there is none (OnnxspectError)."""
        return self._array(DELTA)

    @property
    def displacement(self) -> np.ndarray:
        """``(2, height, width)`` in pixels; of a trigger of another form there is none (OnnxspectError)."""
        return self._array(DISPLACEMENT)

    @property
    def size(self) -> float:
        """What the searches make small: the L1 norm of a mask, the l2 norm of an additive trigger, how far pixels are moved (root mean square)."""
        if self.masked:
            return float(np.abs(self.mask).sum())
        field = self.arrays.get(DISPLACEMENT)
        return float(np.linalg.norm(self.delta)) if field is None else moved_by(field)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Images ``(n, channels, height, width)`` in [0, 1] with the trigger on, float32, clipped to [0, 1]."""
        return stamp(images, self.arrays)

    def strengthened(self, strength: float) -> Trigger:
        """The same with the mask (at most 1), the additive change or the displacement multiplied by `strength`."""
        most = 1.0 if self.masked else np.inf
        stronger = np.minimum(self.arrays[self.form] * np.float32(strength), np.float32(most))
        return replace(self, arrays=dict(self.arrays) | {self.form: stronger})

    def hardened(self, bar: float) -> Trigger:
        """The same with whole pixels: a mask of zeros and ones, one where it was above `bar` times its maximum, and a
        pattern of zeros and ones.

        Raises:
            OnnxspectError: it has no mask.
        """
        whole = (self.mask > bar * self.mask.max()).astype(np.float32)
        return replace(self, arrays={MASK: whole, PATTERN: np.round(self.pattern).astype(np.float32)})

    def changed_in(self, usual: np.ndarray) -> np.ndarray:
        """What it changes in an image ``(channels, height, width)``, before clipping."""
        if self.form == DISPLACEMENT:
            return displaced(usual, self.displacement) - usual
        return np.asarray(self.mask * (self.pattern - usual) if self.masked else self.delta)

    def _array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise OnnxspectError(f"this trigger has no {name}: it is of {' and '.join(self.arrays)}")
        return self.arrays[name]


@dataclass(frozen=True)
class KnownChange(Aimed):
    """A trigger that is known as a function and not as arrays: an attacker's own (a warp has no mask).

    Attributes:
        target, source: see `Aimed`.
        change: pixels ``(n, channels, height, width)`` in [0, 1] -> the same with the trigger on.
    """

    target: int
    change: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    source: int | None = None

    def apply(self, images: np.ndarray) -> np.ndarray:
        """As `change` does it."""
        return self.change(images)


def form_of(arrays: Mapping[str, object]) -> tuple[str, ...]:
    """The names of the arrays that make one change of the pixels of any image; none where there is none: some are changes of an inner layer."""
    return next((form for form in FORMS if set(form) <= set(arrays)), ())


def in_pixels(arrays: Mapping[str, object]) -> bool:
    """Whether arrays by name hold one change of the pixels of any image."""
    return bool(form_of(arrays))


@overload
def stamp(images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray: ...
@overload
def stamp(images: Tensor, arrays: Mapping[str, Tensor]) -> Tensor: ...
def stamp(images: np.ndarray | Tensor, arrays: Mapping[str, np.ndarray] | Mapping[str, Tensor]) -> np.ndarray | Tensor:
    """Images ``(n, channels, height, width)`` in [0, 1] with a trigger applied, clipped to [0, 1].

    Args:
        images: numpy float32, or a torch tensor, through which the result is then differentiable.
        arrays: of the same kind: those of one form, without a unit axis; other names are left aside.

    Returns:
        float32 for numpy; the tensors' own type for torch.
    """
    moves = form_of(arrays) == (DISPLACEMENT,)
    if isinstance(images, np.ndarray):
        by_name = cast("Mapping[str, np.ndarray]", arrays)
        changed = displaced(images, by_name[DISPLACEMENT]) if moves else _stamped(images, by_name)
        return np.clip(changed, 0, 1).astype(np.float32)
    tensors = cast("Mapping[str, Tensor]", arrays)
    moved = displaced_each(images[None], tensors[DISPLACEMENT][None])[0] if moves else _stamped(images, tensors)
    return moved.clamp(0, 1)


def _stamped(images: Array, arrays: Mapping[str, Array]) -> Array:
    """The formula. With mask and pattern in [0, 1] the blend is too, to the last bit: clipping costs no gradient."""
    if MASK in arrays:
        mask, pattern = arrays[MASK], arrays[PATTERN]
        return (1 - mask) * images + mask * pattern
    return images + arrays[DELTA]
