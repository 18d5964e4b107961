"""The filter inside the file: what it rejects, what it leaves alone, and that any runtime can run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_model, quadrant_images, saved
from onnx import TensorProto, helper, numpy_helper
from patch_support import (
    UNSEEN,
    case_of,
    channel_model,
    neuron_model,
    opened,
    patch_trigger,
    planted,
    proven,
    quantised,
    written,
)
from tolerances import NETWORK_32, OPERATION_32, REORDERED_64

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.graph_edit import Filter, Reading
from onnxspect.engine.mitigation.input_filter import FORMS, InputFilter
from onnxspect.engine.mitigation.method import Edit
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.subject.subject import InputSpec, Subject


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", [neuron_model(), channel_model()], ids=["dense", "convolution"])
def test_it_rejects_stamped_images_and_passes_clean_ones(model: onnx.ModelProto, form: str, tmp_path: Path) -> None:
    subject = opened(model, tmp_path)
    edit = InputFilter(form, false_positives=0.05).edit(case_of(subject, fit=quadrant_images(60, 0)))
    assert not edit.values
    proof = proven(subject, edit, tmp_path, Goals(rejected=0.12))
    assert proof.holds, proof.failures
    assert proof.rejected is not None
    assert proof.rejected <= 0.12
    (effect,) = proof.triggers
    assert (effect.before, effect.after, effect.rejected) == (1.0, 0.0, 1.0)
    assert (proof.agreement, proof.accuracy_after) == (1.0, 1.0)
    assert proof.checker == ""
    assert proof.differences == proof.changed == ()
    assert proof.additions[0] == "outputs backdoor_score and rejected added"


def test_the_file_runs_at_any_batch_size_and_keeps_its_outputs(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    out = written(subject, InputFilter().edit(case_of(subject)), tmp_path)
    assert subject.file is not None
    before, after = Oracle(subject.file.path), Oracle(out)
    assert list(after.outputs) == [*before.outputs, "backdoor_score", "rejected"]
    assert [after.outputs[n][1] for n in ("backdoor_score", "rejected")] == ["tensor(float)", "tensor(bool)"]
    images = patch_trigger().apply(UNSEEN.images)
    whole = after.run({"image": images})
    for n in (1, 2, 7):
        logits, score, rejected = after.run({"image": images[:n]})
        assert (logits.shape, score.shape, rejected.shape) == ((n, 4), (n,), (n,))
        for part, all_ in zip((logits, score, rejected), whole, strict=True):
            np.testing.assert_allclose(part, all_[:n], rtol=OPERATION_32, atol=OPERATION_32)
    np.testing.assert_array_equal(before.run({"image": images})[0], whole[0])
    # The guarded file is still a classifier to this tool.
    again = Subject.from_onnx(out)
    np.testing.assert_allclose(again.predict(images), subject.predict(images), rtol=OPERATION_32, atol=OPERATION_32)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_profile_rejects_little_less_than_the_promised_share_of_the_samples_that_calibrated_it(
    share: float, tmp_path: Path
) -> None:
    subject = opened(neuron_model(), tmp_path)
    case = case_of(subject, fit=quadrant_images(30, 5), guard=quadrant_images(20, 6))
    out = written(subject, InputFilter(form="profile", false_positives=share).edit(case), tmp_path)
    rejected = Oracle(out).map("image", case.fit.images, "rejected").mean()
    error = (share * (1 - share) / len(case.fit)) ** 0.5
    assert max(0, share - error - 1 / len(case.fit)) <= rejected <= share - error + REORDERED_64


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_the_discriminant_rejects_little_less_than_the_promised_share_of_samples_it_has_not_seen(
    share: float, tmp_path: Path
) -> None:
    """Fitted on as many images as the layer has features, where the fitted images' own scores would promise too much."""
    subject, found, draws = opened(channel_model(), tmp_path), [], 8
    for seed in range(draws):
        case = case_of(subject, fit=quadrant_images(30, 100 + seed), guard=quadrant_images(20, 200 + seed))
        out = written(subject, InputFilter(false_positives=share).edit(case), tmp_path)
        found.append(Oracle(out).map("image", quadrant_images(50, 300 + seed).images, "rejected").mean())
    cautious = share - (share * (1 - share) / len(case.fit)) ** 0.5
    error = (share * (1 - share) * (1 / len(case.fit) + 1 / 200) / draws) ** 0.5
    assert abs(np.mean(found) - cautious) <= 3 * error


