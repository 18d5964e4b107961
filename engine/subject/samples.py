"""Clean samples: images and labels from an npz file or from a folder of images by class."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from onnxspect.engine.errors import OnnxspectError, caused_by

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
#: More classes than any image classifier has: a folder named by a date is no class index.
MOST_CLASSES = 1_000_000
#: (images, labels) keys that an npz may use, the documented pair first.
NPZ_KEYS = (("images", "labels"), ("x_test", "y_test"), ("x", "y"), ("X", "y"), ("x_train", "y_train"))
#: The same for a training set.
TRAIN_KEYS = (("images", "labels"), ("x_train", "y_train"), ("x", "y"), ("X", "y"))


@dataclass(frozen=True)
class Samples:
    """Labelled images.

    Attributes:
        images: float32 ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        names: class names by index, possibly empty.
        path: where they came from; "" for arrays given in memory.
        sha256: of the images and labels themselves, so that the same data in another container is the same data.
        files: the image files in order, for a folder; else empty.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()
    path: str = ""
    sha256: str = ""
    files: tuple[str, ...] = ()

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
            raise OnnxspectError(f"{where}{len(pixels)} images but {len(classes)} labels")
        if len(pixels) == 0:
            raise OnnxspectError(f"{where}no images in it")
        digest = hashlib.sha256()
        digest.update(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).tobytes())
        digest.update(classes.tobytes())
        return cls(pixels, classes, tuple(map(str, names)), path, digest.hexdigest())

    @classmethod
    def load(
        cls,
        path: str | Path,
        size: tuple[int, int, int] | None = None,
        resize: bool = False,
        keys: Sequence[tuple[str, str]] = NPZ_KEYS,
    ) -> Samples:
        """From an npz file or a folder of images by class.

        Args:
            path: npz with `images` and `labels`, or a folder with one sub-folder a class.
            size: (channels, height, width) that the model takes; images of a folder are converted to these channels.
            resize: bring images of another size to `size` (shorter side, then centre crop) instead of refusing them.
            keys: the (images, labels) names to look for in an npz, in order of preference.

        Raises:
            OnnxspectError: nothing there, not readable, wrong size, or inconsistent.
        """
        path = Path(path)
        if path.is_dir():
            samples = _from_folder(path, size, resize)
        elif not path.exists():
            raise OnnxspectError(f"{path}: no such file or folder", "give an npz file or a folder of images by class")
        elif not path.is_file():
            raise OnnxspectError(f"{path}: neither a regular file nor a folder")
        else:
            samples = _from_npz(path, keys)
        return samples.fitted(size, resize)

    def fitted(self, size: tuple[int, int, int] | None, resize: bool = False) -> Samples:
        """These samples in the size (channels, height, width) that a model takes; as they are where it takes any (None).

        Raises:
            OnnxspectError: they have another size, and are not to be resized (or have other channels).
        """
        samples = _resized(self, size) if resize and size is not None and self.shape != size else self
        if size is not None and samples.shape != size:
            raise OnnxspectError(
                f"{self.path or 'the samples'}: images are {_size_text(samples.shape)}, the model takes {_size_text(size)}",
                "--resize brings them to the model's size"
                if samples.shape[0] == size[0]
                else "the number of colour channels differs: these are not the model's data",
            )
        return samples


def _size_text(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} with {channels} channel{'s' if channels != 1 else ''}"


