"""Which class of the model a label of the data is: by index, by a list of class names, or by the order of folders.

Labels come as whole numbers (an array) or as words (a folder's name, a column of text). Words that are numbers are indices;
a list of the model's classes, where one is given, settles words; else they count in alphabetical order, as torchvision counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by

#: More classes than any image classifier has: a folder named by a date is no class index.
MOST_CLASSES = 1_000_000
#: A WordNet synset, as ImageNet's folders are named.
SYNSET = re.compile(r"n\d{8}")
#: Bytes of a class-name file at most.
_LIST_BYTES = 64 * 2**20
#: Names that a message lists.
_LISTED = 8


@dataclass(frozen=True)
class ClassList:
    """A model's classes in the order of its outputs.

    Attributes:
        names: by index.
        source: where the list comes from, for messages.
        certain: the user said so; else it is what a file says of itself, and is used only where all words are in it.
    """

    names: tuple[str, ...]
    source: str
    certain: bool = True

    @classmethod
    def of(cls, given: str | Path | Sequence[str]) -> ClassList:
        """From a file of names (a name a line, or a JSON list or object), a list of names with commas, or a sequence.

        A list "cat=3,dog=17" gives the indices of some classes; those between have made-up names.

        Raises:
            OnnxspectError: not readable, empty, or a name twice.
        """
        if isinstance(given, str | Path):
            path = Path(given)
            inline = isinstance(given, str) and "," in given and not _is_file(path)
            names = _inline(str(given)) if inline else _read(path)
            source = "the given list of classes" if inline else str(given)
        else:
            names, source = tuple(map(str, given)), "the given list of classes"
        if not names:
            raise OnnxspectError(
                f"{source}: no class names in it", "one name a line, in the order of the model's outputs"
            )
        twice = next((n for n in names if names.count(n) > 1), None) if len(names) < 5000 else None
        if twice is not None:
            raise OnnxspectError(f"{source}: the class {printable(twice)!r} is in it twice", "one line a class")
        return cls(names, source)

    def by_word(self) -> dict[str, int]:
        """Index by what may name a class: the whole name, or a synset id in front of it ("n01440764 tench")."""
        found = {n.split()[0].rstrip(","): i for i, n in enumerate(self.names) if n and SYNSET.match(n)}
        return found | {n: i for i, n in enumerate(self.names)}


@dataclass(frozen=True)
class Labelled:
    """Labels as class indices.

    Attributes:
        labels: int64 ``(n,)``.
        names: class names by index, possibly empty.
        ordered: the indices are only the alphabetical order of words, which the model's need not be.
        notes: what was guessed, in sentences.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    ordered: bool
    notes: tuple[str, ...] = ()


def of_words(words: Sequence[str], classes: ClassList | None, where: str, every: Sequence[str] = ()) -> Labelled:
    """Labels of words.

    Args:
        words: one a sample.
        classes: the model's, where they are known.
        where: names the data in errors.
        every: all words there are, samples or not (empty folders count in the order too).

    Raises:
        OnnxspectError: a word that a given list has not; says which.
    """
    distinct = sorted({*words, *every})
    notes: list[str] = []
    if classes is not None:
        table = classes.by_word()
        missing = [w for w in distinct if w not in table]
        if not missing:
            labels = np.array([table[w] for w in words], np.int64)
            if not classes.certain:
                notes.append(f"labels follow the class names in {classes.source}")
            return Labelled(labels, classes.names, False, tuple(notes))
        if classes.certain:
            raise _unlisted(distinct, missing, classes, where)
        if len(missing) < len(distinct):
            notes.append(
                f"{classes.source} names the model's classes, but not {listed(missing)}: the names were not used for labels"
            )
    if all(w in _imagenet() for w in distinct):
        labels = np.array([_imagenet()[w] for w in words], np.int64)
        notes.append("folders are named by ImageNet's synsets: they count in the order of its 1,000 classes")
        return Labelled(labels, tuple(_imagenet()), False, tuple(notes))
    by_word = labels_of(distinct)
    top = max(by_word.values())
    if top >= MOST_CLASSES:
        raise OnnxspectError(f"{where}: a folder is named after class {top}", "class indices count from 0")
    by_index = {i: w for w, i in by_word.items()}
    names = tuple(by_index.get(i, str(i)) for i in range(top + 1))
    ordered = not numbered(distinct)
    if not ordered and sorted(by_index) != list(range(len(by_index))):
        low = min(by_index)
        notes.append(
            f"the names {listed(sorted(distinct, key=by_word.__getitem__))} are taken as class indices, {low} to {top}"
        )
    if ordered:
        notes.append(f"the {len(distinct)} class names count in alphabetical order, as torchvision counts folders")
    return Labelled(np.array([by_word[w] for w in words], np.int64), names, ordered, tuple(notes))


