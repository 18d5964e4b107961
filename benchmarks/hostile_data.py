"""Hostile samples, kind by kind: pictures, folders of pictures, arrays and tables; class names; policies and requests."""

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
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_case import ELEMENT, ESCAPE, FORGED, HOSTILE, RAN, READ, REFUSED, Canary, Case, Make
from of_tests import module_of_tests
from PIL import Image

containers = module_of_tests("hostile_containers")
forms = module_of_tests("data_forms")
conftest = module_of_tests("conftest")

_DATA = ("data",)
_TOUCH = f"touch {RAN}"


def cases() -> list[Case]:
    """All of them."""
    return [*_pictures(), *_folders(), *_arrays(), *_tables(), *_names(), *_policies()]


def _bytes(name: str, data: Callable[[], bytes]) -> Make:
    def make(folder: Path, _: Canary) -> Path:
        (folder / name).write_bytes(data())
        return folder / name

    return make


def _among(name: str, data: Callable[[], bytes]) -> Make:
    """A file among twelve ordinary pictures in class folders."""

    def make(folder: Path, _: Canary) -> Path:
        forms.as_folder(folder / "data")
        (folder / "data" / "ant" / name).write_bytes(data())
        return folder / "data"

    return make


# -- pictures ----------------------------------------------------------------------------------------------------------------


def _pictures() -> list[Case]:
    kind = "pictures"
    return [
        Case(kind, "PostScript in an .eps", _among("a.eps", _postscript), _DATA, READ),
        Case(kind, "PostScript in a .png", _among("a.png", _postscript), ("data", "scan of samples"), READ),
        Case(
            kind,
            "a PNG of 10^10 pixels by its header",
            _among("a.png", lambda: _png(100_000, 100_000, b"")),
            _DATA,
            READ,
        ),
        Case(
            kind,
            "a PNG of 10^8 pixels in 100 KB",
            _among("a.png", lambda: _png(10_000, 10_000, zlib.compress(bytes(10_000 * 1251), 9), 1)),
            ("data", "data with pictures"),
            READ,
        ),
        Case(kind, "a PNG of 13,000 by 13,000 in colour", _among("a.png", _large), _DATA, READ),
        Case(kind, "a PNG whose text unpacks to a GiB", _among("a.png", _text), _DATA, READ),
        Case(kind, "a PNG whose profile unpacks to a GiB", _among("a.png", _profile), _DATA, READ),
        Case(kind, "a GIF of 65,535 by 65,535", _among("a.gif", _gif), _DATA, READ),
        Case(kind, "a TIFF of 2^31 rows", _among("a.tif", lambda: _tiff(1 << 16, (1 << 31) - 1)), _DATA, READ),
        Case(kind, "a TIFF of a million directories", _among("a.tif", lambda: _tiff(4, 4, 8)), _DATA, READ),
        Case(
            kind,
            "a BMP of 2^31 by 2^31",
            _among(
                "a.bmp",
                lambda: (
                    b"BM"
                    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
                ),
            ),
            _DATA,
            READ,
        ),
        Case(kind, "a JPEG that breaks off", _among("a.jpg", lambda: _saved("JPEG")[:200]), _DATA, READ),
        Case(
            kind,
            "a WebP that lies",
            _among(
                "a.webp",
                lambda: b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00\xff\xff\xff\xff\xff\xff",
            ),
            _DATA,
            READ,
        ),
        Case(
            kind,
            "a text with an entity that names a file",
            _among("a.svg", lambda: b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'),
            _DATA,
            READ,
        ),
        Case(
            kind,
            "a pickle that is called .png",
            _among("a.png", lambda: bytes(containers.SYSTEM)),
            _DATA,
            READ | HOSTILE,
        ),
    ]


def _postscript() -> bytes:
    """Ghostscript would run the program, where Pillow starts it."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n("
        + RAN.encode()
        + b") (w) file closefile\nshowpage\n%%EOF\n"
    )


def _saved(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(forms.COLOUR[0]).save(stream, form)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, packed: bytes, bits: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    """So many zeros, packed, without having them all at once."""
    packer = zlib.compressobj(9)
    return (
        b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20))
        + packer.compress(bytes(count & ((1 << 20) - 1)))
        + packer.flush()
    )


def _large() -> bytes:
    return _png(13_000, 13_000, _zeros(13_000 * (13_000 * 3 + 1)), 8, 2)


def _text() -> bytes:
    data: bytes = forms.png(forms.COLOUR[0])
    return data[:33] + _chunk(b"zTXt", b"Comment\0\0" + _zeros(1 << 30)) + data[33:]


def _profile() -> bytes:
    data: bytes = forms.png(forms.COLOUR[0])
    return data[:33] + _chunk(b"iCCP", b"icc\0\0" + _zeros(1 << 30)) + data[33:]


def _gif() -> bytes:
    frame = b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0"
    return b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + frame * 1000 + b"\x3b"


def _tiff(width: int, height: int, following: int = 0) -> bytes:
    """One directory; where `following` is its own place, it comes after itself for ever."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, height),
        (279, 4, 64),
    ]
    data = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + data + struct.pack("<I", following) + bytes(64)


