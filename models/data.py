"""Data sets for recipes: the named npz files of a data folder, a user's own npz, or a folder of images by class.

An npz holds `x_train`, `y_train`, `x_test`, `y_test` (images uint8 NHWC, labels int) and, if it likes, `classes`.
A folder holds ``train/<class>/*`` and ``test/<class>/*``; all its images must have one size.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.fields import bad_field

# File, and the class names of sets whose file does not hold them.
_NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "mnist": ("mnist.npz", tuple("0123456789")),
    "fashion_mnist": (
        "fashion_mnist.npz",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "cifar10": ("cifar10_subset.npz", ()),
    "sign_digits": ("sign_digits48.npz", tuple("0123456789")),
    "gtsrb": ("gtsrb32_subset.npz", tuple(str(index) for index in range(43))),
}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Train and test images, uint8 ``(n, height, width, channels)``, with int64 labels ``(n,)``."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.x_train.shape[1:]
        return int(height), int(width), int(channels)

    def balanced_part(self, per_class: int, rng: np.random.Generator) -> Dataset:
        """The same set with at most `per_class` training images of each class, drawn with `rng`, order kept."""
        kept = np.sort(
            np.concatenate(
                [
                    rng.permutation(np.flatnonzero(self.y_train == label))[:per_class]
                    for label in range(len(self.classes))
                ]
            )
        )
        return dataclasses.replace(self, x_train=self.x_train[kept], y_train=self.y_train[kept])


def data_root(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the data sets: `given` (the --data-root option), else ONNXSPECT_DATA."""
    root = given or os.environ.get("ONNXSPECT_DATA")
    if not root:
        raise OnnxspectError("no data folder is known", "give --data-root DIR or set ONNXSPECT_DATA")
    if not Path(root).is_dir():
        raise OnnxspectError(f"{root}: is not a folder", "give --data-root the folder with the .npz files")
    return Path(root)


def load_dataset(name: str, root: Path | None) -> Dataset:
    """A named set from `root`, or the .npz file or folder that `name` points at.

    Errors: `OnnxspectError` when the set is unknown, its file is missing, or arrays do not fit together.
    """
    if name in _NAMED:
        file, classes = _NAMED[name]
        return _from_npz(name, data_root(root) / file, classes)
    path = Path(name)
    if path.is_dir():
        return _from_folder(name, path)
    if path.suffix == ".npz":
        return _from_npz(name, path, ())
    raise bad_field("dataset", f"unknown data set {name!r}", f"one of {', '.join(_NAMED)}, an .npz file or a folder")


def _from_npz(name: str, path: Path, classes: tuple[str, ...]) -> Dataset:
    if not path.is_file():
        raise OnnxspectError(f"{path}: no such file", "see the table of data sets in docs/zoo.md")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in archive]
            if missing:
                raise OnnxspectError(
                    f"{path}: has no array {missing[0]!r}", "it must hold x_train, y_train, x_test, y_test"
                )
            arrays = [archive[key] for key in ("x_train", "y_train", "x_test", "y_test")]
            if "classes" in archive:
                classes = tuple(str(word) for word in archive["classes"])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise OnnxspectError(f"{path}: is not a readable .npz file", "write it with numpy.savez_compressed") from error
    return _checked(name, path, arrays, classes)


def _from_folder(name: str, path: Path) -> Dataset:
    from PIL import Image

    words = sorted(entry.name for entry in (path / "train").glob("*") if entry.is_dir())
    if not words:
        raise OnnxspectError(
            f"{path}: has no train/<class>/ folders", "lay it out as train/<class>/* and test/<class>/*"
        )
    arrays: list[np.ndarray] = []
    for part in ("train", "test"):
        images, labels = [], []
        for label, word in enumerate(words):
            for file in sorted((path / part / word).glob("*")):
                if file.suffix.lower() in _IMAGE_SUFFIXES:
                    with Image.open(file) as picture:
                        pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
                    images.append(pixels[..., None] if pixels.ndim == 2 else pixels)
                    labels.append(label)
        if not images or len({image.shape for image in images}) != 1:
            raise OnnxspectError(f"{path / part}: needs images of one size and mode", "resize them first")
        arrays += [np.stack(images), np.asarray(labels)]
    return _checked(name, path, arrays, tuple(words))


def _checked(name: str, path: Path, arrays: list[np.ndarray], classes: tuple[str, ...]) -> Dataset:
    x_train, y_train, x_test, y_test = arrays
    for images, labels, part in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels) or len(images) == 0:
            raise OnnxspectError(
                f"{path}: x_{part} is {images.dtype} {images.shape} with {len(labels)} labels",
                "images must be uint8 (n, height, width, channels), one label each",
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise OnnxspectError(f"{path}: y_{part} must be non-negative integers (n,)", "one class index an image")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise OnnxspectError(f"{path}: training and test images differ in size", "give both the same size")
    known = classes or tuple(str(label) for label in range(int(max(y_train.max(), y_test.max())) + 1))
    if max(y_train.max(), y_test.max()) >= len(known):
        raise OnnxspectError(f"{path}: a label is outside the {len(known)} classes", "correct the labels or `classes`")
    return Dataset(name, x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), known)