def of_numbers(labels: np.ndarray, names: Sequence[str], classes: ClassList | None, where: str) -> Labelled:
    """Labels that are class indices already, perhaps with names of their own.

    Args:
        labels: int64 ``(n,)``.
        names: of the data's classes by index, possibly none.
        classes: the model's, where they are known: where it lists the data's names, or numbers, in another order, labels are moved.
        where: names the data in errors.

    Raises:
        OnnxspectError: a given list has fewer names than there are labels, or not the data's names.
    """
    own = tuple(map(str, names))
    if classes is None:
        return Labelled(labels, own, False)
    table = classes.by_word()
    used = np.unique(labels)
    words = [own[k] if k < len(own) else str(k) for k in used.tolist()]
    if all(w in table for w in words):
        moved = np.zeros(int(used.max()) + 1, np.int64)
        moved[used] = [table[w] for w in words]
        changed = any(table[w] != k for w, k in zip(words, used.tolist(), strict=True))
        note = (f"labels were moved to the order of {classes.source}",) if changed else ()
        return Labelled(moved[labels], classes.names, False, note)
    if own and classes.certain and not any(w in table for w in words):
        raise _unlisted(words, words, classes, where)
    if int(used.max()) >= len(classes.names):
        if not classes.certain:
            return Labelled(labels, own, False)
        raise OnnxspectError(
            f"{where}: label {int(used.max())}, but {classes.source} names {len(classes.names)} classes",
            "one line a class, in the order of the model's outputs",
        )
    return Labelled(labels, classes.names, False)


@lru_cache(maxsize=1)
def _imagenet() -> dict[str, int]:
    """ImageNet's 1,000 synsets, in their order, which every published network has."""
    text = resources.files(__package__).joinpath("imagenet_synsets.txt").read_text(encoding="ascii")
    return {name: i for i, name in enumerate(text.split())}


def labels_of(names: Sequence[str]) -> dict[str, int]:
    """Folders named by numbers are those class indices; others count in alphabetical order (as torchvision does).

    A leading index ("03_stop", "3-stop") counts as a number where every folder has one.
    """
    if numbered(names):
        return {name: int(head) for name, head in zip(names, _heads(names), strict=True)}
    return {name: i for i, name in enumerate(sorted(names))}


def numbered(names: Sequence[str]) -> bool:
    """Whether every name begins with an index of its own."""
    heads = _heads(names)
    return all(h.isdecimal() and len(h) < 10 for h in heads) and len({int(h) for h in heads}) == len(names)


def listed(words: Sequence[str]) -> str:
    """Some untrusted names in a message."""
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return ", ".join(printable(w, 40) for w in words[:_LISTED]) + more


def _heads(names: Sequence[str]) -> list[str]:
    return [name.replace("-", "_").split("_")[0] for name in names]


def _unlisted(distinct: Sequence[str], missing: Sequence[str], classes: ClassList, where: str) -> OnnxspectError:
    return OnnxspectError(
        f"{where}: {len(missing)} of its {len(distinct)} class names are not in {classes.source} ({listed(missing)})",
        f"it lists {len(classes.names)} names ({listed(classes.names)}): one line a class, spelled as the data spell it, "
        "in the order of the model's outputs",
    )


def _inline(text: str) -> tuple[str, ...]:
    """The names of a list with commas: all of them in order, or some with their indices."""
    names = tuple(n.strip() for n in text.split(","))
    pairs = [n.rpartition("=") for n in names]
    if not all(name and index.isdecimal() and len(index) < 7 for name, _, index in pairs):
        return names
    by_index = {int(index): name for name, _, index in pairs}
    if len(by_index) < len(pairs):
        raise OnnxspectError(
            f"the given list of classes: an index is in it twice ({printable(text, 80)})",
            "each class once: --classes cat=3,dog=17",
        )
    return tuple(by_index.get(i, f"class-{i}") for i in range(max(by_index) + 1))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read(path: Path) -> tuple[str, ...]:
    try:
        size = path.stat().st_size
        if not path.is_file():  # a device has no end, and a FIFO perhaps no beginning
            raise OnnxspectError(f"{path}: not a regular file with class names", "one name a line")
        if size > _LIST_BYTES:
            raise OnnxspectError(f"{path}: no list of class names ({size:,} bytes)", "one name a line")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise caused_by(error, f"{path}: not a readable list of class names", "one name a line") from error
    if text.lstrip().startswith(("[", "{")):
        return names_in(_parsed(text, path), str(path))
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def _parsed(text: str, path: Path) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OnnxspectError(f"{path}: not valid JSON ({str(error)[:80]})", "one name a line will do") from error


def names_in(value: object, where: str) -> tuple[str, ...]:
    """Class names out of a JSON value: a list of names, {"0": name}, {"0": [synset, name]}, or {name: 0}.

    Raises:
        OnnxspectError: none of these.
    """
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(value, dict) and value:
        if all(isinstance(v, int) for v in value.values()):
            value = {str(i): name for name, i in value.items()}
        pairs = {int(k): v for k, v in value.items() if str(k).isdecimal() and len(str(k)) < 10}
        if len(pairs) == len(value) and sorted(pairs) == list(range(len(pairs))):
            named = [" ".join(map(str, v)) if isinstance(v, list) else str(v) for _, v in sorted(pairs.items())]
            return tuple(named)
    raise OnnxspectError(f"{where}: no list of class names", 'a JSON list of names, or an object {"0": name, ...}')