# -- folders of pictures -----------------------------------------------------------------------------------------------------


def _folders() -> list[Case]:
    kind = "folders of pictures"

    def with_(change: Callable[[Path, Canary], object], of: Callable[[Path], object] = forms.as_folder) -> Make:
        def make(folder: Path, canary: Canary) -> Path:
            of(folder / "data")
            change(folder / "data", canary)
            return folder / "data"

        return make

    def link(data: Path, canary: Canary) -> None:
        (data / "ant" / "link.png").symlink_to(canary.folder / "secret.png")
        (data / "ant" / "text.png").symlink_to(canary.folder / "secret")

    def hard(data: Path, canary: Canary) -> None:
        os.link(canary.folder / "secret", data / "ant" / "hard.png")

    def linked_folder(data: Path, canary: Canary) -> None:
        (data / "dog").symlink_to(canary.folder, target_is_directory=True)
        (data / "bee" / "again").symlink_to(data, target_is_directory=True)

    def fifos(data: Path, _: Canary) -> None:
        for name in ("ant/fifo.png", "metadata.csv", "dataset_dict.json", "a.parquet", "t10k-images-idx3-ubyte"):
            os.mkfifo(data / name)

    def devices(data: Path, _: Canary) -> None:
        for name in ("ant/zero.png", "ant/metadata.csv", "data_batch_1", "labels.txt"):
            (data / name).symlink_to("/dev/zero")

    def escapes(data: Path, _: Canary) -> None:
        (data / "ant").rename(data / ESCAPE)
        (data / "bee").rename(data / f"b\n{FORGED}")
        (data / "cat").rename(data / ELEMENT)
        (data / "cat\u202egnp").mkdir()
        (data / ELEMENT / f"{ESCAPE}\n{FORGED}.png").write_bytes(b"no picture")

    def not_utf8(data: Path, _: Canary) -> None:
        (data / "ant").rename(os.fsdecode(os.fsencode(data) + b"/\xff\xfe\x9b31m"))

    def deep(data: Path, _: Canary) -> None:
        here = os.open(data / "ant", os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)

    def many(data: Path, _: Canary) -> None:
        for i in range(3000):
            (data / f"class {i}").mkdir()

    def tex(data: Path, _: Canary) -> None:
        (data / "ant").rename(data / r"$\frac{$ \input{|touch ran}")

    samples = ("data", "scan of samples", "data with pictures")
    return [
        Case(kind, "links to a secret", with_(link), ("data", "scan of samples"), READ),
        Case(kind, "a hard link to a secret", with_(hard), _DATA, READ),
        Case(
            kind,
            "folders that are links, out and in circles",
            with_(linked_folder),
            ("data", "cleanse a training set"),
            READ,
        ),
        Case(kind, "FIFOs by every name that is looked for", with_(fifos), ("data", "scan of samples"), READ),
        Case(kind, "endless devices", with_(devices), _DATA, READ),
        Case(
            kind,
            "names with colours, lines and elements of pages",
            with_(escapes, _quadrants),
            (*samples, "cleanse a training set", "scan of a training set"),
            READ,
        ),
        Case(kind, "names that are no UTF-8", with_(not_utf8), ("data", "data with pictures"), READ),
        Case(kind, "folders 3,000 deep", with_(deep), _DATA, READ),
        Case(kind, "3,000 classes without an image", with_(many), _DATA, READ),
        Case(kind, "names that TeX would run", with_(tex, _quadrants), ("data with pictures", "scan of samples"), READ),
    ]


def _quadrants(folder: Path) -> None:
    """Pictures that the ordinary model takes, ten of each of its four classes."""
    samples = conftest.quadrant_images(10)
    for i, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        place = folder / ("ant", "bee", "cat", "dog")[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(image)[0] * 255).round().astype(np.uint8)).save(place / f"{i}.png")


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
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", _LABELS)
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(_header((12, 6000, 6000, 3)))
            for _ in range(12 * 6):
                member.write(bytes(3 * 6_000_000))
    return stream.getvalue()


