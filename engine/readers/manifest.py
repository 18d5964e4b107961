"""A list of picture files and their labels: CSV or JSON lines. Files lie in the list's folder or below; nothing outside is read."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.encoded import columns_of
from onnxspect.engine.readers.labels import Labelled, listed, of_numbers, of_words
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.listing import Listing, listing
from onnxspect.engine.readers.neighbours import inside
from onnxspect.engine.readers.pixels import SUFFIXES
from onnxspect.engine.readers.reader import Asked

#: Columns by the names that such lists use, the commonest first.
FILE_COLUMNS = (
    *(
        "file_name",
        "file",
        "filename",
        "path",
        "filepath",
        "image_path",
        "img_path",
        "image",
        "img",
        "image_name",
        "image_id",
    ),
    *("id_code", "id"),
)
LABEL_COLUMNS = (
    *(
        "label",
        "labels",
        "class",
        "class_name",
        "category",
        "target",
        "fine_label",
        "class_id",
        "label_id",
        "breed",
        "diagnosis",
    ),
    "y",
)
#: Lists by the names that a folder keeps them under.
_NAMES = ("metadata", "labels", "manifest", "annotations", "data", "test", "val", "train")
_SPACED = (".txt", ".lst")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", *_SPACED)
#: Characters of a line at most.
_LINE = 2**20


def open_folder(path: Path, asked: Asked) -> Listing | None:
    """A folder with such a list in it and no class folders of images; None for another."""
    lists = {p.name.lower(): p for p in sorted(path.iterdir()) if p.suffix.lower() in _SUFFIXES and p.is_file()}
    lists = {n: p for n, p in lists.items() if p.suffix.lower() not in _SPACED or _pairs(p)}
    if not lists or _class_folders(path) > 1:
        return None
    order = (*_NAMES[:5], "train", "val", "test") if asked.training else _NAMES
    named = [lists[n + s] for n in order for s in _SUFFIXES if n + s in lists]
    chosen = named[0] if named else next(iter(lists.values())) if len(lists) == 1 else None
    return None if chosen is None else open_file(chosen, asked)


def open_file(path: Path, asked: Asked) -> Listing | None:
    """A .csv, .tsv, .jsonl or .ndjson file; None for another.

    Raises:
        OnnxspectError: no column of files or of labels, a file that is not there, or one outside the list's folder.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return None
    if path.suffix.lower() in _SPACED and not _pairs(path):
        return None
    kind = path.suffix.lower()
    try:
        rows = list(_spaced(path) if kind in _SPACED else _csv(path) if kind in (".csv", ".tsv") else _json_lines(path))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise caused_by(
            error, f"{path}: not a readable list ({printable(str(error), 100)})", "save it as CSV in UTF-8"
        ) from error
    if not rows:
        raise OnnxspectError(f"{path}: no rows in it", "a column of files and one of labels")
    columns = [str(c) for c in rows[0]]
    _refuse_one_hot(path, columns, rows)
    file, label = columns_of(columns, FILE_COLUMNS, LABEL_COLUMNS, str(path), "files")
    root = path.parent
    names, words = [], []
    places = _Places(root, path)
    for number, row in enumerate(rows, 2 if kind in (".csv", ".tsv") else 1):
        if row.get(file) in (None, "") or row.get(label) in (None, ""):
            raise OnnxspectError(
                f"{path}: row {number} has no {'file' if not row.get(file) else 'label'}",
                "every row names a file and its label",
            )
        names.append(places.of(str(row[file]), number))
        words.append(row[label])
    digest = hashlib.sha256()
    for name in names:
        stat = (root / name).stat()
        digest.update(f"{name}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\x1f".encode(errors="surrogateescape"))
    labelled = labelled_column(words, asked, str(path))
    return listing(
        "a list of files and labels", root, names, labelled, root.joinpath, digest.hexdigest(), places.notes()
    )


def labelled_column(values: list[object], asked: Asked, where: str) -> Labelled:
    """Labels of a column of numbers or words."""
    numbers = [_whole(v) for v in values]
    if all(n is not None for n in numbers):
        return of_numbers(np.array(numbers, np.int64), (), asked.classes, where)
    return of_words([str(v) for v in values], asked.classes, where)


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if 0 <= value < 2**31 else None
    text = str(value).strip()
    return int(text) if text.isdecimal() and len(text) < 10 else None


