"""TensorFlow Lite to ONNX, by tf2onnx; float, float16, dynamic-range and fully quantised (int8, uint8) models.

tf2onnx keeps quantisation as QuantizeLinear/DequantizeLinear pairs. A fully quantised model also takes and gives
integers; here it gets a floating-point face: the input is quantised by the scale and zero point that the file gives for
it, the output dequantised by its own, both as ONNX nodes. So the input keeps the range that it had before quantisation,
and the rest of the graph is untouched.

The reference is TensorFlow Lite's interpreter as users run it, with its default delegates. Its kernels are of several sets (those,
the built-in ones, the reference ones), and an integer model's answers differ between them: an ordinary one by nine steps of its
output. So a quantised model is compared with them all, on the same images, and ONNX may be as far from the reference as they are.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.proof.tolerances import TOLERANCES
from onnxspect.converters.sources.exported import (
    Attempt,
    Exported,
    Source,
    chosen_head,
    image_layout,
    missing_extra,
    quiet,
)
from onnxspect.converters.sources.images import test_image
from onnxspect.converters.text import printable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:
    import tensorflow as tf
    import tf2onnx
except ImportError as error:
    raise missing_extra(error.name or "tensorflow", "tensorflow") from None

OPSET = 17
_OTHER_FORM = "convert the same model without quantisation, or with 8-bit activations"
_QUANTISED = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}
_STEPS = 3  # how many quantisation steps the output may differ by: integer kernels round at other places than ONNX's
_OF_SPREAD = 2.0  # the kernel sets are a sample of few: the next one may lie as far outside as they lie apart
_AT_MOST = 0.2  # of the largest answer: kernels that differ by more show a fault of theirs, and allow nothing
_KERNELS = {"built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
_COMPARED = 4  # images that the kernel sets are compared on


def export(source: Source) -> Exported:
    """Open the file and say how to export it."""
    with quiet():
        interpreter = _interpreter(source.path)
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1:
        raise OnnxspectError(
            f"takes {len(inputs)} inputs, not one image",
            "convert a model of the image alone, its other inputs held at a value",
        )
    at, heads = chosen_head([str(o["name"]) for o in outputs], source.head)
    given, result = inputs[0], outputs[at]
    shape = source.input_shape or tuple(int(d) for d in given["shape"][1:])
    for detail, what in ((given, "input"), (result, "output")):
        if np.dtype(detail["dtype"]) not in (*_QUANTISED, np.dtype(np.float32)):
            raise OnnxspectError(
                f"its {what} is {np.dtype(detail['dtype'])}; float32, uint8 or int8 is expected", _OTHER_FORM
            )
    if any(np.dtype(d["dtype"]) == np.int16 for d in interpreter.get_tensor_details()):
        raise OnnxspectError("its activations are whole numbers of 16 bits, which tf2onnx cannot write", _OTHER_FORM)

    def run(images: np.ndarray) -> np.ndarray:
        return _answers(interpreter, images, at)

    def build() -> onnx.ModelProto:
        with quiet():
            model, _ = tf2onnx.convert.from_tflite(str(source.path), opset=OPSET)
        kept = model.graph.output[at]
        del model.graph.output[:]
        model.graph.output.append(kept)
        return float_face(model, given, result)

    signature = given.get("shape_signature", given["shape"])
    low_high = _range(given)
    layout = image_layout(shape) or ("NHWC" if len(shape) == 3 else "")
    precision = _precision(interpreter)
    tolerance: float | None = None
    notes: tuple[str, ...] = ()
    if precision == "quantized":
        with quiet():
            apart, scale = _spread(source.path, interpreter, shape, layout, low_high, at)
        step = _output_step(interpreter, result)
        least = TOLERANCES["quantized"] * scale if step is None else _STEPS * step
        tolerance = max(least, min(_OF_SPREAD * apart, _AT_MOST * scale))
        notes = (
            f"TensorFlow Lite's own kernel sets differ by up to {apart:.3g} on the same images, where answers reach {scale:.3g}",
        )
    return Exported(
        run,
        shape,
        (Attempt(f"tf2onnx {tf2onnx.__version__}", build),),
        {"tensorflow": tf.__version__, "tf2onnx": tf2onnx.__version__},
        layout,
        low_high,
        classes=_labels(source.path),
        batch=0 if int(signature[0]) < 0 else int(signature[0]),
        precision=precision,
        tolerance=tolerance,
        warnings=(*heads, *notes),
    )


def _answers(interpreter: Any, images: np.ndarray, at: int = 0) -> np.ndarray:
    """What an interpreter makes of images, one by one: a file may fix its batch size at 1."""
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[at]
    rows = []
    for image in images:
        interpreter.set_tensor(given["index"], _quantise(image[None], given))
        interpreter.invoke()
        rows.append(_dequantise(interpreter.get_tensor(result["index"]), result))
    return np.concatenate(rows)


def _spread(
    path: Path, interpreter: Any, shape: tuple[int, ...], layout: str, low_high: tuple[float, float] | None, at: int
) -> tuple[float, float]:
    """(how far TensorFlow Lite's kernel sets are from the default one, the largest answer), on seeded images."""
    rng = np.random.default_rng(0)
    low, high = low_high or (0.0, 1.0)
    images = np.stack([test_image(shape, layout, rng) for _ in range(_COMPARED)])
    images = (low + (high - low) * images).astype(np.float32)
    usual = _answers(interpreter, images, at)
    apart = 0.0
    for kernels in _KERNELS.values():
        with contextlib.suppress(OnnxspectError, ValueError, RuntimeError):  # a set that lacks an operator says nothing
            apart = max(
                apart, float(np.abs(_answers(_interpreter(path, kernels), images, at) - usual).max(initial=0.0))
            )
    return apart, float(np.abs(usual).max(initial=0.0))


def _interpreter(path: Path, kernels: str = "AUTO") -> Any:
    try:
        resolver = getattr(tf.lite.experimental.OpResolverType, kernels)
        interpreter = tf.lite.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        text = printable(" ".join(str(error).split()), 300)
        hint = "the file is damaged, or made by a TensorFlow that this one is older than: convert the model anew"
        if "custom op" in text.lower():
            hint = "it is for one kind of processor, or needs a library of its own: take the .tflite before it was compiled for that"
        raise OnnxspectError(f"TensorFlow Lite cannot load it: {text}", hint) from None
    return interpreter


def _parameters(detail: dict[str, Any]) -> tuple[float, int]:
    """Scale and zero point of an integer tensor, as the file gives them (pixels as they are, where it gives none)."""
    scale, zero = detail["quantization"]
    return (float(scale), int(zero)) if scale else (1.0, 0)


def _quantise(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(detail["dtype"])
    if dtype not in _QUANTISED:
        return values.astype(dtype)
    scale, zero = _parameters(detail)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values / np.float32(scale)) + zero, limits.min, limits.max).astype(dtype)


