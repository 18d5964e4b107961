"""Cuts: g(f(x)) is the model, for every cut of every topology, at any batch size; and what is no cut is refused."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import lowering_families
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_families import images
from lowering_support import array, model, node
from onnx import TensorProto, helper
from tolerances import NETWORK_32, SUM_32

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.fixed_batch import GroupedGraphModule
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.taps import Tap, cuts, split, with_outputs
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.parity import check_parity

#: Family -> (whether torch's default exporter writes it, an operator that computes one of its cuts).
FAMILIES = {
    "residual": (False, "Relu"),
    "dense": (False, "Concat"),
    "inception": (False, "Concat"),
    "transformer": (False, "Add"),
    "mobile": (False, "Add"),
    "shuffle": (False, "Concat"),
    "windows": (True, "ReduceMean"),
    "convnext": (True, "Add"),
}


@functools.cache
def exported(family: str) -> tuple[onnx.ModelProto, LoweredModel]:
    proto = lowering_families.export(lowering_families.build(family), dynamo=FAMILIES[family][0])
    return proto, lower(proto)


def dominators(proto: onnx.ModelProto) -> set[str]:
    """Cuts by their definition: without the value, no data of the image reaches the logits."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for proto_node in proto.graph.node:
        if proto_node.op_type in ("Shape", "Size"):
            continue
        for name in proto_node.input:
            readers.setdefault(name, []).append(proto_node)

    def reaches(removed: str) -> bool:
        seen, stack = {removed}, [proto.graph.input[0].name]
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            stack.extend(o for reader in readers.get(name, []) for o in reader.output)
        return proto.graph.output[0].name in seen

    return {o for n in proto.graph.node for o in n.output if o and not reaches(o)} - {proto.graph.output[0].name}


def names(taps: Sequence[Tap]) -> list[str]:
    return [tap.name for tap in taps]


# Whole networks.


@pytest.mark.parametrize("family", FAMILIES)
def test_both_halves_are_the_model_at_every_cut_and_batch_size(family: str) -> None:
    _, lowered = exported(family)
    found = cuts(lowered)
    assert len(found) >= 4
    for tap in found:
        f, g = split(lowered, tap)
        for batch in (1, 2, 5):
            x = images(batch, seed=batch)
            with torch.no_grad():
                inner = f(x)
                assert torch.equal(g(inner), lowered.module(x)), (tap, batch)
                if tap.shape is not None:  # as declared, batch and open sizes apart
                    assert len(tap.shape) == inner.ndim
                    assert all(s in (None, n) for s, n in zip(tap.shape, inner.shape, strict=True)), tap


@pytest.mark.parametrize("family", FAMILIES)
def test_cuts_are_the_values_that_no_path_avoids(family: str) -> None:
    proto, lowered = exported(family)
    expected = dominators(proto)
    nodes = {lowered.values[name] for name in expected if name in lowered.values}
    found = cuts(lowered)
    assert {lowered.values[tap.name] for tap in found} == nodes - {lowered.values[proto.graph.output[0].name]}
    order = [n.name for n in lowered.module.graph.nodes]
    positions = [order.index(lowered.values[tap.name]) for tap in found]
    assert positions == sorted(set(positions))
    assert [tap.index for tap in found] == list(range(len(found)))
    depths = [tap.depth for tap in found]
    assert depths == sorted(depths)
    assert 0 <= depths[0] < 0.5 < depths[-1] <= 1
    assert FAMILIES[family][1] in {tap.operator for tap in found}


@pytest.mark.parametrize("family", ["residual", "transformer"])
def test_every_cut_holds_parity_with_onnxruntime(family: str) -> None:
    proto, lowered = exported(family)
    taps = names(cuts(lowered))
    report = check_parity(proto, lowered, batch_sizes=(1, 3), taps=taps)
    assert {t.name for t in report.tensors} == {*taps, *lowered.outputs}