class _Places:
    """Where the files of a list lie: as its rows say, or, where the rows give names alone, in one folder beside the list."""

    def __init__(self, root: Path, path: Path) -> None:
        self._root, self._path = root, path
        self._folders = [p for p in inside(root) if p.is_dir() and not p.name.startswith(".")]
        self._in, self._ending, self._turned = "", "", False

    def of(self, name: str, number: int) -> str:
        """The relative path of a row's file.

        Raises:
            OnnxspectError: it lies elsewhere, or is not there.
        """
        where = f"{self._path}: row {number}: {printable(name, 120)}"
        for choice in self._choices(name):
            try:
                full = (self._root / choice).resolve()
                relative = full.relative_to(self._root.resolve())
                there = full.is_file()
            except (ValueError, OSError, RuntimeError) as error:
                raise OnnxspectError(
                    f"{where} is outside the list's folder",
                    "files are named relative to the list, and lie beside it or below",
                ) from error
            if there:
                self._remember(name, choice)
                return PurePosixPath(relative).as_posix()
        raise OnnxspectError(f"{where}: no such file", "files are named relative to the list's folder")

    def _choices(self, name: str) -> Iterator[str]:
        """As it is written; as Windows writes it; and names alone as the rows before had them, or in any folder beside the list."""
        yield name
        plain = name.replace("\\", "/")
        if plain != name:
            yield plain
        if "/" in plain or ".." in plain:
            return
        if self._in or self._ending:
            yield f"{self._in}{plain}{self._ending}"
        endings = [""] if Path(plain).suffix.lower() in SUFFIXES else ["", *sorted(SUFFIXES)]
        for folder in ("", *(f"{f.name}/" for f in self._folders)):
            yield from (f"{folder}{plain}{ending}" for ending in endings)

    def _remember(self, name: str, choice: str) -> None:
        plain = name.replace("\\", "/")
        if choice not in (name, plain):
            before, _, after = choice.rpartition(plain)
            self._in, self._ending = before, after
        elif choice != name:
            self._turned = True

    def notes(self) -> list[str]:
        """What was guessed."""
        said = ["paths with backslashes were read as folders"] if self._turned else []
        if self._in or self._ending:
            shown = printable(f"{self._in}NAME{self._ending}", 80)
            said.append(f"the list gives names alone: the files were found as {shown}")
        return said


def _refuse_one_hot(path: Path, columns: list[str], rows: list[Mapping[str, object]]) -> None:
    """Refuse a list with a column of 0 and 1 for each class.

    Raises:
        OnnxspectError: it is one.
    """
    if set(columns) & set(LABEL_COLUMNS) or len(columns) < 3:
        return
    ones = [c for c in columns if all(str(r.get(c, "")).strip() in ("0", "1", "0.0", "1.0") for r in rows[:100])]
    if len(ones) >= 2:
        raise OnnxspectError(
            f"{path}: it has a column for each class ({listed(ones)}), not one of labels",
            "write the class that is 1 into one column called label: frame['label'] = frame[CLASSES].idxmax(axis=1)",
        )


def _pairs(path: Path) -> bool:
    """Whether a text file is a list of "file label", by its first line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(_LINE).split()
    return len(first) == 2 and Path(first[0]).suffix.lower() in SUFFIXES


def _spaced(path: Path) -> Iterator[Mapping[str, object]]:
    """Lines of "file label", as Caffe and many scripts write them; the last word is the label."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE), ""), 1):
            limits().check_files(number, str(path))
            name, _, label = line.strip().rpartition(" ")
            if line.strip():
                yield {"file": name, "label": label}


def _csv(path: Path) -> Iterator[Mapping[str, object]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline(_LINE)
        separator = "\t" if path.suffix.lower() == ".tsv" else max((",", ";", "\t"), key=head.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=separator)
        first = [c.strip() for c in next(reader, [])]
        headed = bool(set(first) & {*FILE_COLUMNS, *LABEL_COLUMNS})
        if not headed and len(first) >= 2 and Path(first[0]).suffix.lower() in SUFFIXES:  # a file and its label
            yield {"file": first[0], "label": first[1]}
            first = ["file", "label"]
        for count, row in enumerate(reader):
            limits().check_files(count, str(path))
            if row:
                yield {name: value.strip() for name, value in zip(first, row, strict=False)}


def _json_lines(path: Path) -> Iterator[Mapping[str, object]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE), ""), 1):
            limits().check_files(number, str(path))
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            yield row


def _class_folders(path: Path) -> int:
    """Folders with pictures directly inside."""
    return sum(
        1
        for p in path.iterdir()
        if p.is_dir() and not p.name.startswith(".") and any(f.suffix.lower() in SUFFIXES for f in p.iterdir())
    )
