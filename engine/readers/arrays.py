"""Images that come as one array: what npz, .mat, IDX and CIFAR files have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.labels import ClassList, of_numbers
from onnxspect.engine.readers.reader import checked_rows

#: Images of a batch that is read at a time.
BATCH = 256

#: The array in order, in batches ``(m, ...)``.
Batches = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class ArrayReader:
    """A reader of images in one array.

    Attributes:
        form, labels, names, files, ordered: as `Reader` has them.
        root: names the set in errors.
        batches: the images, as they are stored.
        digest: gives that of the set.
        said: notes.
    """

    form: str
    root: str
    labels: np.ndarray
    names: tuple[str, ...]
    batches: Batches = field(repr=False)
    digest: Callable[[], str] = field(repr=False)
    said: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    ordered: bool = False

    def images(self, rows: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """As `Reader` has it."""
        wanted = iter(checked_rows(rows, len(self.labels)))
        row, start = next(wanted, None), 0
        for stored in self.batches():
            end = start + len(stored)
            if row is not None and row < end:
                batch = as_pixels(stored, f"{self.root}: ")
                while row is not None and row < end:
                    yield batch[row - start]
                    row = next(wanted, None)
            start = end
            if row is None:
                break
        if row is not None:
            raise OnnxspectError(
                f"{self.root}: holds {start} images but {len(self.labels)} labels",
                "one label an image: copy the set again, or make it anew",
            )

    def fingerprint(self) -> str:
        """As `Reader` has it."""
        return self.digest()

    def notes(self) -> tuple[str, ...]:
        """As `Reader` has it."""
        return self.said


def array_reader(
    form: str,
    root: Path,
    count: int,
    labels: np.ndarray,
    names: Sequence[str],
    classes: ClassList | None,
    batches: Batches,
    digest: Callable[[], str],
    said: Sequence[str] = (),
) -> ArrayReader:
    """A reader of `count` images with as many labels.

    Raises:
        OnnxspectError: counts differ, there is nothing, or the labels do not fit the given classes.
    """
    where = f"{root}: "
    numbers = to_labels(labels, where)
    if labels.ndim == 2 and labels.shape[1] > 1:
        said = (*said, f"labels are one-hot rows of {labels.shape[1]}: the place of the one is the class")
    if count != len(numbers):
        raise OnnxspectError(
            f"{where}{count} images but {len(numbers)} labels", "one label an image: the two are not of the same set"
        )
    if count == 0:
        raise OnnxspectError(f"{where}no images in it", "clean images with their labels are needed, a hundred at least")
    labelled = of_numbers(numbers, names, classes, str(root))
    return ArrayReader(form, str(root), labelled.labels, labelled.names, batches, digest, (*said, *labelled.notes))


def as_pixels(images: np.ndarray, where: str) -> np.ndarray:
    """Images as they come (integers or floats; NHWC, NCHW or without a channel axis) as NHWC, uint8 or float32 in [0, 1].

    Raises:
        OnnxspectError: they are no images; `where` names them.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise OnnxspectError(
            f"{where}images have {images.ndim} axes, not 4 (n, height, width, channels)",
            "an array (n, height, width, channels), or (n, height, width) of grey images",
        )
    if images.dtype.kind not in "uif":
        raise OnnxspectError(
            f"{where}images are of type {images.dtype}, not uint8 or float", "uint8 to 255, or floats in [0, 1]"
        )
    channels_last = images.shape[-1] in (1, 3)
    if not channels_last and images.shape[1] not in (1, 3):
        if images.shape[-1] == 4:
            raise OnnxspectError(f"{where}images have an alpha channel", "drop it: 1 or 3 channels are expected")
        raise OnnxspectError(
            f"{where}images of shape {images.shape[1:]} have neither 1 nor 3 channels",
            "grey or RGB images: (n, height, width, channels)",
        )
    if not channels_last:
        images = images.transpose(0, 2, 3, 1)
    if images.dtype.kind in "ui":
        if images.size and (images.min() < 0 or images.max() > 255):
            raise OnnxspectError(
                f"{where}integer pixels outside 0..255 ({images.min()}..{images.max()})",
                "divide 16-bit pixels by 65535, 12-bit ones by 4095, and give them as floats in [0, 1]",
            )
        return images.astype(np.uint8)
    if not np.isfinite(images).all():
        raise OnnxspectError(f"{where}images hold NaN or infinity", "take those images out of the set")
    if images.size and (images.min() < 0 or images.max() > 1):
        raise OnnxspectError(
            f"{where}float pixels span {images.min():.3g}..{images.max():.3g}, not [0, 1]",
            "give raw pixels: uint8, or float in [0, 1]; the model's own scaling is found by onnxspect",
        )
    return images.astype(np.float32)


def to_unit_nchw(images: np.ndarray, where: str) -> np.ndarray:
    """Images as they come, as float32 NCHW in [0, 1]. Errors as above."""
    pixels = as_pixels(images, where).transpose(0, 3, 1, 2)
    if pixels.dtype == np.uint8:
        return (pixels.astype(np.float32) / np.float32(255)).astype(np.float32)
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _one_hot(labels: np.ndarray) -> bool:
    """Whether every row is one 1 and else 0."""
    whole = bool(np.isin(labels, (0, 1)).all())
    return whole and bool((labels.sum(1) == 1).all())


def to_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels as they come (integers, or floats that are whole; ``(n,)``, one column, or one-hot rows) as int64 ``(n,)``.

    Raises:
        OnnxspectError: they are no class indices; `where` names them.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "uifb" and _one_hot(labels):
        return labels.argmax(1).astype(np.int64)
    if labels.ndim != 1:
        raise OnnxspectError(
            f"{where}labels have shape {labels.shape}, and their rows are not one-hot",
            "give one class index an image (several tags an image are no classes that exclude each other)",
        )
    if labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui":
        raise OnnxspectError(f"{where}labels are of type {labels.dtype}, not integers", "class indices from 0")
    if labels.size and labels.min() < 0:
        raise OnnxspectError(f"{where}label {labels.min()} is negative", "class indices count from 0")
    return labels.astype(np.int64)
