"""What every reader of labelled images is.

A reader knows labels, names and count as soon as it is open; images come one after the other, so a set may be larger than
memory. Untrusted bytes: nothing in a data set is run, no link out of it is followed, and sizes are compared with `limits` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxspect.engine.readers.labels import ClassList

#: (images, labels) names that an array file may use, the documented pair first; of a set in parts the test part.
KEYS = (
    ("images", "labels"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
    ("x", "y"),
    ("X", "y"),
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("X_test", "y_test"),
    ("X_train", "y_train"),
    ("data", "labels"),
    ("data", "target"),
    ("image", "label"),
    ("arr_0", "arr_1"),
)
#: The same for a training set.
TRAIN_KEYS = (
    ("images", "labels"),
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("X_train", "y_train"),
    ("x", "y"),
    ("X", "y"),
    ("data", "labels"),
    ("data", "target"),
    ("image", "label"),
    ("arr_0", "arr_1"),
)
FORMS = (
    "an npz or .mat file, a folder of images by class (or a zip or tar of one), a CSV or JSONL list of files and labels, parquet or a "
    "Hugging Face data set folder, TFRecord, or the folder that torchvision or Keras keeps MNIST or CIFAR in"
)


@dataclass(frozen=True)
class Asked:
    """What a caller wants of a data set.

    Attributes:
        classes: the model's classes in order, where they are known.
        training: of a set in parts the training part is meant.
    """

    classes: ClassList | None = None
    training: bool = False

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """Names of arrays, in the order to look for them."""
        return TRAIN_KEYS if self.training else KEYS


class Reader(Protocol):
    """A data set that is open."""

    @property
    def form(self) -> str:
        """What it is, in words."""

    @property
    def labels(self) -> np.ndarray:
        """int64 ``(n,)``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index, possibly empty."""

    @property
    def files(self) -> tuple[str, ...]:
        """A name for each image, where they have names (relative paths); else empty."""

    @property
    def ordered(self) -> bool:
        """Whether class indices are only the alphabetical order of names."""

    def images(self, rows: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """Images ``(height, width, channels)``, uint8 or float32 in [0, 1], of these rows in increasing order (None: of all).

        Raises:
            OnnxspectError: one cannot be read; says which.
        """

    def fingerprint(self) -> str:
        """A digest of the set in hexadecimal, without decoding it."""

    def notes(self) -> tuple[str, ...]:
        """What was changed, guessed or left out, in sentences; complete when the images have been read."""


def checked_rows(rows: Sequence[int] | None, count: int) -> Iterable[int]:
    """The rows to read, in increasing order."""
    return range(count) if rows is None else sorted(set(map(int, rows)))