@pytest.mark.parametrize("family", ["dense", "transformer"])
def test_the_gradient_through_both_halves_is_the_models(family: str) -> None:
    _, lowered = exported(family)
    found = cuts(lowered)
    x = images(2).requires_grad_(True)
    (expected,) = torch.autograd.grad(lowered.module(x)[:, 3].sum(), x)
    f, g = split(lowered, found[len(found) // 2])
    (gradient,) = torch.autograd.grad(g(f(x))[:, 3].sum(), x)
    assert torch.equal(gradient, expected)


def test_a_cut_can_be_replaced() -> None:
    """g is a function of the value alone: what f never computed goes through it as well, for any batch size."""
    _, lowered = exported("residual")
    tap = next(t for t in cuts(lowered) if t.shape is not None and len(t.shape) == 4)
    _, g = split(lowered, tap.name)
    assert tap.shape is not None
    inner = torch.rand(7, *[int(n or 0) for n in tap.shape[1:]])
    rows = torch.cat([g(inner[i : i + 1]) for i in range(7)])
    assert torch.allclose(g(inner), rows, atol=SUM_32)


def test_halves_share_the_parameters_of_the_whole() -> None:
    proto = model(
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v")],
        {"w": array((4, 4)), "v": array((4, 3), 1)},
    )
    lowered = lower(proto)
    f, g = split(lowered, "b")
    assert {id(p) for p in (*f.parameters(), *g.parameters())} == {id(p) for p in lowered.module.parameters()}
    assert (len(list(f.parameters())), len(list(g.parameters()))) == (1, 1)
    with torch.no_grad():
        next(g.parameters()).zero_()
    assert not lowered.module(torch.ones(2, 4)).any()
    assert not f.training
    assert not g.training


# Small graphs, where the answer is known by hand.


def test_a_sum_of_two_paths_is_a_cut_and_neither_path_is() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Tanh", "a", "left"),
        node("Neg", "a", "right"),
        node("Add", "left right", "sum"),
        node("Exp", "sum"),
    ]
    proto = model(nodes)
    assert names(cuts(proto)) == ["a", "sum"]
    for path in ("left", "right"):
        with pytest.raises(OnnxspectError, match=f"{path} is no cut: there is a path from the image"):
            split(proto, path)


def test_a_path_from_the_image_itself_leaves_no_cut_beside_it() -> None:
    assert names(cuts(model([node("Relu", "x", "a"), node("Add", "a x", "b"), node("Neg", "b")]))) == ["b"]
    assert cuts(model([node("Relu", "x")])) == []


def test_copies_of_a_value_count_once_under_the_first_name() -> None:
    nodes = [node("Relu", "x", "a"), node("Identity", "a", "b"), node("Dropout", "b", "c mask"), node("Neg", "c")]
    proto = model(nodes)
    assert names(cuts(proto)) == ["a"]
    for name in ("a", "b", "c"):  # any of its names may be asked for
        f, g = split(proto, name)
        x = torch.from_numpy(array((3, 4)))
        assert torch.equal(g(f(x)), -x.relu())


def test_what_the_logits_do_not_need_is_no_cut() -> None:
    nodes = [node("Relu", "x", "a"), node("Exp", "a", "side"), node("Neg", "a")]
    proto = model(nodes, outputs=("y", "side"))
    assert names(cuts(proto)) == ["a"]
    assert names(cuts(proto, "side")) == ["a"]
    assert names(cuts(lower(proto), "side")) == ["a"]
    with pytest.raises(OnnxspectError, match="side is no cut: the image reaches the logits without it"):
        split(proto, "side")
    with pytest.raises(OnnxspectError, match="side is no cut: there is a path"):
        split(lower(proto), "side")


def test_a_path_of_shapes_alone_does_not_count() -> None:
    """A Reshape behind the cut asks the image for its batch size: g works it out from its own input."""
    nodes = [
        node("Relu", "x", "a"),
        node("Shape", "x", "s", start=0, end=1),
        node("Concat", "s rest", "t", axis=0),
        node("Reshape", "a t"),
    ]
    proto = model(nodes, {"rest": np.array([-1])}, ("n", 2, 6))
    assert names(cuts(proto)) == ["a"]
    f, g = split(proto, "a")
    for batch in (1, 2, 5):
        x = torch.from_numpy(array((batch, 2, 6), batch))
        assert torch.equal(g(f(x)), x.relu().reshape(batch, -1))


def test_the_batch_size_is_known_from_a_value_whose_first_axis_is_a_multiple_of_it() -> None:
    """Windows: the cut has four rows an image, and g must find how many images those are."""
    nodes = [
        node("Reshape", "x windows", "a"),
        node("Relu", "a", "b"),
        node("Shape", "x", "s", start=0, end=1),
        node("Concat", "s rest", "t", axis=0),
        node("Reshape", "b t"),
    ]
    proto = model(nodes, {"windows": np.array([-1, 2]), "rest": np.array([8])}, ("n", 8))
    _, g = split(proto, "b")
    x = torch.from_numpy(array((5, 8)))
    assert torch.equal(g(x.reshape(20, 2)), x)


def test_the_number_of_elements_behind_a_cut() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Size", "x", "n"),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        node("Div", "a f"),
    ]
    proto = model(nodes, shape=("n", 4))
    f, g = split(proto, "a")
    x = torch.from_numpy(array((5, 4)))
    assert torch.equal(g(f(x)), x.relu() / 20)


