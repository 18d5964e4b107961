"""Which framework's file it is, recognised by content; and what is said of files that are none."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.convert import convert, source_digest
from onnxspect.converters.sources.formats import FORMATS, detect


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
CONTENTS = {
    "onnx": b"\x08\x08\x3a\x02\x0a\x00\x42\x02\x10\x11",
    "torch-pickle": zipped("archive/data.pkl", "archive/data/0", "archive/version"),
    "torch-pickle, legacy": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "torch-script": zipped("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"),
    "torch-pt2": zipped("m/archive_format", "m/models/model.json", "m/data/sample_inputs/model.pt"),
    "torch-pt2, older": zipped("serialized_exported_program.json", "serialized_state_dict.pt"),
    "safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(4),
    "keras": zipped("metadata.json", "config.json", "model.weights.h5"),
    "keras-h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "keras-h5, user block": bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(100),
    "tflite": b"\x1c\x00\x00\x00TFL3" + bytes(100),
    "skops": zipped("schema.json", "1.npy"),
    "pickle": pickle.dumps({"a": 1}),
    "pickle, compressed": b"\x78\x9c" + bytes(100),
    "npz": zipped("arr_0.npy", "arr_1.npy"),
    "msgpack": b"\x82\xa6params\x80\xa5other\x80",
}


@pytest.mark.parametrize("kind", list(CONTENTS))
def test_recognised_by_content_not_by_name(tmp_path: Path, kind: str) -> None:
    for name in ("model.onnx", "model.h5", "model"):
        path = tmp_path / name
        path.write_bytes(CONTENTS[kind])
        assert detect(path).name == kind.split(",")[0]


def test_every_format_names_its_module_and_extra() -> None:
    folder = Path(__file__).parents[3] / "converters" / "sources"
    for kind in FORMATS.values():
        assert (folder / f"from_{kind.module}.py").is_file()
        assert kind.extra in ("", "torch", "keras", "tensorflow", "jax", "sklearn")


def test_folders(tmp_path: Path) -> None:
    for inside, kind in (("saved_model.pb", "saved-model"), ("_CHECKPOINT_METADATA", "orbax")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / inside).touch()
        assert detect(folder).name == kind
    with pytest.raises(OnnxspectError, match="neither a SavedModel nor an Orbax checkpoint"):
        detect(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"just words", "of no format that is known"),
        (b'{"a": 1}', "text, not a model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "an image"),
        (b"%PDF-1.7", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (zipped("readme.txt"), "a zip archive, but of no framework"),
        (zipped("model.onnx"), "a zip archive with an ONNX file"),
        (zipped("m/saved_model.pb"), "a zipped SavedModel"),
        (b"PK\x03\x04" + bytes(60), "a damaged zip archive"),
        (b"GGUF" + bytes(60), "a GGUF language model"),
    ],
)
def test_unknown_files_are_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(OnnxspectError, match=words) as caught:
        detect(path)
    assert "model.bin" in caught.value.message


def test_zip_with_millions_of_entries_is_not_listed(tmp_path: Path) -> None:
    """The end record promises 2^32 entries' worth of directory; zipfile would read it all."""
    path = tmp_path / "bomb.zip"
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFE, 0xFFFE, 3_000_000_000, 0, 0)
    path.write_bytes(b"PK\x03\x04" + bytes(100) + end)
    start = time.monotonic()
    with pytest.raises(OnnxspectError, match="entries"):
        detect(path)
    assert time.monotonic() - start < 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file kinds")
def test_fifo_and_device() -> None:
    with pytest.raises(OnnxspectError, match="a device"):
        detect(Path("/dev/zero"))


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "m"
    for content in CONTENTS.values():
        for _ in range(40):
            data = bytearray(content)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            path.write_bytes(data[: rng.integers(1, len(data) + 1)])
            with contextlib.suppress(OnnxspectError):
                detect(path)


# --- what `convert` checks before it starts anything -------------------------------------------------------------------


def test_place_of_the_output(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(CONTENTS["onnx"])
    with pytest.raises(OnnxspectError, match="folder does not exist"):
        convert(source, tmp_path / "none" / "out.onnx")
    with pytest.raises(OnnxspectError, match="is the source itself"):
        convert(source, source)
    with pytest.raises(OnnxspectError, match="is not a file"):
        convert(source, tmp_path)


def test_arguments(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(CONTENTS["onnx"])
    out = tmp_path / "out.onnx"
    with pytest.raises(OnnxspectError, match="not a format"):
        convert(source, out, framework="caffe")
    with pytest.raises(OnnxspectError, match="is of no image"):
        convert(source, out, input_shape=(3, 0, 5))
    with pytest.raises(OnnxspectError, match="no such file"):
        convert(tmp_path / "absent", out)
    assert not out.exists()


def test_digest_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"a")
    (folder / "variables" / "v").write_bytes(b"b")
    first = source_digest(folder, 100)
    assert first == source_digest(folder, 100)
    (folder / "variables" / "v").rename(folder / "v")
    assert source_digest(folder, 100) != first
    with pytest.raises(OnnxspectError, match="larger than the limit"):
        source_digest(folder, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_inside_a_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "assets").symlink_to("/etc/passwd")
    with pytest.raises(OnnxspectError, match="a symbolic link, inside a model's folder"):
        source_digest(folder, 1 << 20)
