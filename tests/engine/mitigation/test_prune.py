"""Pruning, on models whose backdoor is one known neuron: the right one goes, exactly, and nothing else does."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_model, saved
from onnx import helper, numpy_helper
from patch_support import (
    GUARD,
    TARGET,
    UNSEEN,
    additive_trigger,
    case_of,
    channel_model,
    neuron_model,
    opened,
    patch_trigger,
    planted,
    proven,
    written,
)
from PIL import Image

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.graph_edit import Mask
from onnxspect.engine.mitigation.neurons import last_convolutional, layers, masked, named_layer, switch_off
from onnxspect.engine.mitigation.prune import PICTURE, Prune
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.search.embedding import embed
from onnxspect.engine.subject.subject import InputSpec, Subject


def test_the_backdoor_neuron_alone_goes_by_weights_alone(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    edit = Prune().edit(case_of(subject))
    assert (edit.facts["layer"], edit.facts["exact"], edit.facts["pruned"], edit.facts["neurons"]) == (
        "hidden",
        True,
        1,
        5,
    )
    assert edit.additions == ()
    proof = proven(subject, edit, tmp_path)
    assert proof.holds, proof.failures
    assert (proof.triggers[0].before, proof.triggers[0].after) == (1.0, 0.0)
    assert (proof.accuracy_after, proof.agreement) == (1.0, 1.0)
    # Column 4 of the first Gemm and its bias are zero, and that is all that differs.
    assert {n for n, _ in proof.changed} == {"first", "bias"}
    assert proof.differences == proof.additions == ()
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "method.onnx").graph.initializer}
    before = {t.name: numpy_helper.to_array(t) for t in neuron_model().graph.initializer}
    assert not after["first"][:, 4].any()
    assert after["bias"][4] == 0
    np.testing.assert_array_equal(after["first"][:, :4], before["first"][:, :4])


def test_a_convolutions_channel_goes_by_weights_alone(tmp_path: Path) -> None:
    subject = opened(channel_model(), tmp_path)
    proof = proven(subject, Prune(layer="last-conv").edit(case_of(subject)), tmp_path)
    assert proof.holds, proof.failures
    assert {n for n, _ in proof.changed} == {"kernel", "kernel_bias"}
    assert (proof.triggers[0].after, proof.accuracy_after) == (0.0, 1.0)


@pytest.mark.parametrize("model", [neuron_model("Sigmoid"), channel_model(branch=True)], ids=["sigmoid", "sum"])
def test_where_weights_cannot_a_mask_does(model: onnx.ModelProto, tmp_path: Path) -> None:
    """sigmoid(0) is not 0; and a sum that has two readers below it has no one producer."""
    if model.graph.node[2].op_type == "Sigmoid":  # spread the logits, which a sigmoid squeezes
        tensor = model.graph.initializer[1]
        tensor.CopyFrom(numpy_helper.from_array(np.array([-9.0, -9, -9, -9, -6], np.float32), "bias"))
    subject = opened(model, tmp_path)
    layer = named_layer(layers(subject, every=True), "hidden" if len(model.graph.node) == 4 else "sum")
    assert not layer.exact
    off = np.zeros(layer.neurons, bool)
    off[-1] = True
    edit = switch_off(subject, layer, off)
    assert not edit.values
    proof = proven(subject, edit, tmp_path)
    assert proof.checker == ""
    assert proof.differences == proof.changed == ()
    assert len(proof.additions) == 1
    assert proof.triggers[0].after == 0.0
    # The mask is what the model cut in two at that layer says it is.
    embedding = embed(subject, layer.tap.name)
    stamped = patch_trigger().apply(UNSEEN.images)
    from_masked = embedding.answers(masked(embedding.activations(stamped), layer, ~off))
    oracle = Oracle(tmp_path / "method.onnx")
    np.testing.assert_array_equal(oracle.map("image", stamped, "logits").argmax(1), from_masked)


@pytest.mark.parametrize("model", [neuron_model(), channel_model()], ids=["dense", "convolution"])
def test_exact_and_mask_agree(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Switching off by weights gives the activations that multiplying by zero gives, for every neuron."""
    subject = opened(model, tmp_path)
    layer = last_convolutional(layers(subject))
    assert layer.exact
    embedding = embed(subject, layer.tap.name)
    assert subject.file is not None
    for neuron in range(layer.neurons):
        off = np.arange(layer.neurons) == neuron
        out = written(subject, switch_off(subject, layer, off), tmp_path, f"off-{neuron}")
        after = embed(Subject.from_onnx(out), layer.tap.name)
        expected = masked(embedding.activations(GUARD.images), layer, ~off).numpy()
        np.testing.assert_array_equal(after.activations(GUARD.images).numpy(), expected)


