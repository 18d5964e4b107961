"""Near ties between readings of the same pixels: what the file says, then how sure training leaves a network, then the plainest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import make_model, saved
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.sources.conversion import SIDECAR_SCHEMA
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.file_facts import class_list, stated_options
from onnxspect.engine.subject.input_range import choose
from onnxspect.engine.subject.preprocessing import candidates, preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.models import zoo

OPTIONS = candidates(1, "NCHW")
NAMES = [o.name for o in OPTIONS]


def answers(margins: list[float], wrong: int = 0, n: int = 40) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits of n samples of four classes, one array for each margin; the first `wrong` samples are answered wrongly."""
    labels = np.arange(n) % 4
    given = labels.copy()
    given[:wrong] = (given[:wrong] + 1) % 4
    return [m * np.eye(4)[given] for m in margins], labels


def test_the_plainest_of_those_that_fit_equally() -> None:
    logits, labels = answers([4.0, 1000.0, 8.0])
    found = choose(logits, labels)
    assert found.index == 0
    assert found.alike == (2,)  # the second is surer than training leaves a network


def test_accuracy_decides_where_it_can() -> None:
    (poor,), labels = answers([4.0], wrong=12)
    (good,), _ = answers([900.0])
    assert choose([poor, good], labels).index == 1


def test_the_files_own_word_settles_a_tie_and_no_more() -> None:
    logits, labels = answers([4.0, 5.0])
    found = choose(logits, labels, {1: "its metadata state the range"})
    assert (found.index, found.reason) == (1, "its metadata state the range")
    (poor,), _ = answers([5.0], wrong=12)
    assert choose([logits[0], poor], labels, {1: "says so"}).index == 0


def test_a_reading_under_which_nothing_is_learned() -> None:
    """A network without biases answers the same for pixels 255 times as small, as good as without conviction."""
    logits, labels = answers([5.0 / 255, 5.0])
    assert choose(logits, labels).index == 1


@pytest.fixture(scope="module")
def trained() -> dict[str, Subject]:
    """Small networks, each trained on the shipped images as one reading gives them."""
    data = Samples.load(zoo.path("fashion_mnist_test"))
    images, labels = torch.from_numpy(data.images[:600]), torch.from_numpy(data.labels[:600])
    found = {}
    for name in ("0..1", "0..255", "-1..1"):
        spec = OPTIONS[NAMES.index(name)]
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 10))
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(12):
            for rows in torch.randperm(len(images)).split(32):
                optimiser.zero_grad()
                functional.cross_entropy(network(spec.encode(images[rows])), labels[rows]).backward()
                optimiser.step()
        found[name] = Subject.from_module(network, (1, 28, 28))
    return found


def test_few_images_do_not_mislead(trained: dict[str, Subject]) -> None:
    """Twelve draws of ten and of two hundred images a network: never another range by a factor of 255, hardly ever another."""
    data = Samples.load(zoo.path("fashion_mnist_test")).take(np.arange(600, 1000))
    rng = np.random.default_rng(0)
    wrong, far, draws = 0, 0, 0
    for name, subject in trained.items():
        logits = [subject.with_spec(o).predict(data.images) for o in OPTIONS]
        for n in (10, 200):
            for _ in range(12):
                rows = rng.permutation(len(data))[:n]
                chosen = NAMES[choose([x[rows] for x in logits], data.labels[rows]).index]
                draws += 1
                wrong += chosen != name
                far += (chosen == "0..255") != (name == "0..255")
    assert far == 0
    assert wrong <= draws // 5


def affine(nodes: list[onnx.NodeProto], constants: dict[str, float], path: Path, **metadata: str) -> Path:
    """A linear model of 8x8 images behind some nodes from `image` to `x`."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32), "w")
    given = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()]
    rest = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["logits"])]
    model = make_model([*nodes, *rest], [weight, *given])
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key.replace("__", "."), value
    return saved(model, path)


@pytest.mark.parametrize(
    ("operators", "constants", "name"),
    [
        ((("Div", "a"),), {"a": 255.0}, "0..255"),
        ((("Mul", "a"), ("Sub", "b")), {"a": 1 / 127.5, "b": 1.0}, "0..255"),
        ((("Sub", "a"), ("Div", "b")), {"a": 120.0, "b": 60.0}, "0..255"),
        ((("Sub", "a"), ("Div", "b")), {"a": 0.5, "b": 0.25}, "0..1"),
        ((("Mul", "a"),), {"a": 1.0}, None),
    ],
)
def test_arithmetic_in_front_says_the_range(
    operators: tuple[tuple[str, str], ...], constants: dict[str, float], name: str | None, tmp_path: Path
) -> None:
    nodes, value = [], "image"
    for i, (operator, constant) in enumerate(operators):
        out = "x" if i == len(operators) - 1 else f"v{i}"
        nodes.append(helper.make_node(operator, [value, constant], [out]))
        value = out
    stated = stated_options(read_onnx(affine(nodes, constants, tmp_path / "m.onnx")), OPTIONS)
    assert [NAMES[i] for i in stated] == ([name] if name else [])


def test_metadata_and_the_sidecar_say_range_and_classes(tmp_path: Path) -> None:
    import json

    nodes = [helper.make_node("Identity", ["image"], ["x"])]
    path = affine(nodes, {}, tmp_path / "m.onnx", Image__NominalPixelRange="Normalized_1_1", names="{0: 'a', 1: 'b'}")
    file = read_onnx(path)
    assert [NAMES[i] for i in stated_options(file, OPTIONS)] == ["-1..1"]
    names = class_list(file)
    assert names is not None
    assert (names.names, names.certain) == (("a", "b"), False)
    facts = {
        "schema": SIDECAR_SCHEMA,
        "model": {"sha256": file.sha256},
        "input": {"range": [0, 255]},
        "classes": ["c", "d"],
    }
    (tmp_path / "m.onnx.json").write_text(json.dumps(facts))
    assert [NAMES[i] for i in stated_options(file, OPTIONS)] == ["0..255"]
    assert class_list(file).names == ("c", "d")  # type: ignore[union-attr]
    for wrong in (facts | {"model": {"sha256": "0" * 64}}, [], {"schema": 3}):
        (tmp_path / "m.onnx.json").write_text(json.dumps(wrong))
        assert [NAMES[i] for i in stated_options(file, OPTIONS)] == ["-1..1"]  # another file's, or none


def test_batch_norm_says_the_range(tmp_path: Path) -> None:
    """Global means behind a BatchNorm whose statistics are those of pixels to 255: accuracy is the same at any scale."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    images = rng.uniform(0, 0.3, (80, 1, 8, 8)).astype(np.float32)
    for image, k in zip(images, labels, strict=True):
        image[0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.6
    kernel = np.ones((1, 1, 4, 4), np.float32) / 16
    pooled = 255 * images.reshape(80, 2, 4, 2, 4).mean((2, 4))
    numbers = {
        "k": kernel,
        "scale": np.ones(1),
        "bias": np.full(1, 1e-3),
        "mean": np.array([pooled.mean()]),
        "var": np.array([pooled.var()]),
        "w": 3 * np.eye(4),
    }
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], strides=[4, 4]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["b"]),
        helper.make_node("Flatten", ["b"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    given = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in numbers.items()]
    subject = Subject.from_onnx(saved(make_model(nodes, given), tmp_path / "m.onnx"))
    found = preflight(subject, Samples.from_arrays(images, labels), RunContext())
    assert found.subject.spec == InputSpec("0..255", scale=255.0)
    assert "BatchNorm" in found.why
