"""A training set read in pieces, and what a model computes inside for all of it: taken once, kept on disk.

A training set may be larger than memory: its images are read in order and in batches, from the compressed npz itself or
from the folder, and never held together. Activations come from onnxruntime, over the original file with the taps added
as outputs, one batch at a time, into .npy files that are mapped and not loaded. The files are named by a hash of model, data,
taps and preprocessing, so a second method or a second run finds them.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import torch

from onnxspect.converters.lowering.logits import LogitsInfo
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError, caused_by, unwritable
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.class_scores import class_scores
from onnxspect.engine.subject.file_classifier import FileClassifier
from onnxspect.engine.subject.samples import (
    IMAGE_SUFFIXES,
    MOST_CLASSES,
    TRAIN_KEYS,
    Samples,
    folder_order,
    labels_of,
    read_image,
    to_labels,
    to_unit_nchw,
)
from onnxspect.engine.subject.subject import Subject

#: Images a batch.
BATCH = 256
#: Operators whose value is not yet an activation: the last layer's product before its bias.
_LINEAR = ("Gemm", "MatMul", "Add")


@dataclass(frozen=True)
class TrainingSet:
    """Labels in memory, images on disk.

    Attributes:
        path: npz file or folder.
        labels: int64 ``(n,)``.
        shape: (channels, height, width).
        names: class names by index, possibly empty.
        files: the image files relative to the folder; empty for an npz.
        sha256: of the file, or of the names, sizes and labels of a folder's files.
    """

    path: Path
    labels: np.ndarray
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str
    _key: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int = BATCH) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first, float32 ``(m, channels, height, width)`` in [0, 1]), in order.

        Raises:
            OnnxspectError: a file is damaged, or an image does not fit the first one.
        """
        source = self._of_folder(size) if self.files else self._of_npz(size)
        start = 0
        for raw in source:
            images = to_unit_nchw(raw, f"{self.path}: ")
            if images.shape[1:] != self.shape:
                raise OnnxspectError(f"{self.path}: images are not of one size")
            yield start, images
            start += len(images)
        if start != len(self):
            raise OnnxspectError(f"{self.path}: holds {start} images but {len(self)} labels")

    def take(self, index: np.ndarray) -> Samples:
        """The rows `index`, in increasing order, in memory."""
        index = np.unique(index)
        parts = [images[rows] for images, rows in self._chosen(index)]
        images = np.concatenate(parts) if parts else np.zeros((0, *self.shape), np.float32)
        files = tuple(self.files[i] for i in index) if self.files else ()
        return Samples(images, self.labels[index], self.names, str(self.path), self.sha256, files)

    def raw(self, keep: np.ndarray) -> Iterator[np.ndarray]:
        """The kept images of an npz as they are stored, in batches."""
        start = 0
        for part in self._of_npz(BATCH):
            yield part[keep[start : start + len(part)]]
            start += len(part)

    def _chosen(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start, images in self.batches():
            here = index[(index >= start) & (index < start + len(images))] - start
            if len(here):
                yield images, here

    def _of_npz(self, size: int) -> Iterator[np.ndarray]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self._key}.npy") as stream:
                shape, dtype = _header(stream, self.path)
                one = int(np.prod(shape[1:])) * dtype.itemsize
                for start in range(0, shape[0], size):
                    count = min(size, shape[0] - start)
                    data = _exactly(stream, one * count, self.path)
                    yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError) as error:
            raise caused_by(error, f"{self.path}: cannot be read ({str(error)[:120]})") from error

    def _of_folder(self, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self.files), size):
            read = [read_image(self.path / name, self.shape, False) for name in self.files[start : start + size]]
            yield np.stack(read)


