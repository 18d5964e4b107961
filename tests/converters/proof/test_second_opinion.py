"""The second opinion: onnx2torch beside ours and onnxruntime, where it is installed (`onnxspect[second-opinion]`)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper
from random_graphs import classifiers

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof import second_opinion as module
from onnxspect.converters.proof.second_opinion import available, second_opinion
from onnxspect.models import zoo

needed = pytest.mark.skipif(not available(), reason="onnx2torch is not installed")
#: Operators that onnx2torch itself computes otherwise than onnxruntime (linear Resize in its asymmetric forms, which it warns of).
THEIR_FAULTS = ("Resize",)


def small(weight: float = 1.0, name: str = "") -> onnx.ModelProto:
    """A Conv, a Relu, a Reshape with allowzero, a Gemm; the first node's name is given."""
    rng = np.random.default_rng(0)
    tensors = {
        "w": weight * rng.normal(size=(2, 1, 3, 3)),
        "g": rng.normal(size=(2 * 6 * 6, 3)),
        "b": rng.normal(size=3),
    }
    initializers = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, 72]), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name=name),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"], allowzero=1),
        helper.make_node("Gemm", ["f", "g", "b"], ["y"]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "small", [image], [scores], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: False)
    module._library.cache_clear()
    with pytest.raises(OnnxspectError, match="not installed") as caught:
        second_opinion(small(), lower(small()))
    assert "second-opinion" in caught.value.hint


@needed
def test_a_small_network_is_converted_whole_and_all_three_agree() -> None:
    model = small()
    before = model.SerializeToString()
    found = second_opinion(model, lower(model))
    assert (found.converted, found.nodes, found.unsupported) == (4, 4, ())
    assert [v.name for v in found.values] == ["y"]
    assert found.agrees
    assert model.SerializeToString() == before
    assert "torchvision" not in sys.modules or hasattr(sys.modules["torchvision"], "__version__")


@needed
@pytest.mark.parametrize("name", ["fashion_mnist_badnets", "fashion_mnist_clean"])
def test_it_agrees_on_the_shipped_models(name: str) -> None:
    model = onnx.load(zoo.path(name))
    found = second_opinion(model, lower(model))
    assert found.converted == found.nodes
    assert found.agrees, found.differences


@needed
def test_what_differs_is_named() -> None:
    found = second_opinion(small(), lower(small(weight=1.5)))
    (said,) = found.differences
    assert said.startswith("y: our graph is")
    assert not found.agrees
    assert found.describe()["differences"] == [said]


@needed
def test_what_it_does_not_know_is_said_and_what_lies_before_is_compared() -> None:
    model = small()
    model.graph.node[1].op_type = "Mish"
    found = second_opinion(model, lower(model))
    assert (found.converted, found.nodes) == (1, 4)
    assert found.unsupported == ("Mish (opset 20): unknown to it",)
    assert [v.name for v in found.values] == ["c"]
    assert found.agrees


@needed
def test_memory_that_runs_out_is_no_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_theirs", full)
    with pytest.raises(MemoryError):
        second_opinion(small(), lower(small()))


@needed
@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_nodes_name_runs_no_code(tmp_path: Path, quote: str) -> None:
    """onnx2torch hands node names to torch.fx, which writes them into source text that it executes."""
    mark = tmp_path / "ran"
    text = f"x{quote}, None) or open({quote}{mark}{quote}, {quote}w{quote}) or getattr(self, {quote}x"
    assert "." not in text  # which onnx2torch replaces
    model = small(name=text)
    assert second_opinion(model, lower(model)).agrees
    assert not mark.exists()


@needed
def test_random_graphs_have_three_answers_that_agree() -> None:
    opinions = []

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(classifiers())
    def hold(proto: onnx.ModelProto) -> None:
        found = second_opinion(proto, lower(proto))
        opinions.append(found)
        for value in found.values:
            assert value.ours is None or value.ours <= value.allowed
        for said in found.differences:
            if "first differs" in said:
                assert said.endswith(tuple(f"({operator})" for operator in THEIR_FAULTS)), said

    hold()
    assert sum(o.agrees for o in opinions) >= len(opinions) / 2
    assert sum(o.converted for o in opinions) >= sum(o.nodes for o in opinions) / 2
