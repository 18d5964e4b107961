"""Nodes out of order and sparse tensors are put right as onnxruntime does it, and said; damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from compatibility_cases import classifier
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.node_order import make_dense, sort_nodes
from onnxspect.converters.file.onnx_file import Limits, check_onnx


def test_sorted_only_where_it_must_be() -> None:
    graph = classifier([], ("z",)).graph
    before = [n.SerializeToString() for n in graph.node]
    assert not sort_nodes(graph)
    turned = [onnx.NodeProto.FromString(n) for n in reversed(before)]
    del graph.node[:]
    graph.node.extend(turned)
    assert sort_nodes(graph)
    assert [n.SerializeToString() for n in graph.node] == before


def test_a_cycle_is_left_to_who_lowers_it() -> None:
    graph = classifier([], ("z",)).graph
    graph.node[0].input[0] = "z"
    before = graph.SerializeToString()
    assert not sort_nodes(graph)
    assert graph.SerializeToString() == before


def test_a_branch_reads_values_around_it() -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["late"], ["o"])], "b", [], [onnx.ValueInfoProto(name="o")])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["x"], ["late"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert sort_nodes(graph)
    assert [n.op_type for n in graph.node] == ["Relu", "If"]


def _sparse(places: np.ndarray, shape: tuple[int, ...]) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.arange(1, len(places) + 1, dtype=np.float32), "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "at"), list(shape))


@pytest.mark.parametrize("places", [np.array([1, 5]), np.array([[0, 1], [1, 2]])], ids=["counted", "by axis"])
def test_a_sparse_tensor_is_the_plain_one(places: np.ndarray) -> None:
    graph = onnx.GraphProto(sparse_initializer=[_sparse(places, (2, 3))])
    assert make_dense(graph, 1000) == 1
    assert not graph.sparse_initializer
    np.testing.assert_array_equal(numpy_helper.to_array(graph.initializer[0]), [[0, 1, 0], [0, 0, 2]])


@pytest.mark.parametrize(
    ("places", "shape", "said"),
    [
        (np.array([1, 6]), (2, 3), "is damaged"),
        (np.array([-1, 2]), (2, 3), "is damaged"),
        (np.array([[0, 1], [2, 2]]), (2, 3), "is damaged"),
        (np.array([1]), (10**6, 10**6), "would take"),
        (np.array([1]), (0, 3), "would take"),
    ],
)
def test_a_sparse_tensor_that_is_refused(places: np.ndarray, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(OnnxspectError, match=said):
        make_dense(onnx.GraphProto(sparse_initializer=[_sparse(places, shape)]), 1000)


def test_a_sparse_tensor_elsewhere_is_not_followed() -> None:
    sparse = _sparse(np.array([1]), (2, 3))
    sparse.values.data_location = TensorProto.EXTERNAL
    with pytest.raises(OnnxspectError, match="lies in another file"):
        make_dense(onnx.GraphProto(sparse_initializer=[sparse]), 1000)


def test_it_is_said() -> None:
    model = classifier([], ("z",))
    nodes = list(reversed([onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    file = check_onnx(model.SerializeToString(), Path("m.onnx"), Limits(), "m.onnx", external=False)
    assert file.warnings == ("its nodes are not in the order of their use: they were sorted, as onnxruntime does",)
