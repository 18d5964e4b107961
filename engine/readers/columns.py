"""Parquet files and Hugging Face data set folders (parquet, or what `save_to_disk` writes), where pyarrow is installed.

Images are encoded pictures (``{"bytes": ..., "path": ...}``, or bytes) in one column; labels are numbers or words in another. Class
names come from the features that the `datasets` library keeps in the file, or beside it in dataset_info.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.encoded import EncodedPictures, columns_of
from onnxspect.engine.readers.labels import Labelled, of_numbers
from onnxspect.engine.readers.listing import TEST_PARTS, TRAIN_PARTS
from onnxspect.engine.readers.manifest import LABEL_COLUMNS, labelled_column
from onnxspect.engine.readers.reader import Asked

IMAGE_COLUMNS = ("image", "img", "images", "image_bytes", "bytes", "picture")
#: Rows that are read at a time.
_ROWS = 64
#: Bytes of dataset_info.json at most.
_INFO = 16 * 2**20


def open_folder(path: Path, asked: Asked) -> Columns | None:
    """A folder of parquet or Arrow files, its own or those of its `data` folder or of one part; None for another."""
    if (path / "dataset_dict.json").is_file():
        parts = {p.name.lower(): p for p in path.iterdir() if p.is_dir()}
        part = next((parts[n] for n in (TRAIN_PARTS if asked.training else TEST_PARTS) if n in parts), None)
        return None if part is None else _open(part, _regular(part, ".arrow"), asked, [_only(part.name)])
    for place in (path, path / "data", *_snapshots(path)):
        files = _regular(place, ".parquet", ".arrow")
        if files:
            chosen, said = _part(files, asked)
            return _open(path, chosen, asked, said)
    return None


def _snapshots(path: Path) -> list[Path]:
    """Where the Hugging Face hub's cache keeps a repository's files: by commit, the newest first."""
    kept = path / "snapshots"
    if not kept.is_dir():
        return []
    newest = sorted((p for p in kept.iterdir() if p.is_dir()), key=lambda p: (p.stat().st_mtime, p.name), reverse=True)
    return [place for p in newest for place in (p, p / "data")]


def open_file(path: Path, asked: Asked) -> Columns | None:
    """A .parquet or .arrow file; None for another."""
    return _open(path, [path], asked, []) if path.suffix.lower() in (".parquet", ".arrow") else None


class Columns(EncodedPictures):
    """A reader of a column of images."""

    def stored(self) -> Iterator[object]:
        """The column's values."""
        for path in self.paths:
            for batch in _batches(path, [self.column]):
                yield from batch[self.column]

    def encoded(self, stored: object, where: str) -> bytes:
        """The bytes of a picture, by themselves or beside its path."""
        data = stored.get("bytes") if isinstance(stored, Mapping) else stored
        if isinstance(data, (bytes, bytearray)) and data:
            return bytes(data)
        if isinstance(stored, Mapping) and stored.get("path"):
            raise OnnxspectError(f"{where}: names a file and holds no picture", "save the set with its images embedded")
        raise OnnxspectError(
            f"{where}: holds no encoded picture", "save the set with its images embedded, as PNG or JPEG"
        )


def _open(root: Path, paths: Sequence[Path], asked: Asked, said: Sequence[str]) -> Columns:
    if not paths:
        raise OnnxspectError(
            f"{root}: no Arrow or parquet files in it",
            "give the folder that save_to_disk wrote, or one of parquet files",
        )
    columns, metadata = _schema(paths[0])
    image, label = columns_of(columns, IMAGE_COLUMNS, LABEL_COLUMNS, str(root))
    values: list[object] = [v for p in paths for batch in _batches(p, [label]) for v in batch[label]]
    if not values:
        raise OnnxspectError(f"{root}: no rows in it", "the set is empty: give another part of it")
    if any(v is None for v in values):
        raise OnnxspectError(
            f"{root}: row {values.index(None)} has no label", "take such rows out of the set, or give the labelled part"
        )
    names = _names(metadata, label) or _names(_beside(paths[0]), label)
    labelled: Labelled = labelled_column(values, asked, str(root))
    if names and all(isinstance(v, int) for v in values):
        labelled = of_numbers(np.array(values, np.int64), names, asked.classes, str(root))
    form = "a Hugging Face data set" if metadata or paths[0].suffix == ".arrow" else "parquet"
    return Columns(
        form,
        str(root),
        labelled.labels,
        labelled.names,
        tuple(paths),
        image,
        (*said, *labelled.notes),
        labelled.ordered,
    )


def _regular(place: Path, *suffixes: str) -> list[Path]:
    """Regular files by their ending, in order: a FIFO would be waited for."""
    return sorted(p for p in place.iterdir() if p.suffix in suffixes and p.is_file()) if place.is_dir() else []


def _part(files: list[Path], asked: Asked) -> tuple[list[Path], list[str]]:
    """The files of one part, where their names say parts ("train-00000-of-00002.parquet")."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(file.stem.split("-")[0].lower(), []).append(file)
    found = [n for n in (TRAIN_PARTS if asked.training else TEST_PARTS) if n in parts]
    if not found or len(found) < len(parts):
        return files, []
    return parts[found[0]], [_only(found[0])] if len(parts) > 1 else []


def _only(name: str) -> str:
    return f"the set is in parts: only {printable(name)!r} was read"


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise OnnxspectError(
            "parquet and Hugging Face data sets are read by pyarrow, which is not installed", "pip install pyarrow"
        ) from error
    return pyarrow


def _schema(path: Path) -> tuple[list[str], Mapping[str, Any]]:
    """(columns, the features that `datasets` wrote)."""
    arrow = _arrow()
    try:
        if path.suffix == ".arrow":
            with arrow.OSFile(str(path)) as file:
                schema = _stream(arrow, file).schema
        else:
            schema = arrow.parquet.read_schema(path)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise caused_by(
            error, f"{path}: cannot be read ({printable(str(error), 100)})", "copy or fetch it again"
        ) from error
    return list(schema.names), _parsed((schema.metadata or {}).get(b"huggingface", b""))


def _stream(arrow: Any, file: Any) -> Any:
    """A reader of an Arrow stream, or of an Arrow file."""
    try:
        return arrow.ipc.open_stream(file)
    except arrow.ArrowInvalid:
        file.seek(0)
        return arrow.ipc.open_file(file)


def _batches(path: Path, columns: list[str]) -> Iterator[Mapping[str, list[Any]]]:
    arrow = _arrow()
    try:
        if path.suffix == ".arrow":
            with arrow.OSFile(str(path)) as file:
                reader = _stream(arrow, file)
                parts = (
                    iter(reader)
                    if hasattr(reader, "__iter__")
                    else map(reader.get_batch, range(reader.num_record_batches))
                )
                for batch in parts:
                    for start in range(0, batch.num_rows, _ROWS):
                        part = batch.slice(start, _ROWS)
                        yield {c: part.column(c).to_pylist() for c in columns}
        else:
            with arrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=columns):
                    yield {c: batch.column(c).to_pylist() for c in columns}
    except (OSError, ValueError, KeyError, arrow.ArrowException) as error:
        raise caused_by(
            error, f"{path}: cannot be read ({printable(str(error), 100)})", "copy or fetch it again"
        ) from error


def _beside(path: Path) -> Mapping[str, Any]:
    info = path.parent / "dataset_info.json"
    try:
        return {"info": json.loads(info.read_bytes())} if info.is_file() and info.stat().st_size < _INFO else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(metadata: Mapping[str, Any], label: str) -> tuple[str, ...]:
    try:
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
