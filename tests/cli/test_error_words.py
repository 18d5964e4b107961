"""Every error about the user's input says the one thing to do, and names no option that the command at hand does not have."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import SIDE, quadrant_images, quadrant_model, saved

from onnxspect.cli.command_table import ARGUMENTS
from onnxspect.cli.main import run
from onnxspect.converters.sources import convert as conversion
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.opening import open_model

ROOT = Path(__file__).parents[2]
ERRORS = ("OnnxspectError", "InconclusiveError", "MachineError")
#: What reads the user's files, and the commands whose options its hints may name.
ROOMS = {
    "engine/readers": ("scan", "data"),
    "engine/subject": ("scan", "cleanse"),
    "converters/sources": ("convert", "scan"),
    "converters/file/bound_inputs.py": ("scan",),
    "converters/file/input_face.py": ("scan",),
    "engine/cleansing": ("cleanse",),
    "engine/jobs": ("scan", "patch", "verify", "cleanse", "certify", "convert"),
}
CALLS = {"caused_by": 2} | dict.fromkeys(ERRORS, 1)


def raised(room: str) -> Iterator[tuple[str, str | None]]:
    """(where, source of the hint) of every error that a room raises by name; None without a hint."""
    files = sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / room]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name in CALLS and isinstance(node, ast.Call):
                given = [*node.args, *(k.value for k in node.keywords if k.arg == "hint")]
                hint = ast.unparse(given[CALLS[name]]) if len(given) > CALLS[name] else None
                yield f"{path.relative_to(ROOT)}:{node.lineno}", hint


def options(*commands: str) -> set[str]:
    known = json.loads(ARGUMENTS.read_text(encoding="utf-8"))
    return {d for c in commands for p in known[c] for d in p["declared"] if d.startswith("--")}


@pytest.mark.parametrize("room", ROOMS)
def test_every_error_about_the_input_says_what_to_do(room: str) -> None:
    found = list(raised(room))
    assert found
    assert [where for where, hint in found if hint in (None, "''")] == []


@pytest.mark.parametrize("room", ROOMS)
def test_hints_name_options_that_there_are(room: str) -> None:
    able = {*options(*ROOMS[room]), "--help"}
    for where, hint in raised(room):
        for command in re.findall(r"onnxspect (\w+) (?:[A-Z]{2}|-|\{)", hint or ""):
            assert command in json.loads(ARGUMENTS.read_text(encoding="utf-8")), where
        named = set(re.findall(r"--[a-z][a-z-]+", hint or ""))
        assert named <= able, (where, named - able)


@pytest.mark.parametrize(
    ("arguments", "status", "fact", "way"),
    [
        (["data", "none"], 2, "none: no such file or folder", "a folder of images by class"),
        (["data", "https://example.com/set.zip"], 2, "stays off the network", "fetch it first"),
        (["data", "array.npy"], 2, "an .npy array", "np.savez"),
        (["data", "images.npz"], 2, "no `images` and `labels` in it (found x)", "images/labels"),
        (["data", "five.npz"], 2, "images have 5 axes", "an array (n, height, width, channels)"),
        (["data", "cut.npz"], 2, "cut.npz: not a readable npz file", "save it anew"),
        (["scan", "m.onnx"], 2, "no clean samples are given", "--data PATH"),
        (
            ["scan", "m.onnx", "--data", "large.npz"],
            2,
            "images are 9x9 with 1 channel, the model takes 8x8",
            "--resize",
        ),
        (["scan", "m.onnx", "--data", "one.npz"], 2, "all samples are of one class", "at least two classes"),
        (["scan", "m.onnx", "--data", "noise.npz"], 2, "near chance", "these are not the model's data"),
        (["scan", "m.onnx", "--data", "high.npz"], 2, "label 9, but m.onnx has 4 classes (0 to 3)", "--classes"),
        (["scan", "m.onnx", "--data", "d.npz", "--budget", "soon"], 2, "'soon' is no duration", "such as 90s, 10m"),
        (["scan", "m.onnx", "--data", "d.npz", "--crop", "8"], 2, "--crop says what is cut", "--resize N --crop 8"),
        (["scan", "d.npz", "--data", "d.npz"], 2, "d.npz", ""),
        (["scan", "m.onnx", "--data", "m.onnx"], 2, "m.onnx", ""),
        (["convert", "m.onnx", "-o", "no/x.onnx"], 2, "its folder does not exist", "make the folder first"),
        (["convert", "m.onnx", "-o", "x.onnx", "--input-shape", "big"], 2, "--input-shape 'big'", "3,224,224"),
        (["patch", "m.onnx", "--run", "none", "--data", "d.npz", "-o", "x.onnx"], 2, "none", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_a_new_user_does_wrong(
    arguments: list[str], status: int, fact: str, way: str, wrong: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(wrong)
    assert run(arguments) == status
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith(("onnxspect: ", "  hint: "))]
    assert [x[:8] for x in lines] == ["onnxspec", "  hint: "], lines  # the fact, and one thing to do
    assert fact in lines[0]
    assert way in lines[1]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model and good data among what is not."""
    folder = tmp_path_factory.mktemp("wrong")
    saved(quadrant_model(), folder / "m.onnx")
    good = quadrant_images(8)
    np.savez(folder / "d.npz", images=good.images, labels=good.labels)
    np.save(folder / "array.npy", good.images)
    np.savez(folder / "images.npz", x=good.images)
    np.savez(folder / "five.npz", images=good.images[None], labels=good.labels[:1])
    (folder / "cut.npz").write_bytes((folder / "d.npz").read_bytes()[:2000])
    np.savez(folder / "large.npz", images=np.zeros((8, 9, 9), np.uint8), labels=np.arange(8) % 2)
    np.savez(folder / "one.npz", images=good.images, labels=np.zeros(len(good), int))
    rng = np.random.default_rng(0)
    np.savez(folder / "noise.npz", images=rng.random((80, SIDE, SIDE)), labels=np.arange(80) % 4)
    np.savez(folder / "high.npz", images=good.images, labels=np.where(good.labels == 3, 9, good.labels))
    return folder


def test_what_only_convert_can_be_given_is_a_matter_of_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scan` of another framework's file that leaves something open: it has no --input-shape, and so names the command that has."""
    path = tmp_path / "any size.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    asked = OnnxspectError("takes images of any size", "give the shape of one sample: --input-shape 224,224,3")
    monkeypatch.setattr(
        "onnxspect.engine.subject.opening.convert", lambda *_: (_ for _ in ()).throw(asked), raising=True
    )
    with pytest.raises(OnnxspectError, match="takes images of any size") as caught:
        open_model(path)
    assert caught.value.hint == (
        "give the shape of one sample to convert, and its result here: "
        f"onnxspect convert {path} -o model.onnx --input-shape 224,224,3"
    )
    assert caught.value.kind is asked.kind


def test_convert_does_not_send_to_convert(tmp_path: Path) -> None:
    old = quadrant_model()
    del old.opset_import[:]
    onnx.save(old, tmp_path / "old.onnx")
    with pytest.raises(OnnxspectError, match="opset 1 cannot be upgraded to 17") as caught:
        conversion.convert(tmp_path / "old.onnx", tmp_path / "new.onnx")
    assert caught.value.hint == "export the model again at opset 17"
