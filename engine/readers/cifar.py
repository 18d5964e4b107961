"""CIFAR-10 and CIFAR-100 as they are published, and as torchvision and Keras keep them: binary files, or Python's batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers import plain_pickle
from onnxspect.engine.readers.arrays import ArrayReader, array_reader
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.reader import Asked

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Kind:
    """One published form: its folder, its files by part, its class names, label bytes a record (0: pickles)."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int


_KINDS = (
    _Kind("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "batches.meta", 0),
    _Kind("cifar-100-python", ("train",), ("test",), "meta", 0),
    _Kind(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        1,
    ),
    _Kind("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 2),
)


def open_folder(path: Path, asked: Asked) -> ArrayReader | None:
    """Such a folder, or one that holds it; None for another."""
    for kind in _KINDS:
        for place in (path, path / kind.folder):
            if (place / kind.names).is_file() and any((place / n).is_file() for n in (*kind.train, *kind.test)):
                return _open(place, kind, asked)
    return None


def _open(place: Path, kind: _Kind, asked: Asked) -> ArrayReader:
    train = [place / n for n in kind.train if (place / n).is_file()]
    test = [place / n for n in kind.test if (place / n).is_file()]
    files = (train or test) if asked.training else (test or train)
    said = [f"the set is in parts: only {', '.join(f.name for f in files)} was read"] if train and test else []
    names = _names(place / kind.names, kind)
    labels = np.concatenate([_load(f, kind)[1] for f in files])

    def batches() -> Iterator[np.ndarray]:
        for file in files:
            yield _load(file, kind)[0]

    def digest() -> str:
        found = hashlib.sha256()
        for file in files:
            found.update(_bytes(file))
        return found.hexdigest()

    return array_reader(f"{kind.folder}", place, len(labels), labels, names, asked.classes, batches, digest, said)


def _load(file: Path, kind: _Kind) -> tuple[np.ndarray, np.ndarray]:
    """(images ``(n, 32, 32, 3)`` uint8, labels ``(n,)``) of one file."""
    data = _bytes(file)
    if kind.label_bytes:
        record = kind.label_bytes + _PIXELS
        if len(data) % record:
            raise OnnxspectError(
                f"{file}: {len(data):,} bytes are no whole number of records of {record}",
                "the download did not finish: fetch it again",
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        labels, pixels = rows[:, kind.label_bytes - 1].astype(np.int64), rows[:, kind.label_bytes :]
    else:
        found = plain_pickle.read(data, str(file))
        labels = np.asarray(found.get("labels", found.get("fine_labels", ())))
        stored = found.get("data")
        pixels = stored if isinstance(stored, np.ndarray) else np.empty(0, np.uint8)
        if not isinstance(stored, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
            raise OnnxspectError(
                f"{file}: no `data` of {_PIXELS} bytes an image in it", "the download did not finish: fetch it again"
            )
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _names(file: Path, kind: _Kind) -> tuple[str, ...]:
    if kind.label_bytes:
        return tuple(_bytes(file).decode("utf-8", "replace").split())
    found = plain_pickle.read(_bytes(file), str(file))
    names = found.get("label_names", found.get("fine_label_names", ()))
    return (
        tuple(n.decode("latin-1") if isinstance(n, bytes) else str(n) for n in names) if isinstance(names, list) else ()
    )


def _bytes(file: Path) -> bytes:
    try:
        limits().check_bytes(file.stat().st_size, str(file), "it")
        return file.read_bytes()
    except OSError as error:
        raise caused_by(
            error, f"{file}: cannot be read ({error.strerror or error})", "copy or fetch it again"
        ) from error
