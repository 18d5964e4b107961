"""A training set read in pieces, and what a model computes inside for all of it: taken once, kept on disk.

A training set may be larger than memory: its images are read in order and in batches, from the compressed npz itself or
from the folder, and never held together. Activations come from onnxruntime, over the original file with the taps added
as outputs, one batch at a time, into .npy files that are mapped and not loaded. The files are named by a hash of model, data,
taps and preprocessing, so a second method or a second run finds them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from onnxspect.converters.lowering.logits import LogitsInfo
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError, unwritable
from onnxspect.engine.readers.arrays import BATCH, ArrayReader
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.readers.pixels import Seen
from onnxspect.engine.readers.reader import Asked, Reader
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.class_scores import scores_array
from onnxspect.engine.subject.file_classifier import FileClassifier
from onnxspect.engine.subject.resizing import fit
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

#: Operators whose value is not yet an activation: the last layer's product before its bias.
_LINEAR = ("Gemm", "MatMul", "Add")


@dataclass(frozen=True)
class TrainingSet:
    """Labels in memory, images on disk.

    Attributes:
        path: where it lies.
        labels: int64 ``(n,)``.
        shape: (channels, height, width).
        names: class names by index, possibly empty.
        files: the image files relative to the folder; empty for arrays.
        sha256: of the file, or of the names, sizes and labels of a folder's files.
        reader: of the images.
        order_given: the user has stated the order of the classes.
    """

    path: Path
    labels: np.ndarray
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str
    reader: Reader = field(repr=False)
    order_given: bool = False
    _seen: Seen = field(default_factory=Seen, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ordered(self) -> bool:
        """Whether class indices are only the alphabetical order of names."""
        return self.reader.ordered

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed or left out; complete when all images have been read."""
        return (*self.reader.notes(), *self._seen.notes())

    def batches(self, size: int = BATCH) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first, float32 ``(m, channels, height, width)`` in [0, 1]), in order.

        Raises:
            OnnxspectError: a file is damaged, or an image does not fit the first one.
        """
        self._seen.again()
        start = 0
        for batch in self._batched(None, size, self._seen):
            yield start, batch
            start += len(batch)
        if start != len(self):
            raise OnnxspectError(
                f"{self.path}: holds {start} images but {len(self)} labels",
                "one label an image: copy the set again, or make it anew",
            )

    def take(self, index: np.ndarray) -> Samples:
        """The rows `index`, in increasing order, in memory."""
        index = np.unique(index)
        parts = list(self._batched(index.tolist(), BATCH, Seen()))
        images = np.concatenate(parts) if parts else np.zeros((0, *self.shape), np.float32)
        files = tuple(self.files[i] for i in index) if self.files else ()
        return Samples(
            images,
            self.labels[index],
            self.names,
            str(self.path),
            self.sha256,
            files,
            (),
            self.ordered,
            self.order_given,
        )

    def raw(self, keep: np.ndarray) -> Iterator[np.ndarray]:
        """The kept images as they are stored, in batches; of encoded pictures, as they are read."""
        if isinstance(self.reader, ArrayReader):
            start = 0
            for part in self.reader.batches():
                yield part[keep[start : start + len(part)]]
                start += len(part)
            return
        for batch in self._batched(np.flatnonzero(keep).tolist(), BATCH, Seen()):
            yield np.round(batch * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def _batched(self, rows: Sequence[int] | None, size: int, seen: Seen) -> Iterator[np.ndarray]:
        """Images of these rows, as the model takes them."""
        if rows is not None and not len(rows):
            return
        wanted = iter(range(len(self)) if rows is None else rows)
        part: list[np.ndarray] = []
        for image in self.reader.images(rows):
            row = next(wanted)
            where = f"{self.path}/{self.files[row]}" if self.files else f"{self.path}: image {row}"
            fitted = fit(image, self.shape, None, where, seen)
            if fitted.shape[2] != self.shape[0] or fitted.shape[:2] != self.shape[1:]:
                raise OnnxspectError(
                    f"{where}: images are not of one size",
                    "scale them as the training did: a training set is judged in the size that the model takes",
                )
            part.append(fitted)
            if len(part) == size:
                yield _unit_nchw(part)
                part = []
        if part:
            yield _unit_nchw(part)


def _unit_nchw(images: Sequence[np.ndarray]) -> np.ndarray:
    parts = [i.astype(np.float32) / np.float32(255) if i.dtype == np.uint8 else i for i in images]
    return np.ascontiguousarray(np.stack(parts).transpose(0, 3, 1, 2), np.float32)


def open_training_set(
    path: str | Path, size: tuple[int, int, int] | None = None, classes: ClassList | None = None
) -> TrainingSet:
    """Labels and shape of a training set, without reading its images.

    Args:
        path: of any form that is read (readers.reader.FORMS).
        size: (channels, height, width) that the model takes; images of another size are refused.
        classes: the model's classes in order, where they are known.

    Raises:
        OnnxspectError: not readable, no images, or of another size.
    """
    path = Path(path)
    reader = open_reader(path, Asked(classes, training=True))
    first = next(reader.images([0]))
    height, width, channels = first.shape
    encoded = not isinstance(reader, ArrayReader)
    if size is not None and (encoded or (channels == 1 and size[0] == 3)):
        channels = size[0]
    shape = (channels, height, width)
    if size is not None and shape != size:
        (c, h, w), (cc, hh, ww) = shape, size
        raise OnnxspectError(
            f"{path}: images are {w}x{h}x{c}, the model takes {ww}x{hh}x{cc}",
            "a training set is judged in the size that the model was trained on: scale it as the training did",
        )
    return TrainingSet(
        path,
        reader.labels,
        shape,
        reader.names,
        reader.files,
        reader.fingerprint(),
        reader,
        classes is not None and classes.certain,
    )


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
                    flat = scores_array(flat, info)
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
