"""Fuzz targets: what this project steers a parser through, and lists: samples in every form, class names, policies, lists of models."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_target import TAKEN, Target, mutant, refused
from PIL import Image
from scipy.io import savemat

from onnxspect.converters.errors import OnnxspectError
from onnxspect.engine.fleet.models import found
from onnxspect.engine.jobs.prove import load_trigger
from onnxspect.engine.jobs.references import Request
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.readers.reader import Asked
from onnxspect.engine.report import policy
from onnxspect.engine.run_folder import _array

#: Images of a mutant's set that are decoded.
_IMAGES = 8


def _ends(work: Callable[[Path], Any], name: str, data: bytes, folder: Path) -> str:
    """How reading the mutant under that name ends."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        work(path)
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


def _repacked(seeds: list[bytes], seed: int, i: int) -> bytes:
    """Of two mutants one has a member mutated and the archive whole, so that it comes past the sums of zip."""
    whole = seeds[i % len(seeds)]
    if i % 2 or not zipfile.is_zipfile(io.BytesIO(whole)):
        return mutant(seeds, seed, i)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = names[i // 2 % len(names)]
        for name in names:
            data = old.read(name)
            new.writestr(name, mutant([data], seed, i) if name == chosen else data)
    return stream.getvalue()


# --- samples --------------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> None:
    """All that a command reads of samples."""
    reader = open_reader(path, Asked())
    for image in itertools.islice(reader.images(), _IMAGES):
        if image.ndim != 3 or image.dtype not in (np.uint8, np.float32):
            raise AssertionError(f"an image of {image.dtype} and shape {image.shape}")
    said = [*reader.notes(), *reader.names, *reader.files, reader.fingerprint()]
    if len(reader.labels.shape) != 1 or not all(isinstance(s, str) for s in said):
        raise AssertionError("labels or notes of another form")


def _samples(name: str) -> Callable[[bytes, Path], str]:
    return partial(_ends, _read, name)


def _pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def _npz() -> list[bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, images=_pixels(), labels=np.arange(4) % 2, classes=np.array(["a", "b"]))
    np.savez_compressed(packed, x_test=_pixels() / 255, y_test=np.arange(4) % 2)
    return [plain.getvalue(), packed.getvalue()]


def _pictures() -> list[bytes]:
    seeds = []
    for form, mode in (
        ("PNG", "RGBA"),
        ("JPEG", "RGB"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("PPM", "L"),
    ):
        stream = io.BytesIO()
        Image.fromarray(_pixels()[0]).convert(mode).save(stream, form)
        seeds.append(stream.getvalue())
    deep = io.BytesIO()
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000).save(deep, "PNG")
    return [*seeds, deep.getvalue(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"]


def _picture(data: bytes, folder: Path) -> str:
    """Beside a whole one of another class."""
    for name in ("set/0/whole.png", "set/1/mutant.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(_pictures()[0] if "whole" in name else data)
    try:
        _read(folder / "set")
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


def _archives() -> list[bytes]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with (
        zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive,
        tarfile.open(fileobj=tarred, mode="w:gz") as tar,
    ):
        for name, data in (("set/cat/a.png", _pictures()[0]), ("set/dog/b.jpg", _pictures()[1])):
            archive.writestr(name, data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    plain = gzip.decompress(tarred.getvalue())
    return [zipped.getvalue(), plain, tarred.getvalue()]


def _idx(data: bytes, folder: Path) -> str:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 4) + bytes((0, 1, 0, 1)))
    return _ends(_read, "t10k-images-idx3-ubyte", data, folder)


def _cifar() -> list[bytes]:
    rows = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    return [pickle.dumps({b"labels": [0, 1], b"data": rows}, protocol=p) for p in (0, 2, 4)]


def _cifar_folder(data: bytes, folder: Path) -> str:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}, protocol=2))
    (place / "test_batch").write_bytes(data)
    try:
        _read(folder)
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


def _matlab() -> list[bytes]:
    seeds = []
    for packed in (False, True):
        stream = io.BytesIO()
        savemat(stream, {"images": _pixels(), "labels": np.arange(4)[:, None] % 2}, do_compression=packed)
        seeds.append(stream.getvalue())
    return seeds


def _field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


def _records() -> list[bytes]:
    def feature(name: bytes, values: bytes) -> bytes:
        return _field(1, _field(1, name) + _field(2, values))

    records = b""
    for label in (0, 1):
        image = feature(b"image", _field(1, _field(1, _pictures()[0])))
        example = _field(1, image + feature(b"label", _field(3, _field(1, bytes([label])))))
        records += struct.pack("<QI", len(example), 0) + example + bytes(4)
    return [records, gzip.compress(records, mtime=0)]


