"""The same twelve labelled pictures in every form that people keep them in."""

from __future__ import annotations

import csv
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)

COLOUR = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)

GREY = RNG.integers(0, 256, (12, 28, 28), np.uint8)

LABELS = np.arange(12) % 3

NAMES = ("ant", "bee", "cat")


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder(root: Path, names: tuple[str, ...] = NAMES, below: str = "") -> Path:
    for i, (image, label) in enumerate(zip(COLOUR, LABELS, strict=True)):
        place = root / names[label] / below
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02d}.png").write_bytes(png(image))
    return root


def _csv(root: Path) -> Path:
    as_folder(root)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        writer.writerows((p.relative_to(root).as_posix(), p.parent.name) for p in sorted(root.rglob("*.png")))
    return root / "list.csv"


def _csv_without_header(root: Path) -> Path:
    path = _csv(root)
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    return path


def _jsonl(root: Path) -> Path:
    as_folder(root)
    lines = [json.dumps({"image": p.relative_to(root).as_posix(), "class": p.parent.name}) for p in root.rglob("*.png")]
    (root / "list.jsonl").write_text("\n".join(lines) + "\n")
    return root / "list.jsonl"


def _metadata_folder(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    lines = []
    for i, image in enumerate(COLOUR):
        (root / "images" / f"{i}.png").write_bytes(png(image))
        lines.append(json.dumps({"file_name": f"images/{i}.png", "label": NAMES[LABELS[i]]}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def _zip(root: Path) -> Path:
    as_folder(root / "data")
    with zipfile.ZipFile(root / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for p in sorted((root / "data").rglob("*.png")):
            archive.write(p, p.relative_to(root))
    return root / "data.zip"


def _tar(root: Path) -> Path:
    as_folder(root / "data")
    with tarfile.open(root / "data.tar.gz", "w:gz") as archive:
        archive.add(root / "data", "data")
    return root / "data.tar.gz"


def _parts(root: Path) -> Path:
    as_folder(root / "test")
    (root / "train" / "ant").mkdir(parents=True)
    (root / "train" / "ant" / "x.png").write_bytes(png(COLOUR[0]))
    return root


def _npz(root: Path) -> Path:
    root.mkdir()
    np.savez_compressed(root / "a.npz", test_images=COLOUR, test_labels=LABELS[:, None], classes=np.array(NAMES))
    return root / "a.npz"


def _fortran(root: Path) -> Path:
    root.mkdir()
    np.savez(root / "a.npz", x_test=np.asfortranarray(COLOUR), y_test=LABELS, class_names=np.array(NAMES))
    return root / "a.npz"


def _parquet(root: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    features = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    for part, rows in (("train", range(2)), ("test", range(12))):
        table = pa.table(
            {
                "image": [{"bytes": png(COLOUR[i]), "path": f"{i}.png"} for i in rows],
                "label": [int(LABELS[i]) for i in rows],
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, root / "data" / f"{part}-00000-of-00001.parquet", row_group_size=5)
    return root


def _saved_to_disk(root: Path) -> Path:
    """What datasets.DatasetDict.save_to_disk leaves."""
    pa = pytest.importorskip("pyarrow")
    (root / "test").mkdir(parents=True)
    (root / "dataset_dict.json").write_text('{"splits": ["test"]}')
    info = {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}
    (root / "test" / "dataset_info.json").write_text(json.dumps(info))
    (root / "test" / "state.json").write_text("{}")
    table = pa.table({"image": [{"bytes": png(i), "path": None} for i in COLOUR], "label": LABELS.tolist()})
    with (
        pa.OSFile(str(root / "test" / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as w,
    ):
        w.write_table(table)
    return root


def cifar_pickles(root: Path) -> Path:
    place = root / "cifar-10-batches-py"
    place.mkdir(parents=True)
    rows = COLOUR.transpose(0, 3, 1, 2).reshape(12, -1)
    for name, data in {
        "data_batch_1": {b"data": rows[:1], b"labels": [0]},
        "test_batch": {b"data": rows, b"labels": LABELS.tolist()},
        "batches.meta": {b"label_names": [n.encode() for n in NAMES]},
    }.items():
        (place / name).write_bytes(pickle.dumps(data, protocol=2))
    return root


def _cifar_binary(root: Path) -> Path:
    root.mkdir(parents=True)
    rows = COLOUR.transpose(0, 3, 1, 2).reshape(12, -1)
    (root / "test_batch.bin").write_bytes(np.concatenate([LABELS[:, None].astype(np.uint8), rows], 1).tobytes())
    (root / "batches.meta.txt").write_text("\n".join(NAMES))
    return root


def matlab(root: Path) -> Path:
    from scipy.io import savemat

    root.mkdir()
    savemat(
        root / "a.mat", {"X": COLOUR.transpose(1, 2, 3, 0), "y": LABELS[:, None].astype(np.uint8)}, do_compression=True
    )
    return root / "a.mat"


def example(features: dict[str, bytes | int]) -> bytes:
    """A tf.train.Example on the wire."""

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    def varint(n: int) -> bytes:
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    entries = b""
    for name, value in features.items():
        kind = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, varint(value)))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def _tfrecord(root: Path) -> Path:
    root.mkdir()
    records = [example({"image": png(i), "label": int(k)}) for i, k in zip(COLOUR, LABELS, strict=True)]
    framed = b"".join(struct.pack("<Q", len(r)) + b"\0\0\0\0" + r + b"\0\0\0\0" for r in records)
    (root / "flowers-test.tfrecord-00000-of-00001").write_bytes(framed)
    (root / "flowers-train.tfrecord-00000-of-00001").write_bytes(framed[: len(framed) // 2])
    (root / "label.labels.txt").write_text("\n".join(NAMES))
    return root


FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": as_folder,
    "nested folders": lambda root: as_folder(root, below="deep/er"),
    "one folder around": lambda root: as_folder(root / "only").parent,
    "parts": _parts,
    "csv": _csv,
    "csv without a header": _csv_without_header,
    "jsonl": _jsonl,
    "metadata in a folder": _metadata_folder,
    "zip": _zip,
    "tar.gz": _tar,
    "npz": _npz,
    "npz in Fortran order": _fortran,
    "parquet": _parquet,
    "save_to_disk": _saved_to_disk,
    "cifar pickles": cifar_pickles,
    "cifar binary": _cifar_binary,
    "tfrecord": _tfrecord,
}
