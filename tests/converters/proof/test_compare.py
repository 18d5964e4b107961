"""`compare`: every kind of difference between two files is listed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import make_model, quadrant_model
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.proof.compare import Difference, compare


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def value(m: onnx.ModelProto) -> None:
    t = tensor(m, "weight")
    t.raw_data = (numpy_helper.to_array(t) * np.float32(1.5)).tobytes()


def shape(m: onnx.ModelProto) -> None:
    tensor(m, "bias").dims[:] = [1, 4]


def kind(m: onnx.ModelProto) -> None:
    tensor(m, "bias").CopyFrom(numpy_helper.from_array(np.zeros(4, np.float64), "bias"))


def added(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "new"))


def removed(m: onnx.ModelProto) -> None:
    m.graph.initializer.remove(tensor(m, "bias"))


def attribute(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("alpha", 2.0))


def rewired(m: onnx.ModelProto) -> None:
    m.graph.node[1].input[2] = "weight"


def node_added(m: onnx.ModelProto) -> None:
    m.graph.node.append(helper.make_node("Relu", ["logits"], ["more"]))


def input_name(m: onnx.ModelProto) -> None:
    m.graph.input[0].name = "pixels"


def output_shape(m: onnx.ModelProto) -> None:
    m.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def output_added(m: onnx.ModelProto) -> None:
    m.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))


def opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 18


def other_domain(m: onnx.ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def ir(m: onnx.ModelProto) -> None:
    m.ir_version = 9


def producer(m: onnx.ModelProto) -> None:
    m.producer_name = "someone"


def documentation(m: onnx.ModelProto) -> None:
    m.doc_string = "hello"


def metadata(m: onnx.ModelProto) -> None:
    m.metadata_props.add(key="author", value="someone")


CASES: list[tuple[Callable[[onnx.ModelProto], None], str, str]] = [
    (value, "tensor", "weight"),
    (shape, "initializer", "bias"),
    (kind, "initializer", "bias"),
    (added, "initializer", "new"),
    (removed, "initializer", "bias"),
    (attribute, "node", ""),
    (rewired, "node", ""),
    (node_added, "node", ""),
    (input_name, "interface", "input"),
    (output_shape, "interface", "logits"),
    (output_added, "interface", "output"),
    (opset, "version", ""),
    (other_domain, "version", "com.microsoft"),
    (ir, "version", "ir_version"),
    (producer, "version", "producer_name"),
    (documentation, "version", "doc_string"),
    (metadata, "metadata", "author"),
]


@pytest.mark.parametrize(("change", "kind_of", "name"), CASES, ids=[c[0].__name__ for c in CASES])
def test_each_difference_is_listed_alone(change: Callable[[onnx.ModelProto], None], kind_of: str, name: str) -> None:
    a, b = quadrant_model(), quadrant_model()
    change(b)
    for pair in (compare(a, b), compare(b, a)):
        assert [(d.kind, d.name) for d in pair] == [(kind_of, name)]
        assert pair[0].text
        assert "\n" not in pair[0].text


def test_identical() -> None:
    assert compare(quadrant_model(1), quadrant_model(1)) == []


def test_relative_change_by_hand() -> None:
    a, b = quadrant_model(), quadrant_model()
    value(b)
    (difference,) = compare(a, b)
    assert difference.relative == pytest.approx(0.5)
    c = quadrant_model()
    tensor(c, "bias").raw_data = np.array([3, 0, 4, 0], np.float32).tobytes()
    assert compare(quadrant_model(), c)[0].relative == float("inf")  # from zero
    assert compare(c, quadrant_model())[0].relative == pytest.approx(1.0)


def with_constant(values: list[float]) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(values, np.float32), "t"))
    return make_model([constant, helper.make_node("Add", ["image", "c"], ["logits"])], shape=(1, 2), out=(1, 2))


def test_a_constant_nodes_values_are_a_tensor() -> None:
    (difference,) = compare(with_constant([3, 4]), with_constant([3, 9]))
    assert (difference.kind, difference.name) == ("tensor", "c")
    assert difference.relative == pytest.approx(1.0)
    assert [d.kind for d in compare(with_constant([3, 4]), with_constant([3]))] == ["node"]


def test_all_at_once() -> None:
    a, b = quadrant_model(), quadrant_model()
    for change in (value, added, attribute, output_shape, opset, ir, metadata):
        change(b)
    kinds = [d.kind for d in compare(a, b)]
    assert sorted(kinds) == sorted(["tensor", "initializer", "node", "interface", "version", "version", "metadata"])
    assert compare(a, b) == compare(a, b)


def test_hostile_names_are_printed_harmless() -> None:
    a, b = quadrant_model(), quadrant_model()
    b.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "\x1b[31mred\n" + "x" * 1000))
    (difference,) = compare(a, b)
    assert isinstance(difference, Difference)
    assert difference.text.isprintable()
    assert len(difference.text) < 200


def branch(m: onnx.ModelProto) -> None:
    """Functions and what the graph says of itself are part of a file too."""
    m.functions.append(
        helper.make_function(
            "local", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 17)]
        )
    )


def graph_name(m: onnx.ModelProto) -> None:
    m.graph.name = "other"


def value_info(m: onnx.ModelProto) -> None:
    m.graph.value_info.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 64]))


def unknown(where: Callable[[onnx.ModelProto], Any]) -> Callable[[onnx.ModelProto], None]:
    """Adds field 999, which no version of ONNX has: a place to hide something from a list of differences."""

    def change(m: onnx.ModelProto) -> None:
        where(m).MergeFromString(b"\xba\x3e\x06hidden")

    change.__name__ = "unknown_field"
    return change


def repeated_key(m: onnx.ModelProto) -> None:
    for value in ("first", "second"):
        m.metadata_props.add(key="", value=value)
    m.metadata_props.add(key="", value="second")


HIDDEN = [
    unknown(lambda m: m),
    unknown(lambda m: m.graph),
    unknown(lambda m: m.graph.node[0]),
    unknown(lambda m: m.graph.initializer[0]),
    unknown(lambda m: m.opset_import[0]),
    repeated_key,
]


@pytest.mark.parametrize("change", [branch, graph_name, value_info, *HIDDEN], ids=lambda f: f.__name__)
def test_the_rest_of_the_file_counts_too(change: Callable[[onnx.ModelProto], None]) -> None:
    """ "Every difference between two ONNX files": a changed function body is a changed model."""
    a, b = quadrant_model(), quadrant_model()
    change(b)
    assert compare(a, b) != []
