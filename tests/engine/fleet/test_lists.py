"""Which models are meant, and what tells one scan from another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import quadrant_model, saved
from onnx.external_data_helper import convert_model_to_external_data

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.fleet.content import data_digest, model_digest
from onnxspect.engine.fleet.models import Wanted, found, is_many, options_of
from onnxspect.engine.fleet.plan import planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models in two folders, one hidden, one in a run; and what is none."""
    for name in ("a.onnx", "deep/b.keras", ".hidden.onnx", "run/model.onnx", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "run/run.sqlite").write_bytes(b"")
    (tmp_path / "saved/variables").mkdir(parents=True)
    (tmp_path / "saved/saved_model.pb").write_bytes(b"x")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "a.onnx")
    return tmp_path


def test_a_folder_and_a_pattern(folder: Path) -> None:
    names = [w.path.relative_to(folder).as_posix() for w in found([str(folder)])]
    assert names == ["a.onnx", "deep/b.keras", "saved"]
    assert [w.path.name for w in found([f"{folder}/**/*.keras", f"{folder}/a.onnx", f"{folder}/*.onnx"])] == [
        "b.keras", "a.onnx", "link.onnx"
    ]  # fmt: skip
    with pytest.raises(OnnxspectError, match="nothing matches"):
        found([f"{folder}/*.tflite"])
    with pytest.raises(OnnxspectError, match="no model in this folder"):
        found([str(folder / "run/..") + "/saved/variables"])


def test_what_means_one_model_stays_one(folder: Path) -> None:
    one = ["a.onnx", "saved", "nowhere.onnx", "deep/b.keras"]
    assert [is_many([str(folder / name)]) for name in one] == [False] * 4
    assert is_many([str(folder)])
    assert is_many([f"{folder}/*.onnx"])
    assert is_many(["a", "b"])
    odd = saved(quadrant_model(), folder / "[odd].onnx")  # a pattern by its letters, and a file by its name
    assert not is_many([str(odd)])
    assert found([str(odd)]) == [Wanted(odd)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.toml", 'data = "d.npz"\n[[model]]\npath = "a.onnx"\n[[model]]\npath = "deep/*"\npreset = "quick"\ntap = ["x", "y"]\n'),
        ("l.csv", "path,data,preset,tap\na.onnx,d.npz,,\ndeep/*,d.npz,quick,x\n"),
        ("l.jsonl", '{"path": "a.onnx", "data": "d.npz"}\n\n{"path": "deep/*", "data": "d.npz", "preset": "quick", "tap": ["x", "y"]}\n'),
    ],
)  # fmt: skip
def test_a_list(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    assert is_many([str(folder / name)])
    a, b = found([str(folder / name)])
    assert (a.path, dict(a.options)) == (folder / "a.onnx", {"data": (str(folder / "d.npz"),)})
    assert b.path == folder / "deep/b.keras"
    assert dict(b.options)["preset"] == ("quick",)
    assert dict(b.options)["tap"] in (("x", "y"), ("x",))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.toml", "model = 3\n", "no list of tables"),
        ("l.toml", '[[model]]\npath = "a.onnx"\nout = "/etc"\n', "unknown option out"),
        ("l.csv", "data\nd.npz\n", "no path"),
        ("l.jsonl", "[1]\n", "no object"),
        ("l.jsonl", '{"path": "a.onnx", "seed": {"a": 1}}\n', "seed is"),
        ("l.jsonl", '{"path": "a.onnx", "seed": [1, 2]}\n', "seed is"),
        ("l.toml", "x = [[[", "cannot be read as a list"),
        ("l.csv", "path\n", "names no model"),
    ],
)
def test_no_list(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(OnnxspectError, match=said):
        found([str(folder / name)])


def test_options_by_their_python_names() -> None:
    assert dict(options_of({"max_memory": "2G", "resize": True, "seed": 3}, "here")) == {
        "max-memory": ("2G",), "resize": ("try",), "seed": ("3",)
    }  # fmt: skip


def test_a_model_is_told_by_all_that_it_names(tmp_path: Path) -> None:
    """External data, by whatever name, count; a stranger beside the model does not."""
    model = quadrant_model()
    convert_model_to_external_data(model, location="weights of it.bin", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    assert (tmp_path / "weights of it.bin").exists()
    before = model_digest(tmp_path / "m.onnx")
    (tmp_path / "other.bin").write_bytes(b"x")
    assert model_digest(tmp_path / "m.onnx") == before
    data = bytearray((tmp_path / "weights of it.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights of it.bin").write_bytes(data)
    assert model_digest(tmp_path / "m.onnx") != before
    plain = saved(quadrant_model(), tmp_path / "plain.onnx")
    alone = model_digest(plain)
    (tmp_path / "plain.onnx.json").write_text("{}")  # what its conversion said of its classes
    assert model_digest(plain) != alone


def test_samples_are_told_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"x")
    before = data_digest(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert data_digest(tmp_path / "b") == before
    (tmp_path / "b/1.png").write_bytes(b"y")
    assert data_digest(tmp_path / "b") != before
    (tmp_path / "l.csv").write_text("file,label\nb/1.png,0\n")
    listed = data_digest(tmp_path / "l.csv")
    (tmp_path / "b/1.png").write_bytes(b"longer")
    assert data_digest(tmp_path / "l.csv") != listed


def test_what_a_key_depends_on(tmp_path: Path) -> None:
    a, b = saved(quadrant_model(), tmp_path / "a.onnx"), saved(quadrant_model(2), tmp_path / "b.onnx")
    copy = saved(quadrant_model(), tmp_path / "copy.onnx")
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    common = {"data": (str(tmp_path / "d.npz"),), "preset": ("quick",)}

    def of(path: Path, threads: int = 1, **more: tuple[str, ...]) -> tuple[str, str]:
        (scan,) = planned([Wanted(path)], common | more, threads)
        return scan.key, scan.group

    key, group = of(a)
    assert of(copy) == (key, group)
    assert of(b) == (of(b)[0], group) != (key, group)
    assert of(a, prior=("0.5",)) == (of(a, prior=("0.5",))[0], group) != (key, group)
    assert of(a, **{"max-memory": ("2G",)}) == (key, group)
    for other in (of(a, 2), of(a, seed=("1",)), of(a, preset=("standard",))):
        assert other[0] != key
        assert other[1] != group
    (lost,) = planned([Wanted(tmp_path / "lost.onnx")], common, 1)
    assert "no such file" in lost.problem
    (without,) = planned([Wanted(a)], {}, 1)
    assert "no clean samples" in without.problem
