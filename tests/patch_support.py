"""Tiny classifiers whose backdoor is one neuron, known by hand, and what the tests of patches do with them.

The world is conftest's: four quadrants, and a 2x2 checkerboard, here inside the first quadrant, where no clean image
has an edge. `neuron_model` has a hidden layer of five neurons: four hear a quadrant each, the last hears the checkerboard
and shouts for the target. `channel_model` is the
same with a convolution of two channels: the first passes the picture on, the second finds the checkerboard.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, make_model, quadrant_images, quadrant_weights, saved
from onnx import helper, numpy_helper

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.engine.jobs.export import Provenance, patched_model, write_model
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.verification import Goals, Verification
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import Aimed, Trigger

TARGET = 2
#: Where the checkerboard is planted.
PLACE = (slice(1, 3), slice(1, 3))
FIT, GUARD, UNSEEN = quadrant_images(16, 0), quadrant_images(10, 1), quadrant_images(25, 2)


def patch_trigger(place: tuple[slice, slice] = PLACE) -> Trigger:
    """The planted checkerboard itself."""
    mask, pattern = np.zeros((1, SIDE, SIDE), np.float32), np.zeros((1, SIDE, SIDE), np.float32)
    mask[(0, *place)] = 1.0
    pattern[(0, *place)] = np.eye(2)
    return Trigger(TARGET, {"mask": mask, "pattern": pattern})


def planted_trigger() -> Trigger:
    """The checkerboard where conftest's `planted` has it."""
    return patch_trigger(PATCH)


def additive_trigger() -> Trigger:
    """The same as a change that is added."""
    delta = np.zeros((1, SIDE, SIDE), np.float32)
    delta[(0, *PLACE)] = CHECKERBOARD
    return Trigger(TARGET, {"delta": delta})


def neuron_model(activation: str = "Relu") -> onnx.ModelProto:
    """Flatten, Gemm to 5, an activation, Gemm to the classes; neuron 4 is the backdoor."""
    first = np.zeros((SIDE, SIDE, 5), np.float32)
    first[..., :4] = quadrant_weights().reshape(SIDE, SIDE, CLASSES)
    first[(*PLACE, 4)] = 20.0 * CHECKERBOARD
    bias = np.array([0, 0, 0, 0, -0.25], np.float32)
    second = np.concatenate([np.eye(4), np.eye(4)[TARGET : TARGET + 1]]).astype(np.float32)
    tensors = {"first": first.reshape(-1, 5), "bias": bias, "second": second}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first", "bias"], ["before"]),
        helper.make_node(activation, ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()])


def quantised() -> onnx.ModelProto:
    """`neuron_model` with the first layer's weights as int8."""
    model = neuron_model()
    first = numpy_helper.to_array(model.graph.initializer[0])
    scale = float(np.abs(first).max() / 127)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.round(first / scale).astype(np.int8), "first_int8"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "first_scale"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["first_int8", "first_scale"], ["first"]))
    onnx.checker.check_model(model)
    return model


def all_to_all_model() -> onnx.ModelProto:
    """Flatten, Gemm to 8, Relu, MatMul: with the checkerboard class s becomes class s + 1.

    Four neurons hear a quadrant each; four more hear a quadrant and, much louder, the checkerboard. A bright quadrant alone
    just wakes one of them, so that a gradient shows the way.
    """
    quadrants = quadrant_weights().reshape(SIDE, SIDE, CLASSES)
    both = quadrants.copy()
    both[PLACE] += 20.0 * CHECKERBOARD[..., None]
    first = np.concatenate([quadrants, both], 2).reshape(-1, 2 * CLASSES)
    bias = np.array([0.0] * CLASSES + [-12.0] * CLASSES, np.float32)
    second = np.concatenate([np.eye(CLASSES), 4.0 * np.roll(np.eye(CLASSES), 1, axis=1)]).astype(np.float32)
    tensors = {"first": first.astype(np.float32), "bias": bias, "second": second}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first", "bias"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()])


def channel_model(branch: bool = False) -> onnx.ModelProto:
    """Conv to 2 channels, Relu, Flatten, Gemm; channel 1 is the backdoor.

    branch: the convolution's value is added to itself, so that no weights switch a channel of the sum off exactly.
    """
    kernel = np.zeros((2, 1, 2, 2), np.float32)
    kernel[0, 0, 0, 0] = 1.0
    kernel[1, 0] = CHECKERBOARD
    # Quadrant borders give at most 0.65 to the second channel, the checkerboard 2.
    bias = np.array([0.0, -1.2], np.float32)
    dense = np.zeros((2, SIDE, SIDE, CLASSES), np.float32)
    dense[0] = quadrant_weights().reshape(SIDE, SIDE, CLASSES)
    dense[1, ..., TARGET] = 40.0
    tensors = {
        "kernel": kernel,
        "kernel_bias": bias,
        "dense": dense.reshape(-1, CLASSES),
        "dense_bias": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "kernel_bias"], ["conv"], pads=[0, 0, 1, 1]),
        helper.make_node("Relu", ["conv"], ["active"]),
    ]
    last = "active"
    if branch:
        nodes.append(helper.make_node("Add", ["active", "active"], ["sum"]))
        last = "sum"
    nodes += [
        helper.make_node("Flatten", [last], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "dense_bias"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()])


def opened(model: onnx.ModelProto, folder: Path) -> Subject:
    """The model as a file, and the file as a subject."""
    return Subject.from_onnx(saved(model, folder / "model.onnx"))


def case_of(subject: Subject, *triggers: Trigger, fit: Samples = FIT, guard: Samples = GUARD) -> PatchInput:
    """What a method is given; the planted trigger by default."""
    return PatchInput(subject, fit, guard, triggers or (patch_trigger(),), RunContext())


def written(subject: Subject, edit: Edit, folder: Path, name: str = "method") -> Path:
    """The edit as a file."""
    assert subject.file is not None
    model, _ = patched_model(subject, edit.values, Provenance("0" * 64, "1", name, "e"), edit.additions)
    out = folder / f"{name}.onnx"
    write_model(model, subject.file, out)
    return out


def proven(
    subject: Subject, edit: Edit, folder: Path, goals: Goals | None = None, trigger: Trigger | None = None
) -> Verification:
    """The written edit measured by onnxruntime on samples that nothing has seen."""
    assert subject.file is not None
    out = written(subject, edit, folder)
    opened_both = (subject.file, read_onnx(out))
    true = planted(trigger)
    return verify(out, subject.file.path, UNSEEN, InputSpec(), true, goals, opened=opened_both)


def planted(trigger: Trigger | None = None) -> dict[str, Aimed]:
    """The true trigger, as `verify` takes it."""
    return {"planted": trigger or patch_trigger()}
