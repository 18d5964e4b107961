"""A graph that chooses by the number of images is read as it answers one; what it does with more is said not to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import CLASSES, SIDE, quadrant_images, quadrant_model, saved
from onnx import TensorProto, helper, numpy_helper
from tolerances import NETWORK_32

from onnxspect.converters.file.one_image import as_for_one
from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.export import Provenance, patched_model
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.subject.unreached import unreached

SAMPLES = quadrant_images(8)


def choosing(most: int = 1, of: str = "image") -> onnx.ModelProto:
    """The tiny classifier; for more than so many images, its answers are negated."""
    model = quadrant_model(2)
    graph = model.graph
    graph.node[-1].output[0] = "raw"
    named = helper.make_tensor_value_info
    branches = [
        helper.make_graph([helper.make_node(op, ["raw"], [op])], op, [], [named(op, TensorProto.FLOAT, ["n", CLASSES])])
        for op in ("Neg", "Identity")
    ]
    graph.initializer.extend(
        [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("first", [0]), ("most", [most]))]
    )
    graph.node.extend(
        [
            helper.make_node("Shape", [of], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["count"]),
            helper.make_node("Greater", ["count", "most"], ["many"]),
            helper.make_node("Squeeze", ["many"], ["many at once"]),
            helper.make_node(
                "If", ["many at once"], ["logits"], "choice", then_branch=branches[0], else_branch=branches[1]
            ),
        ]
    )
    return model


def test_it_answers_as_for_one_image_and_says_so(tmp_path: Path) -> None:
    path = saved(choosing(), tmp_path / "m.onnx")
    subject = Subject.from_onnx(path, InputSpec())
    session = onnxruntime.InferenceSession(path)
    alone = np.concatenate([session.run(None, {"image": image[None]})[0] for image in SAMPLES.images[:4]])
    np.testing.assert_allclose(subject.predict(SAMPLES.images[:4]), alone, rtol=NETWORK_32, atol=NETWORK_32)
    assert session.run(None, {"image": SAMPLES.images[:4]})[0].argmax(1).tolist() != alone.argmax(1).tolist()
    file = subject.origin.file
    assert file.chooses == ("choice",)
    assert any("it is looked at as it answers one image" in w for w in file.warnings)
    assert any("chooses by how many images it is given (choice)" in h for h in unreached(subject, SAMPLES).hidden)
    with pytest.raises(OnnxspectError, match="a choice by the number of images, was read otherwise"):
        patched_model(subject, {}, Provenance(file.sha256, "0", "none", ""))


def test_the_other_way_round(tmp_path: Path) -> None:
    subject = Subject.from_onnx(saved(choosing(most=0), tmp_path / "m.onnx"), InputSpec())
    plain = Subject.from_onnx(saved(quadrant_model(2), tmp_path / "p.onnx"), InputSpec())
    images = SAMPLES.images[:4]
    np.testing.assert_allclose(subject.predict(images), -plain.predict(images), rtol=NETWORK_32, atol=NETWORK_32)


@pytest.mark.parametrize("images", [1, 8])
def test_a_file_for_one_size_has_decided(images: int, tmp_path: Path) -> None:
    model = choosing()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = images
    subject = Subject.from_onnx(saved(model, tmp_path / "m.onnx"), InputSpec())
    plain = Subject.from_onnx(saved(quadrant_model(2), tmp_path / "p.onnx"), InputSpec())
    answers = plain.predict(SAMPLES.images) * (1 if images == 1 else -1)
    np.testing.assert_allclose(subject.predict(SAMPLES.images), answers, rtol=NETWORK_32, atol=NETWORK_32)
    assert subject.origin.file.chooses == ()
    assert any(f"and takes {images}" in w for w in subject.origin.file.warnings)


@pytest.mark.parametrize("kind", ["no choice", "any height", "of a value inside", "by the image"])
def test_other_graphs_are_left_as_they_are(kind: str, tmp_path: Path) -> None:
    model = choosing(of="flat" if kind == "of a value inside" else "image")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if kind == "no choice":
        model = quadrant_model(2)
    elif kind == "any height":
        dims[2].dim_param = "height"
    elif kind == "by the image":
        del model.graph.node[2]
        model.graph.node.insert(2, helper.make_node("Cast", ["pixels"], ["sizes"], to=TensorProto.INT64))
        model.graph.node.insert(2, helper.make_node("ReduceMax", ["flat"], ["pixels"], axes=[1], keepdims=0))
    file = read_onnx(saved(model, tmp_path / "m.onnx"))
    assert as_for_one(file) is file
    assert file.proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value == SIDE