def test_open_sizes_need_an_example() -> None:
    nodes = [
        node("GlobalAveragePool", "x", "a"),
        node("Shape", "x", "s", start=2),
        node("Concat", "s0 s", "t", axis=0),
        node("Expand", "a t"),
    ]
    proto = model(nodes, {"s0": np.array([1, 1])}, ("n", 3, "h", "w"))
    with pytest.raises(OnnxspectError, match="sizes of the model's input are open") as caught:
        split(proto, "a")
    assert "example" in caught.value.hint
    f, g = split(proto, "a", example=(3, 5, 6))
    x = torch.from_numpy(array((2, 3, 5, 6)))
    assert torch.equal(g(f(x)), lower(proto).module(x))


def test_a_cut_that_does_not_tell_the_batch_size_is_refused() -> None:
    nodes = [
        node("ReduceSum", "x axes", "a", keepdims=0),
        node("Shape", "x", "s"),
        node("Expand", "a s"),
    ]
    proto = model(nodes, {"axes": np.array([0])}, ("n", 4))
    with pytest.raises(OnnxspectError, match="does not tell the batch size"):
        split(proto, "a")


def test_a_file_for_one_batch_size_is_cut_as_well() -> None:
    """Rows that mix: the file is run in groups of three, and so are both halves."""
    nodes = [node("Relu", "x", "a"), node("CumSum", "a axis", "b"), node("Neg", "b")]
    proto = model(nodes, {"axis": np.array(0)}, (3, 4))
    lowered = lower(proto)
    assert isinstance(lowered.module, GroupedGraphModule)
    x = torch.from_numpy(array((7, 4)))
    expected = torch.cat([-x[i : i + 3].relu().cumsum(0) for i in range(0, 7, 3)])
    assert torch.allclose(lowered.module(x), expected)
    for tap in cuts(lowered):
        f, g = split(lowered, tap)
        assert torch.equal(g(f(x)), lowered.module(x))


def test_unknown_and_hostile_names() -> None:
    proto = model([node("Relu", "x", "a"), node("Neg", "a")])
    lowered = lower(proto)
    for ask in (
        lambda name: split(lowered, name),
        lambda name: with_outputs(lowered, [name]),
        lambda name: cuts(lowered, name),
    ):
        with pytest.raises(OnnxspectError, match="computes no value named nothing"):
            ask("nothing")
        with pytest.raises(OnnxspectError) as caught:
            ask("\x1b[31m" + "long" * 100_000)
        assert "\x1b" not in caught.value.message
        assert len(caught.value.message) < 500


# Other outputs.


def test_other_outputs_are_the_files_own_values() -> None:
    proto, lowered = exported("inception")
    wanted = [*names(cuts(lowered))[::-2], lowered.outputs[0]]
    found = with_outputs(lowered, wanted)
    assert found.outputs == tuple(wanted)
    assert found.inputs == lowered.inputs
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    x = images(3)
    with torch.no_grad():
        results = found.module(x)
    for ours, theirs in zip(
        results, Oracle(copied.SerializeToString()).run({lowered.inputs[0]: x.numpy()}), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=NETWORK_32, atol=NETWORK_32)


def test_other_outputs_hold_what_they_need_and_no_more() -> None:
    lowered = lower(
        model([node("MatMul", "x w", "a"), node("MatMul", "a v")], {"w": array((4, 4)), "v": array((4, 3))})
    )
    first = with_outputs(lowered, ["a"])
    assert [w.initializer for w in first.weights.values()] == ["w"]
    assert set(first.values) == {"x", "a"}
    assert isinstance(first.module(torch.ones(2, 4)), torch.Tensor)
    assert with_outputs(lowered, ["y"]) is lowered
    assert cuts(first) == []


# Random graphs.


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A directed acyclic graph of Tanh and Add over ``(n, 4)`` values; the last value is the logits."""
    values = ["x"]
    nodes = []
    for i in range(draw(st.integers(2, 12))):
        recent = st.integers(max(0, len(values) - 4), len(values) - 1)
        a, b = values[draw(recent)], values[draw(recent)]
        name = f"v{i}"
        nodes.append(node("Tanh", a, name) if a == b else node("Add", f"{a} {b}", name))
        values.append(name)
    return model(nodes, outputs=(values[-1],))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs())
def test_cuts_of_random_graphs(proto: onnx.ModelProto) -> None:
    lowered = lower(proto)
    found = cuts(lowered)
    needed = set(lowered.values)
    assert set(names(found)) == dominators(proto) & needed
    x = torch.from_numpy(array((3, 4)))
    for tap in found:
        f, g = split(lowered, tap)
        assert torch.equal(g(f(x)), lowered.module(x))
