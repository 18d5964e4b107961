"""Clean samples: labelled images in memory, out of arrays or of whatever the readers read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.arrays import ArrayReader, to_labels, to_unit_nchw
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.pixels import Seen
from onnxspect.engine.readers.reader import Asked, Reader
from onnxspect.engine.subject.resizing import Resizing, fit, way_of


@dataclass(frozen=True)
class Samples:
    """Labelled images.

    Attributes:
        images: float32 ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        names: class names by index, possibly empty.
        path: where they came from; "" for arrays given in memory.
        sha256: of the images and labels themselves, so that the same data in another container is the same data.
        files: the image files in order, where there are such; else empty.
        notes: what was changed, guessed or left out in reading, in sentences.
        ordered: class indices are only the alphabetical order of names, which the model's need not be.
        order_given: the user has stated the order of the classes.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()
    path: str = ""
    sha256: str = ""
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ordered: bool = False
    order_given: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, index: np.ndarray) -> Samples:
        """The rows `index`, in that order; path and hash stay those of the whole."""
        files = tuple(self.files[i] for i in index) if self.files else ()
        return replace(self, images=self.images[index], labels=self.labels[index], files=files)

    def joined(self, other: Samples) -> Samples:
        """The rows of this one, then the other's; path and hash stay this one's, file names are dropped."""
        images, labels = np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels])
        return replace(self, images=images, labels=labels, files=())

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[Samples, Samples]:
        """Two disjoint parts, `fraction` of each class (rounded up, at least one where a class has two) in the first.

        Of the classes that have one sample, `fraction` lie in the first part.
        """
        first: list[int] = []
        alone: list[int] = []
        for label in np.unique(self.labels):
            rows = rng.permutation(np.flatnonzero(self.labels == label))
            if len(rows) == 1:
                alone.append(int(rows[0]))
                continue
            first.extend(rows[: min(int(np.ceil(fraction * len(rows))), len(rows) - 1)].tolist())
        first.extend(rng.permutation(np.array(alone, np.int64))[: int(np.ceil(fraction * len(alone)))].tolist())
        chosen = np.zeros(len(self), bool)
        chosen[first] = True
        return self.take(np.flatnonzero(chosen)), self.take(np.flatnonzero(~chosen))

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray, names: Sequence[str] = (), path: str = "") -> Samples:
        """From uint8 ``(n, height, width[, channels])``, or float in [0, 1] as NHWC or NCHW.

        Raises:
            OnnxspectError: shapes, types or values do not fit, naming which.
        """
        where = f"{path}: " if path else ""
        pixels = to_unit_nchw(np.asarray(images), where)
        classes = to_labels(np.asarray(labels), where)
        if len(pixels) != len(classes):
            raise OnnxspectError(
                f"{where}{len(pixels)} images but {len(classes)} labels",
                "one label an image: the two are not of the same set",
            )
        if len(pixels) == 0:
            raise OnnxspectError(
                f"{where}no images in it", "clean images with their labels are needed, a hundred at least"
            )
        return cls(pixels, classes, tuple(map(str, names)), path, _digest(pixels, classes))

    @classmethod
    def load(
        cls,
        path: str | Path,
        size: tuple[int, int, int] | None = None,
        resize: Resizing = False,
        classes: ClassList | None = None,
        training: bool = False,
        trial: int | None = None,
    ) -> Samples:
        """From a path of any form that is read (readers.reader.FORMS).

        Args:
            path: npz with `images` and `labels`, a folder with one sub-folder a class, or another form.
            size: (channels, height, width) that the model takes; pictures in files are converted to these channels.
            resize: bring images of another size to `size` instead of refusing them, or the way to do it.
            classes: the model's classes in order, where they are known.
            training: of a set in parts (x_train and x_test) the training part is meant.
            trial: only so many images, from all over the set.

        Raises:
            OnnxspectError: nothing there, not readable, too large, wrong size, or inconsistent.
        """
        reader = open_reader(path, Asked(classes, training))
        way, seen = way_of(resize), Seen()
        count = len(reader.labels)
        rows = (
            np.arange(count) if trial is None else np.unique(np.linspace(0, count - 1, min(trial, count)).astype(int))
        )
        labels, files = reader.labels[rows], tuple(reader.files[r] for r in rows) if reader.files else ()
        note = ""
        if size is None and way is not None:
            size, note = (way.crop_size(reader), "") if way.crop is not None else _commonest(reader)
        converted = bool(size) and not isinstance(reader, ArrayReader)
        pixels: np.ndarray | None = None
        first = (0, 0, 0)
        resized = 0
        for i, image in enumerate(reader.images(rows.tolist())):
            where = f"{path}/{printable(files[i], 200)}" if files else f"{path}: image {rows[i]}"
            widened = size is not None and size[0] == 3 and image.shape[2] == 1
            wanted = size
            if size is not None and not (converted or widened):
                wanted = (image.shape[2], *size[1:])
            if way is None and isinstance(reader, ArrayReader) and wanted is not None:
                wanted = (wanted[0], *image.shape[:2])  # another size is the whole array's, and said of it below
            fitted = fit(image, wanted, way, where, seen)
            resized += fitted.shape[:2] != image.shape[:2]
            if pixels is None:
                first = fitted.shape
                needed = 4 * len(rows) * int(np.prod(first))
                limits().check_bytes(needed, str(path), f"{len(rows)} images of {_size_of(first)}")
                pixels = np.empty((len(rows), first[2], *first[:2]), np.float32)
            if fitted.shape != first:
                named = printable(Path(files[0]).name) if files else "the first"
                hint = "images must be of one size: --resize brings them to the commonest, or to the model's"
                if fitted.shape[:2] == first[:2]:
                    hint = "some are grey and some in colour, and the model does not say which it takes"
                raise OnnxspectError(f"{where}: {_size_of(fitted.shape)}, but {named} is {_size_of(first)}", hint)
            pixels[i] = _unit(fitted).transpose(2, 0, 1)
        if pixels is None:
            raise OnnxspectError(
                f"{path}: no images in it", "clean images with their labels are needed, a hundred at least"
            )
        notes = [*reader.notes(), *([note] if note else []), *seen.notes()]
        if resized and way is not None and size is not None:
            notes.append(f"{resized} of {len(pixels)} images were brought to another size: {way.text(*size[1:])}")
        given = classes is not None and classes.certain
        samples = cls(
            pixels,
            labels,
            reader.names,
            str(path),
            _digest(pixels, labels),
            files,
            tuple(notes),
            reader.ordered,
            given,
        )
        return samples.fitted(size)

    def fitted(self, size: tuple[int, int, int] | None, resize: Resizing = False) -> Samples:
        """These samples in the size (channels, height, width) that a model takes; as they are where it takes any (None).

        Raises:
            OnnxspectError: they have another size, and are not to be resized (or are in colour, and the model takes grey).
        """
        if size is None or self.shape == size:
            return self
        way = way_of(resize)
        widened = size[0] == 3 and self.shape[0] == 1
        if (widened and self.shape[1:] == size[1:]) or (way is not None and (widened or self.shape[0] == size[0])):
            seen = Seen()
            pixels = self.images.transpose(0, 2, 3, 1)
            fitted = np.stack([fit(image, size, way, self.path or "the samples", seen) for image in pixels])
            images = np.ascontiguousarray(np.clip(fitted, 0, 1).transpose(0, 3, 1, 2), np.float32)
            said = [*self.notes, *seen.notes()]
            if way is not None and self.shape[1:] != size[1:]:
                said.append(f"all images were brought to another size: {way.text(*size[1:])}")
            return replace(self, images=images, sha256=_digest(images, self.labels), notes=tuple(said))
        raise OnnxspectError(
            f"{self.path or 'the samples'}: images are {_size_text(self.shape)}, the model takes {_size_text(size)}",
            "--resize brings them to the model's size"
            if self.shape[0] == size[0]
            else "the number of colour channels differs: these are not the model's data",
        )


def _digest(pixels: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256()
    digest.update(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()


def _unit(image: np.ndarray) -> np.ndarray:
    """uint8 or float32 pixels as float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else np.clip(image, 0, 1)


def _commonest(reader: Reader) -> tuple[tuple[int, int, int], str]:
    """The commonest size of a set's images, for a model that takes any, and a note where there are others."""
    shapes = Counter(image.shape for image in reader.images())
    (height, width, _), count = max(shapes.items(), key=lambda s: (s[1], s[0]))
    note = (
        f"images are of {len(shapes)} sizes and the model takes any: {width}x{height}, the size of {count} of "
        f"{sum(shapes.values())}, was chosen"
    )
    return (max(s[2] for s in shapes), height, width), note if len(shapes) > 1 else ""


def _size_of(shape: tuple[int, ...]) -> str:
    """Of ``(height, width, channels)``."""
    height, width, channels = shape
    return _size_text((channels, height, width))


def _size_text(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} with {channels} channel{'s' if channels != 1 else ''}"
