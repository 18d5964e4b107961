"""The proof that a torch graph is the file: what it finds, what it names, and what it lets pass."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from lowering_families import build, export, images
from lowering_support import array, model, node
from onnx import TensorProto
from tolerances import ROUNDING_64, SUM_32
from torch import fx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof import parity
from onnxspect.converters.proof.grids import reaches
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.parity import (
    GRADIENT_TOLERANCE,
    Comparison,
    TensorParity,
    check_gradients,
    check_parity,
    precision_of,
)
from onnxspect.converters.proof.tolerances import ABSOLUTE, TOLERANCES, allowed_difference


def perceptron(opset: int = 17) -> onnx.ModelProto:
    """4 inputs, two layers with a Tanh and a Relu between them, 3 outputs."""
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Tanh", "a", "b"),
        node("MatMul", "b w2", "c"),
        node("Relu", "c", "d"),
        node("MatMul", "d w3"),
    ]
    weights = {"w1": array((4, 8), 1), "w2": array((8, 8), 2), "w3": array((8, 3), 3)}
    return model(nodes, weights, opset=opset)


def weight(lowered: LoweredModel, initializer: str) -> torch.Tensor:
    (name,) = [p for p, w in lowered.weights.items() if w.initializer == initializer]
    return lowered.module.get_parameter(name)


def rewired(lowered: LoweredModel, operator: str, function: Callable[..., torch.Tensor]) -> LoweredModel:
    """A copy in which the nodes of one ONNX operator compute something else."""
    module = copy.deepcopy(lowered.module)
    for fx_node in module.graph.nodes:
        if fx_node.meta.get("onnx", {}).get("operator") == operator:
            fx_node.target = function
    assert isinstance(module, fx.GraphModule)
    module.recompile()
    return dataclasses.replace(lowered, module=module)


# Values.


def test_what_was_compared_is_reported() -> None:
    proto = perceptron()
    report = check_parity(proto, lower(proto), array((7, 4), 9), batch_sizes=(1, 3), taps=["d", "b"])
    assert [(t.name, t.batch) for t in report.tensors] == [(n, b) for b in (7, 1, 3) for n in ("b", "d", "y")]
    assert (report.precision, report.tolerance) == ("float32", TOLERANCES["float32"])
    assert report.worst.relative == max(t.relative for t in report.tensors) < SUM_32
    assert all(t.scale > 0 for t in report.tensors)


def test_bytes_and_message_are_the_same_to_it() -> None:
    proto = perceptron()
    assert check_parity(proto.SerializeToString(), lower(proto)) == check_parity(proto, lower(proto))


def test_the_first_tensor_that_differs_is_named() -> None:
    proto = perceptron()
    lowered = lower(proto)
    with torch.no_grad():
        weight(lowered, "w2").mul_(1.001)  # c, d and y are off by a thousandth, a and b are not
    with pytest.raises(OnnxspectError, match=r"differs from onnxruntime at c by .*\(float32: 1e-04") as caught:
        check_parity(proto, lowered, taps=["d", "c", "b", "a"])
    assert caught.value.hint
    with pytest.raises(OnnxspectError, match="differs from onnxruntime at y"):
        check_parity(proto, lowered)


@pytest.mark.parametrize("change", [3e-5, 3e-4])
def test_the_border_is_the_tables(change: float) -> None:
    proto = perceptron()
    lowered = lower(proto)
    with torch.no_grad():
        weight(lowered, "w3").mul_(1 + change)
    if change < TOLERANCES["float32"]:
        assert check_parity(proto, lowered).worst.relative == pytest.approx(change, rel=0.1)
    else:
        with pytest.raises(OnnxspectError):
            check_parity(proto, lowered)


def test_one_wrong_image_of_a_real_batch_is_enough() -> None:
    """Seeded inputs in [0, 1] never reach the Clip at 100: only the given ones find what is wrong beyond it."""
    proto = model([node("Clip", "x _ high")], {"high": np.float32(100)})
    other = model([node("Clip", "x _ high")], {"high": np.float32(200)})
    check_parity(proto, lower(other))
    real = np.zeros((6, 4), np.float32)
    real[4, 2] = 150
    with pytest.raises(OnnxspectError, match="by 50"):
        check_parity(proto, lower(other), real)


def test_a_wrong_shape_is_named() -> None:
    proto = model([node("ReduceMean", "x", keepdims=0, axes=[1])])
    wrong = lower(model([node("Identity", "x")]))
    with pytest.raises(OnnxspectError, match=r"at y: its shape is \(1, 4\), not \(1,\)"):
        check_parity(proto, wrong)


@pytest.mark.parametrize("nodes", [[node("Log", "x")], [node("Sqrt", "x")]], ids=["infinite", "not a number"])
def test_what_is_not_finite_must_be_so_on_both_sides(nodes: list[onnx.NodeProto]) -> None:
    proto = model(nodes)
    x = -(array((2, 4)) ** 2)
    x[0, 0] = 0
    check_parity(proto, lower(proto), x, batch_sizes=())
    with pytest.raises(OnnxspectError, match="differs"):
        check_parity(proto, lower(model([node("Abs", "x")])), x, batch_sizes=())


def test_open_sizes_are_taken_from_the_given_images_or_there_is_nothing_to_compare() -> None:
    proto = model([node("GlobalAveragePool", "x")], shape=("n", 2, "h", "w"))
    with pytest.raises(OnnxspectError, match="leaves the sizes of its input open") as caught:
        check_parity(proto, lower(proto))
    assert caught.value.hint == "give some images"
    report = check_parity(proto, lower(proto), array((2, 2, 5, 6)), batch_sizes=(4,))
    assert [t.batch for t in report.tensors] == [2, 4]


def test_a_file_for_one_batch_size_is_compared_in_its_own_batches() -> None:
    proto = model([node("Relu", "x")], shape=(3, 4))
    assert [t.batch for t in check_parity(proto, lower(proto)).tensors] == [3, 6]
    filled_up = check_parity(proto, lower(proto), array((4, 4)), batch_sizes=())
    assert [t.batch for t in filled_up.tensors] == [4, 3, 6]


def test_a_file_of_bytes_is_fed_bytes() -> None:
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Tanh", "f")]
    proto = model(nodes, dtype=TensorProto.UINT8)
    report = check_parity(proto, lower(proto))
    assert report.worst.scale == 1.0  # tanh of what reaches 255


def test_seeded_inputs_follow_the_seed_alone() -> None:
    proto = perceptron()
    first, again, other = (check_parity(proto, lower(proto), seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_file_that_neither_side_can_run_is_refused_with_the_cause() -> None:
    proto = model([node("MatMul", "x w")], {"w": array((5, 3))}, shape=("n", "k"))
    with pytest.raises(OnnxspectError, match="onnxruntime cannot run the model"):
        check_parity(proto, lower(proto), array((2, 4)), batch_sizes=())


def test_a_torch_graph_that_does_not_run_is_named() -> None:
    proto = perceptron()
    wrong = lower(model([node("MatMul", "x w")], {"w": array((5, 3))}))
    with pytest.raises(OnnxspectError, match="the torch graph does not run on a batch of 1"):
        check_parity(proto, wrong)


PRECISIONS = {
    "float32": model([node("Relu", "x")]),
    "float64": model([node("Relu", "x")], dtype=TensorProto.DOUBLE),
    "float16": model(
        [
            node("Cast", "x", "h", to=TensorProto.FLOAT16),
            node("Tanh", "h", "t"),
            node("Cast", "t", to=TensorProto.FLOAT),
        ]
    ),
    "bfloat16": model([node("Cast", "x", "h", to=TensorProto.BFLOAT16), node("Cast", "h", to=TensorProto.FLOAT)]),
    "quantized": model(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")],
        {"s": np.float32(0.05), "z": np.uint8(0)},
    ),
}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_precision_of_a_file(precision: str) -> None:
    proto = PRECISIONS[precision]
    assert precision_of(proto) == precision
    assert check_parity(proto, lower(proto)).precision == precision


def test_a_file_of_doubles_is_held_to_float64() -> None:
    proto = model([node("MatMul", "x w")], {"w": array((4, 3), 0, np.float64)}, dtype=TensorProto.DOUBLE)
    lowered = lower(proto)
    assert check_parity(proto, lowered).worst.relative < ROUNDING_64
    with torch.no_grad():
        weight(lowered, "w").copy_(weight(lowered, "w").float().double())  # what float32 would lose: 1e-8
    with pytest.raises(OnnxspectError, match="float64: 1e-09"):
        check_parity(proto, lowered)


def test_a_step_of_a_quantiser_is_a_share_of_its_grid_and_not_of_what_some_images_take() -> None:
    """Values that lie between two steps are rounded either way: one step of 0.05 on values up to 1 is none, and many are one."""
    constants = {"w": np.float32(1), "s": np.float32(0.05), "z": np.uint8(0)}
    nodes = [node("Mul", "x w", "m"), node("QuantizeLinear", "m s z", "q"), node("DequantizeLinear", "q s z")]
    proto = model(nodes, constants)
    lowered = lower(proto)
    with torch.no_grad():
        weight(lowered, "w").fill_(1.02)
    assert 0.04 < check_parity(proto, lowered).worst.difference < 0.06
    with torch.no_grad():
        weight(lowered, "w").fill_(1.5)
    with pytest.raises(OnnxspectError, match=r"where values reach 6\.35 \(quantized"):
        check_parity(proto, lowered)


def test_how_far_a_grid_reaches() -> None:
    constants = {
        "s": np.float32(0.5),
        "each": np.array([1, 2, 3, 4], np.float32),
        "u": np.uint8(0),
        "i": np.int8(0),
        "wide": np.uint16(7),
        "z": np.zeros(4, np.int8),
    }
    nodes = [
        *(node("QuantizeLinear", "x s u", "a"), node("DequantizeLinear", "a s u", "bytes")),
        *(node("QuantizeLinear", "x s i", "b"), node("DequantizeLinear", "b s i", "signed")),
        *(node("QuantizeLinear", "x s wide", "c"), node("DequantizeLinear", "c s wide", "words")),
        *(node("QuantizeLinear", "x each z", "d", axis=1), node("DequantizeLinear", "d each z", "channels", axis=1)),
        *(node("Add", "bytes signed", "e"), node("Add", "e words", "f"), node("Add", "f channels", "g")),
        *(node("Flatten", "words", "flat"), node("Mul", "g flat", "h"), node("QuantizeLinear", "h s u", "q")),
        node("DequantizeLinear", "q s u"),
    ]
    eight, sixteen = 0.5 * 127, 0.5 * 32767
    found = reaches(model(nodes, constants, opset=21))
    assert {k: found.pop(k) for k in "abcq"} == {"a": 127, "b": 127, "c": 32767, "q": 127}
    assert found == {
        "x": sixteen,
        "bytes": eight,
        "signed": eight,
        "words": sixteen,
        "flat": sixteen,
        "h": eight,
        "y": eight,
    }


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_difference_below_the_smallest_is_none(precision: str) -> None:
    smallest = ABSOLUTE[precision]
    assert TensorParity("y", 1, smallest, 1e-30, smallest).relative == 0
    assert TensorParity("y", 1, 2 * smallest, 1e-30, smallest).relative == 2
    assert allowed_difference(np.zeros(3), precision) == smallest
    assert allowed_difference(np.zeros(0), precision) == smallest
    assert allowed_difference(np.array([0.0, -50.0]), precision) == pytest.approx(50 * TOLERANCES[precision])


def test_the_oracle_runs_what_the_file_says_and_not_what_an_optimiser_makes_of_it() -> None:
    """Pad(0) before MaxPool of negative values: fused into the pooling, the padding loses to them (or to -inf)."""
    nodes = [node("Pad", "x p", "a"), node("MaxPool", "a", kernel_shape=[3, 3], strides=[2, 2])]
    proto = model(nodes, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, ("n", 2, 7, 7))
    x = -np.abs(array((2, 2, 7, 7))) - 1
    check_parity(proto, lower(proto), x)
    (found,) = Oracle(proto.SerializeToString()).run({"x": x})
    assert not found[:, :, 0].any()  # every window of the first row holds a padded 0
    fused = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    if not np.array_equal(fused, found):  # the bug may be gone in a later onnxruntime
        assert fused.max() <= -1


# Gradients.


@pytest.mark.parametrize("family", ["residual", "mobile", "transformer", "gru"])
def test_the_gradient_of_a_network_is_confirmed(family: str) -> None:
    proto = export(build(family), dynamo=False)
    report = check_gradients(lower(proto), images(2).numpy(), directions=3)
    assert max(report.errors) < GRADIENT_TOLERANCE
    assert len(report.slopes) == 3
    assert all(report.slopes)


def test_the_graph_itself_stays_as_it_was() -> None:
    lowered = lower(perceptron())
    before = [p.clone() for p in lowered.module.parameters()]
    check_gradients(lowered, array((2, 4)))
    after = list(lowered.module.parameters())
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(after, before, strict=True))


def _detached(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x).detach() + 0 * x


class _Scaled(torch.autograd.Function):
    """tanh with a gradient that is a thousandth too large."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def, override]
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y) * 1.001