def to_unit_nchw(images: np.ndarray, where: str) -> np.ndarray:
    """Images as they come (uint8 or float, NHWC, NCHW or without a channel axis) as float32 NCHW in [0, 1].

    Raises:
        OnnxspectError: they are no images; `where` names them.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise OnnxspectError(f"{where}images have {images.ndim} axes, not 4 (n, height, width, channels)")
    if images.dtype.kind not in "uif":
        raise OnnxspectError(f"{where}images are of type {images.dtype}, not uint8 or float")
    channels_last = images.shape[-1] in (1, 3)
    if not channels_last and images.shape[1] not in (1, 3):
        if images.shape[-1] == 4:
            raise OnnxspectError(f"{where}images have an alpha channel", "drop it: 1 or 3 channels are expected")
        raise OnnxspectError(f"{where}images of shape {images.shape[1:]} have neither 1 nor 3 channels")
    if channels_last:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype.kind in "ui":
        if images.size and (images.min() < 0 or images.max() > 255):
            raise OnnxspectError(f"{where}integer pixels outside 0..255")
        return (images.astype(np.float32) / np.float32(255)).astype(np.float32)
    if not np.isfinite(images).all():
        raise OnnxspectError(f"{where}images hold NaN or infinity")
    if images.size and (images.min() < 0 or images.max() > 1):
        raise OnnxspectError(
            f"{where}float pixels span {images.min():.3g}..{images.max():.3g}, not [0, 1]",
            "give raw pixels: uint8, or float in [0, 1]; the model's own scaling is found by onnxspect",
        )
    return np.ascontiguousarray(images, dtype=np.float32)


def to_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels as they come (integers, or floats that are whole; ``(n,)`` or one column) as int64 ``(n,)``.

    Raises:
        OnnxspectError: they are no class indices; `where` names them.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise OnnxspectError(f"{where}labels have shape {labels.shape}, not (n,)", "class indices, not one-hot rows")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui":
        raise OnnxspectError(f"{where}labels are of type {labels.dtype}, not integers", "class indices from 0")
    if labels.size and labels.min() < 0:
        raise OnnxspectError(f"{where}label {labels.min()} is negative", "class indices count from 0")
    return labels.astype(np.int64)


def _from_npz(path: Path, keys: Sequence[tuple[str, str]]) -> Samples:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise OnnxspectError(f"{path}: an .npy array, not an .npz with images and labels")
        with archive:
            pair = next(((x, y) for x, y in keys if x in archive and y in archive), None)
            if pair is None:
                raise OnnxspectError(
                    f"{path}: no `images` and `labels` in it (found {', '.join(sorted(archive.files)[:8]) or 'nothing'})"
                )
            images, labels = archive[pair[0]], archive[pair[1]]
            names: Sequence[str] = ()
            if "classes" in archive and archive["classes"].dtype.kind in "US":
                names = archive["classes"].astype(str).tolist()
    except (ValueError, OSError, EOFError, NotImplementedError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise caused_by(error, f"{path}: not a readable npz file ({_first_line(error)})") from error
    return Samples.from_arrays(images, labels, names, str(path))


def _from_folder(path: Path, size: tuple[int, int, int] | None, resize: bool) -> Samples:
    folders = sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=folder_order)
    if not folders:
        raise OnnxspectError(f"{path}: no class folders in it", "one sub-folder a class, images inside")
    labels_by_folder = labels_of([p.name for p in folders])
    files = [
        (file, labels_by_folder[folder.name])
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise OnnxspectError(f"{path}: no images in its {len(folders)} folders")
    read = [read_image(file, size, resize) for file, _ in files]
    odd = next((i for i, image in enumerate(read) if image.shape != read[0].shape), None)
    if odd is not None:
        a, b = (_size_text((shape[2], *shape[:2])) for shape in (read[0].shape, read[odd].shape))
        raise OnnxspectError(f"{files[odd][0]}: {b}, but {files[0][0].name} is {a}", "images must be of one size")
    images = np.stack(read)
    labels = np.array([label for _, label in files])
    if max(labels_by_folder.values()) >= MOST_CLASSES:
        raise OnnxspectError(
            f"{path}: a folder is named after class {max(labels_by_folder.values())}", "class indices count from 0"
        )
    by_index = {labels_by_folder[p.name]: p.name for p in folders}
    names = [by_index.get(i, str(i)) for i in range(max(by_index) + 1)]
    samples = Samples.from_arrays(images, labels, names, str(path))
    return replace(samples, files=tuple(str(f.relative_to(path)) for f, _ in files))


def folder_order(folder: Path) -> tuple[int, str]:
    """Sort key of a class folder: names first, then numbers by value."""
    return (int(folder.name), "") if folder.name.isdigit() else (-1, folder.name)


def labels_of(names: list[str]) -> dict[str, int]:
    """Folders named by numbers are those class indices; others count in alphabetical order (as torchvision does).

    A leading index ("03_stop", "3-stop") counts as a number where every folder has one.
    """
    heads = [name.replace("-", "_").split("_")[0] for name in names]
    if all(h.isdigit() for h in heads) and len({int(h) for h in heads}) == len(names):
        return {name: int(head) for name, head in zip(names, heads, strict=True)}
    return {name: i for i, name in enumerate(sorted(names))}


def read_image(file: Path, size: tuple[int, int, int] | None, resize: bool) -> np.ndarray:
    """One image file as uint8 ``(height, width, channels)``, in the channels of `size` and, with `resize`, in its size.

    Raises:
        OnnxspectError: it cannot be read, or has another size.
    """
    try:
        with Image.open(file) as opened:
            image = in_channels(opened, size)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise caused_by(error, f"{file}: not a readable image ({_first_line(error)})") from error
    return in_size(image, size, resize, str(file))


def in_channels(image: Image.Image, size: tuple[int, int, int] | None) -> Image.Image:
    """An image as grey or colour: what a model of `size` takes, or, where it takes any (None), what it is."""
    channels = size[0] if size is not None else (1 if image.mode in ("L", "1", "I;16") else 3)
    return image.convert("L" if channels == 1 else "RGB")


def in_size(image: Image.Image, size: tuple[int, int, int] | None, resize: bool, where: str) -> np.ndarray:
    """A grey or colour image as uint8 ``(height, width, channels)``, in the size that a model takes.

    Raises:
        OnnxspectError: it has another size, and is not to be resized; `where` names it.
    """
    if size is not None and (image.height, image.width) != size[1:]:
        if not resize:
            raise OnnxspectError(
                f"{where}: {image.width}x{image.height}, the model takes {size[2]}x{size[1]}",
                "--resize brings images to the model's size",
            )
        image = _resize_and_crop(image, size[1], size[2])
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The shorter side to the target (bilinear, antialiased), then the centre: the usual evaluation transform."""
    scale = max(height / image.height, width / image.width)
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def _resized(samples: Samples, size: tuple[int, int, int]) -> Samples:
    channels, height, width = size
    if samples.shape[0] != channels:
        return samples
    bytes_nhwc = np.round(samples.images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    images = [
        np.asarray(_resize_and_crop(Image.fromarray(i[..., 0] if channels == 1 else i), height, width))
        for i in bytes_nhwc
    ]
    return Samples.from_arrays(np.stack(images), samples.labels, samples.names, samples.path)


def _first_line(error: BaseException) -> str:
    if "pickle" in str(error):
        return "it holds Python objects, or is no npz at all"  # numpy's advice is to unpickle them
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
