"""The target's logit is suppressed in stamped images, and in nothing else, in a file that looks as it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_model, quadrant_images
from onnx import TensorProto, helper, numpy_helper
from patch_support import (
    TARGET,
    UNSEEN,
    case_of,
    channel_model,
    neuron_model,
    opened,
    patch_trigger,
    proven,
    written,
)
from tolerances import NETWORK_32, OPERATION_32, SUM_32

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.mitigation.graph_edit import LogitSuppression, Reading
from onnxspect.engine.mitigation.method import Edit
from onnxspect.engine.mitigation.target_logit_suppression import TargetLogitSuppression
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import UNTARGETED, stamp

STAMPED = patch_trigger().apply(UNSEEN.images)


@pytest.mark.parametrize("model", [neuron_model(), channel_model()], ids=["dense", "convolution"])
def test_stamped_images_are_answered_as_unstamped_ones(model: onnx.ModelProto, tmp_path: Path) -> None:
    subject = opened(model, tmp_path)
    edit = TargetLogitSuppression().edit(case_of(subject, fit=quadrant_images(60, 0)))
    assert not edit.values
    proof = proven(subject, edit, tmp_path)
    assert proof.holds, proof.failures
    (effect,) = proof.triggers
    assert (effect.before, effect.after, effect.rejected) == (1.0, 0.0, None)
    assert (proof.accuracy_after, proof.rejected, proof.suppressed) == (1.0, None, True)
    assert proof.differences == proof.changed == ()
    answers = Subject.from_onnx(written(subject, edit, tmp_path)).predict(STAMPED).argmax(1)
    others = UNSEEN.labels != TARGET
    np.testing.assert_array_equal(answers[others], UNSEEN.labels[others])


def test_the_file_looks_as_it_did_and_runs_at_any_batch_size(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    out = written(subject, TargetLogitSuppression().edit(case_of(subject)), tmp_path)
    assert subject.file is not None
    before, after = Oracle(subject.file.path), Oracle(out)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    clean, stamped = (after.run({"image": i})[0] for i in (UNSEEN.images, STAMPED))
    np.testing.assert_array_equal(clean, before.run({"image": UNSEEN.images})[0])  # bit for bit
    for n in (1, 2, 7):
        np.testing.assert_allclose(
            after.run({"image": STAMPED[:n]})[0], stamped[:n], rtol=OPERATION_32, atol=OPERATION_32
        )
    # The target's logit is suppressed and no other.
    plain = before.run({"image": STAMPED})[0]
    kept = np.arange(4) != TARGET
    np.testing.assert_array_equal(stamped[:, kept], plain[:, kept])
    others = UNSEEN.labels != TARGET
    np.testing.assert_array_equal(stamped[others, TARGET], plain[others].min(1))
    # The torch graph of it says the same.
    np.testing.assert_allclose(Subject.from_onnx(out).predict(STAMPED), stamped, rtol=SUM_32, atol=SUM_32)


@pytest.mark.parametrize("opset", [9, 13, 18, 21])
def test_each_target_by_its_own_score(opset: int, tmp_path: Path) -> None:
    """Before and after axes became an input, against numpy; one of the readings is the class scores themselves."""
    rng = np.random.default_rng(0)
    model = neuron_model()
    model.opset_import[0].version = opset
    subject = opened(model, tmp_path)
    first, second = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    hidden = np.maximum(UNSEEN.images.reshape(len(UNSEEN), -1) @ weights["first"] + weights["bias"], 0)
    expected = hidden @ weights["second"]
    answers, least, scores = expected.argmax(1), expected.min(1), hidden @ first + expected @ second
    # Half of the images that are answered as a target are above the threshold.
    middle = [np.median(scores[answers == target, column]) for column, target in enumerate((3, 1))]
    offsets = 0.3 - np.array(middle, np.float32)
    added = LogitSuppression((Reading("hidden", first), Reading("logits", second)), offsets, 0.3, (3, 1), "logits", 4)
    out = written(subject, Edit(additions=(added,)), tmp_path)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    for column, target in enumerate((3, 1)):
        suppressed = (scores[:, column] + offsets[column] > 0.3) & (answers == target)
        assert 0 < suppressed.sum() < (answers == target).sum()
        expected[:, target] = np.where(suppressed, least, expected[:, target])
    np.testing.assert_allclose(Oracle(out).run({"image": UNSEEN.images})[0], expected, rtol=NETWORK_32, atol=NETWORK_32)


def test_probabilities_and_labels_follow(tmp_path: Path) -> None:
    """What is computed from the class scores sees what is left of them."""
    model = neuron_model()
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
    model.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 4]))
    onnx.checker.check_model(model, full_check=True)
    subject = opened(model, tmp_path)
    out = written(subject, TargetLogitSuppression().edit(case_of(subject)), tmp_path)
    label, probabilities = Oracle(out).run({"image": STAMPED})
    others = UNSEEN.labels != TARGET
    np.testing.assert_array_equal(label[others], UNSEEN.labels[others])
    np.testing.assert_array_equal(probabilities.argmax(1), label)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=SUM_32)


def test_half_precision(tmp_path: Path) -> None:
    """Class scores of fp16 stay fp16."""
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Flatten", ["half"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["logits"]),
    ]
    plain = {t.name: numpy_helper.to_array(t) for t in neuron_model().graph.initializer}
    tensors = [numpy_helper.from_array(plain[n].astype(np.float16), n) for n in ("first", "second")]
    model = make_model(nodes, tensors)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    subject = opened(model, tmp_path)
    out = written(subject, TargetLogitSuppression().edit(case_of(subject)), tmp_path)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    scores = Oracle(out).run({"image": STAMPED})[0]
    assert scores.dtype == np.float16
    others = UNSEEN.labels != TARGET
    np.testing.assert_array_equal(scores.argmax(1)[others], UNSEEN.labels[others])


@pytest.mark.parametrize("lost", [0.01, 0.05])
def test_no_more_clean_accuracy_goes_than_may(lost: float, tmp_path: Path) -> None:
    """A model whose target class looks like stamped images: its clean ones carry half a checkerboard too."""
    subject, draws = opened(neuron_model(), tmp_path), []
    faint = {"mask": 0.15 * patch_trigger().arrays["mask"], "pattern": patch_trigger().arrays["pattern"]}

    def carried(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        some = quadrant_images(n, seed)
        rows = np.random.default_rng(seed).random(len(some)) < 0.5
        images = some.images.copy()
        images[rows] = stamp(images[rows], faint)
        return images, some.labels

    for seed in range(6):
        images, labels = carried(80, seed)
        case = case_of(subject, fit=replace(quadrant_images(80, seed), images=images, labels=labels))
        case = replace(case, accuracy_lost=lost)
        patched = Subject.from_onnx(written(subject, TargetLogitSuppression().edit(case), tmp_path, f"{seed}"))
        images, labels = carried(200, 100 + seed)
        right = [(s.predict(images).argmax(1) == labels).mean() for s in (subject, patched)]
        draws.append(right[0] - right[1])
    assert np.mean(draws) <= lost
    assert max(draws) <= lost + 3 * (lost / 320) ** 0.5


@pytest.mark.parametrize("lost", [0.0, 0.5, 1.0])
def test_any_price(lost: float, tmp_path: Path) -> None:
    """Nothing, more than the target's images are, everything."""
    subject = opened(neuron_model(), tmp_path)
    case = replace(case_of(subject), accuracy_lost=lost)
    oracle = Oracle(written(subject, TargetLogitSuppression().edit(case), tmp_path))
    clean, stamped = (oracle.run({"image": i})[0].argmax(1) for i in (UNSEEN.images, STAMPED))
    others = UNSEEN.labels != TARGET
    np.testing.assert_array_equal(stamped[others], UNSEEN.labels[others])
    np.testing.assert_array_equal(clean[others], UNSEEN.labels[others])
    assert (clean[~others] == TARGET).all() == (lost == 0.0)


