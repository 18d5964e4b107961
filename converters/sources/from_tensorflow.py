"""TensorFlow to ONNX: SavedModel folders, and .h5 files of Keras 2 that only tf_keras can read; by tf2onnx.

Loading a SavedModel runs its initialisation functions, and its graph may read and write files or call Python, so it is
opened in a fully locked-in process only, and a graph with an operation that does such things is refused before it is
loaded. tf2onnx writes invalid or wrong models for some networks without saying so; convert_job compares every result
with TensorFlow's own output.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.exported import (
    Attempt,
    Exported,
    Source,
    chosen_head,
    image_layout,
    missing_extra,
    quiet,
)
from onnxspect.converters.text import printable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its results differ from run to run of different machines

try:
    import tensorflow as tf
    import tf2onnx
    from tf2onnx import tf_loader
except ImportError as error:
    raise missing_extra(error.name or "tensorflow", "tensorflow") from None

OPSET = 17

# Operations that touch files, the network or Python. SaveV2, RestoreV2 and MergeV2Checkpoints are not among them:
# every SavedModel has them, to restore its own variables.
_FORBIDDEN = frozenset(
    (
        *("PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "Save", "SaveSlices"),
        *("WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "TFRecordReader"),
        *("TFRecordReaderV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "LMDBReader"),
        *("CreateSummaryFileWriter", "CreateSummaryDbWriter", "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"),
        *("DebugNanCount", "DebugNumericSummary", "RpcCall", "RpcClient", "RpcServer", "SqlDataset", "TFRecordDataset"),
        *("TextLineDataset", "FixedLengthRecordDataset", "PrintV2"),
    )
)


def export(source: Source) -> Exported:
    """Open the SavedModel or .h5 file and say how to export it."""
    _one_thread()
    if source.format == "keras2-h5":
        return _keras2(source)
    return _saved_model(source)


def _one_thread() -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # already started: only slower, not wrong
        return


def _saved_model(source: Source) -> Exported:
    source.require_sandbox(
        "a SavedModel can read and write files when it is loaded", "export the model as .keras or .tflite"
    )
    refuse_operations(source.path)
    try:
        loaded = tf.saved_model.load(str(source.path))
    except Exception as error:
        raise OnnxspectError(
            f"TensorFlow cannot load it: {_line(error)}",
            "save it anew with model.export(), by the version that is installed here",
        ) from None
    name = _signature(loaded.signatures)
    function = loaded.signatures[name]
    specs = function.structured_input_signature[1]
    if len(specs) != 1:
        raise OnnxspectError(
            f"its signature {printable(name)} takes {len(specs)} inputs, not one image",
            "save a model of the image alone, its other inputs held at a value",
        )
    ((argument, spec),) = specs.items()
    at, heads = chosen_head(sorted(map(str, function.structured_outputs)), source.head)
    shape = _sample_shape(source, spec)
    if spec.dtype != tf.float32:
        raise OnnxspectError(
            f"its signature {printable(name)} takes {spec.dtype.name}, not float32",
            "export a signature that takes decoded images as floating-point numbers",
        )

    def run(images: np.ndarray) -> np.ndarray:
        outputs = function(**{argument: tf.constant(images)})
        return np.asarray(outputs[sorted(outputs)[at]].numpy())  # by name, as tf2onnx orders them

    def build() -> onnx.ModelProto:
        with quiet():
            found = tf_loader.from_saved_model(str(source.path), None, None, tag="serve", signatures=[name])
            graph, inputs, outputs = found[:3]
            free = any(d is None for d in spec.shape[1:])
            model, _ = tf2onnx.convert.from_graph_def(
                graph,
                input_names=inputs,
                output_names=[outputs[at]],
                opset=OPSET,
                shape_override={inputs[0]: [None, *shape]} if free else None,
            )
        return model

    attempts = (Attempt(f"tf2onnx {tf2onnx.__version__}", build),)
    batch = int(spec.shape[0] or 0)
    return Exported(run, shape, attempts, _versions(), image_layout(shape) or "NHWC", batch=batch, warnings=heads)


def _signature(signatures: Any) -> str:
    names = list(signatures)
    for wanted in ("serving_default", "serve"):
        if wanted in names:
            return wanted
    if len(names) == 1:
        return str(names[0])
    shown = ", ".join(printable(str(n)) for n in names[:5]) or "none"
    raise OnnxspectError(
        f"has no signature serving_default (it has: {shown})", "save it with model.export() or signatures="
    )


def _sample_shape(source: Source, spec: Any) -> tuple[int, ...]:
    if source.input_shape:
        return source.input_shape
    if spec.shape.rank is None or any(d is None for d in spec.shape[1:]):
        raise OnnxspectError(
            f"takes images of any size (shape {spec.shape})",
            "give the shape of one sample: --input-shape 224,224,3",
        )
    return tuple(int(d) for d in spec.shape[1:])


def refuse_operations(folder: Path) -> None:
    """Refuse a SavedModel whose graphs hold operations that touch files, the network or Python; nothing is loaded.

    Raises:
        OnnxspectError: naming the operations.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:
        raise OnnxspectError(f"its saved_model.pb is damaged: {_line(error)}", "copy or download it again") from None
    found: set[str] = set()
    for meta in saved.meta_graphs:
        nodes = [*meta.graph_def.node, *(n for f in meta.graph_def.library.function for n in f.node_def)]
        found.update(n.op for n in nodes if n.op in _FORBIDDEN)
    if found:
        raise OnnxspectError(
            f"its graph holds operations that touch files, the network or Python: {', '.join(sorted(found))}",
            "it was not loaded; export the classifier alone",
        )


def _keras2(source: Source) -> Exported:
    """An .h5 file of Keras 2, by tf_keras; its description is judged first, as for Keras 3."""
    from onnxspect.converters.sources.from_keras import read_config, refuse_code, value_range

    config = read_config(source.path, source.format)
    if config is None:
        raise OnnxspectError("holds weights but no network", "save the whole model, or use Keras 3 with --factory")
    refuse_code(config)
    try:
        import tf_keras
    except ImportError:
        raise missing_extra("tf_keras", "tensorflow") from None
    try:
        model = tf_keras.models.load_model(str(source.path), compile=False, safe_mode=True)
    except Exception as error:
        raise OnnxspectError(
            f"tf_keras {tf_keras.__version__} cannot load it: {_line(error)}",
            "load it where it was saved, and save it as .keras",
        ) from None
    if len(model.inputs) != 1:
        raise OnnxspectError(
            f"the model has {len(model.inputs)} inputs; one image is expected",
            "save a model of the image alone, its other inputs held at a value",
        )
    shape = _sample_shape(source, model.inputs[0])
    spec = (tf.TensorSpec((None, *shape), tf.float32, name="input"),)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(model(tf.constant(images), training=False).numpy())

    def build() -> onnx.ModelProto:
        function = tf.function(lambda image: model(image, training=False))
        with quiet():
            converted, _ = tf2onnx.convert.from_function(function, input_signature=spec, opset=OPSET)
        return converted

    versions = {**_versions(), "tf_keras": tf_keras.__version__}
    attempts = (Attempt(f"tf_keras, tf2onnx {tf2onnx.__version__}", build),)
    layout = image_layout(shape) or "NHWC"
    return Exported(run, shape, attempts, versions, layout, value_range(model.layers))


def _versions() -> dict[str, str]:
    return {"tensorflow": tf.__version__, "tf2onnx": tf2onnx.__version__}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
