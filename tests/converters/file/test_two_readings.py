"""Files that two readers read in two ways are refused by name, and what only looks like it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import quadrant_model, saved
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.onnx_file import read_onnx


def both_data(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.float_data.extend(np.zeros(256, np.float32).tolist())


def two_typed(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[1]
    weight.ClearField("raw_data")
    weight.float_data.extend([0.0] * 4)
    weight.double_data.extend([1.0] * 4)


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 4), np.float32), "weight"))


def of_a_node(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 64), np.float32), "flat"))


def computed_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["flat"], ["logits"]))


def computed_input(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["flat"], ["image"]))


def attribute_twice(model: onnx.ModelProto) -> None:
    gemm = model.graph.node[1]
    for value in (1.0, 0.0):
        gemm.attribute.add(name="alpha", type=AttributeProto.FLOAT, f=value)


def shadowed(model: onnx.ModelProto) -> None:
    double = helper.make_node("Add", ["a", "a"], ["b"])
    function = helper.make_function("own", "double", ["a"], ["b"], [double], [helper.make_opsetid("", 17)], ["alpha"])
    function.attribute_proto.append(helper.make_attribute("alpha", 2.0))
    model.functions.append(function)


def in_a_branch(model: onnx.ModelProto) -> None:
    value = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(np.float32(1)))
    branch = helper.make_graph([value, value], "b", [], [helper.make_tensor_value_info("v", TensorProto.FLOAT, [])])
    model.graph.node.append(helper.make_node("If", ["c"], ["r"], then_branch=branch, else_branch=branch))


CASES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "raw and typed data": (both_data, r"tensor weight has its values in raw_data and in float_data"),
    "two typed data": (two_typed, r"tensor bias has values in float_data and double_data"),
    "an initializer twice": (twice, r"two initializers have the name weight"),
    "an initializer that a node computes": (of_a_node, r"flat is an initializer and computed by a node"),
    "a value computed twice": (computed_twice, r"two nodes compute a value of the name logits"),
    "an input that a node computes": (computed_input, r"image is an input and computed by a node"),
    "an attribute twice": (attribute_twice, r"Gemm .* has the attribute alpha twice"),
    "a function's attribute with and without a default": (
        shadowed,
        r"function double declares the attribute alpha twice",
    ),
    "inside a branch": (in_a_branch, r"two nodes compute a value of the name v"),
}


@pytest.mark.parametrize("name", CASES)
def test_two_readings_are_refused(name: str, tmp_path: Path) -> None:
    spoil, said = CASES[name]
    model = quadrant_model()
    spoil(model)
    path = saved(model, tmp_path / "m.onnx")
    with pytest.raises(OnnxspectError, match=said) as caught:
        read_onnx(path)
    assert "two ways" in caught.value.message
    assert "exporter" in caught.value.hint


def test_the_reading_that_is_named_is_onnxruntimes(tmp_path: Path) -> None:
    """raw_data holds the weights, float_data zeros: onnxruntime computes with the weights."""
    model = quadrant_model()
    both_data(model)
    path = saved(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.ones((1, 1, 8, 8), np.float32)})[0].max() > 0


def test_external_data_and_data_inside(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(quadrant_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].raw_data = bytes(1024)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxspectError, match="in another file and in raw_data"):
        read_onnx(path)


def test_external_data_on_top_of_each_other(tmp_path: Path) -> None:
    """Partly is refused; the same piece for two tensors is what tied weights are."""
    path = tmp_path / "m.onnx"
    onnx.save(quadrant_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    entries = {e.key: e for e in proto.graph.initializer[1].external_data}
    entries["offset"].value = "16"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxspectError, match=r"external data of weight and bias overlap in w\.bin"):
        read_onnx(path)
    tied = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    del tied.graph.initializer[1]
    tied.graph.initializer.append(tied.graph.initializer[0])
    tied.graph.initializer[1].name = "tied"
    tied.graph.node[1].input[2] = ""
    path.write_bytes(tied.SerializeToString())
    assert len(read_onnx(path).external) == 2


def test_a_default_of_an_input_is_one_reading(tmp_path: Path) -> None:
    """Before IR version 4 every initializer was an input too; since then it is the input's default."""
    model = quadrant_model()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [64, 4]))
    assert read_onnx(saved(model, tmp_path / "m.onnx")).opset == 17
