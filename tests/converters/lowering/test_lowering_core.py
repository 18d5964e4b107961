"""Lowering as a whole: the map of weights, the errors, precision, batch sizes, shapes, control flow, functions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import lowering_families
import numpy as np
import onnx
import pytest
import torch
from lowering_families import images
from lowering_support import array, expect, model, node
from onnx import TensorProto, helper, numpy_helper
from tolerances import FORMULA_64, NETWORK_32, OPERATION_32, ROUNDING_64, SUM_32

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.fixed_batch import GroupedGraphModule
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.taps import cuts, split
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.parity import check_gradients, check_parity

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


# The map of weights.


def test_one_initializer_is_one_parameter_however_many_nodes_use_it() -> None:
    proto = model([node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Add", "b w")], {"w": array((4, 4))})
    lowered = expect(proto, array((4, 4), 1))
    assert [w.initializer for w in lowered.weights.values()] == ["w"]
    (parameter,) = lowered.module.parameters()
    with torch.no_grad():
        parameter.zero_()
    assert not lowered.module(torch.ones(4, 4)).any()


def test_a_weight_behind_identity_transpose_and_reshape_is_the_files_tensor() -> None:
    nodes = [
        node("Identity", "w", "i"),
        node("Transpose", "i", "t", perm=[1, 0]),
        node("Reshape", "t s", "r"),
        node("MatMul", "x r"),
    ]
    lowered = expect(model(nodes, {"w": array((2, 4)), "s": np.array([4, 2])}), array((3, 4), 1))
    ((name, weight),) = lowered.weights.items()
    assert weight.initializer == "w"
    assert tuple(lowered.module.get_parameter(name).shape) == (2, 4)


def test_a_constant_nodes_tensor_is_a_parameter_too() -> None:
    value = numpy_helper.from_array(array((4, 3)))
    lowered = expect(model([node("Constant", "", "w", value=value), node("MatMul", "x w")]), array((2, 4), 1))
    ((_, weight),) = lowered.weights.items()
    assert (weight.initializer, weight.is_constant_node) == ("w", True)


def test_parameters_are_frozen_and_the_module_is_in_evaluation_mode() -> None:
    lowered = lower(model([node("MatMul", "x w")], {"w": array((4, 4))}))
    assert not lowered.module.training
    assert not any(p.requires_grad for p in lowered.module.parameters())


def test_every_float_initializer_of_a_transformer_is_a_parameter_of_the_same_value() -> None:
    proto = lowering_families.export(lowering_families.build("transformer"), dynamo=False)
    lowered = lower(proto)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    matched = [w.initializer for w in lowered.weights.values() if w.initializer in stored]
    for name, weight in lowered.weights.items():
        if weight.initializer in stored:
            assert np.array_equal(lowered.module.get_parameter(name).numpy(), stored[weight.initializer])
    floats = {name for name, value in stored.items() if value.dtype.kind == "f"}
    used = {i for n in proto.graph.node for i in n.input}
    assert set(matched) == floats & used


def test_batch_normalization_is_mapped_by_name_though_all_its_tensors_are_equal() -> None:
    ones = np.ones(4, np.float32)
    proto = model(
        [node("BatchNormalization", "x s b m v")], {"s": ones, "b": ones, "m": ones, "v": ones}, ("n", 4, 2, 2)
    )
    lowered = expect(proto, array((2, 4, 2, 2)))
    by_initializer = {w.initializer: lowered.module.get_parameter(n) for n, w in lowered.weights.items()}
    with torch.no_grad():
        by_initializer["b"].fill_(7.0)
        by_initializer["s"].zero_()
    assert bool((lowered.module(torch.rand(1, 4, 2, 2)) == 7).all())


# Errors.


def test_all_unsupported_operators_are_listed_with_their_places() -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first", domain="strange"),
        node("RandomNormalLike", "a", "b"),
        helper.make_node("Twist", ["b"], ["y"], name="last", domain="strange"),
    ]
    with pytest.raises(OnnxspectError) as caught:
        lower(model(nodes, domains=["strange"]))
    for text in ("3 node(s)", "strange:Frobnicate", "at first", "RandomNormalLike", "strange:Twist", "at last"):
        assert text in caught.value.message


def test_what_the_wanted_output_does_not_need_need_not_be_supported() -> None:
    nodes = [node("Relu", "x", "a"), helper.make_node("Frobnicate", ["a"], ["y"], domain="strange")]
    proto = model(nodes, domains=["strange"])
    assert float(lower(proto, ["a"]).module(-torch.ones(1, 4)).sum()) == 0
    with pytest.raises(OnnxspectError, match="Frobnicate"):
        lower(proto)


def test_an_opset_newer_than_the_installed_onnx_is_refused() -> None:
    newest = onnx.defs.onnx_opset_version()
    assert registry.find("", "Relu", newest) is not None
    with pytest.raises(OnnxspectError, match="Relu"):
        lower(model([node("Relu", "x")], opset=newest + 1))


def test_a_version_that_no_lowering_names_is_unsupported() -> None:
    assert registry.find("", "Relu", 14) is not None
    assert registry.find("", "Scan", 8) is None  # another form than that of opset 9, which is there


def test_a_second_lowering_of_the_same_version_is_a_mistake() -> None:
    lower(model([node("Relu", "x")]))  # registers the operators
    with pytest.raises(ValueError, match="second lowering"):
        registry.lowering("Relu", 14)(lambda node: node)


def test_hostile_names_are_escaped_and_cut() -> None:
    name = "\x1b[31m‮" + "a" * 100_000
    with pytest.raises(OnnxspectError) as caught:
        lower(model([helper.make_node("Relu", ["x"], ["y"])]), [name])
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400
    identifiers = model([helper.make_node("MatMul", ["x", "import os"], ["y"])], {"import os": array((4, 4))})
    expect(identifiers, array((2, 4)))


def test_a_missing_input_is_said() -> None:
    with pytest.raises(OnnxspectError, match="before anything computes it"):
        lower(model([node("Add", "x nowhere")]))


def test_recurrent_weights_of_wrong_sizes_never_reach_torchs_kernels() -> None:
    weights = {"w": array((1, 8, 4)), "r": array((1, 8, 2)), "h": array((1, 3, 2))}
    proto = model([node("LSTM", "x w r _ _ h", "y", hidden_size=2)], weights, ("t", "n", 4))
    with pytest.raises(ValueError, match="initial_h"):
        lower(proto).module(torch.rand(5, 2, 4))


# Precision.


def test_double_makes_a_float64_graph_through_casts() -> None:
    nodes = [
        node("Cast", "x", "a", to=FLOAT),
        node("MatMul", "a w", "b"),
        node("Cast", "b", "c", to=TensorProto.FLOAT16),
    ]
    nodes += [node("Cast", "c", "d", to=FLOAT), node("Div", "d three")]
    lowered = lower(model(nodes, {"w": array((4, 4)), "three": np.float32(3)}))
    module = copy.deepcopy(lowered.module).double()
    x = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.from_numpy(array((4, 4))).double()
    assert module(x).dtype == torch.float64
    assert torch.allclose(module(x), x @ weight / 3, rtol=ROUNDING_64, atol=0)


def test_fp16_weights_are_computed_in_float32_and_keep_their_type_in_the_map() -> None:
    proto = model([node("MatMul", "x w")], {"w": array((4, 4), dtype=np.float16)}, dtype=TensorProto.FLOAT16)
    lowered = lower(proto)
    ((name, weight),) = lowered.weights.items()
    assert weight.dtype == TensorProto.FLOAT16
    assert lowered.module.get_parameter(name).dtype == torch.float32
    assert check_parity(proto, lowered).precision == "float16"


def test_bfloat16_weights_are_computed_in_float32() -> None:
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], array((16,)))
    proto = model([node("Cast", "w", "f", to=FLOAT), node("MatMul", "x f")])
    proto.graph.initializer.append(tensor)
    lowered = lower(proto)
    x = torch.rand(3, 4)
    assert torch.allclose(lowered.module(x), x @ torch.from_numpy(array((4, 4))).bfloat16().float())
    assert [w.dtype for w in lowered.weights.values()] == [TensorProto.BFLOAT16]


def test_a_file_of_doubles_is_computed_in_float64() -> None:
    proto = model([node("MatMul", "x w")], {"w": array((4, 4), dtype=np.float64)}, dtype=TensorProto.DOUBLE)
    lowered = expect(proto, array((3, 4), 1, np.float64), FORMULA_64)
    assert next(lowered.module.parameters()).dtype == torch.float64


# Batch sizes and shapes.


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", ["shuffle", "transformer", "windows", "lstm", "plain"])
def test_a_file_made_for_one_batch_size_runs_at_any(family: str, batch: int) -> None:
    network = lowering_families.build(family)
    proto = lowering_families.export(network, dynamo=False, batch=batch)
    lowered = lower(proto)
    for n in (1, 2, 3, 5):
        x = images(n, n)
        with torch.no_grad():
            assert torch.allclose(lowered.module(x), network(x), rtol=NETWORK_32, atol=SUM_32), n
    taps = cuts(lowered)
    for tap in taps[:: max(1, len(taps) // 4)]:
        f, g = split(lowered, tap)
        x = images(2 * batch, 9)
        assert torch.equal(g(f(x)), lowered.module(x)), tap.name


def test_rows_that_mix_in_a_fixed_file_are_fed_in_groups() -> None:
    # Softmax over axis 0 mixes the images of a batch: at any other batch size the file means groups of two.
    proto = model([node("Softmax", "x", "y", axis=0)], shape=(2, 4))
    lowered = lower(proto)
    assert isinstance(lowered.module, GroupedGraphModule)
    x = array((6, 4))
    oracle = Oracle(proto.SerializeToString())
    expected = np.concatenate([oracle.run({"x": x[i : i + 2]})[0] for i in (0, 2, 4)])
    np.testing.assert_allclose(lowered.module(torch.from_numpy(x)).numpy(), expected, rtol=OPERATION_32)
    deep = copy.deepcopy(lowered.module).double()
    np.testing.assert_allclose(deep(torch.from_numpy(x).double()).numpy(), expected, rtol=SUM_32)
    leaf = torch.from_numpy(x).requires_grad_(True)
    (gradient,) = torch.autograd.grad(lowered.module(leaf)[:, 0].sum(), leaf)
    assert gradient.shape == x.shape


def test_computed_shapes_cost_nothing_where_they_are_known() -> None:
    proto = lowering_families.export(lowering_families.build("shuffle"), dynamo=False)
    assert sum(n.op_type == "Shape" for n in proto.graph.node) >= 12
    called = [n.target.__name__ for n in lower(proto).module.graph.nodes if n.op == "call_function"]
    assert "shape_of" not in called


def test_shape_arithmetic_stays_on_the_host_and_out_of_the_weights() -> None:
    nodes = [node("Shape", "x", "s"), node("Cast", "s", "f", to=FLOAT), node("Mul", "f two", "d")]
    nodes += [node("Cast", "d", "i", to=INT64), node("ConstantOfShape", "i", "z"), node("Add", "z one", "o")]
    nodes += [node("ReduceSum", "o", "t", keepdims=0), node("Mul", "x t")]
    proto = model(nodes, {"two": np.float32(2), "one": np.float32(1)}, ("n", "m"))
    lowered = expect(proto, array((3, 5)))
    assert list(lowered.weights) == []
    meta = torch.randn(2, 3, device="meta")  # as on an accelerator: nothing may ask a device value for a number
    assert lowered.module.to("meta")(meta).shape == (2, 3)


def test_height_and_width_may_change_where_the_model_leaves_them_open() -> None:
    nodes = [node("Conv", "x w", "a", auto_pad="SAME_UPPER", strides=[2, 2]), node("Shape", "x", "s", start=2)]
    nodes += [node("Concat", "nc s", "t", axis=0), node("Resize", "a _ _ t", "b", mode="linear")]
    nodes += [node("GlobalAveragePool", "b", "p"), node("Flatten", "p")]
    proto = model(nodes, {"w": array((3, 2, 3, 3)), "nc": np.array([1, 3])}, (1, 2, "h", "w"))
    for size in ((5, 7), (8, 8), (9, 4)):
        expect(proto, array((1, 2, *size)))


def test_squeeze_without_axes_keeps_the_batch() -> None:
    proto = model([node("ReduceMean", "x", "a", axes=[2, 3], keepdims=1), node("Squeeze", "a")], shape=("n", 3, 2, 2))
    assert lower(proto).module(torch.rand(1, 3, 2, 2)).shape == (1, 3)
    expect(proto, array((2, 3, 2, 2)))


# Control flow and functions.


def _body(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[tuple[str, int]], outputs: Sequence[str]
) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        "body",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs],
        [onnx.ValueInfoProto(name=o) for o in outputs],
    )


def _branch(op: str) -> onnx.GraphProto:
    return _body([node(op, "x", "branch")], [], ["branch"])


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_a_constant_condition_is_its_branch(condition: bool) -> None:
    proto = model(
        [node("If", "c", then_branch=_branch("Relu"), else_branch=_branch("Neg"))], {"c": np.array(condition)}
    )
    x = torch.linspace(-1, 1, 4).reshape(1, 4)
    assert torch.equal(lower(proto).module(x), x.relu() if condition else -x)


def test_if_on_a_size_that_is_known_is_its_branch() -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s one", "d", axis=0), node("Equal", "d one_", "c")]
    nodes += [node("If", "c", then_branch=_branch("Squeeze"), else_branch=_branch("Relu"))]
    proto = model(nodes, {"one": np.array(1), "one_": np.array(1)}, ("n", 4))
    assert lower(proto).module(torch.rand(2, 4)).shape == (2, 4)


def test_if_on_an_empty_batch_is_settled() -> None:
    nodes = [node("Size", "x", "s"), node("Equal", "s zero", "c")]
    nodes += [node("If", "c", then_branch=_branch("Neg"), else_branch=_branch("Relu"))]
    x = -torch.ones(2, 4)
    assert not lower(model(nodes, {"zero": np.array(0)})).module(x).any()


def test_if_on_pixels_is_refused_by_name() -> None:
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Cast", "s", "c", to=TensorProto.BOOL)]
    nodes += [node("If", "c", then_branch=_branch("Relu"), else_branch=_branch("Neg"))]
    with pytest.raises(OnnxspectError, match=r"If .*only known at run time"):
        lower(model(nodes))


def test_loop_with_a_constant_count_is_unrolled_and_shares_its_weights() -> None:
    body = _body(
        [
            node("MatMul", "v w", "u"),
            node("Relu", "u", "o"),
            node("Identity", "c_in", "c_out"),
            node("Add", "o o", "scan"),
        ],
        [("i", INT64), ("c_in", TensorProto.BOOL), ("v", FLOAT)],
        ["c_out", "o", "scan"],
    )
    body.initializer.append(numpy_helper.from_array(array((4, 4)), "w"))
    proto = model(
        [node("Loop", "m c x", "y all", body=body)], {"m": np.array(3), "c": np.array(True)}, outputs=("y", "all")
    )
    lowered = lower(proto)
    x, w = torch.rand(2, 4), torch.from_numpy(array((4, 4)))
    expected, collected = x, []
    for _ in range(3):
        expected = (expected @ w).relu()
        collected.append(2 * expected)
    y, everything = lowered.module(x)
    assert torch.allclose(y, expected)
    assert torch.allclose(everything, torch.stack(collected))
    assert len(lowered.weights) == 1


def test_an_endless_loop_is_refused() -> None:
    body = _body(
        [node("Relu", "v", "o"), node("Identity", "c_in", "c_out")],
        [("i", INT64), ("c_in", TensorProto.BOOL), ("v", FLOAT)],
        ["c_out", "o"],
    )
    for count in (np.array(2**62), None):
        constants = {"c": np.array(True)} | ({} if count is None else {"m": count})
        with pytest.raises(OnnxspectError, match="iterations"):
            lower(model([node("Loop", f"{'_' if count is None else 'm'} c x", "y", body=body)], constants))


def test_scan_over_a_known_length_is_unrolled() -> None:
    body = _body([node("Add", "s t", "o"), node("Relu", "o", "out")], [("s", FLOAT), ("t", FLOAT)], ["o", "out"])
    nodes = [node("Transpose", "x", "rows", perm=[1, 0]), node("ReduceSum", "x axis", "zero", keepdims=0)]
    nodes += [node("Scan", "zero rows", "last y", body=body, num_scan_inputs=1)]
    expect(model(nodes, {"axis": np.array([1])}, ("n", 4)), array((3, 4)))


def test_local_functions_are_inlined() -> None:
    imports = [helper.make_opsetid("", 17)]
    inner = helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], imports)
    outer = helper.make_function(
        "mine",
        "Act",
        ["a"],
        ["b"],
        [helper.make_node("Twice", ["a"], ["t"], domain="mine"), node("Relu", "t", "b")],
        [*imports, helper.make_opsetid("mine", 1)],
    )
    proto = model([helper.make_node("Act", ["x"], ["y"], domain="mine")], functions=[inner, outer], domains=["mine"])
    expect(proto, array((2, 4)))


def test_functions_that_expand_without_end_are_refused_before_they_are_expanded() -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    functions = [helper.make_function("mine", "F0", ["a"], ["b"], [node("Relu", "a", "b")], imports)]
    for i in range(1, 40):
        calls = [helper.make_node(f"F{i - 1}", [a], [b], domain="mine") for a, b in (("a", "t"), ("t", "b"))]
        functions.append(helper.make_function("mine", f"F{i}", ["a"], ["b"], calls, imports))
    proto = model([helper.make_node("F39", ["x"], ["y"], domain="mine")], functions=functions, domains=["mine"])
    with pytest.raises(OnnxspectError, match="expand to"):
        lower(proto)


def test_the_gradient_reaches_the_input_through_every_family() -> None:
    for family in ("convnext", "upsampling"):
        lowered = lower(lowering_families.export(lowering_families.build(family), dynamo=False))
        assert len(check_gradients(lowered, images(1).numpy()).errors) == 3