def _evaluated() -> bytes:
    """A header that is no literal."""
    header = (
        f"{{'descr': __import__('os').system('{_TOUCH}'), 'shape': (1,), 'fortran_order': False}}".ljust(117).encode()
        + b"\n"
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _arrays() -> list[Case]:
    kind = "arrays"
    trained = ("data", "scan of samples", "cleanse a training set", "certify samples")

    def npz(**members: bytes) -> Make:
        return _bytes("a.npz", lambda: _zip(**{f"{n}.npy": d for n, d in members.items()}))

    pixels = _npy(_IMAGES)
    names = {ESCAPE + ".npy": pixels, f"x\n{FORGED}.npy": pixels, "../../ran.npy": pixels}
    return [
        Case(kind, "an npz of 1.2 GiB in one megabyte", _bytes("a.npz", _bomb_npz), trained, READ),
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
            _bytes("a.npz", lambda: _zip(**names)),
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
            _bytes("a.npz", lambda: _zip(**{"images.npy": pixels, "labels.npy": _LABELS})[:-40]),
            _DATA,
            REFUSED,
        ),
        Case(kind, "an npz that is a FIFO", _fifo, ("data", "certify samples"), REFUSED),
        Case(kind, "an npz that is an endless device", _device, ("data", "cleanse a training set"), REFUSED),
        Case(kind, "a .mat whose sides lie", _bytes("a.mat", _lying_mat), _DATA, REFUSED),
        Case(kind, "a .mat that unpacks to a GiB", _bytes("a.mat", _long_mat), _DATA, READ),
        Case(kind, "a .mat of -v7.3", _bytes("a.mat", lambda: b"\x89HDF\r\n\x1a\n" + bytes(600)), _DATA, REFUSED),
        Case(kind, "idx of 2^96 pixels", _idx, _DATA, REFUSED),
        Case(kind, "CIFAR's pickles that call something", _cifar, _DATA, REFUSED),
    ]


def _fifo(folder: Path, _: Canary) -> Path:
    os.mkfifo(folder / "a.npz")
    return folder / "a.npz"


def _device(folder: Path, _: Canary) -> Path:
    (folder / "a.npz").symlink_to("/dev/zero")
    return folder / "a.npz"


def _mat() -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, {"images": np.zeros((3, 5, 4, 7), np.uint8), "labels": np.arange(3, dtype=np.uint8)[:, None]})
    return stream.getvalue()


def _lying_mat() -> bytes:
    return _mat().replace(struct.pack("<4i", 3, 5, 4, 7), struct.pack("<4i", 2**31 - 1, 2**31 - 1, 4, 7), 1)


