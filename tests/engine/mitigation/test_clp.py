"""Channel Lipschitz pruning: its bound against definitions, and a planted channel that stands out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CLASSES, SIDE, make_model, quadrant_weights
from onnx import helper, numpy_helper
from patch_support import case_of, opened, proven
from tolerances import OPERATION_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.clp import ChannelLipschitz, channels
from onnxspect.engine.mitigation.neurons import layers


def wide_model(strength: float = 3.0):  # type: ignore[no-untyped-def]
    """Conv to 16 channels that each pass a sixteenth of the picture, but one that finds the checkerboard; BatchNorm."""
    kernel = np.zeros((16, 1, 2, 2), np.float32)
    kernel[:, 0, 0, 0] = 1.0
    kernel[11, 0] = strength * np.array([[1, -1], [-1, 1]])
    dense = np.zeros((16, SIDE, SIDE, CLASSES), np.float32)
    dense[:] = quadrant_weights().reshape(SIDE, SIDE, CLASSES) / 15
    dense[11] = 0
    dense[11, ..., 2] = 15.0
    tensors = {
        "kernel": kernel,
        "scale": np.linspace(0.9, 1.1, 16).astype(np.float32),
        "shift": np.where(np.arange(16) == 11, -1.5 * strength, 0).astype(np.float32),
        "mean": np.zeros(16, np.float32),
        "variance": np.full(16, 4.0, np.float32),
        "dense": dense.reshape(-1, CLASSES),
    }
    tensors["shift"] /= 2
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"], pads=[0, 0, 1, 1]),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["normal"]),
        helper.make_node("Relu", ["normal"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()])


def test_the_bound_is_the_definition(tmp_path: Path) -> None:
    """Spectral norm of (inputs, kernel area), times |gamma| / sqrt(var + eps); the layer of the logits is not judged."""
    (found,) = channels(case_of(opened(wide_model(), tmp_path)))
    scale = np.linspace(0.9, 1.1, 16) / np.sqrt(4 + 1e-5)
    norms = np.where(np.arange(16) == 11, 3.0 * 2, 1.0)
    np.testing.assert_allclose(found.bound, norms * scale, rtol=OPERATION_32)
    assert {axis for _, axis in found.slices} == {0}
    assert len(found.slices) == 3


def test_the_channel_that_stands_out_goes(tmp_path: Path) -> None:
    subject = opened(wide_model(), tmp_path)
    edit = ChannelLipschitz().edit(case_of(subject))
    assert edit.facts["pruned"] == 1
    proof = proven(subject, edit, tmp_path)
    assert proof.holds, proof.failures
    assert (proof.triggers[0].before, proof.triggers[0].after, proof.accuracy_after) == (1.0, 0.0, 1.0)
    assert {n for n, _ in proof.changed} == {"kernel", "scale", "shift"}


def test_it_needs_no_trigger(tmp_path: Path) -> None:
    subject = opened(wide_model(), tmp_path)
    edit = ChannelLipschitz().edit(replace(case_of(subject), triggers=()))
    assert edit.facts["pruned"] == 1
    assert proven(subject, edit, tmp_path).holds


def test_where_nothing_stands_out(tmp_path: Path) -> None:
    model = wide_model()
    kernel = numpy_helper.to_array(model.graph.initializer[0]).copy()
    kernel[11] = kernel[0]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "kernel"))
    scale = np.ones(16, np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(scale, "scale"))
    with pytest.raises(OnnxspectError, match="none stands out"):
        ChannelLipschitz().edit(case_of(opened(model, tmp_path)))


def convolutional_head() -> onnx.ModelProto:
    """As NiN and SqueezeNet end: a convolution with a channel a class, averaged over the picture."""
    rng = np.random.default_rng(0)
    tensors = {
        "first": rng.normal(size=(6, 1, 3, 3)).astype(np.float32),
        "head": rng.normal(size=(CLASSES, 6, 1, 1)).astype(np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["active"]),
        helper.make_node("Conv", ["active", "head", "bias"], ["scores"]),
        helper.make_node("GlobalAveragePool", ["scores"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()])


def test_classes_are_no_channels_to_prune(tmp_path: Path) -> None:
    subject = opened(convolutional_head(), tmp_path)
    (found,) = channels(case_of(subject))
    assert len(found.bound) == 6
    assert {layer.neurons for layer in layers(subject, every=True)} == {6}
