"""Hostile arrays, tables, lists and archives of samples."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from of_tests import module_of_tests

from hostile.case import ESCAPE, FORGED, RAN, READ, REFUSED, Canary, Case, Make, fifo, file_of, link
from hostile.pictures import zeros

containers = module_of_tests("hostile_containers")
forms = module_of_tests("data_forms")
conftest = module_of_tests("conftest")

_DATA = ("data",)


def cases() -> list[Case]:
    """All of them."""
    return [*_arrays(), *_tables()]


# -- arrays ------------------------------------------------------------------------------------------------------------------


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


_LABELS = _npy(np.arange(12) % 3)
_IMAGES = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), np.uint8)


def _bomb_npz() -> bytes:
    """Twelve images of 6,000 by 6,000 in colour: 1.2 GiB of zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("labels.npy", _LABELS)
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(_header((12, 6000, 6000, 3)))
            for _ in range(12 * 6):
                member.write(bytes(3 * 6_000_000))
    return stream.getvalue()


def _evaluated() -> bytes:
    """A header that is no literal."""
    header = (
        f"{{'descr': __import__('os').system('touch {RAN}'), 'shape': (1,), 'fortran_order': False}}".ljust(
            117
        ).encode()
        + b"\n"
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _arrays() -> list[Case]:
    kind = "arrays"
    trained = ("data", "scan of samples", "cleanse a training set", "certify samples")

    def npz(**members: bytes) -> Make:
        return file_of("a.npz", lambda: _zip(**{f"{n}.npy": d for n, d in members.items()}))

    pixels = _npy(_IMAGES)
    names = {ESCAPE + ".npy": pixels, f"x\n{FORGED}.npy": pixels, "../../ran.npy": pixels}
    return [
        Case(kind, "an npz of 1.2 GiB in one megabyte", file_of("a.npz", _bomb_npz), trained, READ),
        Case(
            kind,
            "an npz that says 48 GiB",
            npz(images=_header((1, 2**17, 2**17, 3)) + bytes(1000), labels=_LABELS),
            _DATA,
            REFUSED,
        ),
        Case(
            kind, "an npz that says 2^124 numbers", npz(images=_header((2**62, 2**62)), labels=_LABELS), _DATA, REFUSED
        ),
        Case(
            kind,
            "an npz of objects",
            npz(images=containers.npy(containers.SYSTEM), labels=_LABELS),
            ("data", "certify samples"),
            REFUSED,
        ),
        Case(kind, "an npz whose header would be evaluated", npz(images=_evaluated(), labels=_LABELS), _DATA, REFUSED),
        Case(
            kind,
            "an npz whose members have hostile names",
            file_of("a.npz", lambda: _zip(**names)),
            ("data", "certify samples"),
            REFUSED,
        ),
        Case(
            kind,
            "labels of 10^18",
            npz(images=pixels, labels=_npy(np.arange(12) + 10**18)),
            _DATA,
            READ,
        ),
        Case(kind, "labels up to ten million", npz(images=pixels, labels=_npy(np.arange(12) * 900_000)), trained, READ),
        Case(kind, "negative labels", npz(images=pixels, labels=_npy(np.arange(12) - 100)), _DATA, READ),
        Case(
            kind,
            "images that are NaN",
            npz(images=_npy(np.full((12, 1, 8, 8), np.nan, np.float32)), labels=_LABELS),
            ("data", "scan of samples"),
            READ,
        ),
        Case(
            kind,
            "an npz that is cut",
            file_of("a.npz", lambda: _zip(**{"images.npy": pixels, "labels.npy": _LABELS})[:-40]),
            _DATA,
            REFUSED,
        ),
        Case(kind, "an npz that is a FIFO", fifo("a.npz"), ("data", "certify samples"), REFUSED),
        Case(
            kind,
            "an npz that is an endless device",
            link("a.npz", "/dev/zero"),
            ("data", "cleanse a training set"),
            REFUSED,
        ),
        Case(kind, "a .mat whose sides lie", file_of("a.mat", _lying_mat), _DATA, REFUSED),
        Case(kind, "a .mat that unpacks to a GiB", file_of("a.mat", _long_mat), _DATA, READ),
        Case(kind, "a .mat of -v7.3", file_of("a.mat", lambda: b"\x89HDF\r\n\x1a\n" + bytes(600)), _DATA, REFUSED),
        Case(kind, "idx of 2^96 pixels", _idx, _DATA, REFUSED),
        Case(kind, "CIFAR's pickles that call something", _cifar, _DATA, REFUSED),
    ]


def _mat() -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, {"images": np.zeros((3, 5, 4, 7), np.uint8), "labels": np.arange(3, dtype=np.uint8)[:, None]})
    return stream.getvalue()


def _lying_mat() -> bytes:
    return _mat().replace(struct.pack("<4i", 3, 5, 4, 7), struct.pack("<4i", 2**31 - 1, 2**31 - 1, 4, 7), 1)


def _long_mat() -> bytes:
    """A matrix whose facts are followed by a GiB of zeros."""
    data = _mat()
    size = struct.unpack("<I", data[132:136])[0]
    packer = zlib.compressobj(1)
    long = packer.compress(data[128 : 136 + size]) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024))
    long += packer.flush()
    return data[:128] + struct.pack("<II", 15, len(long)) + long


def _idx(folder: Path, _: Canary) -> Path:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">HBBIII", 0, 8, 3, *[2**32 - 1] * 3) + bytes(1000))
    )
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 12) + bytes(12))
    return folder