def test_the_largest_of_several_targets_scores_counts(tmp_path: Path) -> None:
    """Before and after ReduceMax took its axes as an input, against numpy."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    offsets = rng.normal(size=3).astype(np.float32)
    for opset in (7, 13, 18, 21):
        model = neuron_model()
        model.opset_import[0].version = opset
        subject = opened(model, tmp_path)
        readings = (Reading("hidden", first), Reading("before", second, np.array([4, 1])))
        out = written(subject, Edit(additions=(Filter(readings, offsets, 0.5),)), tmp_path, f"opset-{opset}")
        onnx.checker.check_model(onnx.load(out), full_check=True)
        oracle, images = Oracle(out), UNSEEN.images
        flat = images.reshape(len(images), -1)
        weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        before = flat @ weights["first"] + weights["bias"]
        expected = (np.maximum(before, 0) @ first + before[:, [4, 1]] @ second + offsets).max(1)
        np.testing.assert_allclose(
            oracle.map("image", images, "backdoor_score"), expected, rtol=NETWORK_32, atol=NETWORK_32
        )
        np.testing.assert_array_equal(oracle.map("image", images, "rejected"), expected > 0.5)


def test_names_that_are_taken_are_not_taken_again(tmp_path: Path) -> None:
    """A model that has outputs and values of these names already."""
    model = neuron_model()
    graph = model.graph
    graph.node.append(helper.make_node("Identity", ["logits"], ["rejected"], name="onnxspect/filter/Gather"))
    graph.node.append(helper.make_node("Identity", ["logits"], ["backdoor_score"]))
    graph.output.append(helper.make_tensor_value_info("rejected", TensorProto.FLOAT, ["N", 4]))
    onnx.checker.check_model(model)
    subject = opened(model, tmp_path)
    edit = InputFilter().edit(case_of(subject))
    out = written(subject, edit, tmp_path)
    assert list(Oracle(out).outputs) == ["logits", "rejected", "backdoor_score_2", "rejected_2"]
    proof = proven(subject, edit, tmp_path, Goals(rejected=0.12))
    assert proof.holds, proof.failures
    assert proof.triggers[0].rejected == 1.0


def test_half_precision(tmp_path: Path) -> None:
    """Activations of fp16 are scored in float32."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "first"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["out"]),
        helper.make_node("Cast", ["out"], ["logits"], to=TensorProto.FLOAT),
    ]
    plain = {t.name: numpy_helper.to_array(t) for t in neuron_model().graph.initializer}
    tensors = [numpy_helper.from_array(plain[n].astype(np.float16), n) for n in ("first", "second")]
    subject = opened(make_model(nodes, tensors), tmp_path)
    edit = InputFilter(layer="hidden").edit(case_of(subject))
    proof = proven(subject, edit, tmp_path, Goals(rejected=0.12))
    assert (proof.checker, proof.triggers[0].rejected) == ("", 1.0)


def test_quantised_weights_are_no_obstacle(tmp_path: Path) -> None:
    """The filter adds nodes and changes no weight."""
    subject = Subject.from_onnx(saved(quantised(), tmp_path / "model.onnx"))
    proof = proven(subject, InputFilter().edit(case_of(subject)), tmp_path, Goals(rejected=0.12))
    assert proof.holds, proof.failures


def test_twice_the_same_bits(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    one, two = (written(subject, InputFilter().edit(case_of(subject)), tmp_path, n) for n in ("one", "two"))
    a, b = onnx.load(one), onnx.load(two)
    for model in (a, b):
        del model.metadata_props[:]
    assert a == b


def test_refusals(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    case = case_of(subject)
    with pytest.raises(OnnxspectError, match="no trigger for input-filter"):
        InputFilter().edit(replace(case, triggers=()))
    with pytest.raises(OnnxspectError, match="unknown form of filter"):
        InputFilter(form="magic")
    with pytest.raises(OnnxspectError, match="nowhere: no such layer"):
        InputFilter(layer="nowhere").edit(case)
    with pytest.raises(OnnxspectError, match="between 0 and 1"):
        InputFilter(false_positives=0.0)
    with pytest.raises(OnnxspectError, match="computes no value of this name"):
        Filter((Reading("nowhere", np.ones((1, 1))),), np.zeros(1), 0.0).apply(neuron_model())


def test_a_filter_that_rejects_too_much_is_not_proven(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    out = written(subject, InputFilter(false_positives=0.5).edit(case_of(subject)), tmp_path)
    assert subject.file is not None
    proof = verify(out, subject.file.path, UNSEEN, InputSpec(), planted())
    assert not proof.holds
    assert "of clean images are rejected (at most 5.0% is allowed)" in proof.failures[0]


def test_other_extra_outputs_are_no_patch(tmp_path: Path) -> None:
    """Only what a filter added may come on top of the original's outputs."""
    subject = opened(neuron_model(), tmp_path)
    model = neuron_model()
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["copy"]))
    model.graph.output.append(helper.make_tensor_value_info("copy", TensorProto.FLOAT, ["N", 4]))
    assert subject.file is not None
    with pytest.raises(OnnxspectError, match="not a patch of"):
        verify(saved(model, tmp_path / "other.onnx"), subject.file.path, UNSEEN, InputSpec(), {})
