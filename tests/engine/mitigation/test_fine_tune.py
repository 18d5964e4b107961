"""Fine-tuning and Fine-Pruning: what they hold fixed, and that neither is taken for a cure where it is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model
from onnx import helper, numpy_helper
from patch_support import FIT, GUARD, case_of, channel_model, neuron_model, opened, proven
from tolerances import SUM_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.fine_prune import FinePrune
from onnxspect.engine.mitigation.fine_tune import FineTune
from onnxspect.engine.mitigation.training import Retraining, reestimated, trainable_copy

SHORT = Retraining(epochs=3, learning_rate=1e-3, batch_size=16, from_teacher=0.0, shift=0)


def test_fine_tuning_is_measured_and_leaves_the_backdoor(tmp_path: Path) -> None:
    """A few gentle steps on clean images never touch the neuron that only the trigger wakes: the control fails."""
    subject = opened(neuron_model(), tmp_path)
    edit = FineTune(training=SHORT).edit(case_of(subject))
    epochs = edit.facts["epochs"]
    assert [e["epoch"] for e in epochs] == [0, 1, 2, 3]
    assert (epochs[0]["success"], epochs[0]["accuracy"], epochs[0]["divergence"]) == (1.0, 1.0, 0.0)
    proof = proven(subject, edit, tmp_path)
    assert not proof.holds
    assert proof.triggers[0].after > 0.9
    assert proof.accuracy_after == 1.0
    assert proof.changed


def test_the_last_epoch_is_not_the_best_by_default(tmp_path: Path) -> None:
    """What is kept is the epoch of least badness, not the last."""
    subject = opened(neuron_model(), tmp_path)
    wild = Retraining(epochs=4, learning_rate=0.5, batch_size=8, from_teacher=0.0, shift=0)
    edit = FineTune(training=wild).edit(case_of(subject))
    after = proven(subject, edit, tmp_path)
    best = max(e["accuracy"] for e in edit.facts["epochs"][1:])
    assert after.accuracy_after >= best - 0.1


def test_fine_pruning_keeps_the_pruned_neuron_at_zero(tmp_path: Path) -> None:
    """The neuron that no clean image wakes goes first, and training does not bring it back."""
    subject = opened(neuron_model(), tmp_path)
    edit = FinePrune(training=SHORT).edit(case_of(subject))
    assert (edit.facts["layer"], edit.facts["pruned"]) == ("hidden", 1)
    assert subject.lowered is not None
    names = {w.initializer: n for n, w in subject.lowered.weights.items()}
    assert not edit.values[names["first"]][:, 4].any()
    assert edit.values[names["bias"]][4] == 0
    assert edit.values[names["second"]].any()
    proof = proven(subject, edit, tmp_path)
    assert proof.holds, proof.failures
    assert proof.triggers[0].after == 0.0


def test_fine_pruning_needs_weights_that_switch_a_neuron_off(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "shared"], ["one"]),
        helper.make_node("MatMul", ["one", "shared"], ["two"]),
        helper.make_node("MatMul", ["two", "last"], ["logits"]),
    ]
    square = np.eye(64, dtype=np.float32)
    tensors = [numpy_helper.from_array(square, "shared"), numpy_helper.from_array(square[:, :4].copy(), "last")]
    with pytest.raises(OnnxspectError, match="by weights alone"):
        FinePrune(training=SHORT).edit(case_of(opened(make_model(nodes, tensors), tmp_path)))


def test_batch_norm_statistics_are_those_of_the_clean_samples(tmp_path: Path) -> None:
    """Mean and population variance of what reaches the layer, channel by channel."""
    base = channel_model()
    tensors = {t.name: numpy_helper.to_array(t) for t in base.graph.initializer}
    tensors |= {k: np.full(2, v, np.float32) for k, v in (("scale", 1), ("shift", 0), ("mean", 0.1), ("variance", 2))}
    nodes = list(base.graph.node)
    nodes.insert(1, helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["normal"]))
    nodes[2].input[0] = "normal"
    subject = opened(make_model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()]), tmp_path)
    assert subject.lowered is not None
    student, _ = trainable_copy(subject)
    found = {subject.lowered.weights[n].initializer: v for n, v in reestimated(student, FIT).items()}
    kernel, bias = torch.from_numpy(tensors["kernel"].copy()), torch.from_numpy(tensors["kernel_bias"].copy())
    padded = torch.nn.functional.pad(torch.from_numpy(FIT.images), (0, 1, 0, 1))
    conv = torch.nn.functional.conv2d(padded, kernel, bias)
    np.testing.assert_allclose(found["mean"], conv.mean((0, 2, 3)).numpy(), rtol=SUM_32)
    np.testing.assert_allclose(found["variance"], conv.var((0, 2, 3), unbiased=False).numpy(), rtol=SUM_32)
    # The student itself answers by the new statistics, the subject by the old.
    assert not np.allclose(student.predict(GUARD.images), subject.predict(GUARD.images))
    # With the choice made, they are written; without it they stay.
    for choice, names in (("frozen", set()), ("reestimate", {"mean", "variance"})):
        edit = FineTune(training=SHORT, batch_norm=choice).edit(case_of(subject))
        changed = {n for n, _ in proven(subject, edit, tmp_path).changed}
        assert changed & {"mean", "variance"} == names
        (tmp_path / "method.onnx").unlink()
    with pytest.raises(OnnxspectError, match="unknown choice"):
        FineTune(batch_norm="melted")
