"""Bad input: one line that names the file and the fact, a hint, status 2 or 3, no traceback, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import supervised
from onnx import TensorProto, helper
from PIL import Image

from onnxspect.cli.main import run
from onnxspect.models import zoo

MODEL = zoo.path("fashion_mnist_clean")
DATA = zoo.path("fashion_mnist_test")


def _npz(path: Path, n: int = 40, size: int = 28, labels: np.ndarray | None = None, channels: int = 1) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(n) % 10 if labels is None else labels)
    return path


def _model(path: Path, outputs: int = 10, inputs: int = 1) -> Path:
    names = [f"x{i}" for i in range(inputs)]
    nodes = [helper.make_node("Flatten", ["x0"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    if inputs > 1:
        nodes[0] = helper.make_node("Add", names[:2], ["s"])
        nodes.insert(1, helper.make_node("Flatten", ["s"], ["f"]))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [784, outputs], np.zeros(784 * outputs, np.float32))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1, 28, 28]) for n in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _make(kind: str, tmp: Path) -> tuple[Path, Path]:
    """(model, data) of one bad case."""
    model, data = MODEL, DATA
    if kind == "missing model":
        model = tmp / "missing.onnx"
    elif kind == "empty model":
        model = tmp / "empty.onnx"
        model.write_bytes(b"")
    elif kind == "truncated model":
        model = tmp / "truncated.onnx"
        model.write_bytes(MODEL.read_bytes()[:100_000])
    elif kind == "text instead of a model":
        model = tmp / "text.onnx"
        model.write_text("this is no model\n" * 50)
    elif kind == "folder instead of a model":
        model = tmp
    elif kind == "one class":
        model = _model(tmp / "one.onnx", outputs=1)
    elif kind == "two inputs":
        model = _model(tmp / "two.onnx", inputs=2)
    elif kind == "near chance":
        model = _model(tmp / "chance.onnx")
    elif kind == "missing data":
        data = tmp / "missing.npz"
    elif kind == "not an npz":
        data = tmp / "text.npz"
        data.write_text("no archive")
    elif kind == "npz without labels":
        data = tmp / "nolabels.npz"
        np.savez(data, images=np.zeros((3, 28, 28, 1), np.uint8))
    elif kind == "images of the wrong size":
        data = _npz(tmp / "size.npz", size=32)
    elif kind == "colour images":
        data = _npz(tmp / "colour.npz", channels=3)
    elif kind == "labels outside the classes":
        data = _npz(tmp / "labels.npz", labels=np.arange(40))
    elif kind == "one class of samples":
        data = _npz(tmp / "same.npz", labels=np.zeros(40, int))
    elif kind == "empty folder":
        data = tmp / "empty"
        data.mkdir()
    elif kind == "folders without images":
        data = tmp / "hollow"
        (data / "0").mkdir(parents=True)
    elif kind == "a broken image":
        data = tmp / "broken"
        (data / "0").mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(data / "0" / "good.png")
        (data / "0" / "bad.png").write_bytes(b"\x89PNG no more")
    return model, data


CASES = {
    "missing model": ("missing.onnx", {2}),
    "empty model": ("empty.onnx", {2}),
    "truncated model": ("truncated.onnx", {2}),
    "text instead of a model": ("text.onnx", {2}),
    "folder instead of a model": ("", {2}),
    "one class": ("answers one number for an image", {2}),
    "two inputs": ("2 inputs", {2}),
    "near chance": ("near chance", {2, 3}),
    "missing data": ("missing.npz", {2}),
    "not an npz": ("text.npz", {2}),
    "npz without labels": ("labels", {2}),
    "images of the wrong size": ("32x32", {2}),
    "colour images": ("3 channels", {2}),
    "labels outside the classes": ("label 39", {2}),
    "one class of samples": ("one class", {2}),
    "empty folder": ("an empty folder", {2}),
    "folders without images": ("no images", {2}),
    "a broken image": ("bad.png", {2}),
}


@pytest.mark.parametrize("kind", CASES)
def test_scan_says_what_is_wrong(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = _make(kind, tmp_path)
    words, statuses = CASES[kind]
    status = run(["scan", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--quiet"])
    out, err = capfd.readouterr()
    assert status in statuses, err
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    complaint = [line for line in err.splitlines() if line.startswith("onnxspect: ")]
    assert len(complaint) == 1
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan"],
        ["scan", "m.onnx"],
        ["scan", "m.onnx", "--data", "d", "--preset", "eternal"],
        ["scan", "m.onnx", "--data", "d", "--detector", "guesswork"],
        ["scan", "m.onnx", "--data", "d", "--tap", "relu", "--preset", "quick"],
        ["scan", "m.onnx", "--data", "d", "--perturb-at", "x", "--detector", "neural-cleanse"],
        ["scan", "m.onnx", "--data", "d", "--train", "nowhere.npz"],
        ["scan", "m.onnx", "--data", "d", "--mean", "a,b"],
        ["scan", "m.onnx", "--data", "d", "--std", "0"],
        ["patch", "m.onnx"],
        ["verify", "m.onnx"],
        ["report", "nowhere"],
        ["dance"],
        ["scan", "m.onnx", "--data", "d", "--seed", "-1"],
    ],
    ids=lambda a: " ".join(a),
)
def test_wrong_words_are_a_usage_error(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.strip()


def test_an_existing_output_survives_a_refused_patch(tmp_path: Path) -> None:
    existing = tmp_path / "patched.onnx"
    existing.write_bytes(b"precious")
    arguments = ["patch", str(MODEL), "--run", str(tmp_path / "none"), "--data", str(DATA), "-o", str(existing)]
    assert run(arguments) == 2
    assert existing.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [existing]


def test_a_tap_that_is_no_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Alone it is an error that names the tap; beside other detectors they still run, and the report says why it did not."""
    wrong = [
        "scan",
        str(supervised.plain(tmp_path)),
        "--data",
        str(supervised.data(tmp_path)),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--preset",
        "quick",
        "--tap",
        "no_such_layer",
    ]
    assert run([*wrong, "--detector", "cepa"]) in (2, 3)
    assert "no_such_layer" in capfd.readouterr().err
    status = run([*wrong, "--out", str(tmp_path / "other"), "--detector", "cepa", "--detector", "max-margin", "--json"])
    report = json.loads(capfd.readouterr().out)
    assert status == 3  # a first look alone convicts and acquits nobody
    detectors = {d["name"]: d for d in report["detectors"]}
    assert detectors["cepa"]["status"] == "skipped"
    assert "no_such_layer" in detectors["cepa"]["reason"]
    assert detectors["max-margin"]["status"] == "ran"
