"""Inputs that are no batch of images as the file has them: bound, given a batch axis, given a shape; onnxruntime agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import CLASSES, SIDE, quadrant_images, quadrant_model, quadrant_weights, saved
from onnx import TensorProto, helper, numpy_helper
from tolerances import NETWORK_32, SUM_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.onnx_model import open_file
from onnxspect.engine.subject.opening import open_model
from onnxspect.engine.subject.subject import Subject

IMAGES = quadrant_images(4).images


def of_file(path: Path, feeds: dict[str, np.ndarray], name: str = "image") -> np.ndarray:
    """What onnxruntime makes of the file on disk, image by image."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    rows = [
        session.run(None, {name: image.reshape([s if isinstance(s, int) else 1 for s in shape]), **feeds})[0].ravel()
        for image in IMAGES
    ]
    return np.stack(rows)


def with_flag(name: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The tiny classifier, its answers multiplied by an input of its own."""
    model = quadrant_model()
    model.graph.node[1].output[0] = "raw"
    flag = "as_float" if kind != TensorProto.FLOAT else name
    if kind != TensorProto.FLOAT:
        model.graph.node.append(helper.make_node("Cast", [name], ["flag"], to=TensorProto.FLOAT))
        model.graph.node.append(helper.make_node("Sub", ["one", "flag"], [flag]))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    model.graph.node.append(helper.make_node("Mul", ["raw", flag], ["logits"]))
    model.graph.input.append(helper.make_tensor_value_info(name, kind, []))
    return model


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("keep_prob", TensorProto.FLOAT, np.float32(1)),
        ("tower/keep_prob:0", TensorProto.FLOAT, np.float32(1)),
        ("is_training", TensorProto.BOOL, np.bool_(False)),
    ],
)
def test_what_training_left_is_bound_by_its_name(name: str, kind: int, value: np.generic, tmp_path: Path) -> None:
    path = saved(with_flag(name, kind), tmp_path / "m.onnx")
    subject = Subject.from_onnx(path)
    assert subject.classes == CLASSES
    np.testing.assert_allclose(
        subject.predict(IMAGES), of_file(path, {name: np.asarray(value)}), rtol=NETWORK_32, atol=NETWORK_32
    )
    assert any("as in use" in w for w in subject.origin.file.warnings)
    assert subject.oracle().map("image", IMAGES, "logits").shape == (len(IMAGES), CLASSES)


def test_another_input_is_bound_by_the_user(tmp_path: Path) -> None:
    path = saved(with_flag("temperature"), tmp_path / "m.onnx")
    with pytest.raises(OnnxspectError, match="2 inputs") as caught:
        Subject.from_onnx(path)
    assert "--bind temperature=VALUE" in caught.value.hint
    subject = open_model(ModelView(path, bind=(("temperature", 0.5),))).subject()
    expected = of_file(path, {"temperature": np.asarray(0.5, np.float32)})
    np.testing.assert_allclose(subject.predict(IMAGES), expected, rtol=NETWORK_32, atol=NETWORK_32)
    for form in (with_flag("temperature"), path.read_bytes()):
        in_memory = open_model(ModelView(form, bind=(("temperature", 0.5),))).subject()
        np.testing.assert_allclose(in_memory.predict(IMAGES), expected, rtol=NETWORK_32, atol=NETWORK_32)
    with pytest.raises(OnnxspectError, match="no input named nothing"):
        open_file(path, {"nothing": 1.0})
    with pytest.raises(OnnxspectError, match="every input is bound"):
        open_file(path, {"temperature": 1.0, "image": 0.0})


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("row", [True, False], ids=["answers a row", "answers a batch of one"])
def test_an_image_without_a_batch_axis(row: bool, opset: int, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.repeat(quadrant_weights(0), 3, axis=0), "w")
    shape = numpy_helper.from_array(np.array([1, 3 * SIDE * SIDE]), "shape")
    to_row = numpy_helper.from_array(np.array([CLASSES]), "row")
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z" if row else "logits"]),
    ]
    nodes += [helper.make_node("Reshape", ["z", "row"], ["logits"])] if row else []
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [CLASSES] if row else [1, CLASSES])],
        [weights, shape, to_row] if row else [weights, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    path = saved(model, tmp_path / "m.onnx")
    subject = Subject.from_onnx(path)
    assert (subject.image_shape, subject.classes, subject.spec.layout) == ((3, SIDE, SIDE), CLASSES, "NCHW")
    pixels = np.repeat(IMAGES, 3, axis=1)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = np.stack([session.run(None, {"image": image})[0].ravel() for image in pixels])
    np.testing.assert_allclose(subject.predict(pixels), expected, rtol=NETWORK_32, atol=NETWORK_32)
    np.testing.assert_allclose(
        subject.oracle().map("image", pixels, "logits").reshape(len(pixels), -1), expected, rtol=NETWORK_32, atol=1e-4
    )
    assert any("image by image" in w for w in subject.origin.file.warnings)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
def test_an_input_without_a_shape_gets_that_of_its_first_layer(last: bool, tmp_path: Path) -> None:
    kernel = np.zeros((4, 1, SIDE, SIDE), np.float32)
    kernel[:, 0] = quadrant_weights().reshape(SIDE, SIDE, CLASSES).transpose(2, 0, 1)
    nodes = [helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", ["first" if last else "image", "k"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    image = onnx.ValueInfoProto(name="image")
    image.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "open",
        [image],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(kernel, "k")],
    )
    path = saved(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx"
    )
    subject = Subject.from_onnx(path, image_shape=(1, SIDE, SIDE))
    assert subject.spec.layout == ("NHWC" if last else "NCHW")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fed = IMAGES.transpose(0, 2, 3, 1) if last else IMAGES
    np.testing.assert_allclose(
        subject.predict(IMAGES), session.run(None, {"image": fed})[0], rtol=NETWORK_32, atol=NETWORK_32
    )


def test_a_file_in_float64(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(quadrant_weights(0).astype(np.float64), "w")
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("image", TensorProto.DOUBLE, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.DOUBLE, ["n", CLASSES])],
        [weight],
    )
    path = saved(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx"
    )
    subject = Subject.from_onnx(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": IMAGES.astype(np.float64)})[0]
    np.testing.assert_allclose(subject.predict(IMAGES), expected, rtol=SUM_32, atol=SUM_32)


@pytest.mark.parametrize("batch", [8, 32])
def test_a_fixed_batch_of_many(batch: int, tmp_path: Path) -> None:
    model = quadrant_model(0)
    for value, sizes in ((model.graph.input[0], [batch, 1, SIDE, SIDE]), (model.graph.output[0], [batch, CLASSES])):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, sizes))
    subject = Subject.from_onnx(saved(model, tmp_path / "m.onnx"))
    expected = IMAGES.reshape(len(IMAGES), -1) @ quadrant_weights(0)
    np.testing.assert_allclose(subject.predict(IMAGES), expected, rtol=NETWORK_32, atol=NETWORK_32)
    np.testing.assert_allclose(
        subject.oracle().map("image", IMAGES, "logits"), expected, rtol=NETWORK_32, atol=NETWORK_32
    )
