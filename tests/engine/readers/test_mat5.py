"""MATLAB's files, read without native code: what scipy writes comes back, and what would crash scipy is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers import mat5
from onnxspect.engine.readers.forms import open_reader

KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
LARGE = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 7), np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_what_scipy_writes(packed: bool, tmp_path: Path) -> None:
    wanted = {f"of_{k}": np.arange(24).reshape(2, 3, 4).astype(k) for k in KINDS} | {"large": LARGE, "x": np.array(7)}
    path = tmp_path / "a.mat"
    savemat(path, wanted, do_compression=packed)
    found, other = mat5.arrays(path, wanted), loadmat(path)
    assert mat5.shapes(path).keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], other[name])
        assert found[name].dtype == other[name].dtype


def test_other_things_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"text": "words", "cell": {"a": 1}, "turned": np.array([1j]), "plain": np.eye(3)})
    assert {"text", "cell", "turned", "plain"} <= mat5.shapes(path).keys()
    assert mat5.arrays(path, ["plain"])["plain"].shape == (3, 3)
    for name in ("text", "cell", "turned"):
        with pytest.raises(ValueError, match=f"{name} is no array of real numbers"):
            mat5.arrays(path, [name])


def written(tmp_path: Path, change: bytes, into: bytes, packed: bool = False) -> Path:
    """A file of images and labels with some bytes changed."""
    stream = io.BytesIO()
    savemat(stream, {"images": LARGE, "labels": np.arange(3, dtype=np.uint8)[:, None]})
    data = stream.getvalue().replace(change, into, 1)
    assert data != stream.getvalue()
    if packed:
        kind, size = struct.unpack("<II", data[128:136])
        assert kind == 14
        element = zlib.compress(data[128 : 136 + size])
        data = data[:128] + struct.pack("<II", 15, len(element)) + element + data[136 + size :]
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    return path


SIDES = struct.pack("<4i", *LARGE.shape)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("change", "into"),
    [
        (SIDES, struct.pack("<4i", 2**31 - 1, 2**31 - 1, 4, 7)),
        (SIDES, struct.pack("<4i", -3, 5, 4, 7)),
        (SIDES, struct.pack("<4i", 3, 5, 4, 8)),
        (struct.pack("<II", 5, 16), struct.pack("<II", 5, 1 << 30)),
        (struct.pack("<II", 2, LARGE.size), struct.pack("<II", 2, 2**32 - 1)),
        (struct.pack("<II", 2, LARGE.size), struct.pack("<II", 77, LARGE.size)),
        (struct.pack("<II", 6, 8), struct.pack("<II", 6, 9)),
    ],
    ids=["more than memory", "less than none", "more than there is", "facts", "numbers", "kind", "flags"],
)
def test_a_tag_that_lies(change: bytes, into: bytes, packed: bool, tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError, match=r"a\.mat"):
        open_reader(written(tmp_path, change, into, packed))


def test_a_small_packed_file_does_not_unpack_to_a_large_one(tmp_path: Path) -> None:
    """A matrix whose facts are followed by gigabytes of zeros takes what its facts say."""
    data = written(tmp_path, b"MATLAB", b"matlab").read_bytes()
    size = struct.unpack("<I", data[132:136])[0]
    packer = zlib.compressobj(9)
    long = packer.compress(data[128 : 136 + size]) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64))
    long += packer.flush()
    path = tmp_path / "a.mat"
    path.write_bytes(data[:128] + struct.pack("<II", 15, len(long)) + long)
    np.testing.assert_array_equal(mat5.arrays(path, ["images"])["images"], LARGE)


def test_older_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"images": np.eye(3)}, format="4")
    with pytest.raises(OnnxspectError, match="level 5") as caught:
        open_reader(path)
    assert "-v7" in caught.value.hint
