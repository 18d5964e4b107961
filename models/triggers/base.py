"""What a trigger is: a function of 8-bit pixels and a generator, with its ground truth recorded.

Every trigger ends in `to_pixels`: clipped to the valid range and rounded to 8 bits, as RE (Xiang et al., 2020,
sec. 5.1.1, footnote 3) does to mimic a real attacker, whose images are files.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import numpy as np

from onnxspect.models.fields import bad_field, build, to_plain

# (height, width, channels)
ImageShape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What a perfect detector would recover, in pixel units [0, 255]; a part that the attack does not have is None.

    mask: ``(h, w, c)`` float32 in [0, 1], the share of a pixel that the pattern replaces.
    pattern: ``(h, w, c)`` float32, what it is replaced with: ``x' = (1 - mask) x + mask pattern``.
    delta: ``(h, w, c)`` float32, what is added to every image: ``x' = x + delta``.
    """

    mask: np.ndarray | None = None
    pattern: np.ndarray | None = None
    delta: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Trigger(ABC):
    """One trigger. Final classes are frozen dataclasses of plain values, found by their `kind`."""

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Stamped copies of uint8 ``(n, h, w, c)``; `rng` serves triggers that differ from image to image."""

    @abstractmethod
    def check(self, shape: ImageShape, path: str) -> None:
        """Raise `OnnxspectError` naming ``path.<field>`` if the trigger cannot be put on images of `shape`."""

    @abstractmethod
    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        """The parts of the trigger that do not depend on the image."""

    @abstractmethod
    def cover(self) -> Trigger:
        """What cover images show, which keep their right label: the trigger itself, or a decoy that resembles it."""

    def to_dict(self) -> dict[str, Any]:
        """``{"kind": ..., field: value, ...}``, from which `trigger_from_dict` makes an equal trigger."""
        values = {field.name: to_plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"kind": self.kind, **values}

    @classmethod
    def from_plain(cls, data: Any, path: str) -> Trigger:
        """The trigger that a recipe's table names by `kind`."""
        return trigger_from_dict(data, path)


_KINDS: dict[str, type[Trigger]] = {}
C = TypeVar("C", bound=type[Trigger])


def register(cls: C) -> C:
    """Class decorator: make a trigger known by its `kind`. A duplicate is an error."""
    if cls.kind in _KINDS:
        raise ValueError(f"trigger kind {cls.kind!r} is registered twice")
    _KINDS[cls.kind] = cls
    return cls


def kinds() -> tuple[str, ...]:
    """All known kinds, sorted."""
    return tuple(sorted(_KINDS))


def trigger_from_dict(data: Any, path: str = "trigger") -> Trigger:
    """The trigger that `Trigger.to_dict` described.

    Errors: `OnnxspectError` naming the field for an unknown kind, field or type.
    """
    if not isinstance(data, dict) or "kind" not in data:
        raise bad_field(f"{path}.kind", "is missing", f"one of {', '.join(kinds())}")
    if data["kind"] not in _KINDS:
        raise bad_field(f"{path}.kind", f"unknown trigger {data['kind']!r}", f"one of {', '.join(kinds())}")
    return build(_KINDS[data["kind"]], {key: value for key, value in data.items() if key != "kind"}, path)


def add_delta(images: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """``[x + v]_c`` on uint8 ``(n, h, w, c)`` with `delta` ``(h, w, c)`` in levels of 1/255."""
    return to_pixels(images.astype(np.float64) + delta)


@dataclasses.dataclass(frozen=True)
class Additive(Trigger):
    """A trigger that is one fixed change added to every image (RE, Eq. 1); cover images show it too."""

    @abstractmethod
    def _delta(self, shape: ImageShape) -> np.ndarray:
        """What is added, in levels of 1/255, float32 in `shape`."""

    def ground_truth(self, shape: ImageShape) -> GroundTruth:
        return GroundTruth(delta=self._delta(shape))

    def apply(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return add_delta(images, self._delta(images.shape[1:]))

    def cover(self) -> Trigger:
        return self


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Real values in [0, 255] units as uint8: rounded to the nearest level, clipped to the valid range."""
    return np.clip(np.rint(values), 0.0, 255.0).astype(np.uint8)