def _parquet() -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    pictures = [{"bytes": p, "path": "a.png"} for p in _pictures()[:2]]
    table = pyarrow.table({"image": pictures, "label": [0, 1]})
    stream, other = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, stream)
    parquet.write_table(table, other, compression="gzip", use_dictionary=False)
    return [stream.getvalue(), other.getvalue()]


def _listed(name: str) -> Callable[[bytes, Path], str]:
    """A list of pictures, two of which lie beside it."""

    def check(data: bytes, folder: Path) -> str:
        for other in ("a.png", "b.png"):
            (folder / other).write_bytes(_pictures()[0])
        return _ends(_read, name, data, folder)

    return check


def _csv() -> list[bytes]:
    stream = io.StringIO()
    csv.writer(stream).writerows([("file", "label"), ("a.png", "0"), ("b.png", "1")])
    return [stream.getvalue().encode(), b"a.png;cat\nb.png;dog\n"]


# --- lists and settings ---------------------------------------------------------------------------------------------------------

_POLICY = b"""data = "clean/"
preset = "standard"
fail-on = "backdoored"
[[accept]]
id = "OSX101-7-d6f1fbfc59aa"
reason = "the demonstration model"
expires = 2027-06-30
"""
_MODELS = (
    b'data = "clean.npz"\n[[model]]\npath = "a.onnx"\ndetector = ["dtinspector"]\n[[model]]\npath = "b.onnx"\nscale = 255\n',
    b"path,data,preset\na.onnx,clean.npz,quick\nb.onnx,other/,\n",
    b'{"path": "a.onnx", "data": "clean.npz", "resize": true}\n{"path": "b.onnx"}\n',
)
_CLASSES = (b"cat\ndog\n", b'["cat", "dog"]', b'{"0": ["n01", "cat"], "1": ["n02", "dog"]}', b'{"cat": 0, "dog": 1}')
_REQUEST = json.dumps(
    {
        "shape": [1, 28, 28],
        "classes": 2,
        "size": [1, 28, 28],
        "way": {"how": "crop", "shorter": 28, "crop": 28},
        "names": ["a", "b"],
    }
)


def _trigger() -> list[bytes]:
    mask, delta = io.BytesIO(), io.BytesIO()
    np.savez(mask, target=1, mask=np.ones((6, 5), np.float32), pattern=np.ones((1, 6, 5), np.float32))
    np.savez(delta, target=-1, delta=np.zeros((1, 6, 5), np.float32))
    return [mask.getvalue(), delta.getvalue()]


def _npy() -> list[bytes]:
    seeds = []
    for array in (_pixels(), np.asfortranarray(np.eye(3, 4, dtype=np.float32)), np.float64(1)):
        stream = io.BytesIO()
        np.save(stream, array)
        seeds.append(stream.getvalue())
    return seeds


def _array_of_a_run(data: bytes, _: Path) -> str:
    _array(data)
    return TAKEN


TARGETS = (
    Target("npz", _npz, _samples("data.npz"), _repacked),
    Target("picture", _pictures, _picture),
    Target("archived", _archives, _samples("data.zip"), _repacked),
    Target("idx", lambda: [struct.pack(">HBB3I", 0, 8, 3, 4, 6, 5) + _pixels()[..., 0].tobytes()], _idx),
    Target("cifar", _cifar, _cifar_folder),
    Target("matlab", _matlab, _samples("data.mat")),
    Target("tfrecord", _records, _samples("test.tfrecord")),
    Target("parquet", _parquet, _samples("data.parquet")),
    Target("csv", _csv, _listed("list.csv")),
    Target("jsonl", lambda: [b'{"file": "a.png", "label": 0}\n{"file": "b.png", "label": 1}\n'], _listed("list.jsonl")),
    Target("classes", lambda: list(_CLASSES), partial(_ends, ClassList.of, "classes.txt")),
    Target("policy", lambda: [_POLICY], partial(_ends, policy.read, "onnxspect.toml")),
    Target("models-toml", lambda: [_MODELS[0]], partial(_ends, lambda p: found([str(p)]), "list.toml")),
    Target("models-csv", lambda: [_MODELS[1]], partial(_ends, lambda p: found([str(p)]), "list.csv")),
    Target("models-jsonl", lambda: [_MODELS[2]], partial(_ends, lambda p: found([str(p)]), "list.jsonl")),
    Target("request", lambda: [_REQUEST.encode()], partial(_ends, Request.read, "references-wanted.json")),
    Target("trigger", _trigger, partial(_ends, lambda p: load_trigger(p, (1, 6, 5)), "trigger.npz"), _repacked),
    Target("array", _npy, _array_of_a_run),
)