def open_training_set(path: str | Path, size: tuple[int, int, int] | None = None) -> TrainingSet:
    """Labels and shape of a training set, without reading its images.

    Args:
        path: npz with `images` and `labels` (or x_train, y_train), or a folder of images by class.
        size: (channels, height, width) that the model takes; images of another size are refused.

    Raises:
        OnnxspectError: not readable, no images, or of another size.
    """
    path = Path(path)
    if path.is_dir():
        found = _folder(path, size)
    elif path.is_file():
        found = _npz(path)
    else:
        raise OnnxspectError(f"{path}: no such file or folder", "give an npz file or a folder of images by class")
    if size is not None and found.shape != size:
        (c, h, w), (cc, hh, ww) = found.shape, size
        raise OnnxspectError(f"{path}: images are {w}x{h}x{c}, the model takes {ww}x{hh}x{cc}")
    return found


def _npz(path: Path) -> TrainingSet:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.removesuffix(".npy") for name in archive.namelist()}
            pair = next(((x, y) for x, y in TRAIN_KEYS if x in inside and y in inside), None)
            if pair is None:
                raise OnnxspectError(f"{path}: no `images` and `labels` in it (found {', '.join(sorted(inside)[:8])})")
            with archive.open(f"{pair[0]}.npy") as stream:
                shape, dtype = _header(stream, path)
                first = np.frombuffer(
                    _exactly(stream, int(np.prod(shape[1:])) * dtype.itemsize if shape[0] else 0, path), dtype
                )
        with np.load(path, allow_pickle=False) as archive:
            labels = to_labels(archive[pair[1]], f"{path}: ")
            classes = archive["classes"] if "classes" in archive else np.zeros(0, str)
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise caused_by(error, f"{path}: not a readable npz file ({line})") from error
    if shape[0] != len(labels):
        raise OnnxspectError(f"{path}: {shape[0]} images but {len(labels)} labels")
    if not len(labels):
        raise OnnxspectError(f"{path}: no images in it")
    one = to_unit_nchw(first.reshape(1, *shape[1:]), f"{path}: ")
    names = tuple(map(str, classes)) if classes.dtype.kind in "US" else ()
    return TrainingSet(path, labels, one.shape[1:], names, (), _hash_file(path), pair[0])


