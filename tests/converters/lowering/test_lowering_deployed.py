"""Files as they are deployed: quantised by onnxruntime in both formats, and saved by its optimiser; onnxruntime against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from lowering_support import array, model, node
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof.parity import check_parity

IMAGES = np.random.default_rng(0).random((8, 3, 12, 12), np.float32)


def network() -> onnx.ModelProto:
    """A small classifier with a branch, both poolings and a softmax."""
    constants = {"k": 0.4 * array((8, 3, 3, 3), 1), "b": array((8,), 2), "m": 0.3 * array((8, 8, 3, 3), 3)}
    constants |= {"c": array((8,), 4), "w": array((16, 5), 5), "d": array((5,), 6)}
    nodes = [
        *(node("Conv", "x k b", "u", pads=[1, 1, 1, 1]), node("Relu", "u", "v")),
        *(
            node("MaxPool", "v", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", "p m c", "q", pads=[1, 1, 1, 1]),
        ),
        *(
            node("Relu", "q", "r"),
            node("Add", "r p", "s"),
            node("AveragePool", "s", "t", kernel_shape=[2, 2], strides=[2, 2]),
        ),
        *(node("Concat", "t t", "g", axis=1), node("GlobalAveragePool", "g", "h"), node("Flatten", "h", "f")),
        *(node("Gemm", "f w d", "z"), node("Softmax", "z", axis=1)),
    ]
    return model(nodes, constants, ("n", 3, 12, 12), opset=17)


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
    def __init__(self) -> None:
        self.left = iter([{"x": IMAGES}])

    def get_next(self) -> Any:
        return next(self.left, None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deployed") / "plain.onnx"
    path.write_bytes(network().SerializeToString())
    return path


def static(plain: Path, kind: QuantFormat, per_channel: bool) -> onnx.ModelProto:
    out = plain.with_name("static.onnx")
    quantize_static(
        *(str(plain), str(out), _Images()),
        quant_format=kind,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(out)


def saved(source: Path, level: onnxruntime.GraphOptimizationLevel) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.optimized_model_filepath = str(source.with_name("saved.onnx"))
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def operators(proto: onnx.ModelProto) -> set[str]:
    return {n.op_type for n in proto.graph.node}


def check(proto: onnx.ModelProto) -> None:
    """Torch gives what onnxruntime gives, at the logits and everywhere before."""
    info = logits_of(proto)
    lowered = lower(proto, [info.value])
    check_parity(proto, lowered, IMAGES, batch_sizes=(1, 3))
    x = torch.from_numpy(IMAGES).requires_grad_()
    (slope,) = torch.autograd.grad(lowered.module(x).square().sum(), [x])
    assert float(slope.abs().max()) > 0  # a search can walk through it


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_operators_on_integers(plain: Path, per_channel: bool) -> None:
    proto = static(plain, QuantFormat.QOperator, per_channel)
    assert {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "QLinearConcat"} <= operators(proto)
    check(proto)


def test_quantise_and_dequantise(plain: Path) -> None:
    check(static(plain, QuantFormat.QDQ, True))


def test_quantised_at_run_time(plain: Path) -> None:
    out = plain.with_name("dynamic.onnx")
    quantize_dynamic(str(plain), str(out), weight_type=QuantType.QUInt8, extra_options={"MatMulConstBOnly": True})
    proto = onnx.load(out)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} & operators(proto)
    check(proto)


def test_saved_by_the_optimiser(plain: Path) -> None:
    proto = saved(plain, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert operators(proto) & {"FusedConv", "FusedGemm"}
    check(proto)


def test_a_file_for_one_kind_of_processor_is_refused_with_the_way_out(plain: Path) -> None:
    proto = saved(plain, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if not any(n.domain == "com.microsoft.nchwc" for n in proto.graph.node):
        pytest.skip("onnxruntime has no blocked layout for this processor")
    with pytest.raises(OnnxspectError, match=r"com\.microsoft\.nchwc") as caught:
        lower(proto, [logits_of(proto).value])
    assert "scan the original" in caught.value.hint