def _scaled(x: torch.Tensor) -> torch.Tensor:
    return _Scaled.apply(x)  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("function", [_detached, _scaled], ids=["no gradient", "a thousandth too large"])
def test_a_wrong_gradient_of_right_values_is_found(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    proto = perceptron()
    wrong = rewired(lower(proto), "Tanh", function)
    check_parity(proto, wrong)
    check_gradients(lower(proto), array((2, 4)))
    with pytest.raises(OnnxspectError, match="the gradient of the torch graph is wrong"):
        check_gradients(wrong, array((2, 4)))


def test_a_small_path_without_a_gradient_is_found() -> None:
    """A thousandth of the answer comes over it."""
    nodes = [
        node("Neg", "x", "a"),
        node("Tanh", "x", "t"),
        node("Mul", "t small", "b"),
        node("Add", "a b"),
    ]
    lowered = lower(model(nodes, {"small": np.float32(1e-3)}, ("n", 400)))
    x = array((2, 400))
    check_gradients(lowered, x)
    with pytest.raises(OnnxspectError, match="the gradient of the torch graph is wrong"):
        check_gradients(rewired(lowered, "Tanh", lambda t: torch.tanh(t).detach()), x)


def test_a_gradient_of_zero_is_confirmed_where_nothing_changes() -> None:
    proto = model([node("Relu", "x")])
    report = check_gradients(lower(proto), -1 - np.abs(array((2, 4))))
    assert (report.errors, report.slopes) == ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def test_kinks_are_no_fault_of_the_gradient() -> None:
    """|x| at 10^5 points of which some lie within the longest step of the kink, in every direction."""
    proto = model([node("Abs", "x")], shape=("n", 100_000))
    x = np.linspace(-1e-2, 1e-2, 100_001)[None, :-1].astype(np.float64)
    assert max(check_gradients(lower(proto), x).errors) < GRADIENT_TOLERANCE


def test_directions_follow_the_seed_alone() -> None:
    lowered = lower(perceptron())
    first, again, other = (check_gradients(lowered, array((2, 4)), seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_one_session_serves_several_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a model compares on noise and then on images; the session goes when it is let go, or where it is large."""
    made: list[Oracle] = []

    class Counted(Oracle):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(parity, "Oracle", Counted)
    proto = perceptron()
    once, twice = Comparison(proto, lower(proto)), Comparison(proto, lower(proto))
    first = once.check(batch_sizes=(1, 3))
    assert once.check(batch_sizes=(1, 3)) == first
    assert len(made) == 1
    once.release()
    assert once.check(batch_sizes=(1, 3)) == first
    assert len(made) == 2
    monkeypatch.setattr(parity, "KEPT_WEIGHTS", -1)
    assert twice.check(batch_sizes=(1, 3)) == twice.check(batch_sizes=(1, 3)) == first
    assert len(made) == 4


def test_every_cut_is_compared_by_default() -> None:
    proto = perceptron()
    named = [tap.name for tap in cuts(lower(proto))]
    assert named
    seen = [t.name for t in Comparison(proto, lower(proto)).check(batch_sizes=(2,)).tensors]
    assert seen == [*named, *lower(proto).outputs]
    assert [t.name for t in Comparison(proto, lower(proto), ()).check(batch_sizes=(2,)).tensors] == seen[-1:]


@pytest.mark.parametrize(
    ("found", "expected", "difference", "scale"),
    [
        ([1.0, 2.0], [1.0, -2.5], 4.5, 2.5),
        ([np.nan, 2.0, np.inf], [np.nan, 3.0, np.inf], 1.0, 3.0),
        ([np.inf], [1.0], np.inf, 1.0),
        ([-np.inf, 0.0], [np.inf, 4.0], np.inf, 4.0),
        ([], [], 0.0, 0.0),
    ],
)
def test_differences_by_hand(found: list[float], expected: list[float], difference: float, scale: float) -> None:
    row = parity._row("v", 1, [np.array(expected, np.float32)], np.array(found, np.float32), 0.0)
    assert (row.difference, row.scale) == (difference, scale)


def test_what_is_nowhere_a_number_alone_differs() -> None:
    assert np.isnan(parity._row("v", 1, [np.ones(1, np.float32)], np.full(1, np.nan, np.float32), 0.0).difference)
