"""An npz with images and labels: every member's header is read, and its size compared, before the member is loaded."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from onnxspect.converters import npy
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.arrays import BATCH, ArrayReader, array_reader
from onnxspect.engine.readers.file_bytes import digest_of, exactly
from onnxspect.engine.readers.labels import listed
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.reader import Asked

#: Names of class-name arrays.
_CLASSES = ("classes", "class_names", "label_names")
#: What helps where a file cannot be read.
_AGAIN = "save it anew: np.savez(path, images=x, labels=y)"
_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    NotImplementedError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    SyntaxError,
    MemoryError,
)


def open_file(path: Path, asked: Asked) -> ArrayReader:
    """The last form of a file that is tried, so that what is wrong is said.

    Raises:
        OnnxspectError: not an npz, damaged, or without images and labels.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
            pair = next(((x, y) for x, y in asked.keys if x in inside and y in inside), None)
            if pair is None:
                found = listed(sorted(inside)) or "nothing"
                wanted = ", ".join(f"{x}/{y}" for x, y in asked.keys[:4])
                raise OnnxspectError(
                    f"{path}: no `images` and `labels` in it (found {found})",
                    f"save them under such a pair of names: {wanted}",
                )
            images, labels = pair
            header = _header_of(archive, images, path)
            values = _small(archive, labels, path)
            names = next((_small(archive, n, path) for n in _CLASSES if n in inside), np.zeros(0, "U1"))
    except OnnxspectError:
        raise
    except _ERRORS as error:
        if isinstance(error, (zipfile.BadZipFile, ValueError)) and _is_npy(path):
            raise OnnxspectError(
                f"{path}: an .npy array, not an .npz with images and labels",
                "put both into one file: np.savez('data.npz', images=x, labels=y)",
            ) from error
        raise caused_by(error, f"{path}: not a readable npz file ({_first_line(error)})", _AGAIN) from error
    said = []
    others = sorted(inside - {images, labels, *_CLASSES})
    if any(x in inside and x != images for x, _ in asked.keys):
        said.append(f"of {listed(sorted([images, labels, *others]))} only {images} and {labels} were read")

    def batches() -> Iterator[np.ndarray]:
        return _batches(path, images)

    return array_reader(
        "an npz",
        path,
        header.shape[0],
        values,
        names.astype(str).tolist() if names.dtype.kind in "US" else (),
        asked.classes,
        batches,
        lambda: digest_of(path),
        said,
    )


def arrays(source: Path | IO[bytes], where: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an npz by name, as a whole, writable; in place of `np.load`.

    Args:
        source: the file.
        where: names it in errors.
        names: which are wanted, where not all; one that is missing is left out.

    Raises:
        OnnxspectError: not an npz, damaged, or larger than is allowed.
    """
    found: dict[str, np.ndarray] = {}
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise OnnxspectError(f"{where}: not a regular file", "give the path of an .npz file")
    try:
        with zipfile.ZipFile(source) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name != member and (names is None or name in names):
                    with archive.open(member) as stream:
                        found[name] = npy.read_array(stream, partial(_allowed, f"{where}: {printable(name)}")).copy("K")
    except OnnxspectError:
        raise
    except _ERRORS as error:
        raise caused_by(error, f"{where}: not a readable npz file ({_first_line(error)})", _AGAIN) from error
    return found


def _allowed(where: str, header: npy.Header) -> None:
    limits().check_bytes(header.size, where, f"an array of shape {header.shape}")


def _header_of(archive: zipfile.ZipFile, name: str, path: Path) -> npy.Header:
    with archive.open(f"{name}.npy") as stream:
        header = npy.read_header(stream)
    shape = header.shape
    if len(shape) < 3:
        raise OnnxspectError(
            f"{path}: images have {len(shape)} axes, not 4 (n, height, width, channels)",
            "an array (n, height, width, channels), or (n, height, width) of grey images",
        )
    one = math.prod(shape[1:]) * header.dtype.itemsize
    most = one * (shape[0] if header.fortran else min(shape[0], BATCH))
    limits().check_bytes(most, str(path), f"{name} of shape {shape}")
    return header


def _small(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Labels or names, as a whole."""

    def check(header: npy.Header) -> None:
        most = math.prod(header.shape) * max(header.dtype.itemsize, 8)
        limits().check_bytes(most, str(path), f"{name} of shape {header.shape}")

    with archive.open(f"{name}.npy") as stream:
        return npy.read_array(stream, check)


def _batches(path: Path, name: str) -> Iterator[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            header = npy.read_header(stream)
            count, *sides = header.shape
            if header.fortran:  # the first axis runs fastest: there is no first image before the last number
                whole = header.array(_exactly(stream, header.size, path))
                yield from (whole[i : i + BATCH] for i in range(0, count, BATCH))
                return
            for start in range(0, count, BATCH):
                batch = replace(header, shape=(min(BATCH, count - start), *sides))
                yield batch.array(_exactly(stream, batch.size, path))
    except OnnxspectError:
        raise
    except _ERRORS as error:
        raise caused_by(error, f"{path}: not a readable npz file ({_first_line(error)})", _AGAIN) from error


def _exactly(stream: IO[bytes], count: int, path: Path) -> bytes:
    return exactly(stream, count, f"{path}: not a readable npz file (ends before its last image)")


def _is_npy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"


def _first_line(error: BaseException) -> str:
    if "pickle" in str(error):
        return "it holds Python objects, or is no npz at all"  # numpy's advice is to unpickle them
    return printable((str(error).splitlines() or [type(error).__name__])[0], 160)
