"""Digests of what a scan reads, taken of bytes alone: nothing is parsed.

A digest decides what is not scanned again, so whatever may change a result is in it: of a model the files that it names beside
itself (external data, the facts of its conversion), of a list of images all that lies beside the list.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.sandbox.safe_open import open_regular
from onnxspect.converters.sandbox.walk import walk
from onnxspect.converters.text import printable

#: Forms of data that are one file and refer to no other.
_WHOLE = (".npz", ".parquet", ".zip", ".tar", ".tgz", ".mat", ".h5")
#: Where an ONNX file names external data, the name follows within so many bytes.
_NAMED_WITHIN = 1 << 13
#: Files beneath a folder that are looked at, at most.
_MOST_FILES = 2_000_000
#: What results depend on beside this project's own code.
_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "scikit-learn", "pillow")


def model_files(path: Path) -> list[Path]:
    """The files of a model: itself with what it names beside itself, or all in its folder.

    Raises:
        OnnxspectError: it cannot be read.
    """
    if path.is_dir():
        return files_of_folder(path)
    named = sorted({*_external(path), path.name + ".json"})
    return [path, *(path.parent / name for name in named if (path.parent / name).is_file())]


def data_files(path: Path) -> list[Path]:
    """The files of samples: all in their folder, or the file; of one that may name others, also what lies beside it.

    Raises:
        OnnxspectError: it cannot be read.
    """
    if path.is_dir() or not path.name.lower().endswith(_WHOLE):
        return files_of_folder(path if path.is_dir() else path.parent)
    return [path]


def files_of_folder(folder: Path) -> list[Path]:
    """All regular files beneath a folder that are not hidden; none where there is no folder."""
    return [path for _, path in _beneath(folder)]


def model_digest(path: Path) -> str:
    """Of a model: a file with what it names beside itself, or a folder with all that is in it.

    Raises:
        OnnxspectError: it cannot be read.
    """
    if path.is_dir():
        return _together(_beneath(path))
    own, *beside = model_files(path)
    named = _together((os.path.relpath(p, path.parent), p) for p in beside)
    return of_text(_of_file(own), named) if beside else _of_file(own)


def data_digest(path: Path) -> str:
    """Of samples: a folder with all that is in it, a file; of a file that may name others, also what lies beside it.

    Raises:
        OnnxspectError: it cannot be read.
    """
    if path.is_dir():
        return _together(_beneath(path))
    if path.name.lower().endswith(_WHOLE):
        return _of_file(path)
    digest = hashlib.sha256(_of_file(path).encode())
    for name, file in _beneath(path.parent):
        status = file.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@lru_cache
def version_digest() -> str:
    """Of what results depend on beside files and settings: this package's code and its libraries' versions."""
    digest = hashlib.sha256()
    for name in _LIBRARIES:
        try:
            digest.update(f"{name} {metadata.version(name)}\n".encode())
        except metadata.PackageNotFoundError:
            continue
    groups = [name for name in metadata.entry_points().groups if name.startswith("onnxspect")]
    entries = [e for name in groups for e in metadata.entry_points(group=name)]
    plugins = {f"{e.dist.name} {e.dist.version}" for e in entries if e.dist is not None}
    digest.update("\n".join(sorted(plugins)).encode())
    engine = Path(__file__).parents[1]
    for root in (engine, engine.parent / "converters"):
        for name, file in _beneath(root):
            if file.suffix in (".py", ".json") and "__pycache__" not in file.parts:
                digest.update(f"{name}\0{_of_file(file)}\n".encode())
    return digest.hexdigest()


def of_text(*parts: str) -> str:
    """Of texts, each told apart from the next."""
    return hashlib.sha256("\0".join(f"{len(p)}:{p}" for p in parts).encode(errors="surrogateescape")).hexdigest()


def _external(path: Path) -> Iterator[str]:
    """Names of files beneath the model's folder that stand in it where an ONNX file names external data."""
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        places = [m.start() for m in re.finditer(b"location", data)]
        if not places:
            return
        said = b"".join(data[p : p + _NAMED_WITHIN] for p in _spread(places))
    for name, file_ in _beneath(path.parent):
        if file_ != path and os.fsencode(file_.name) in said:
            yield name


def _spread(places: Iterable[int]) -> Iterator[int]:
    """The places, without those that a window from an earlier one covers by half."""
    last = -_NAMED_WITHIN
    for place in places:
        if place - last > _NAMED_WITHIN // 2:
            last = place
            yield place


def _beneath(folder: Path) -> Iterator[tuple[str, Path]]:
    """All regular files beneath a folder that are not hidden, with their names from there, in order. Links are not followed."""
    found = 0
    for root, folders, names in walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            path = Path(root) / name
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            found += 1
            if found > _MOST_FILES:
                raise OnnxspectError(
                    f"{printable(str(folder), 200)}: more than {_MOST_FILES} files in it",
                    "pack them into a zip or an npz",
                )
            yield path.relative_to(folder).as_posix(), path


def _together(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{_of_file(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _of_file(path: Path) -> str:
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise caused_by(error, f"{printable(str(path), 200)}: cannot be read") from error
