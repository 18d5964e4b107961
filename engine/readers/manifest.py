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
from onnxspect.engine.readers.labels import Labelled, of_numbers, of_words
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.listing import Listing, listing
from onnxspect.engine.readers.pixels import SUFFIXES
from onnxspect.engine.readers.reader import Asked

#: Columns by the names that such lists use, the commonest first.
FILE_COLUMNS = ("file_name", "file", "filename", "path", "filepath", "image_path", "img_path", "image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "y")
#: Lists by the names that a folder keeps them under.
_NAMES = ("metadata", "labels", "manifest", "annotations", "data", "test", "val", "train")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
#: Characters of a line at most.
_LINE = 2**20


def open_folder(path: Path, asked: Asked) -> Listing | None:
    """A folder with such a list in it and no class folders of images; None for another."""
    lists = {p.name.lower(): p for p in sorted(path.iterdir()) if p.suffix.lower() in _SUFFIXES and p.is_file()}
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
    try:
        rows = list(_csv(path) if path.suffix.lower() in (".csv", ".tsv") else _json_lines(path))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise caused_by(error, f"{path}: not a readable list ({printable(str(error), 100)})") from error
    if not rows:
        raise OnnxspectError(f"{path}: no rows in it", "a column of files and one of labels")
    columns = list(rows[0])
    file, label = columns_of([str(c) for c in columns], FILE_COLUMNS, LABEL_COLUMNS, str(path), "files")
    root = path.parent
    names, words = [], []
    for number, row in enumerate(rows, 2 if path.suffix.lower() in (".csv", ".tsv") else 1):
        if row.get(file) in (None, "") or row.get(label) in (None, ""):
            raise OnnxspectError(f"{path}: row {number} has no {'file' if not row.get(file) else 'label'}")
        names.append(_inside(root, str(row[file]), path, number))
        words.append(row[label])
    digest = hashlib.sha256()
    for name in names:
        stat = (root / name).stat()
        digest.update(f"{name}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\x1f".encode(errors="surrogateescape"))
    labelled = labelled_column(words, asked, str(path))
    return listing("a list of files and labels", root, names, labelled, root.joinpath, digest.hexdigest())


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


def _inside(root: Path, name: str, path: Path, number: int) -> str:
    """The relative path of a row's file.

    Raises:
        OnnxspectError: it lies elsewhere, or is not there.
    """
    where = f"{path}: row {number}: {printable(name, 120)}"
    try:
        full = (root / name).resolve()
        relative = full.relative_to(root.resolve())
        there = full.is_file()
    except (ValueError, OSError, RuntimeError) as error:
        raise OnnxspectError(
            f"{where} is outside the list's folder", "files are named relative to the list, and lie beside it or below"
        ) from error
    if not there:
        raise OnnxspectError(f"{where}: no such file", "files are named relative to the list's folder")
    return PurePosixPath(relative).as_posix()


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