def test_the_curve_ends_where_the_trigger_is_dead_and_is_drawn(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    edit = Prune().edit(case_of(subject))
    trial = next(t for t in edit.facts["trials"] if t["layer"] == "hidden")
    assert [(p["pruned"], p["success"], p["accuracy"]) for p in trial["curve"]] == [(0, 1.0, 1.0), (1, 0.0, 1.0)]
    assert trial["dead"]
    picture = Image.open(io.BytesIO(edit.pictures[PICTURE]))
    assert picture.format == "PNG"
    assert picture.width > 300


def test_additive_triggers_and_several(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    edit = Prune().edit(case_of(subject, additive_trigger(), patch_trigger()))
    assert edit.facts["pruned"] == 1
    assert proven(subject, edit, tmp_path).holds


def test_twice_the_same_bits(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    one, two = (Prune().edit(case_of(subject)) for _ in range(2))
    assert one.pictures == two.pictures
    assert {n: v.tobytes() for n, v in one.values.items()} == {n: v.tobytes() for n, v in two.values.items()}


def test_a_layer_of_ones_own(tmp_path: Path) -> None:
    subject = opened(channel_model(), tmp_path)
    assert Prune(layer="active").edit(case_of(subject)).facts["layer"] == "active"
    with pytest.raises(OnnxspectError, match="nowhere: no layer whose neurons can be pruned") as caught:
        Prune(layer="nowhere").edit(case_of(subject))
    assert "active" in caught.value.hint


def test_shared_weights_are_left_alone(tmp_path: Path) -> None:
    """Two layers read one tensor: zeroing a row of it would change both, so a mask is used."""
    square = np.eye(64, dtype=np.float32)
    tensors = [numpy_helper.from_array(square, "shared"), numpy_helper.from_array(square[:, :4].copy(), "last")]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "shared"], ["one"]),
        helper.make_node("Relu", ["one"], ["two"]),
        helper.make_node("MatMul", ["two", "shared"], ["three"]),
        helper.make_node("Relu", ["three"], ["four"]),
        helper.make_node("MatMul", ["four", "last"], ["logits"]),
    ]
    found = layers(opened(make_model(nodes, tensors), tmp_path))
    assert [layer.tap.name for layer in found] == ["two", "four"]
    assert not any(layer.exact for layer in found)


def test_no_trigger_no_layer(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    case = case_of(subject)
    with pytest.raises(OnnxspectError, match="no trigger for prune"):
        Prune().edit(type(case)(subject, case.fit, case.guard, (), case.run))
    flat = make_model(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        [numpy_helper.from_array(np.zeros((64, 4), np.float32), "w")],
    )
    with pytest.raises(OnnxspectError, match="no inner layer"):
        Prune().edit(case_of(Subject.from_onnx(saved(flat, tmp_path / "flat.onnx"))))


def test_an_old_opset_gets_no_nodes() -> None:
    model = channel_model(branch=True)
    model.opset_import[0].version = 6
    with pytest.raises(OnnxspectError, match="of opset 6"):
        Mask("sum", 1, 4, np.array([True, False])).apply(model)
    assert len(model.graph.node) == 5


def test_a_masked_file_is_itself_a_model_to_patch(tmp_path: Path) -> None:
    """Names that a first patch added do not collide with those of a second."""
    subject = opened(channel_model(branch=True), tmp_path)
    layer = named_layer(layers(subject, every=True), "sum")
    once = written(subject, switch_off(subject, layer, np.array([False, True])), tmp_path, "once")
    again = Subject.from_onnx(once)
    layer = named_layer(layers(again, every=True), "sum")
    twice = written(again, switch_off(again, layer, np.array([False, True])), tmp_path, "twice")
    proof = verify(twice, once, UNSEEN, InputSpec(), planted())
    assert (proof.checker, proof.differences, len(proof.additions)) == ("", (), 1)
    assert TARGET not in Oracle(twice).map("image", UNSEEN.images[UNSEEN.labels != TARGET], "logits").argmax(1)
