"""An npz with images and labels: every member's header is read, and its size compared, before the member is loaded."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.arrays import BATCH, ArrayReader, array_reader
from onnxspect.engine.readers.file_bytes import digest_of, exactly
from onnxspect.engine.readers.labels import listed
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.reader import Asked

#: Names of class-name arrays.
_CLASSES = ("classes", "class_names", "label_names")
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
            shape, dtype, fortran = _header_of(archive, images, path)
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
        raise caused_by(error, f"{path}: not a readable npz file ({_first_line(error)})") from error
    said = []
    others = sorted(inside - {images, labels, *_CLASSES})
    if any(x in inside and x != images for x, _ in asked.keys):
        said.append(f"of {listed(sorted([images, labels, *others]))} only {images} and {labels} were read")

    def batches() -> Iterator[np.ndarray]:
        return _batches(path, images, shape, dtype, fortran)

    return array_reader(
        "an npz",
        path,
        shape[0],
        values,
        names.astype(str).tolist() if names.dtype.kind in "US" else (),
        asked.classes,
        batches,
        lambda: digest_of(path),
        said,
    )


def check_npz(path: Path) -> None:
    """Compare what the arrays of an npz declare with the limit, before `np.load` reads one; what is no npz is left to it.

    Raises:
        OnnxspectError: one would take more memory than is allowed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    shape, _, dtype = _header(stream, f"{path}: {name}")
                count = int(np.prod(shape, dtype=object)) * dtype.itemsize
                limits().check_bytes(count, str(path), f"{printable(name)} of shape {shape}")
    except OnnxspectError:
        raise
    except _ERRORS:
        return


def _header_of(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    with archive.open(f"{name}.npy") as stream:
        shape, fortran, dtype = _header(stream, f"{path}: {name}")
    if len(shape) < 3:
        raise OnnxspectError(f"{path}: images have {len(shape)} axes, not 4 (n, height, width, channels)")
    one = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
    limits().check_bytes(one * (shape[0] if fortran else min(shape[0], BATCH)), str(path), f"{name} of shape {shape}")
    return shape, dtype, fortran


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, type) of an .npy stream, which then stands at its first number."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    if any(not isinstance(n, int) or n < 0 for n in shape):
        raise OnnxspectError(f"{where}: a shape of {shape}")
    return shape, fortran, dtype


def _small(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Labels or names, as a whole."""
    with archive.open(f"{name}.npy") as stream:
        shape, fortran, dtype = _header(stream, f"{path}: {name}")
        count = int(np.prod(shape, dtype=object))
        limits().check_bytes(count * max(dtype.itemsize, 8), str(path), f"{name} of shape {shape}")
        data = _exactly(stream, count * dtype.itemsize, path)
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")


def _batches(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
) -> Iterator[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            _header(stream, f"{path}: {name}")
            one = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
            if fortran:  # the first axis runs fastest: there is no first image before the last number
                data = _exactly(stream, one * shape[0], path)
                whole = np.frombuffer(data, dtype).reshape(shape, order="F")
                yield from (whole[i : i + BATCH] for i in range(0, shape[0], BATCH))
                return
            for start in range(0, shape[0], BATCH):
                count = min(BATCH, shape[0] - start)
                yield np.frombuffer(_exactly(stream, one * count, path), dtype).reshape(count, *shape[1:])
    except OnnxspectError:
        raise
    except _ERRORS as error:
        raise caused_by(error, f"{path}: not a readable npz file ({_first_line(error)})") from error


def _exactly(stream: IO[bytes], count: int, path: Path) -> bytes:
    return exactly(stream, count, f"{path}: not a readable npz file (ends before its last image)")


def _is_npy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"


def _first_line(error: BaseException) -> str:
    if "pickle" in str(error):
        return "it holds Python objects, or is no npz at all"  # numpy's advice is to unpickle them
    return printable((str(error).splitlines() or [type(error).__name__])[0], 160)
