"""A classifier at an internal layer: taps by name, index and depth; live modules; perturbing an inner tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cepa_support import HIDDEN, hidden_model, hidden_of
from conftest import CLASSES, SIDE, make_model, quadrant_images, saved
from onnx import TensorProto, helper, numpy_helper
from tolerances import SUM_32
from torch import Tensor, nn

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.cepa import CONSENSUS, Cepa
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.embedding import PIXELS, choose_taps, embed, embedded, from_discrete, perturbing, places
from onnxspect.engine.subject.subject import Subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.from_onnx(saved(hidden_model(), tmp_path_factory.mktemp("tiny") / "hidden.onnx"))


class Blocks(nn.Module):
    """Two convolutions with a pooling between, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 5, 3, padding=1)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(5 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = torch.nn.functional.max_pool2d(self.first(x).relu(), 2)
        return self.head(self.second(x).relu().flatten(1))


@pytest.fixture(scope="module")
def live() -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Subject.from_module(Blocks(), (1, SIDE, SIDE))


def test_the_embedding_is_the_hidden_layer(subject: Subject) -> None:
    images = quadrant_images(3).images
    found = embed(subject, "hidden")
    assert found.shape == (HIDDEN,)
    assert found.depth == 0.5
    embedding, logits = found.both(torch.from_numpy(images))
    np.testing.assert_allclose(embedding.numpy(), hidden_of(images), atol=SUM_32)
    np.testing.assert_allclose(found(torch.from_numpy(images)).numpy(), hidden_of(images), atol=SUM_32)
    assert torch.equal(logits, subject(torch.from_numpy(images)))


def test_the_pixels_are_a_tap(subject: Subject) -> None:
    pixels = torch.from_numpy(quadrant_images(1).images)
    found = embed(subject, PIXELS)
    embedding, logits = found.both(pixels)
    assert embedding is pixels
    assert torch.equal(logits, subject(pixels))
    assert found.shape == (1, SIDE, SIDE)
    assert choose_taps(subject, [PIXELS, "hidden"]) == [PIXELS, "hidden"]


def test_taps_by_name_index_and_depth(subject: Subject) -> None:
    assert places(subject) == ["flat", "sums", "hidden"]
    assert choose_taps(subject, ["hidden", 0, "1", 2]) == ["hidden", "flat", "sums"]
    # No value has positions: the deepest that is not too deep.
    assert choose_taps(subject, [0.0, 0.4]) == ["flat"]
    assert choose_taps(subject, ["auto", 0.9]) == ["hidden"]


def test_depth_prefers_complete_layers_with_positions(clean_subject: Subject) -> None:
    graph = {t: embed(clean_subject, t).shape for t in choose_taps(clean_subject, [0.25, 0.5, 1.0])}
    assert [len(shape) for shape in graph.values()] == [3, 3, 3]
    operators = {o: n.op_type for n in clean_subject.file.proto.graph.node for o in n.output}  # type: ignore[union-attr]
    assert {operators[t] for t in graph} == {"MaxPool"}


@pytest.mark.parametrize(
    ("tap", "message"),
    [("nothing", "computes no value named nothing"), (3, "no tap 3"), (-1, "no tap -1"), ("7", "no tap 7")],
)
def test_no_such_tap(subject: Subject, tap: str | int, message: str) -> None:
    with pytest.raises(OnnxspectError, match=message):
        choose_taps(subject, [tap])


def test_a_value_beside_a_path_is_no_tap(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((SIDE * SIDE, CLASSES), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["left"]),
        helper.make_node("Tanh", ["flat"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w"], ["logits"]),
    ]
    subject = Subject.from_onnx(saved(make_model(nodes, [weight]), tmp_path / "paths.onnx"))
    with pytest.raises(OnnxspectError, match="left is no cut: there is a path"):
        embed(subject, "left")
    assert embed(subject, "sum").shape == (SIDE * SIDE,)


def test_a_value_whose_first_axis_does_not_count_images_is_no_tap(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((SIDE * SIDE, CLASSES), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["turned"], perm=[1, 0]),
        helper.make_node("Relu", ["turned"], ["bent"]),
        helper.make_node("Transpose", ["bent"], ["back"], perm=[1, 0]),
        helper.make_node("MatMul", ["back", "w"], ["logits"]),
    ]
    subject = Subject.from_onnx(saved(make_model(nodes, [weight]), tmp_path / "turned.onnx"))
    with pytest.raises(OnnxspectError, match="first axis of this value does not count the images"):
        embed(subject, "bent")


def test_a_live_module_is_tapped_at_the_input_of_a_submodule(live: Subject) -> None:
    pixels = torch.from_numpy(quadrant_images(2).images)
    module = live.module
    assert isinstance(module, Blocks)
    assert places(live) == ["second", "unused", "head"]
    found = embed(live, "second")
    assert found.shape == (3, 4, 4)
    embedding, logits = found.both(pixels)
    assert torch.equal(embedding, torch.nn.functional.max_pool2d(module.first(pixels).relu(), 2))
    assert torch.equal(logits, live(pixels))
    assert not module.second._forward_pre_hooks


def test_a_live_module_has_no_such_submodule(live: Subject) -> None:
    with pytest.raises(OnnxspectError, match="no submodule elsewhere"):
        embed(live, "elsewhere")
    with pytest.raises(OnnxspectError, match="unused takes no part"):
        embed(live, "unused")


def test_a_plain_function_has_no_taps(subject: Subject) -> None:
    bare = Subject(lambda x: x.flatten(1)[:, :CLASSES], subject.spec, subject.image_shape, CLASSES)
    with pytest.raises(OnnxspectError, match="plain function"):
        choose_taps(bare, [0.5])


def test_perturbing_an_inner_tensor(subject: Subject) -> None:
    samples = quadrant_images(3)
    inside = perturbing(subject, "sums")
    inner = embedded(subject, "sums", samples, batch_size=5)
    assert inner.images.shape == (len(samples), HIDDEN)
    assert inside.classes == CLASSES
    np.testing.assert_allclose(inside.predict(inner.images), subject.predict(samples.images), atol=SUM_32)
    # It is tapped in turn, behind the tensor that is perturbed.
    assert places(inside) == ["hidden"]
    hidden = embed(inside, "hidden")(torch.from_numpy(inner.images))
    np.testing.assert_allclose(hidden.numpy(), hidden_of(samples.images), atol=SUM_32)


def test_only_a_file_can_be_perturbed_inside(live: Subject) -> None:
    with pytest.raises(OnnxspectError, match="only a model from a file"):
        perturbing(live, "second")


VOCABULARY, LENGTH, WIDTH = 9, 5, 6


def token_model() -> onnx.ModelProto:
    """Token ids int64 (n, 5) -> embedding table -> leaky Relu -> mean over positions -> four logits."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    # Every class has an axis of its own, so that every class can be reached.
    weight = (np.eye(WIDTH, CLASSES) + 0.1 * rng.normal(size=(WIDTH, CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["vectors"]),
        helper.make_node("LeakyRelu", ["vectors"], ["bent"], alpha=0.5),
        helper.make_node("ReduceMean", ["bent"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", LENGTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model


def test_a_model_of_discrete_inputs_is_seen_from_its_first_continuous_tensor_on(tmp_path: Path) -> None:
    path = saved(token_model(), tmp_path / "tokens.onnx")
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (7, LENGTH))
    subject, samples = from_discrete(path, "vectors", tokens, np.arange(7) % CLASSES)
    table, weight = (numpy_helper.to_array(t) for t in token_model().graph.initializer)
    np.testing.assert_array_equal(samples.images, table[tokens])
    assert samples.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    bent = np.where(table[tokens] > 0, table[tokens], 0.5 * table[tokens])
    expected = bent.mean(1) @ weight
    np.testing.assert_allclose(subject.predict(samples.images), expected, atol=SUM_32)
    assert places(subject) == ["bent", "mean"]


def test_cepa_searches_it_there(tmp_path: Path) -> None:
    path = saved(token_model(), tmp_path / "tokens.onnx")
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (60, LENGTH))
    subject, samples = from_discrete(path, "vectors", tokens, np.arange(60) % CLASSES)
    labelled = replace(samples, labels=subject.predict(samples.images).argmax(1))
    detector = Cepa(taps=("mean",), bounds=None, carried=1, search=replace(CONSENSUS, samples=12))
    found = detector.run(AtHand(subject, labelled, labelled, RunContext()))
    assert isinstance(found, Evidence)
    for unit in found.units:
        assert unit.found
        assert unit.search_success >= 0.9
        assert unit.trigger["delta"].shape == (LENGTH, WIDTH)
        assert unit.trigger["mu"].shape == (WIDTH,)


@pytest.mark.parametrize(
    ("value", "shape", "labels", "message"),
    [
        ("elsewhere", (4, LENGTH), 4, "computes no value named elsewhere"),
        ("vectors", (4, LENGTH), 3, "4 inputs but 3 labels"),
        ("vectors", (0, LENGTH), 0, "0 inputs"),
    ],
)
def test_bad_discrete_inputs(tmp_path: Path, value: str, shape: tuple[int, ...], labels: int, message: str) -> None:
    path = saved(token_model(), tmp_path / "tokens.onnx")
    with pytest.raises(OnnxspectError, match=message):
        from_discrete(path, value, np.zeros(shape, np.int64), np.zeros(labels, np.int64))


def test_discrete_inputs_that_the_model_does_not_take(tmp_path: Path) -> None:
    path = saved(token_model(), tmp_path / "tokens.onnx")
    with pytest.raises(OnnxspectError, match="does not run on inputs of shape"):
        from_discrete(path, "vectors", np.full((2, LENGTH), VOCABULARY + 3), np.zeros(2, np.int64))