def _cifar(folder: Path, _: Canary) -> Path:
    root: Path = forms.cifar_pickles(folder / "data")
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(bytes(containers.calls("posix", "system")))
    return root


# -- tables, lists and archives of pictures ----------------------------------------------------------------------------------


def _tables() -> list[Case]:
    kind = "tables, lists, archives"
    return [
        Case(
            kind,
            "a csv that leads to a secret",
            functools.partial(_listed, name="a.csv"),
            _DATA,
            REFUSED,
        ),
        Case(kind, "a jsonl that leads to a secret", functools.partial(_listed, name="a.jsonl"), _DATA, REFUSED),
        Case(
            kind,
            "metadata.csv that leads to a secret",
            functools.partial(_listed, name="metadata.csv", folder_given=True),
            _DATA,
            REFUSED,
        ),
        Case(kind, "a csv with a link to a secret beside it", _csv_and_link, _DATA, READ),
        Case(
            kind,
            "a csv of one line of two megabytes",
            file_of("a.csv", lambda: b"file,label\n" + b"x" * 2_000_000),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "a csv with lines and colours in names",
            file_of("a.csv", lambda: f'file,label\n"{ESCAPE}\n{FORGED}",ant\n'.encode()),
            _DATA,
            REFUSED,
        ),
        Case(kind, "a jsonl nested 100,000 deep", file_of("a.jsonl", lambda: b"[" * 100_000), _DATA, REFUSED),
        Case(
            kind,
            "TFRecord of 2^63 bytes",
            file_of("a.tfrecord", lambda: struct.pack("<Q", 1 << 63) + bytes(100)),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "TFRecord of an endless number",
            file_of("a.tfrecord", lambda: struct.pack("<Q", 64) + bytes(4) + b"\xff" * 64 + bytes(4)),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "Parquet whose footer lies",
            file_of("a.parquet", lambda: b"PAR1" + bytes(64) + struct.pack("<I", 2**31 - 1) + b"PAR1"),
            _DATA,
            REFUSED,
        ),
        Case(kind, "Parquet that unpacks to 1.5 GiB", file_of("a.parquet", _parquet), _DATA, READ),
        Case(kind, "Arrow that is damaged", _arrow, _DATA, REFUSED),
        Case(
            kind,
            "a zip that leads out",
            file_of("a.zip", lambda: _pictures_in({"../../ran/0.png": 0, "/tmp/ran/1.png": 1})),
            _DATA,
            READ,
        ),
        Case(kind, "a zip of a picture of a GiB", file_of("a.zip", _zip_bomb), _DATA, READ),
        Case(kind, "a tar with links to a secret", _tar, _DATA, READ),
        Case(
            kind,
            "a gzip of a gzip of a tar of a GiB",
            file_of("a.tar.gz", lambda: gzip.compress(gzip.compress(zeros(1 << 30), 1), 1)),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "a zip of 60,000 members",
            file_of("a.zip", lambda: _pictures_in({f"{i % 3}/{i}.png": 0 for i in range(60_000)}, b"")),
            _DATA,
            READ,
        ),
    ]


def _listed(folder: Path, canary: Canary, name: str, folder_given: bool = False) -> Path:
    secret = canary.folder / "secret"
    rows = [str(secret), os.path.relpath(secret, folder), f"../{canary.folder.name}/secret.png"]
    if name.endswith(".csv"):
        (folder / name).write_text("file_name,label\n" + "".join(f"{r},ant\n" for r in rows))
    else:
        (folder / name).write_text("".join(json.dumps({"image": r, "label": "ant"}) + "\n" for r in rows))
    return folder if folder_given else folder / name


def _csv_and_link(folder: Path, canary: Canary) -> Path:
    forms.as_folder(folder)
    (folder / "linked.png").symlink_to(canary.folder / "secret.png")
    (folder / "a.csv").write_text("file,label\nlinked.png,ant\nant/00.png,ant\n")
    return folder / "a.csv"


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    long = pa.array([bytes(1 << 26)] * 24, pa.large_binary())
    pq.write_table(pa.table({"image": long, "label": [i % 3 for i in range(24)]}), stream, compression="zstd")
    return stream.getvalue()


def _arrow(folder: Path, _: Canary) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text("{}")
    (folder / "data" / "state.json").write_text("{}")
    (folder / "data" / "data-00000-of-00001.arrow").write_bytes(
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(range(256)) * 8
    )
    return folder / "data"


def _pictures_in(names: dict[str, int], data: bytes | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, i in names.items():
            archive.writestr(name, forms.png(forms.COLOUR[i]) if data is None else data)
    return stream.getvalue()


def _zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("ant/0.png", "bee/1.png"):
            archive.writestr(name, forms.png(forms.COLOUR[0]))
        with archive.open("ant/2.png", "w") as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
    return stream.getvalue()


def _tar(folder: Path, canary: Canary) -> Path:
    members = []
    for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)):
        member = tarfile.TarInfo(f"ant/{i}.png")
        member.type, member.linkname = kind, str(canary.folder / "secret")
        members.append((member, b""))
    members += [(tarfile.TarInfo(f"{name}/x.png"), forms.png(forms.COLOUR[0])) for name in ("ant", "bee")]
    (folder / "a.tar").write_bytes(containers.tarred(members))
    return folder / "a.tar"
