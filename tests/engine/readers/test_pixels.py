"""Pictures as the common loaders read them: depth, palette, alpha, rotation, CMYK; nothing that starts a program is opened."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tolerances import OPERATION_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.readers.pixels import Seen, read_picture

RNG = np.random.default_rng(1)
GREY = RNG.integers(0, 256, (6, 5), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 3), np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def read(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    seen = Seen()
    return read_picture(path, path.name, seen), seen.notes()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (6, 5)).astype(np.uint16)
    for suffix in ("png", "tif"):
        image, notes = read(saved(tmp_path / f"a.{suffix}", Image.fromarray(deep)))
        assert image.dtype == np.float32
        np.testing.assert_allclose(image[..., 0], deep / 65535, atol=OPERATION_32)
        assert "more than 8 bits" in notes[0]


@pytest.mark.parametrize(("bits", "factor"), [(16, 257), (12, 16), (8, 1)])
def test_a_set_has_the_depth_that_its_levels_have(tmp_path: Path, bits: int, factor: int) -> None:
    """12-bit levels in 16-bit files are not dark pictures."""
    for i in range(4):
        levels = np.minimum(GREY.astype(np.uint16) * factor, (1 << bits) - 1)
        levels[0, 0] = (1 << bits) - 1
        saved(tmp_path / "data" / str(i % 2) / f"{i}.png", Image.fromarray(levels))
    reader = open_reader(tmp_path / "data")
    for image in reader.images():
        np.testing.assert_allclose(image[1:, :, 0], GREY[1:] / 255, atol=0.01)
    assert any("more than 8 bits" in n or f"read as {bits}-bit" in n for n in reader.notes())


def test_a_float_picture(tmp_path: Path) -> None:
    unit = (GREY / 255).astype(np.float32)
    image, _ = read(saved(tmp_path / "a.tif", Image.fromarray(unit)))
    np.testing.assert_array_equal(image[..., 0], unit)
    with pytest.raises(OnnxspectError, match=r"a\.tif: its floating-point pixels span .*255, not \[0, 1\]"):
        read(saved(tmp_path / "a.tif", Image.fromarray(np.where(GREY.max() == GREY, 255, GREY).astype(np.float32))))


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
def test_as_torchvision_reads(tmp_path: Path, mode: str) -> None:
    original = Image.fromarray(COLOUR).convert("L" if mode in ("LA", "1") else "RGB").convert(mode)
    path = saved(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"), original)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("L" if mode in ("1", "LA") else "RGB"))
    image, notes = read(path)
    np.testing.assert_array_equal(image[..., 0] if mode in ("1", "LA") else image, expected)
    assert any("alpha" in n for n in notes) == (mode in ("RGBA", "LA"))
    assert any("CMYK" in n for n in notes) == (mode == "CMYK")


def test_a_rotation_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, notes = read(saved(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=exif))
    assert image.shape == (6, 5, 3)
    assert "EXIF rotation" in notes[0]


def test_a_gamma_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    data = path.read_bytes()
    chunk = b"gAMA" + struct.pack(">I", 100000)
    path.write_bytes(data[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    image, notes = read(path)
    np.testing.assert_array_equal(image, COLOUR)
    assert "gamma" in notes[0]


def test_what_starts_a_program_is_not_opened(tmp_path: Path) -> None:
    """EPS is Ghostscript's, under whatever name."""
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "EPS")
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_bytes(buffer.getvalue())
        with pytest.raises(OnnxspectError, match="not a readable image"):
            read(tmp_path / name)


def test_a_size_is_compared_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(OnnxspectError, match=r"bomb\.png"):
        read(tmp_path / "bomb.png")
    monkeypatch.setenv("ONNXSPECT_MAX_IMAGE_PIXELS", "29")
    with pytest.raises(OnnxspectError, match="5x6 are 30 pixels, more than the limit of 29") as caught:
        read(saved(tmp_path / "a.png", Image.fromarray(COLOUR)))
    assert "ONNXSPECT_MAX_IMAGE_PIXELS" in caught.value.hint
