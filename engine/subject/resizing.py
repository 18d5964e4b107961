"""How images of any size and aspect are brought to the size that a model takes: the conventions of training code, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.pixels import Seen, resampled, to_channels
from onnxspect.engine.readers.reader import Reader

#: torchvision's evaluation transforms scale the shorter side to 256 where 224 are taken: 8/7 of the size.
USUAL_MARGIN = 8 / 7


@dataclass(frozen=True)
class Resize:
    """One way to bring an image to a size.

    Attributes:
        how: "crop" (shorter side to a length, then the centre), "stretch" (both sides, whatever the aspect), or "try": `crop` and
            `stretch` are tried on the model, and the one that it classifies best is taken.
        shorter: the length in pixels that the shorter side is brought to; None for the size itself.
        crop: the side of the square that is cut from the centre, which must be what the model takes; None says nothing.
    """

    how: str = "try"
    shorter: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.how not in ("crop", "stretch", "try"):
            raise OnnxspectError(f"unknown way to resize {self.how!r}", "crop, stretch or try")
        if self.shorter is not None and self.shorter < 1:
            raise OnnxspectError(f"a shorter side of {self.shorter} pixels", "at least 1")
        if self.crop is not None and self.crop < 1:
            raise OnnxspectError(f"a crop of {self.crop} pixels", "at least 1")

    def describe(self) -> dict[str, Any]:
        """As fingerprints and reports keep it."""
        return {"how": self.how, "shorter": self.shorter, "crop": self.crop}

    def crop_size(self, reader: Reader) -> tuple[int, int, int]:
        """The size that a model which takes any is given: the crop's, in the channels of the first image."""
        side = self.crop or 0
        return next(reader.images([0])).shape[2], side, side

    def text(self, height: int, width: int) -> str:
        """In words, for a model that takes this size."""
        if self.how == "stretch":
            return f"stretched to {width}x{height}"
        shorter = f"{self.shorter} pixels" if self.shorter is not None else "the model's"
        return f"shorter side to {shorter}, then the central {width}x{height}"

    def choices(self, height: int, width: int) -> tuple[Resize, ...]:
        """What is tried, the plainest first."""
        if self.how != "try":
            return (self,)
        wider = round(min(height, width) * USUAL_MARGIN)
        return (Resize("crop"), Resize("crop", wider), Resize("stretch"))


#: What a caller may give: no (images of another size are refused), yes (see `Resize`), or a way.
Resizing: TypeAlias = bool | Resize


def way_of(resize: Resizing) -> Resize | None:
    """The way that is meant; None where images are not to be resized."""
    return resize if isinstance(resize, Resize) else Resize() if resize else None


def fit(image: np.ndarray, size: tuple[int, int, int] | None, way: Resize | None, where: str, seen: Seen) -> np.ndarray:
    """An image ``(height, width, 1 or 3)`` as a model of `size` (channels, height, width) takes it.

    Args:
        image: uint8, or float32 in [0, 1].
        size: of the model; None where it takes any.
        way: how images of another size are brought to it; None refuses them. "try" is "crop" here.
        where: names the image in errors.
        seen: counts what is changed.

    Raises:
        OnnxspectError: it has another size, and is not to be resized.
    """
    if size is None:
        return image
    image = to_channels(image, size[0], seen)
    height, width = size[1:]
    if way is not None and way.crop is not None and (height, width) != (way.crop, way.crop):
        raise OnnxspectError(
            f"a crop of {way.crop} pixels, but the model takes {width}x{height}", f"--crop {height}, or leave it out"
        )
    if image.shape[:2] == (height, width) and (way is None or way.shorter is None):
        return image
    if way is None:
        raise OnnxspectError(
            f"{where}: {image.shape[1]}x{image.shape[0]}, the model takes {width}x{height}",
            "--resize brings images to the model's size",
        )
    if way.how == "stretch":
        return resampled(image, height, width)
    return _cropped(image, height, width, way.shorter)


def _cropped(image: np.ndarray, height: int, width: int, shorter: int | None) -> np.ndarray:
    """The shorter side scaled (bilinear, antialiased), then the centre: the usual evaluation transform."""
    if shorter is None:
        scale = max(height / image.shape[0], width / image.shape[1])
    else:
        if shorter < max(height, width):
            raise OnnxspectError(
                f"a shorter side of {shorter} pixels is less than the {width}x{height} that are cropped from it",
                f"--resize {max(height, width)} or more",
            )
        scale = shorter / min(image.shape[:2])
    rows, columns = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    scaled = resampled(image, rows, columns)
    top, left = (rows - height) // 2, (columns - width) // 2
    return scaled[top : top + height, left : left + width]