def _dequantise(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if values.dtype not in _QUANTISED:
        return values
    scale, zero = _parameters(detail)
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _range(detail: dict[str, Any]) -> tuple[float, float] | None:
    """The real values that an integer input can stand for."""
    if np.dtype(detail["dtype"]) not in _QUANTISED:
        return None
    limits = np.iinfo(detail["dtype"])
    scale, zero = _parameters(detail)
    return (limits.min - zero) * scale, (limits.max - zero) * scale


def _output_step(interpreter: Any, result: dict[str, Any]) -> float | None:
    """One quantisation step of the output: its own, or that of the integers it was just dequantised from."""
    if np.dtype(result["dtype"]) in _QUANTISED:
        return _parameters(result)[0]
    with contextlib.suppress(Exception):  # a private interface; without it the table's row for quantised files counts
        details = {d["index"]: d for d in interpreter.get_tensor_details()}
        for operation in interpreter._get_ops_details():
            if operation["op_name"] == "DEQUANTIZE" and result["index"] in operation["outputs"]:
                return _parameters(details[operation["inputs"][0]])[0]
    return None


def _precision(interpreter: Any) -> str:
    """The row of the table of tolerances: whether anything in the file is quantised."""
    integers = any(
        np.dtype(d["dtype"]) in _QUANTISED and (d["quantization"][0] or len(d["quantization_parameters"]["scales"]))
        for d in interpreter.get_tensor_details()
    )
    return "quantized" if integers else "float32"


def float_face(model: onnx.ModelProto, given: dict[str, Any], result: dict[str, Any]) -> onnx.ModelProto:
    """Let a model with an integer input or output take and give floating-point numbers.

    Args:
        model: changed in place, and returned.
        given: the interpreter's detail of the input; only its type and quantisation are used.
        result: the same of the output.
    """
    graph = model.graph
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    if np.dtype(given["dtype"]) in _QUANTISED:
        inner, outer = _made_float(graph.input[0])
        constants = _quantisation_constants(graph, "input", given)
        before.append(helper.make_node("QuantizeLinear", [outer, *constants], [inner]))
    if np.dtype(result["dtype"]) in _QUANTISED:
        inner, outer = _made_float(graph.output[0])
        constants = _quantisation_constants(graph, "output", result)
        after.append(helper.make_node("DequantizeLinear", [inner, *constants], [outer]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _made_float(info: onnx.ValueInfoProto) -> tuple[str, str]:
    """(its name so far, its new name) of an input or output that takes floating-point numbers from now on."""
    inner = info.name
    info.name = f"{inner}_float"
    info.type.tensor_type.elem_type = TensorProto.FLOAT
    return inner, info.name


def _quantisation_constants(graph: onnx.GraphProto, side: str, detail: dict[str, Any]) -> tuple[str, str]:
    scale, zero = _parameters(detail)
    names = f"onnxspect_{side}_scale", f"onnxspect_{side}_zero_point"
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero, detail["dtype"]), names[1]))
    return names


def _labels(path: Path) -> tuple[str, ...]:
    """Class names, where the file carries them: TFLite metadata is a zip archive behind the model."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, UnicodeDecodeError, KeyError, NotImplementedError):
        data = path.read_bytes()
        if b"PK\x05\x06" not in data[-70_000:]:
            return ()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for item in archive.infolist():
                if item.filename.endswith(".txt") and "label" in item.filename.lower() and item.file_size < 1 << 20:
                    return tuple(line.strip() for line in archive.read(item).decode().splitlines() if line.strip())
    return ()
