"""ONNX files as runtimes and their kits leave them: quantised, optimised, in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from wild_files.of_exporters import _exported
from wild_files.wild_file import Wild

HEADING = "ONNX, as runtimes and deployment kits leave it"


def _plain(folder: Path) -> Path:
    """The network with a free batch, and one image's worth of room beside it."""
    return _exported(folder).rename(folder / "plain.onnx")


def _quantised(**options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from onnxruntime import quantization as q

        class Images(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
            def __init__(self) -> None:
                self.left = iter(
                    [{"input": np.random.default_rng(i).random((2, 3, 32, 32), np.float32)} for i in range(4)]
                )

            def get_next(self) -> Any:
                return next(self.left, None)

        given = {
            k: getattr(q.QuantFormat if k == "quant_format" else q.QuantType, v) if isinstance(v, str) else v
            for k, v in options.items()
        }
        q.quantize_static(str(_plain(folder)), str(folder / "model.onnx"), Images(), **given)
        return folder / "model.onnx"

    return make


def _dynamic(folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(_plain(folder)), str(folder / "model.onnx"), weight_type=QuantType.QUInt8)
    return folder / "model.onnx"


def _four_bits(folder: Path) -> Path:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    from wild_files.networks import settled, token_classifier

    path = _exported(folder, settled(token_classifier()))
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=16)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
    return path


def _half(keep: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(_plain(folder)), keep_io_types=keep), folder / "model.onnx")
        return folder / "model.onnx"

    return make


def _all_in(kind: str) -> Callable[[Path], Path]:
    """The whole network in another type, by torch's exporter."""

    def make(folder: Path) -> Path:
        import torch

        from wild_files.networks import COLOUR, colour, settled

        to = getattr(torch, kind)
        return _exported(folder, settled(colour()).to(to), torch.rand(2, *COLOUR).to(to))

    return make


def _optimised(level: str, suffix: str = "onnx") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        options.log_severity_level = 4
        options.optimized_model_filepath = str(folder / f"model.{suffix}")
        if suffix == "ort":
            options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(_plain(folder)), options, providers=["CPUExecutionProvider"])
        return folder / f"model.{suffix}"

    return make


def _fixed(folder: Path) -> Path:
    """onnxruntime.tools.make_dynamic_shape_fixed, as mobile kits ask for it."""
    from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_input_shape_fixed

    model = onnx.load(_plain(folder))
    make_input_shape_fixed(model.graph, "input", [8, 3, 32, 32])
    fix_output_shapes(model)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _with_shapes(folder: Path) -> Path:
    """onnxruntime.quantization's preprocessing: symbolic shapes, optimised, folded."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(_plain(folder)), str(folder / "model.onnx"), skip_symbolic_shape=True)
    return folder / "model.onnx"


def _merged(folder: Path) -> Path:
    """onnx.compose: two models made into one, with prefixes."""
    from onnx import TensorProto, helper, numpy_helper

    scale = numpy_helper.from_array(np.float32(1 / 255), "scale")
    shape = ["batch", 3, 32, 32]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["pixels", "scale"], ["scaled"])],
        "front",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, shape)],
        [scale],
    )
    network = onnx.load(_plain(folder))
    front = helper.make_model(graph, opset_imports=network.opset_import, ir_version=network.ir_version)
    onnx.save(
        onnx.compose.merge_models(front, network, [("scaled", "input")], prefix1="front/", prefix2="net/"),
        folder / "model.onnx",
    )
    return folder / "model.onnx"


FILES: tuple[Wild, ...] = (
    Wild("quantised statically: QDQ, one scale a tensor", _quantised(quant_format="QDQ")),
    Wild(
        "quantised statically: QDQ, one scale a channel, symmetric",
        _quantised(quant_format="QDQ", per_channel=True, activation_type="QInt8"),
    ),
    Wild(
        "quantised statically: QDQ, 16-bit activations",
        _quantised(quant_format="QDQ", activation_type="QUInt16", weight_type="QInt8"),
    ),
    Wild("quantised statically: QOperator", _quantised(quant_format="QOperator")),
    Wild("quantised at run time, unsigned weights", _dynamic),
    Wild("weights in 4 bits (MatMulNBits)", _four_bits, works=False),
    Wild("float16 inside, float32 at its ends", _half(True)),
    Wild("float16 throughout", _half(False)),
    Wild("bfloat16 throughout", _all_in("bfloat16"), works=False),
    Wild("float64 throughout", _all_in("float64"), works=False),
    *(
        Wild(f"saved by onnxruntime at the level {w}", _optimised(n))
        for w, n in (("basic", "ENABLE_BASIC"), ("extended", "ENABLE_EXTENDED"))
    ),
    Wild("saved by onnxruntime at the level layout", _optimised("ENABLE_LAYOUT"), works=False),
    Wild("saved by onnxruntime at the level all", _optimised("ENABLE_ALL"), works=False),
    Wild("onnxruntime's own format (.ort)", _optimised("ENABLE_BASIC", "ort"), works=False),
    Wild("sizes fixed for mobile kits, a batch of 8", _fixed),
    Wild("prepared for quantisation: shapes inferred, optimised", _with_shapes),
    Wild("two models merged by onnx.compose", _merged),
)
