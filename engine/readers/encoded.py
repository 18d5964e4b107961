"""Encoded pictures that stand one after the other in files: what the columns of parquet and the records of TFRecord have in common."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.file_bytes import digest_of_all
from onnxspect.engine.readers.labels import listed
from onnxspect.engine.readers.pixels import Seen, depth_of, grey_maximum, read_picture
from onnxspect.engine.readers.reader import checked_rows


@dataclass(frozen=True)
class EncodedPictures(ABC):
    """A reader of such files.

    Attributes:
        form, labels, names, files, ordered: as `Reader` has them.
        root: names the set in errors.
        paths: the files, in order.
        column: of the images.
        said: notes.
        item: what one of them is called.
    """

    form: str
    root: str
    labels: np.ndarray
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    column: str
    said: tuple[str, ...]
    ordered: bool = False
    files: tuple[str, ...] = ()
    item: ClassVar[str] = "row"
    _seen: Seen = field(default_factory=Seen, repr=False)

    @abstractmethod
    def stored(self) -> Iterator[object]:
        """What the files hold, in order."""

    @abstractmethod
    def encoded(self, stored: object, where: str) -> bytes:
        """The picture in one of them; `where` names it in errors."""

    def images(self, rows: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """As `Reader` has it."""
        self._seen.again()
        wanted = iter(checked_rows(rows, len(self.labels)))
        row, depth = next(wanted, None), None
        for index, stored in enumerate(self.stored()):
            if row is None:
                return
            if index == row:
                where = f"{self.root}: {self.item} {index}"
                data = self.encoded(stored, where)
                if depth is None:
                    top = grey_maximum(io.BytesIO(data), where)
                    depth = depth_of([top]) if top else None
                yield read_picture(io.BytesIO(data), where, self._seen, depth or 16)
                row = next(wanted, None)

    def fingerprint(self) -> str:
        """As `Reader` has it."""
        return digest_of_all(self.paths)

    def notes(self) -> tuple[str, ...]:
        """As `Reader` has it."""
        return (*self.said, *self._seen.notes())


def columns_of(
    found: Sequence[str], of_images: Sequence[str], of_labels: Sequence[str], root: str, what: str = "images"
) -> tuple[str, str]:
    """The column of images and that of labels, by the names that such sets use.

    Args:
        found: the columns that there are.
        of_images, of_labels: names to look for, the commonest first.
        root: names the set in errors.
        what: the images are called, where the column names their files.

    Raises:
        OnnxspectError: one of the two is not there.
    """
    image = next((c for c in of_images if c in found), None)
    label = next((c for c in of_labels if c in found), None)
    if image is None or label is None:
        raise OnnxspectError(
            f"{root}: which columns are {what} and labels is not stated (found {listed(list(found))})",
            f"name them: {what} {', '.join(of_images[:4])}, labels {', '.join(of_labels[:4])}",
        )
    return image, label
