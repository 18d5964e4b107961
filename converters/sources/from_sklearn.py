"""scikit-learn to ONNX: MLPs, logistic regression and pipelines of them, by skl2onnx.

Only what a gradient can pass through is wanted, so skl2onnx is set not to use the operators of ai.onnx.ml (LinearClassifier,
Scaler, Normalizer), for which it has equivalents in plain ONNX; a model that still needs one (trees, SVMs) is refused by
name. Of the two outputs, label and probabilities, the probabilities stay.

A pickle or joblib file runs code when it is opened, so it is opened in a fully locked-in process only; skops files hold
no code but name types, and those that are not scikit-learn's or numpy's own are refused.

scikit-learn takes rows of numbers. With an input shape, the graph gets a Reshape in front, so that it takes images:
"28,28" or "1,28,28" for channels first, "28,28,3" for channels last, in the order in which they were flattened.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.exported import Attempt, Exported, Source, image_layout, missing_extra
from onnxspect.converters.text import printable

try:
    import joblib  # type: ignore[import-untyped]
    import skl2onnx
    import sklearn
    from skl2onnx.common.data_types import FloatTensorType
except ImportError as error:
    raise missing_extra(error.name or "skl2onnx", "sklearn") from None

_OPSETS = {"": 17, "ai.onnx.ml": 3}
_NOT_WANTED = {"LinearClassifier", "LinearRegressor", "Scaler", "Normalizer"}
_OWN_TYPES = ("sklearn.neural_network.", "sklearn.linear_model.", "sklearn.preprocessing.", "sklearn.decomposition.")
_SAFE_WAY = "save it with skops.io.dump, which holds no code"


def export(source: Source) -> Exported:
    """Open the file and say how to export it."""
    estimator = _skops(source) if source.format == "skops" else _pickle(source)
    name = type(estimator).__name__
    if not hasattr(estimator, "predict_proba") or not hasattr(estimator, "classes_"):
        raise OnnxspectError(
            f"holds a {name}, not a fitted classifier with probabilities",
            "supported are neural networks, logistic regression and pipelines of scalers and projections before them",
        )
    features = int(getattr(estimator, "n_features_in_", 0))
    if features < 1:
        raise OnnxspectError(
            f"its {name} does not say how many features it takes", "give the shape of one sample: --input-shape 784"
        )
    shape = _image_shape(source.input_shape, features)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(estimator.predict_proba(images.reshape(len(images), features)), dtype=np.float32)

    def build() -> onnx.ModelProto:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: onnx.ModelProto = skl2onnx.to_onnx(
                estimator,
                initial_types=[("features", FloatTensorType([None, features]))],
                target_opset=_OPSETS,
                options={id(estimator): {"zipmap": False}},
                black_op=_NOT_WANTED,
            )
        keep_probabilities(model, name)
        if len(shape) > 1:
            _take_images(model, shape)
        return model

    notes = [] if len(shape) > 1 else [f"takes rows of {features} numbers; give --input-shape to make it take images"]
    if source.format == "pickle":
        notes.append("a pickle runs code when it is opened: it was opened in the sandbox only")
    versions = {"scikit-learn": sklearn.__version__, "skl2onnx": skl2onnx.__version__}
    classes = tuple(str(c) for c in np.asarray(estimator.classes_).ravel())
    attempts = (Attempt(f"skl2onnx {skl2onnx.__version__}", build),)
    return Exported(run, shape, attempts, versions, image_layout(shape), classes=classes, warnings=tuple(notes))


def _image_shape(given: tuple[int, ...], features: int) -> tuple[int, ...]:
    if not given:
        return (features,)
    if math.prod(given) != features:
        raise OnnxspectError(
            f"it takes {features} numbers, but the input shape {list(given)} has {math.prod(given)}",
            "give the shape of its images: --input-shape 1,28,28 has 784 numbers",
        )
    return (1, *given) if len(given) == 2 else given


def _pickle(source: Source) -> Any:
    source.require_sandbox("a pickle runs code when it is opened", _SAFE_WAY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return joblib.load(source.path)
    except Exception as error:
        raise OnnxspectError(f"opening the pickle (in the sandbox) failed: {_line(error)}", _SAFE_WAY) from None


def _skops(source: Source) -> Any:
    try:
        io: Any = importlib.import_module("skops.io")
    except ImportError:
        raise missing_extra("skops", "sklearn") from None
    try:
        named = [str(t) for t in io.get_untrusted_types(file=source.path)]
        # skops trusts the estimators; parts of theirs, such as an MLP's optimiser, it asks about.
        own = [t for t in named if t.startswith(_OWN_TYPES)]
        foreign = [t for t in named if t not in own]
        if foreign:
            shown = ", ".join(printable(t, 60) for t in foreign[:5])
            raise OnnxspectError(f"names types that are not scikit-learn's own: {shown}", "they were not loaded")
        return io.load(source.path, trusted=own)
    except OnnxspectError:
        raise
    except Exception as error:
        raise OnnxspectError(
            f"skops cannot load it: {_line(error)}",
            "save it anew with skops.io.dump, by the version that is installed here",
        ) from None


def keep_probabilities(model: onnx.ModelProto, name: str) -> None:
    """Drop the label output, and the nodes that only it needs; refuse what remains of ai.onnx.ml.

    Raises:
        OnnxspectError: naming the operators that no gradient passes through.
    """
    graph = model.graph
    kept = [o for o in graph.output if o.name != "label" and "label" not in o.name.lower()] or [graph.output[-1]]
    del graph.output[:]
    graph.output.append(kept[-1])
    needed = {kept[-1].name}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    unused = [t for t in graph.initializer if t.name not in needed]
    for tensor in unused:
        graph.initializer.remove(tensor)
    left = sorted({n.op_type for n in graph.node if n.domain not in ("", "ai.onnx")})
    if left:
        raise OnnxspectError(
            f"{name} needs {', '.join(left)}, which no gradient passes through",
            "supported are neural networks, logistic regression and pipelines of scalers and projections before them",
        )
    used = [o for o in model.opset_import if o.domain in ("", "ai.onnx")][:1]
    del model.opset_import[:]
    model.opset_import.extend(used)


def _take_images(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    graph = model.graph
    features = graph.input[0].name
    flat = numpy_helper.from_array(np.asarray([-1, math.prod(shape)], np.int64), "onnxspect_flat_shape")
    graph.initializer.append(flat)
    reshape = helper.make_node("Reshape", ["image", flat.name], [features])
    nodes = [reshape, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *shape])
    graph.input[0].CopyFrom(image)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
