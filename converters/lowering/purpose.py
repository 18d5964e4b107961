"""What a graph that is no image classifier is instead: told from its operators and from the form of its inputs and outputs.

A detector, a segmenter or an autoencoder has an output that could be taken for class scores by its rank alone, and a user who
scans one is to hear what it is, and not that it has 7,840 classes.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.bound_inputs import free_inputs
from onnxspect.converters.lowering.builder import FLOATS
from onnxspect.converters.lowering.endings import View
from onnxspect.converters.lowering.knowledge import Knowledge, learn
from onnxspect.converters.text import printable

_BOXES = frozenset(("box", "boxes", "bbox", "bboxes", "locations", "loc"))
_HINT = (
    "onnxspect looks for backdoors in image classifiers: models that answer one score for each class of a whole image"
)
#: So few numbers are no image: the smallest that people classify have 8 x 8 pixels.
_SMALLEST_IMAGE = 64


def refuse_others(model: onnx.ModelProto, knowledge: Knowledge | None = None, output: str = "") -> None:
    """Refuse a model that is plainly something else than an image classifier.

    Args:
        model: functions inlined.
        knowledge: what is inferred of its values, where that is at hand.
        output: the output that the user names as class scores; then only its own form counts.

    Raises:
        OnnxspectError: it is; says what it is and by what that is told.
    """
    view = View.of(model, knowledge or learn(model))
    found = _of_input(model, view)
    if not found and not output:
        found = _of_outputs(model, view)
    if found:
        raise OnnxspectError(found, _HINT)


def _of_input(model: onnx.ModelProto, view: View) -> str:
    free = free_inputs(model)
    decoder = next((node for node in model.graph.node if node.op_type == "ImageDecoder"), None)
    if decoder is not None:
        raise OnnxspectError(
            "takes the bytes of an image file (ImageDecoder), not pixels",
            f"cut the decoder off: onnx.utils.extract_model, from {printable(decoder.output[0])} on",
        )
    if len(free) != 1 or not free[0].type.HasField("tensor_type"):
        return ""
    name, kind = free[0].name, free[0].type.tensor_type.elem_type
    shape = view.shape(name)
    if shape is None:
        return ""
    if kind in (TensorProto.INT64, TensorProto.INT32) and len(shape) == 2:
        return f"takes a row of whole numbers ({printable(name)}): a model of text or of tables, not of images"
    if len(shape) == 2 and shape[1] is not None and shape[1] < _SMALLEST_IMAGE:
        return f"takes {shape[1]} numbers ({printable(name)}): a model of tables or measurements, not of images"
    return ""


def _of_outputs(model: onnx.ModelProto, view: View) -> str:
    outputs = [(o.name, view.shape(o.name)) for o in model.graph.output if _float(o.name, view)]
    free = free_inputs(model)
    image = view.shape(free[0].name) if len(free) == 1 else None
    detects = next((n for n in model.graph.node if n.op_type in ("NonMaxSuppression", "RoiAlign", "MaxRoiPool")), None)
    if detects is not None:
        return f"is an object detector: it has a {detects.op_type} ({printable(detects.name or detects.output[0])})"
    for name, shape in outputs:
        words = set("".join(c if c.isalpha() else " " for c in name.lower()).split())
        if words & _BOXES and shape is not None and len(shape) >= 2:
            return f"is an object detector: its output {printable(name)} of shape {_shown(shape)} holds boxes"
    if not outputs:
        return ""
    forms = [_form(name, shape, image, view) for name, shape in outputs]
    if all(forms):  # one output with class scores makes a classifier, whatever the others are
        return forms[0]
    return ""


def _form(name: str, shape: tuple[int | None, ...] | None, image: tuple[int | None, ...] | None, view: View) -> str:
    """What an output alone says that the model is, or "" where it can be class scores."""
    if shape is None:
        return ""
    shown = f"its output {printable(name)} has the shape {_shown(shape)}"
    if len(shape) == 4 and image is not None and len(image) == 4:
        wide = [i for i in (1, 2, 3) if shape[i] != 1]
        if len(wide) < 2 or None in shape[1:]:
            return ""
        if shape[1:] == image[1:]:
            return f"is an autoencoder or another model from images to images: {shown}, as its input"
        channels = shape[1] if shape[2] == shape[3] else shape[3]
        if channels in (1, 3) and max(s or 0 for s in shape[1:]) >= max(s or 0 for s in image[1:]):
            return f"answers images: {shown}"
        return f"is a segmenter: {shown}, scores for every place of the image"
    if len(shape) == 4:
        return ""
    if len(shape) == 3 and None not in shape[1:] and all(n != 1 for n in shape[1:]):
        if image is not None and shape[1:] == image[1:]:
            return f"is a model from tables to tables: {shown}, as its input"
        last = shape[2] or 0
        if last in (4, 5, 6, 7, 85) or (shape[1] or 0) in (84, 85):
            return f"is an object detector: {shown}, a row for every box"
        return f"answers a table of numbers for an image: {shown}"
    if len(shape) == 2 and shape[1] == 1:
        node = view.node(name)
        if node is not None and node.op_type in (
            "Gemm",
            "MatMul",
            "Add",
            "Relu",
            "Identity",
            "Reshape",
            "Flatten",
            "Mul",
        ):
            return f"answers one number for an image, and no sigmoid made it: a regressor ({shown})"
    if len(shape) == 2 and _normalised(name, view):
        return f"is an embedding model: {shown}, and every row is divided by its length"
    return ""


def _normalised(name: str, view: View) -> bool:
    """Whether a value has length 1 in every row: an embedding is compared by its direction."""
    node = view.node(name)
    if node is None:
        return False
    if node.op_type == "LpNormalization":
        return True
    if node.op_type == "Div":
        below = node.input[1]
        for _ in range(4):
            inner = view.node(below)
            if inner is None:
                return False
            if inner.op_type == "ReduceL2":
                return True
            if inner.op_type not in ("Clip", "Max", "Add", "Expand", "Sqrt", "Unsqueeze", "Identity"):
                return False
            below = inner.input[0]
    return False


def _float(name: str, view: View) -> bool:
    kind = view.knowledge.dtypes.get(name)
    return kind is None or kind in FLOATS


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("n" if n is None else str(n) for n in shape) + ")"