def _long_mat() -> bytes:
    data = _mat()
    size = struct.unpack("<I", data[132:136])[0]
    packer = zlib.compressobj(9)
    long = (
        packer.compress(data[128 : 136 + size])
        + b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024))
        + packer.flush()
    )
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
            _bytes("a.csv", lambda: b"file,label\n" + b"x" * 2_000_000),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "a csv with lines and colours in names",
            _bytes("a.csv", lambda: f'file,label\n"{ESCAPE}\n{FORGED}",ant\n'.encode()),
            _DATA,
            REFUSED,
        ),
        Case(kind, "a jsonl nested 100,000 deep", _bytes("a.jsonl", lambda: b"[" * 100_000), _DATA, REFUSED),
        Case(
            kind,
            "TFRecord of 2^63 bytes",
            _bytes("a.tfrecord", lambda: struct.pack("<Q", 1 << 63) + bytes(100)),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "TFRecord of an endless number",
            _bytes("a.tfrecord", lambda: struct.pack("<Q", 64) + bytes(4) + b"\xff" * 64 + bytes(4)),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "Parquet whose footer lies",
            _bytes("a.parquet", lambda: b"PAR1" + bytes(64) + struct.pack("<I", 2**31 - 1) + b"PAR1"),
            _DATA,
            REFUSED,
        ),
        Case(kind, "Parquet that unpacks to 1.5 GiB", _bytes("a.parquet", _parquet), _DATA, READ),
        Case(kind, "Arrow that is damaged", functools.partial(_arrow), _DATA, REFUSED),
        Case(
            kind,
            "a zip that leads out",
            _bytes("a.zip", lambda: _pictures_in({"../../ran/0.png": 0, "/tmp/ran/1.png": 1})),
            _DATA,
            READ,
        ),
        Case(kind, "a zip of a picture of a GiB", _bytes("a.zip", _zip_bomb), _DATA, READ),
        Case(kind, "a tar with links to a secret", _tar, _DATA, READ),
        Case(
            kind,
            "a gzip of a gzip of a tar of a GiB",
            _bytes("a.tar.gz", lambda: gzip.compress(gzip.compress(_zeros(1 << 30)))),
            _DATA,
            REFUSED,
        ),
        Case(
            kind,
            "a zip of 60,000 members",
            _bytes("a.zip", lambda: _pictures_in({f"{i % 3}/{i}.png": 0 for i in range(60_000)}, b"")),
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
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
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


# -- class names, policies, requests -----------------------------------------------------------------------------------------


def _names() -> list[Case]:
    kind = "class names"

    def names(data: bytes) -> Make:
        return _bytes("names.txt", lambda: data)

    four = f"{ESCAPE}\n{ELEMENT}\n[link=file:///etc/passwd]x[/link]\n$\\frac{{$\n".encode()
    return [
        Case(kind, "colours, elements and mathematics", names(four), ("data with names", "scan with names"), READ),
        Case(
            kind,
            "a million of them",
            names(b"".join(b"c%d\n" % i for i in range(1_000_000))),
            ("data with names",),
            READ,
        ),
        Case(kind, "one of four megabytes", names(b"x" * (4 << 20)), ("data with names",), READ),
        Case(kind, "JSON 100,000 deep", names(b"[" * 100_000), ("data with names",), READ),
        Case(
            kind,
            "JSON with a class of index 10^4000",
            names(b'{"' + b"9" * 4000 + b'": "a"}'),
            ("data with names",),
            READ,
        ),
        Case(
            kind,
            "JSON with a class of index 10^12",
            names(b'{"0": "a", "1000000000000": "b"}'),
            ("data with names",),
            READ,
        ),
        Case(kind, "a FIFO", lambda f, c: _fifo(f, c), ("data with names", "scan with names"), REFUSED),
        Case(kind, "an endless device", lambda f, c: _device(f, c), ("data with names",), REFUSED),
        Case(kind, "no UTF-8", names(b"\xff\xfe\x9b\x00a\nb\n"), ("data with names",), READ),
    ]


def _policies() -> list[Case]:
    kind = "policies and requests"

    def policy(text: str) -> Make:
        return _bytes("onnxspect.toml", lambda: text.encode())

    def to_the_secret(folder: Path, canary: Canary) -> Path:
        (folder / "onnxspect.toml").write_text(f'train = "{canary.folder / "secret"}"\n')
        return folder / "onnxspect.toml"

    accepted = (
        f'[[accept]]\nid = "{json.dumps(ESCAPE)[1:-1]}"\nreason = "{json.dumps(FORGED)[1:-1]}"\nexpires = 2000-01-01\n'
    )
    return [
        Case(
            kind,
            "a policy that is a FIFO",
            lambda f, c: _fifo(f, c),
            ("report by a policy", "scan by a policy"),
            REFUSED,
        ),
        Case(kind, "a policy that is an endless device", lambda f, c: _device(f, c), ("report by a policy",), REFUSED),
        Case(kind, "a policy 50,000 deep", policy("data = " + "[" * 50_000), ("report by a policy",), REFUSED),
        Case(
            kind,
            "a policy of a number of 10^6 digits",
            policy("preset = " + "1" * 1_000_000),
            ("report by a policy",),
            REFUSED,
        ),
        Case(kind, "a policy with colours and lines", policy(accepted), ("report by a policy",), READ),
        Case(kind, "a policy whose training set is a secret", to_the_secret, ("scan by a policy",), READ | {1}),
        Case(kind, "a request that is a FIFO", lambda f, c: _fifo(f, c), ("references",), REFUSED),
        Case(kind, "a request 100,000 deep", _bytes("request.json", lambda: b"[" * 100_000), ("references",), REFUSED),
        Case(
            kind,
            "a request of a million classes",
            _bytes("request.json", lambda: _request(10**6, 1, 8, 8)),
            ("references",),
            READ,
        ),
        Case(
            kind,
            "a request for images of 10^6 by 10^6",
            _bytes("request.json", lambda: _request(4, 1, 10**6, 10**6)),
            ("references",),
            READ,
        ),
    ]


def _request(classes: int, *shape: int) -> bytes:
    return json.dumps({"shape": list(shape), "classes": classes, "size": None, "way": None, "names": None}).encode()