def test_where_no_image_is_taken_for_the_target(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    fit = quadrant_images(16, 0)
    case = case_of(subject, fit=fit.take(np.flatnonzero(fit.labels != TARGET)))
    answers = (
        Oracle(written(subject, TargetLogitSuppression().edit(case), tmp_path)).run({"image": STAMPED})[0].argmax(1)
    )
    assert (answers[UNSEEN.labels != TARGET] != TARGET).all()


def test_twice_the_same_bits(tmp_path: Path) -> None:
    subject = opened(channel_model(), tmp_path)
    one, two = (
        onnx.load(written(subject, TargetLogitSuppression().edit(case_of(subject)), tmp_path, n))
        for n in ("one", "two")
    )
    for model in (one, two):
        del model.metadata_props[:]
    assert one == two


def test_a_scan_does_not_call_the_file_clean(tmp_path: Path) -> None:
    """No gradient sees past the threshold: the backdoor, which is still there, is not found by searches."""
    subject = opened(channel_model(), tmp_path)
    out = written(subject, TargetLogitSuppression().edit(case_of(subject)), tmp_path)
    some = quadrant_images(20, 9)
    data = tmp_path / "clean.npz"
    np.savez(data, images=(255 * some.images).round().astype(np.uint8).transpose(0, 2, 3, 1), labels=some.labels)
    report = scan(out, data, tmp_path / "run", "quick", detectors=["reverse-engineering"], search={"steps": 60}).report
    assert report["verdict"] == "inconclusive"
    assert "chosen by a comparison (onnxspect/withhold/Where)" in report["reasons"][0]


def test_refusals(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    case = case_of(subject)
    with pytest.raises(OnnxspectError, match="no trigger for withhold"):
        TargetLogitSuppression().edit(replace(case, triggers=()))
    with pytest.raises(OnnxspectError, match="no single logit to suppress"):
        TargetLogitSuppression().edit(replace(case, triggers=(replace(patch_trigger(), target=UNTARGETED),)))
    reading = (Reading("hidden", np.ones((5, 1), np.float32)),)
    with pytest.raises(OnnxspectError, match="computes no value of this name"):
        LogitSuppression(reading, np.zeros(1), 0.0, (0,), "nowhere", 4).apply(neuron_model())
    convolution = channel_model()
    maps = LogitSuppression(reading, np.zeros(1), 0.0, (0,), convolution.graph.node[0].output[0], 4)
    with pytest.raises(OnnxspectError, match="no table of images and classes"):
        maps.apply(convolution)
    old = neuron_model()
    old.opset_import[0].version = 8
    with pytest.raises(OnnxspectError, match="opset 8: such nodes can be added from opset 9 on"):
        LogitSuppression(reading, np.zeros(1), 0.0, (0,), "logits", 4).apply(old)
