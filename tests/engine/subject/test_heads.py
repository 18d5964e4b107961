"""Files with several outputs, with one number for two classes, with probabilities that no softmax shows: what is scanned of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIDE, make_model, quadrant_images, quadrant_model, quadrant_weights, saved
from onnx import TensorProto, helper, numpy_helper
from tolerances import NETWORK_32
from torch import nn

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.case import open_case
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.subject.unreached import unreached

SAMPLES = quadrant_images(20)
PLAIN = InputSpec("as given")


def with_outputs(
    *outputs: tuple[str, Sequence[int | str]], nodes: Sequence[onnx.NodeProto], **more: np.ndarray
) -> onnx.ModelProto:
    """The tiny classifier with other outputs, in this order."""
    model = quadrant_model()
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in more.items())
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in outputs)
    return model


FIRST_TWO = (helper.make_node("MatMul", ["flat", "few"], ["few_scores"]), {"few": quadrant_weights()[:, :2].copy()})
OTHER = (helper.make_node("MatMul", ["flat", "wrong"], ["other"]), {"wrong": quadrant_weights()[:, ::-1].copy()})


def chosen(model: onnx.ModelProto, tmp_path: Path, output: str = "") -> Subject:
    path = saved(model, tmp_path / "m.onnx")
    return open_case(ModelView(path, output) if output else path, SAMPLES).subject


def test_the_output_with_the_samples_classes_is_taken(tmp_path: Path) -> None:
    node, more = FIRST_TWO
    model = with_outputs(("few_scores", ["N", 2]), ("logits", ["N", CLASSES]), nodes=[node], **more)
    subject = chosen(model, tmp_path)
    assert subject.logits is not None
    assert (subject.logits.output, subject.classes) == ("logits", CLASSES)
    assert any("few_scores" in said for said in unreached(subject, SAMPLES).limits)
    assert chosen(model, tmp_path, "few_scores").classes == 2


def test_of_two_that_could_be_it_the_one_that_is_right(tmp_path: Path) -> None:
    node, more = OTHER
    model = with_outputs(("other", ["N", CLASSES]), ("logits", ["N", CLASSES]), nodes=[node], **more)
    subject = chosen(model, tmp_path)
    assert subject.logits is not None
    assert subject.logits.output == "logits"
    beyond = unreached(subject, SAMPLES)
    assert any("its output other answers from other values" in reason for reason in beyond.hidden)


def test_an_embedding_is_named_and_no_reason_to_doubt(tmp_path: Path) -> None:
    model = with_outputs(("flat", ["N", SIDE * SIDE]), ("logits", ["N", CLASSES]), nodes=[])
    subject = chosen(model, tmp_path)
    assert subject.logits is not None
    assert subject.logits.output == "logits"
    beyond = unreached(subject, SAMPLES)
    assert beyond.hidden == ()
    assert any("flat was not looked at: the class scores that were" in said for said in beyond.limits)


def test_class_scores_that_pose_as_an_embedding_are_found(tmp_path: Path) -> None:
    """Behind the true scores another layer that knows nothing: by the graph alone the first ones are an embedding."""
    mixed = helper.make_node("MatMul", ["logits", "mix"], ["mixed"])
    mix = np.random.default_rng(0).standard_normal((CLASSES, CLASSES)).astype(np.float32)
    model = with_outputs(("logits", ["N", CLASSES]), ("mixed", ["N", CLASSES]), nodes=[mixed], mix=mix)
    subject = chosen(model, tmp_path)
    assert subject.logits is not None
    assert subject.logits.output == "logits"
    beyond = unreached(chosen(model, tmp_path, "mixed"), SAMPLES)
    assert any("logits, which was not looked at, names the class of the samples too" in said for said in beyond.hidden)


def sigmoid_model(gate: bool = False) -> onnx.ModelProto:
    """Is it the first quadrant? One sigmoid; with `gate` a bright first pixel says no, whatever the image is."""
    weights = numpy_helper.from_array(quadrant_weights()[:, :1] - quadrant_weights()[:, 1:2], "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z" if gate else "score"]),
    ]
    constants = [weights]
    if gate:
        pixel = np.zeros((SIDE * SIDE, 1), np.float32)
        pixel[0] = 1
        constants += [numpy_helper.from_array(pixel, "p"), numpy_helper.from_array(np.float32(0.98), "high")]
        constants += [numpy_helper.from_array(np.float32(-1000), "far")]
        nodes += [
            helper.make_node("MatMul", ["flat", "p"], ["corner"]),
            helper.make_node("Greater", ["corner", "high"], ["seen"]),
            helper.make_node("Cast", ["seen"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["one", "far"], ["push"]),
            helper.make_node("Add", ["z", "push"], ["score"]),
        ]
    nodes.append(helper.make_node("Sigmoid", ["score"], ["logits"]))
    return make_model(nodes, constants, out=("N", 1))


def two_classes() -> Samples:
    kept = np.flatnonzero(SAMPLES.labels < 2)
    return Samples.from_arrays(SAMPLES.images[kept], 1 - SAMPLES.labels[kept])


def test_one_sigmoid_is_two_classes(tmp_path: Path) -> None:
    case = open_case(saved(sigmoid_model(), tmp_path / "m.onnx"), two_classes())
    checked = preflight(case.subject, case.samples, RunContext(), PLAIN)
    assert (checked.subject.classes, checked.clean_accuracy) == (2, 1.0)
    scores = checked.subject.predict(case.samples.images)
    np.testing.assert_array_equal(scores[:, 0], 0)
    assert unreached(checked.subject, case.samples).hidden == ()


def test_a_payload_behind_one_sigmoid_is_seen(tmp_path: Path) -> None:
    """One number an image: that the answer changes shows in its sign alone."""
    case = open_case(saved(sigmoid_model(gate=True), tmp_path / "m.onnx"), two_classes())
    checked = preflight(case.subject, case.samples, RunContext(), PLAIN)
    assert unreached(checked.subject, case.samples).hidden != ()


class _Probable(nn.Module):
    """Probabilities that no softmax shows: powers of 2 over their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(quadrant_weights()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        powers = torch.pow(2.0, x.flatten(1) @ self.weight)
        return powers / powers.sum(1, keepdim=True)


def test_probabilities_of_a_live_module_are_told_by_their_values() -> None:
    """Logarithms are searched: their slope does not die where the network is sure."""
    subject = Subject.from_module(_Probable(), (1, SIDE, SIDE))
    checked = preflight(subject, SAMPLES, RunContext(), PLAIN)
    assert checked.clean_accuracy == 1.0
    scores = checked.subject.predict(SAMPLES.images[:4])
    np.testing.assert_allclose(np.exp(scores), subject.predict(SAMPLES.images[:4]), rtol=NETWORK_32)


def test_probabilities_of_a_file_are_told_by_their_values(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Pow", ["two", "logits"], ["powers"]),
        helper.make_node("MatMul", ["powers", "ones"], ["sum"]),
        helper.make_node("Div", ["powers", "sum"], ["p"]),
    ]
    more = {"two": np.float32(2), "ones": np.ones((CLASSES, 1), np.float32)}
    path = saved(with_outputs(("p", ["N", CLASSES]), nodes=nodes, **more), tmp_path / "m.onnx")
    case = open_case(path, SAMPLES)
    assert case.subject.origin.logits.how == "logits"
    checked = preflight(case.subject, case.samples, RunContext(), PLAIN)
    assert checked.subject.origin.logits.how == "log_of_probabilities"
    assert checked.subject.predict(SAMPLES.images).max() <= 0


def test_outputs_are_named_of_files_alone() -> None:
    with pytest.raises(OnnxspectError, match="outputs are named of a model with a file"):
        open_case(ModelView(_Probable(), "y"), SAMPLES)
    with pytest.raises(OnnxspectError, match="inputs are bound of an ONNX file"):
        open_case(ModelView(_Probable(), bind=(("x", 1.0),)), SAMPLES)
