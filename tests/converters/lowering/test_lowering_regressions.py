"""What stock onnx2torch silently gets wrong, each held right here against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lowering_support import array, expect, model, node
from onnx import helper
from tolerances import NETWORK_32, OPERATION_32

from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof.oracle import Oracle


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_cumsum_runs_forward_unless_asked(reverse: int, exclusive: int) -> None:
    proto = model([node("CumSum", "x axis", reverse=reverse, exclusive=exclusive)], {"axis": np.array(1)})
    expect(proto, array((2, 4)))


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22])
def test_dropout_with_an_unused_mask_keeps_the_batch(opset: int) -> None:
    proto = model([node("Dropout", "x", "y mask")], shape=("n", 3), opset=opset)
    expect(proto, array((5, 3)))


def test_max_pool_with_unused_indices_keeps_the_batch() -> None:
    nodes = [node("MaxPool", "x", "a indices", kernel_shape=[2, 2]), node("Relu", "a")]
    expect(model(nodes, shape=("n", 2, 4, 4)), array((3, 2, 4, 4)))


def test_max_pool_indices_count_through_the_whole_tensor() -> None:
    nodes = [node("MaxPool", "x", "y i", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])]
    expect(model(nodes, shape=("n", 2, 6, 5), outputs=("y", "i")), array((3, 2, 6, 5)))


def test_global_average_pool_of_unknown_rank_averages_only_space() -> None:
    # The shape of a custom-looking value is unknown to inference: a Reshape to a shape computed from pixels' count.
    nodes = [node("Shape", "x", "s"), node("Reshape", "x s", "r"), node("GlobalAveragePool", "r")]
    proto = model(nodes, shape=("n", 2, "h", "w"))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    found = lower(proto).module(torch.from_numpy(array((3, 2, 4, 4))))
    assert torch.allclose(found, torch.from_numpy(array((3, 2, 4, 4))).mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 1},
        {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.5},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners", "exclude_outside": 1},
        {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "antialias": 1, "cubic_coeff_a": -0.5},
    ],
    ids=lambda a: "-".join(map(str, a.values())),
)
@pytest.mark.parametrize("target", [(11, 4), (3, 13), (6, 8)])
def test_resize_is_right_in_every_mode(attributes: dict[str, Any], target: tuple[int, int]) -> None:
    constants = {"sizes": np.array([2, 3, *target])}
    proto = model([node("Resize", "x _ _ sizes", **attributes)], constants, (2, 3, 6, 8), opset=19)
    expect(proto, array((2, 3, 6, 8)), NETWORK_32)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.6, 1.7), (0.5, 3.0)])
def test_resize_of_opset_10_is_right(mode: str, scales: tuple[float, float]) -> None:
    constants = {"s": np.array([1, 1, *scales], np.float32)}
    expect(model([node("Resize", "x s", mode=mode)], constants, ("n", 3, 6, 8), opset=10), array((2, 3, 6, 8)))


def test_one_output_of_a_node_with_many_is_a_tensor() -> None:
    nodes = [node("Split", "x", "a y", axis=1), node("TopK", "a k", "b i", axis=1)]
    proto = model(nodes, {"k": np.array([1])}, ("n", 4))
    assert isinstance(lower(proto).module(torch.rand(2, 4)), torch.Tensor)
    proto = model(nodes, {"k": np.array([1])}, ("n", 4), outputs=("y", "b", "i"))
    expect(proto, array((2, 4)))


def test_pad_of_zero_before_max_pool_is_zero() -> None:
    # onnxruntime's optimiser fuses this into a pooling that pads with -inf; the oracle must not.
    nodes = [
        node("Pad", "x p", "a"),
        node("MaxPool", "a", kernel_shape=[3, 3], strides=[2, 2]),
    ]
    proto = model(nodes, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, ("n", 2, 7, 7))
    expect(proto, -np.abs(array((2, 2, 7, 7))) - 1)


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool", "ConvTranspose"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("size", [(7, 8), (8, 5)])
def test_auto_pad_and_uneven_pads(op: str, auto_pad: str, size: tuple[int, int]) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attributes["pads"] = [2, 0, 1, 1]
    if op == "ConvTranspose" and auto_pad == "SAME_LOWER":
        attributes["output_padding"] = [1, 0]
    inputs = "x w" if op.startswith("Conv") else "x"
    proto = model([node(op, inputs, **attributes)], {"w": array((2, 2, 3, 2))}, ("n", 2, *size), opset=11)
    expect(proto, array((2, 2, *size)))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 1]])
@pytest.mark.parametrize("ceil", [0, 1])
def test_pooling_with_ceil_mode_dilations_and_pads(op: str, pads: list[int], ceil: int) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": ceil}
    if op != "AveragePool":
        attributes["dilations"] = [1, 2]
    expect(model([node(op, "x", **attributes)], shape=("n", 2, 8, 9), opset=19), array((2, 2, 8, 9)))


@pytest.mark.parametrize("count", [0, 1])
def test_average_pool_counts_padding_only_on_request(count: int) -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": count}
    expect(model([node("AveragePool", "x", **attributes)], shape=("n", 2, 8, 8)), array((2, 2, 8, 8)))


def test_clip_with_computed_bounds() -> None:
    nodes = [node("ReduceMin", "x", "low", keepdims=0), node("Neg", "low", "high"), node("Clip", "x _ high")]
    expect(model(nodes), array((2, 4)))
    nodes = [node("Clip", "x low high")]
    expect(model(nodes, {"low": np.float32(1), "high": np.float32(-1)}), array((2, 4)))


def test_layer_normalization_of_a_shape_known_only_at_run_time() -> None:
    nodes = [node("Shape", "x", "s"), node("ConstantOfShape", "s", "z"), node("Add", "x z", "a")]
    nodes += [node("LayerNormalization", "a g b", axis=1)]
    proto = model(nodes, {"g": array((3, 4)), "b": array((3, 4), 1)}, ("n", 3, 4))
    expect(proto, array((2, 3, 4)))


def test_batch_normalization_in_training_mode_uses_the_batch() -> None:
    names = ("s", "b", "m", "v")
    constants = {n: np.abs(array((3,), i)) + 0.5 for i, n in enumerate(names)}
    proto = model(
        [node("BatchNormalization", "x s b m v", "y rm rv", training_mode=1)],
        constants,
        ("n", 3, 2, 2),
        outputs=("y", "rm", "rv"),
    )
    expect(proto, array((4, 3, 2, 2)), NETWORK_32)


@pytest.mark.parametrize(
    ("axis", "opset"), [(1, 11), (2, 11), (-1, 11), (1, 13), (-1, 13)], ids=lambda v: str(v).replace("-", "minus_")
)
def test_softmax_before_and_since_opset_13(axis: int, opset: int) -> None:
    proto = model([node("Softmax", "x", axis=axis)], shape=("n", 3, 4), opset=opset)
    expect(proto, array((2, 3, 4)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_broadcasting_of_the_first_opsets(axis: int) -> None:
    proto = model([node("Add", "x w", broadcast=1, axis=axis)], {"w": array((2, 3, 4)[axis : axis + 1])}, (2, 3, 4), 6)
    shape = [-1 if i == axis else 1 for i in range(3)]
    x = array((2, 3, 4), 5)
    expected = x + array((2, 3, 4)[axis : axis + 1]).reshape(shape)
    np.testing.assert_allclose(lower(proto).module(torch.from_numpy(x)).numpy(), expected, rtol=OPERATION_32)


# Quantized models.


def _quantized(per_channel: bool) -> onnx.ModelProto:
    scale = np.abs(array((3,), 2)) * 0.02 + 0.01 if per_channel else np.float32(0.02)
    zero = np.zeros(3, np.int8) if per_channel else np.int8(0)
    nodes = [
        node("QuantizeLinear", "x xs xz", "q"),
        node("DequantizeLinear", "q xs xz", "d"),
        node("DequantizeLinear", "w ws wz", "dw", axis=0),
        node("Conv", "d dw", "c", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", "c ys xz", "qc"),
        node("MaxPool", "qc", "mp", kernel_shape=[2, 2], strides=[2, 2]),
        node("DequantizeLinear", "mp ys xz", "y"),
    ]
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "ys": np.float32(0.05),
        "w": np.random.default_rng(0).integers(-100, 100, (3, 2, 3, 3)).astype(np.int8),
        "ws": scale,
        "wz": zero,
    }
    return model(nodes, constants, ("n", 2, 6, 6))


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_quantized_models_answer_exactly_and_have_a_straight_through_gradient(per_channel: bool) -> None:
    proto = _quantized(per_channel)
    x = np.clip(array((2, 2, 6, 6)), -2, 2)
    lowered = expect(proto, x, OPERATION_32)
    leaf = torch.from_numpy(x).requires_grad_(True)
    (gradient,) = torch.autograd.grad(lowered.module(leaf).sum(), leaf)
    assert float(gradient.abs().max()) > 0
    saturated = torch.full_like(leaf, 100.0).requires_grad_(True)
    (gradient,) = torch.autograd.grad(lowered.module(saturated).sum(), saturated)
    assert not gradient.any()  # beyond the range nothing passes


def test_integer_convolution_and_dynamic_quantization() -> None:
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("ConvInteger", "q w z wz", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["c"], ["f"], to=1),
        node("Mul", "f s"),
    ]
    weights = np.random.default_rng(0).integers(0, 255, (3, 2, 3, 3)).astype(np.uint8)
    proto = model(nodes, {"w": weights, "wz": np.uint8(120)}, (2, 2, 6, 6))
    expect(proto, array((2, 2, 6, 6)), NETWORK_32)


def test_qlinear_matmul_within_one_step() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearMatMul", "q s z w s z t z", "m"),
        node("DequantizeLinear", "m t z"),
    ]
    rng = np.random.default_rng(0)
    constants = {"s": np.float32(0.02), "t": np.float32(0.1), "z": np.uint8(128)}
    proto = model(nodes, constants | {"w": rng.integers(0, 255, (4, 3)).astype(np.uint8)})
    x = array((5, 4))
    found = lower(proto).module(torch.from_numpy(x)).numpy()
    expected = Oracle(proto.SerializeToString()).run({"x": x})[0]
    assert np.abs(found - expected).max() <= 0.1 + OPERATION_32  # a value on the border may be rounded either way
    assert np.mean(np.abs(found - expected) > OPERATION_32) < 0.1
