"""One picture file as an array, read as the common loaders (torchvision's ImageFolder, Keras) read it, and what was changed.

Pillow knows formats that start other programs (EPS starts Ghostscript) or that reach far into libraries; `FORMATS` names the
few that pictures of a data set come in, and no other is opened, whatever a file's name says. The size in a picture's header is
compared with the limit before a pixel is decoded.

A depth of more than 8 bits is kept, as float32 in [0, 1]: Pillow alone would clip 16-bit grey to 0 and 255.
"""

from __future__ import annotations

import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.limits import limits

#: What is opened, by Pillow's names.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
#: Depths that a sensor's grey levels have inside 16-bit files.
DEPTHS = (8, 10, 12, 14, 16)
_GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_ORIENTATION = 0x0112
#: The gamma that a PNG's pixels have where it states none: that of sRGB.
_GAMMA = 1 / 2.2
_RGB_TO_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow converts
_DAMAGED = "take it out of the set, or copy the set again"
_NOTES = {
    "alpha": "{n} have an alpha channel: it is dropped, as torchvision and Keras do",
    "rotation": "{n} carry an EXIF rotation: it is not applied, as torchvision and Keras do not",
    "cmyk": "{n} are CMYK: converted to RGB without a colour profile, as Pillow does",
    "gamma": "{n} state a gamma of their own: it is not applied",
    "frames": "{n} have more than one frame: the first is taken",
    "deep": "{n} have more than 8 bits a channel: scaled to [0, 1] by their full depth",
    "deep colour": "{n} have 16 bits a colour channel: Pillow keeps the upper 8",
    "8": "{n} are 16-bit files whose grey levels end at 255 or below: read as 8-bit",
    "12": "{n} are 16-bit files whose grey levels end at 4095 or below: read as 12-bit",
    "10": "{n} are 16-bit files whose grey levels end at 1023 or below: read as 10-bit",
    "14": "{n} are 16-bit files whose grey levels end at 16383 or below: read as 14-bit",
    "grey": "{n} are grey: repeated in three channels, which is what the model takes",
    "colour": "{n} are in colour: converted to grey, which is what the model takes",
}


class Seen:
    """What was changed in pictures, counted: the one mutable thing of a reader.

    A set may be read more than once; what is said of it is the most that one reading met.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._most: Counter[str] = Counter()

    def again(self) -> None:
        """The set is read from its beginning: no picture is counted twice."""
        self._most |= self._counts
        self._counts.clear()

    def add(self, what: str) -> None:
        """One more picture of which this holds."""
        self._counts[what] += 1

    def notes(self) -> tuple[str, ...]:
        """In sentences."""
        most = self._most | self._counts
        return tuple(
            text.format(n=f"{most[what]} image{'s' if most[what] > 1 else ''}")
            for what, text in _NOTES.items()
            if most[what]
        )


def opened(source: Path | IO[bytes], where: str) -> Image.Image:
    """A picture whose header is read, and nothing else.

    Raises:
        OnnxspectError: it is of no format that is read, or declares too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a size above Pillow's own limit is compared with ours, below
            image = Image.open(source, formats=FORMATS)
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise caused_by(error, f"{where}: not a readable image ({_line(error)})", _DAMAGED) from error
    limits().check_image(image.width, image.height, where)
    return image


def read_picture(source: Path | IO[bytes], where: str, seen: Seen, depth: int = 16) -> np.ndarray:
    """A picture as uint8, or float32 in [0, 1] where it has more depth, ``(height, width, 1 or 3)``.

    Args:
        source: the file, or a stream of it.
        where: names it in errors.
        seen: counts what is changed.
        depth: bits that the grey levels of 16-bit files have.

    Raises:
        OnnxspectError: it cannot be read.
    """
    image = opened(source, where)
    try:
        with image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return as_array(image, where, seen, depth)
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, Image.DecompressionBombError) as error:
        raise caused_by(error, f"{where}: not a readable image ({_line(error)})", _DAMAGED) from error


def as_array(image: Image.Image, where: str, seen: Seen, depth: int = 16) -> np.ndarray:
    """An open picture as an array; arguments and errors as above."""
    _look(image, seen)
    if image.mode.startswith("I"):
        return _deep(np.asarray(image).astype(np.int64), where, seen, depth)
    if image.mode == "F":
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise OnnxspectError(
                f"{where}: its floating-point pixels span {values.min():.3g}..{values.max():.3g}, not [0, 1]",
                "which value is white is not stated: save the images as 8-bit or 16-bit, or as floats in [0, 1]",
            )
        return values[..., None]
    array = np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def grey_maximum(source: Path | IO[bytes], where: str) -> int:
    """The highest grey level of a 16-bit picture; 0 for one of another depth.

    Raises:
        OnnxspectError: it cannot be read.
    """
    image = opened(source, where)
    if not image.mode.startswith("I"):
        image.close()
        return 0
    try:
        with image:
            return max(1, int(np.asarray(image).max()))
    except (OSError, ValueError, SyntaxError, struct.error, EOFError) as error:
        raise caused_by(error, f"{where}: not a readable image ({_line(error)})", _DAMAGED) from error


def depth_of(maxima: list[int]) -> int:
    """Bits of the grey levels of which these are the highest in some 16-bit pictures: 16 where there is none."""
    top = max(maxima, default=0)
    return next((d for d in DEPTHS if 0 < top < 1 << d), 16)


def to_channels(image: np.ndarray, channels: int, seen: Seen | None = None) -> np.ndarray:
    """An image ``(height, width, 1 or 3)`` in grey or in colour, as a model takes it."""
    if image.shape[2] == channels or channels not in (1, 3):
        return image
    if seen is not None:
        seen.add("colour" if channels == 1 else "grey")
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return np.asarray(image.astype(np.float32) @ _RGB_TO_GREY)[..., None]


def resampled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image ``(h, w, 1 or 3)``, uint8 or float32, in another size: bilinear and antialiased, as Pillow does."""
    if image.shape[:2] == (height, width):
        return image

    def one(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))

    if image.shape[2] == 3 and image.dtype == np.uint8:
        return one(image)
    planes = [one(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    return np.stack(planes, axis=2)


def _look(image: Image.Image, seen: Seen) -> None:
    """Count what the common loaders pass over without a word."""
    rules: dict[str, Callable[[], bool]] = {
        "alpha": lambda: image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
        "rotation": lambda: image.getexif().get(_ORIENTATION, 1) not in (0, 1),
        "cmyk": lambda: image.mode == "CMYK",
        "gamma": lambda: abs(float(image.info.get("gamma") or _GAMMA) - _GAMMA) > 0.01,
        "frames": lambda: getattr(image, "n_frames", 1) > 1,
    }
    for what, holds in rules.items():
        try:
            if holds():
                seen.add(what)
        except (ValueError, OSError, SyntaxError, struct.error, KeyError, TypeError, EOFError):
            continue  # a damaged tag says nothing


def _deep(values: np.ndarray, where: str, seen: Seen, depth: int) -> np.ndarray:
    top = (1 << depth) - 1
    if values.size and (values.min() < 0 or values.max() > top):
        raise OnnxspectError(
            f"{where}: grey levels span {values.min()}..{values.max()}, not 0..{top}",
            "the images of one set must have one depth: save them as 8-bit",
        )
    seen.add("deep" if depth == 16 else str(depth))
    return (values / np.float64(top)).astype(np.float32)[..., None]


def _line(error: BaseException) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0], 160)