def _folder(path: Path, size: tuple[int, int, int] | None) -> TrainingSet:
    folders = sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=folder_order)
    by_folder = labels_of([p.name for p in folders])
    files = [
        (file, by_folder[folder.name])
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise OnnxspectError(f"{path}: no images in class folders", "one sub-folder a class, images inside")
    if max(by_folder.values()) >= MOST_CLASSES:
        raise OnnxspectError(f"{path}: a folder is named after class {max(by_folder.values())}")
    first = read_image(files[0][0], size, False)
    shape = size if size is not None else (first.shape[2], first.shape[0], first.shape[1])
    labels = np.array([label for _, label in files], np.int64)
    relative = tuple(str(file.relative_to(path)) for file, _ in files)
    digest = hashlib.sha256(labels.tobytes())
    for name, (file, _) in zip(relative, files, strict=True):
        stat = file.stat()
        digest.update(f"{name}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\x1f".encode())
    by_index = {by_folder[p.name]: p.name for p in folders}
    names = tuple(by_index.get(i, str(i)) for i in range(max(by_index) + 1))
    return TrainingSet(path, labels, shape, names, relative, digest.hexdigest())


def _header(stream: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an .npy stream, which then stands at its first number."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran or dtype.hasobject or len(shape) < 3:
        raise OnnxspectError(f"{path}: images are not a plain array (n, height, width, channels) in C order")
    return shape, dtype


def _exactly(stream: IO[bytes], count: int, path: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise OnnxspectError(f"{path}: ends before its last image")
    return data


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def penultimate(subject: Subject) -> str:
    """Name of the tap that the last layer reads: the last cut that is not itself a linear layer's output.

    Raises:
        OnnxspectError: there is none, or no ONNX file behind the subject.
    """
    found = [tap.name for tap in cuts(subject.graph) if tap.operator not in _LINEAR]
    if not found:
        raise OnnxspectError(f"{subject.name}: no tap between the image and the logits", "name one with --tap")
    return found[-1]


def file_classifier(subject: Subject, taps: Sequence[str] = ()) -> FileClassifier:
    """onnxruntime over the original file: logits ``(n, classes)``, then the value at every tap ``(n, ...)``.

    Raises:
        OnnxspectError: a tap is not a value of the file, or no ONNX file is behind the subject.
    """
    origin = subject.origin
    wanted = [origin.logits.value, *taps]
    proto = origin.file.proto
    if any(name not in _values(proto) for name in wanted):  # a value that only the simplified graph names
        proto, _ = simplify(proto)
    missing = [name for name in wanted if name not in _values(proto)]
    if missing:
        raise OnnxspectError(
            f"{subject.name}: computes no value named {missing[0]}", "`onnxspect info MODEL` lists its taps"
        )
    outputs = list(dict.fromkeys([*(o.name for o in proto.graph.output), *wanted]))
    oracle = Oracle(proto, subject.device, torch.get_num_threads(), outputs)
    return FileClassifier(oracle, subject.spec, wanted, origin.lowered.inputs[0])


def _values(proto: onnx.ModelProto) -> set[str]:
    return {name for node in proto.graph.node for name in node.output}


def activations(
    subject: Subject, training: TrainingSet, taps: Sequence[str], cache: Path, run: RunContext
) -> Mapping[str, np.ndarray]:
    """The values at `taps`, float32 ``(n, d)`` mapped from disk, and "logits" ``(n, classes)``, for a whole training set.

    Args:
        subject: with the preprocessing settled.
        training: the images.
        taps: ONNX value names.
        cache: folder for the .npy files; those that are there already are not computed again.
        run: observer.

    Raises:
        OnnxspectError: no such tap, a tap without a batch axis, or the cache cannot be written.
    """
    key = hashlib.sha256(
        repr((subject.file and subject.file.sha256, training.sha256, subject.spec, BATCH)).encode()
    ).hexdigest()
    names = ["logits", *taps]
    paths = {n: cache / f"{hashlib.sha256((key + n).encode()).hexdigest()[:24]}.npy" for n in names}
    if not all(p.is_file() for p in paths.values()):
        _compute(file_classifier(subject, taps), training, paths, cache, run, subject.logits)
    return {n: np.load(p, mmap_mode="r", allow_pickle=False) for n, p in paths.items()}


def _compute(
    classifier: FileClassifier,
    training: TrainingSet,
    paths: Mapping[str, Path],
    cache: Path,
    run: RunContext,
    info: LogitsInfo | None,
) -> None:
    partial = {n: p.with_suffix(".part") for n, p in paths.items()}
    maps: dict[str, np.memmap[Any, Any]] = {}
    task = "activations"
    tenth = max(1, len(training) // 10)
    reported = 0
    run.observer.start(task, 10)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for start, images in training.batches():
            for name, value in zip(paths, classifier.run(images), strict=True):
                if value.ndim < 1 or len(value) != len(images):
                    raise OnnxspectError(f"the value at {name} has no batch axis", "choose another --tap")
                flat = value.reshape(len(value), -1).astype(np.float32)
                if name == "logits":
                    flat = class_scores(torch.from_numpy(flat), info).numpy()
                if name not in maps:
                    maps[name] = np.lib.format.open_memmap(
                        partial[name], "w+", np.float32, (len(training), flat.shape[1])
                    )
                maps[name][start : start + len(flat)] = flat
            for _ in range(reported, min(10, (start + len(images)) // tenth)):
                run.observer.advance(task, f"{start + len(images)} of {len(training)} images")
                reported += 1
        for name, mapped in maps.items():
            mapped.flush()
            os.replace(partial[name], paths[name])  # noqa: PTH105 - a cache file is there whole or not at all
    except OSError as error:
        raise unwritable(cache, error, what="activations cannot be kept there") from error
    finally:
        maps.clear()
        for path in partial.values():
            path.unlink(missing_ok=True)
        run.observer.finish(task)
