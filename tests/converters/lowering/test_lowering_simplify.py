"""Simplify: the same answers from fewer nodes, with every name that a tap or a patch needs."""

from __future__ import annotations

import lowering_families
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from lowering_families import images
from lowering_support import array, model, node
from onnx import TensorProto, helper, numpy_helper
from random_graphs import classifiers

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.knowledge import learn
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.oracle import Oracle


def answers(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return Oracle(proto.SerializeToString()).run({proto.graph.input[0].name: x})


def same(proto: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    """The simplified model: valid, answering the same to the bit, its input not mutated, itself simple."""
    before = proto.SerializeToString(deterministic=True)
    simple, known = simplify(proto)
    assert (known.before, known.after) == (learn(inline_functions(proto)), learn(simple))
    assert proto.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(simple, strict_mode=True))
    for a, b in zip(answers(proto, x), answers(simple, x), strict=True):
        np.testing.assert_array_equal(a, b)
    again, report = simplify(simple)
    assert (report.inlined, report.folded, report.dropped, report.unused) == (0, (), (), 0)
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in simple.graph.node]
    return simple


def operators(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]


def test_shape_arithmetic_is_folded_and_weights_are_not() -> None:
    nodes = [
        node("Shape", "w", "s"),
        node("Gather", "s one", "columns"),
        node("Concat", "minus columns", "t", axis=0),
        node("MatMul", "x w", "a"),
        node("Mul", "v v", "v2"),  # a float constant: a patch may be about v
        node("Add", "a v2", "b"),
        node("Reshape", "b t"),
    ]
    constants = {"w": array((4, 3)), "v": array((3,)), "one": np.array([1]), "minus": np.array([-1])}
    proto = model(nodes, constants)
    simple = same(proto, array((2, 4)))
    assert operators(simple) == ["MatMul", "Mul", "Add", "Reshape"]
    _, report = simplify(proto)
    assert "t" in report.folded
    kept = {t.name: numpy_helper.to_array(t) for t in simple.graph.initializer}
    for name, value in constants.items():
        np.testing.assert_array_equal(kept[name], value)
    np.testing.assert_array_equal(kept["t"], [-1, 3])


def test_copies_are_dropped_and_reported() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Identity", "a", "b"),
        node("Dropout", "b", "c"),
        node("Cast", "c", "d", to=TensorProto.FLOAT),
        node("Neg", "d"),
    ]
    proto = model(nodes, opset=13)
    simple = same(proto, array((2, 4)))
    assert operators(simple) == ["Relu", "Neg"]
    _, report = simplify(proto)
    assert {dropped for dropped, _ in report.dropped} == {"b", "c", "d"}
    assert {stands for _, stands in report.dropped} == {"a"}


def test_an_output_keeps_its_name_and_stays_computed() -> None:
    nodes = [node("Relu", "x", "a"), node("Identity", "a", "y"), node("Identity", "a", "z")]
    simple = same(model(nodes, outputs=("y", "z")), array((2, 4)))
    assert [o.name for o in simple.graph.output] == ["y", "z"]


def test_a_cast_that_changes_the_type_and_a_mask_that_is_read_stay() -> None:
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Dropout", "f", "d mask"),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        node("Mul", "d m"),
    ]
    simple = same(model(nodes, opset=13), array((2, 4)))
    assert operators(simple).count("Cast") == 3
    assert "Mul" in operators(simple)


def test_what_nothing_reads_goes_and_its_weight_stays() -> None:
    nodes = [node("Relu", "x"), node("MatMul", "x w", "unused"), node("Neg", "unused", "also")]
    proto = model(nodes, {"w": array((4, 4))})
    simple = same(proto, array((2, 4)))
    assert operators(simple) == ["Relu"]
    assert [t.name for t in simple.graph.initializer] == ["w"]
    assert simplify(proto)[1].unused == 2


def test_a_body_that_reads_a_value_around_it_keeps_it() -> None:
    """`a` is read by no node, but by a branch."""
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    yes = helper.make_graph([helper.make_node("Neg", ["a"], ["r"])], "yes", [], [out])
    no = helper.make_graph([helper.make_node("Abs", ["a"], ["r"])], "no", [], [out])
    nodes = [
        node("Relu", "x", "a"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "condition"),
        helper.make_node("If", ["condition"], ["y"], then_branch=yes, else_branch=no),
    ]
    proto = model(nodes, {"zero": np.float32(0)})
    simple, _ = simplify(proto)
    assert operators(simple) == operators(proto)
    for x in (array((2, 4)), -array((2, 4))):
        np.testing.assert_array_equal(answers(proto, x)[0], answers(simple, x)[0])


def test_functions_are_inlined_and_counted() -> None:
    body = [helper.make_node("Relu", ["i"], ["t"]), helper.make_node("Neg", ["t"], ["o"])]
    function = helper.make_function("own", "F", ["i"], ["o"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    proto = model([call], functions=[function], domains=["own"])
    simple = same(proto, array((2, 4)))
    assert operators(simple) == ["Relu", "Neg"]
    assert simplify(proto)[1].inlined == 1
    assert not simple.functions


def test_inferred_shapes_take_the_place_of_declared_ones() -> None:
    """Some exporters write wrong value_info (jax2onnx); nobody reads it after this."""
    proto = model([node("MatMul", "x w", "a"), node("Relu", "a")], {"w": array((4, 3))})
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [7, 9]))
    simple, _ = simplify(proto)
    (info,) = [v for v in simple.graph.value_info if v.name == "a"]
    assert info.type.tensor_type.shape.dim[1].dim_value == 3
    assert not info.type.tensor_type.shape.dim[0].dim_value


@pytest.mark.parametrize("family", ["shuffle", "transformer", "windows"])
def test_a_network_has_the_same_cuts_and_weights(family: str) -> None:
    proto = lowering_families.export(lowering_families.build(family), dynamo=False)
    simple = same(proto, images(3).numpy())
    assert len(simple.graph.node) < 0.9 * len(proto.graph.node)
    lowered, original = lower(simple), lower(proto)
    assert {w.initializer for w in lowered.weights.values()} == {w.initializer for w in original.weights.values()}
    names = {tap.name for tap in cuts(lowered)}
    assert names == {tap.name for tap in cuts(original)}
    assert names <= {o for n in proto.graph.node for o in n.output}


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(classifiers())
def test_random_graphs_answer_the_same(proto: onnx.ModelProto) -> None:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    simple = same(proto, np.random.default_rng(0).random((2, *shape), np.float32))
    assert {t.name for t in proto.graph.initializer} <= {t.name for t in simple.graph.initializer}


def test_functions_that_cannot_be_inlined_are_refused() -> None:
    body = [helper.make_node("F", ["i"], ["o"], domain="own")]
    function = helper.make_function("own", "F", ["i"], ["o"], body, [helper.make_opsetid("own", 1)])
    proto = model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=[function], domains=["own"])
    with pytest.raises(OnnxspectError):
        simplify(proto)
