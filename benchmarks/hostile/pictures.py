"""Hostile pictures, and folders of pictures."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from of_tests import module_of_tests
from PIL import Image

from hostile.case import ELEMENT, ESCAPE, FORGED, HOSTILE, RAN, READ, Canary, Case, Make

containers = module_of_tests("hostile_containers")
forms = module_of_tests("data_forms")
conftest = module_of_tests("conftest")

_DATA = ("data",)


def cases() -> list[Case]:
    """All of them."""
    return [*_pictures(), *_folders()]


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


def zeros(count: int) -> bytes:
    """So many zeros as a zlib stream, a multiple of a MiB rounded down: one packed MiB, over and over, and their check sum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    times = count >> 20
    check = ((times << 20) % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + block * times + b"\x03\x00" + struct.pack(">I", check)


def _large() -> bytes:
    return _png(13_000, 13_000, zeros(13_000 * (13_000 * 3 + 1) + (1 << 20)), 8, 2)


def _text() -> bytes:
    data: bytes = forms.png(forms.COLOUR[0])
    return data[:33] + _chunk(b"zTXt", b"Comment\0\0" + zeros(1 << 30)) + data[33:]


def _profile() -> bytes:
    data: bytes = forms.png(forms.COLOUR[0])
    return data[:33] + _chunk(b"iCCP", b"icc\0\0" + zeros(1 << 30)) + data[33:]


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
        (data / "bee").rename(data / ELEMENT)
        (data / "cat").rename(data / f"b\n{FORGED}")
        (data / "dog").rename(data / "cat\u202egnp")
        next((data / ELEMENT).iterdir()).rename(data / ELEMENT / f"{ESCAPE}\n{FORGED}.png")

    def not_utf8(data: Path, _: Canary) -> None:
        (data / "ant").rename(os.fsdecode(os.fsencode(data) + b"/\xff\xfe\x9b31m"))

    def deep(data: Path, _: Canary) -> None:
        containers.nested(data / "ant", 3000)

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
