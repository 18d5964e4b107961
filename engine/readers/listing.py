"""Pictures in files, listed with their labels: what a folder, an archive and a manifest have in common."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.readers.labels import Labelled, listed
from onnxspect.engine.readers.others import not_by_class
from onnxspect.engine.readers.pixels import SUFFIXES, Seen, depth_of, grey_maximum, read_picture
from onnxspect.engine.readers.reader import checked_rows

#: Names of the parts that a set may be divided into, as a folder or a file says it; the first that is there is taken.
TEST_PARTS = ("test", "testing", "val", "valid", "validation", "eval", "train", "training")
TRAIN_PARTS = ("train", "training", "val", "valid", "validation", "eval", "test", "testing")
#: 16-bit pictures that are looked at to learn how deep the set is.
_DEPTH_SAMPLES = 64
#: Kinds of other files that are named.
_KINDS = 4

#: Gives the file of a name: its path, or a stream of it.
Store = Callable[[str], "Path | IO[bytes]"]


@dataclass(frozen=True)
class Listing:
    """A reader of listed picture files.

    Attributes:
        form, labels, names, files, ordered: as `Reader` has them.
        root: names the set in errors.
        store: gives a file.
        digest: of the set.
        said: notes that are known already.
    """

    form: str
    root: str
    labels: np.ndarray
    names: tuple[str, ...]
    files: tuple[str, ...]
    ordered: bool
    store: Store = field(repr=False)
    digest: str
    said: tuple[str, ...] = ()
    _seen: Seen = field(default_factory=Seen, repr=False)

    def images(self, rows: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """As `Reader` has it."""
        self._seen.again()
        depth: int | None = None
        for row in checked_rows(rows, len(self.files)):
            name = self.files[row]
            where = f"{self.root}/{printable(name, 200)}"
            if depth is None:
                depth = self._depth() if grey_maximum(self.store(name), where) else None
            yield read_picture(self.store(name), where, self._seen, depth or 16)

    def _depth(self) -> int:
        """How deep the 16-bit pictures are, by some of them from all over the set."""
        chosen = np.unique(np.linspace(0, len(self.files) - 1, min(_DEPTH_SAMPLES, len(self.files))).astype(int))
        names = [self.files[i] for i in chosen]
        return depth_of([grey_maximum(self.store(n), f"{self.root}/{printable(n, 200)}") for n in names])

    def fingerprint(self) -> str:
        """As `Reader` has it."""
        return hashlib.sha256(self.labels.tobytes() + self.digest.encode()).hexdigest()

    def notes(self) -> tuple[str, ...]:
        """As `Reader` has it."""
        return (*self.said, *self._seen.notes())


def listing(
    form: str, root: Path, files: Sequence[str], labelled: Labelled, store: Store, digest: str, said: Sequence[str] = ()
) -> Listing:
    """A reader of files with labels."""
    return Listing(
        form,
        str(root),
        labelled.labels,
        labelled.names,
        tuple(files),
        labelled.ordered,
        store,
        digest,
        (*said, *labelled.notes),
    )


@dataclass(frozen=True)
class ByFolder:
    """Pictures by the folders that they lie in.

    Attributes:
        files: paths in the order given.
        words: the class folder of each.
        notes: what was left out or guessed.
    """

    files: tuple[str, ...]
    words: tuple[str, ...]
    notes: tuple[str, ...]


def by_folder(paths: Sequence[str], training: bool, where: str) -> ByFolder:
    """Which class each picture belongs to, by the folders in its path; images deeper in a class folder count to the class.

    One folder around all classes, and the folders of a divided set (train, test), are no classes: they are stepped into.

    Args:
        paths: relative, with "/"; of files of any kind.
        training: of a divided set the training part is taken, else the test part.
        where: names the set in errors.

    Raises:
        OnnxspectError: no picture lies in a class folder.
    """
    kept = [PurePosixPath(p) for p in paths]
    kept = [p for p in kept if not any(_hidden(part) for part in p.parts)]
    notes: list[str] = []
    pictures = [p for p in kept if p.suffix.lower() in SUFFIXES]
    inside = [p for p in pictures if len(p.parts) > 1]
    if not inside:
        raise not_by_class(where, [str(p) for p in kept])
    if len(inside) < len(pictures):
        notes.append(f"{len(pictures) - len(inside)} images that lie in no class folder were left out")
    depth = 0
    while all(len(p.parts) > depth + 2 for p in inside):
        tops = {p.parts[depth] for p in inside}
        parts = [part for part in (TRAIN_PARTS if training else TEST_PARTS) if part in {t.lower() for t in tops}]
        if len(parts) == len(tops):
            notes.append(f"the set is in parts ({', '.join(sorted(map(printable, tops)))}): only {parts[0]!r} was read")
            inside = [p for p in inside if p.parts[depth].lower() == parts[0]]
        elif len(tops) > 1 or not _branches(inside, depth + 1):
            break
        else:
            around = printable(next(iter(tops)))
            notes.append(f"classes are taken to be the folders inside {around!r}")
        depth += 1
    words = tuple(p.parts[depth] for p in inside)
    deeper = sorted({w for w, p in zip(words, inside, strict=True) if len(p.parts) > depth + 2})
    if deeper:
        notes.append(f"images in folders inside the class folders {listed(deeper)} were read too")
    others = Counter(p.suffix.lower() or "none" for p in kept if p.suffix.lower() not in SUFFIXES and len(p.parts) > 1)
    if others:
        kinds = ", ".join(f"{printable(k, 20)} {n}" for k, n in others.most_common(_KINDS))
        notes.append(f"{sum(others.values())} files of no image format that is read were left out ({kinds})")
    return ByFolder(tuple(map(str, inside)), words, tuple(notes))


def _hidden(part: str) -> bool:
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def _branches(paths: Sequence[PurePosixPath], depth: int) -> bool:
    """Whether, at this depth or below, the paths part into several folders."""
    while all(len(p.parts) > depth + 1 for p in paths):
        if len({p.parts[depth] for p in paths}) > 1:
            return True
        depth += 1
    return False
