"""What an ONNX file says of itself beyond its graph: the range of its pixels, the names of its classes, how it was converted.

From the converter's sidecar (written for this very file, by its digest), from metadata, from arithmetic that the graph begins with
(a division by 255), and from the running statistics of a first BatchNorm. An untrusted file may say anything: what it says only
settles ties (input_range.py), or is used where all names of the data are among its own (readers/labels.py).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.sources.conversion import SIDECAR_SCHEMA, sidecar_path
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.labels import ClassList, names_in
from onnxspect.engine.subject.subject import InputSpec

#: Bytes of a sidecar, and characters of a metadata value, at most.
_MOST = 16 * 2**20
#: Sentences of a conversion that are repeated, and characters of each, at most.
_MOST_NOTES, _LONGEST_NOTE = 20, 400
#: Metadata keys of class names, as exporters write them.
_NAME_KEYS = ("classes", "class_names", "names", "labels", "label_names", "id2label")
#: Values of the metadata key that Windows ML defines.
_WINDOWS_RANGES = {"NominalRange_0_255": (0, 255), "Normalized_0_1": (0, 1), "Normalized_1_1": (-1, 1)}
#: Operators that scale and shift.
_AFFINE = {"Mul", "Div", "Add", "Sub", "Cast", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}
#: Names of the candidates that take a range.
_NAMED: dict[tuple[float, float], str] = {(0, 255): "0..255", (0, 1): "0..1", (-1, 1): "-1..1"}


def stated_options(file: OnnxFile, options: Sequence[InputSpec]) -> dict[int, str]:
    """Which of the options the file speaks for, by index, and where it says so; empty where it says nothing."""
    for range_, source in (
        (_of_sidecar(file), "the sidecar of its conversion states the range"),
        (_of_metadata(file.proto), "its metadata state the range"),
        (_of_arithmetic(file.proto), "the graph begins with the arithmetic that belongs to this range"),
    ):
        name = _NAMED.get(range_) if range_ is not None else None
        found = {i: source for i, o in enumerate(options) if name is not None and o.name.split(", ")[0] == name}
        if found:
            return found
    return {}


def class_list(file: OnnxFile) -> ClassList | None:
    """The class names that the sidecar or the metadata hold, or None."""
    facts = _sidecar(file)
    names = facts.get("classes") if isinstance(facts, dict) else None
    if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
        return ClassList(tuple(names), "the sidecar of its conversion", certain=False)
    for entry in file.proto.metadata_props:
        if entry.key.lower() in _NAME_KEYS and len(entry.value) < _MOST:
            found = _parsed_names(entry.value)
            if len(found) > 1 and len(set(found)) == len(found):
                return ClassList(found, "the model's metadata", certain=False)
    return None


def conversion_notes(file: OnnxFile) -> tuple[str, ...]:
    """What the conversion that wrote the file guessed or left out, in sentences; nothing where there is no sidecar of it."""
    facts = _sidecar(file)
    said = facts.get("warnings") if isinstance(facts, dict) else None
    if not isinstance(said, list):
        return ()
    return tuple(f"converted: {printable(w, _LONGEST_NOTE)}" for w in said[:_MOST_NOTES] if isinstance(w, str) and w)


def _sidecar(file: OnnxFile) -> object:
    """What the converter wrote beside the file, where it is of this file."""
    path = sidecar_path(file.path)
    try:
        if not path.is_file() or path.stat().st_size > _MOST:
            return None
        facts = json.loads(path.read_bytes())
        ours = facts["schema"] == SIDECAR_SCHEMA and facts["model"]["sha256"] == file.sha256
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return facts if ours else None


def _of_sidecar(file: OnnxFile) -> tuple[float, float] | None:
    facts = _sidecar(file)
    try:
        low, high = facts["input"]["range"]  # type: ignore[index]
        return float(low), float(high)
    except (KeyError, TypeError, ValueError):
        return None


def _of_metadata(proto: onnx.ModelProto) -> tuple[float, float] | None:
    values = {e.key: e.value for e in proto.metadata_props}
    return _WINDOWS_RANGES.get(values.get("Image.NominalPixelRange", ""))


def _of_arithmetic(proto: onnx.ModelProto) -> tuple[float, float] | None:
    """The range that the first operators bring to something usual: pixels to 255 where they divide by 255 or subtract a mean of 100.

    Only a chain from the input is followed, each value read by one node alone.
    """
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    constants |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    inputs = [i.name for i in graph.input if i.name not in constants]
    if len(inputs) != 1:
        return None
    value, gain, shifted, seen = inputs[0], 1.0, 0.0, False
    for _ in range(8):
        readers = [n for n in graph.node if value in n.input]
        if len(readers) != 1 or readers[0].op_type not in _AFFINE or readers[0].domain not in ("", "ai.onnx"):
            break
        node = readers[0]
        if node.op_type in ("Mul", "Div", "Add", "Sub"):
            number = _number(node, value, constants)
            if number is None or (node.op_type in ("Div", "Sub") and node.input[0] != value):
                break
            seen = True
            if node.op_type in ("Mul", "Div"):
                gain *= number if node.op_type == "Mul" else 1 / number
            elif gain == 1.0:
                shifted = max(shifted, abs(number))
        value = node.output[0]
    if not seen:
        return None
    if 1 / 300 <= gain <= 1 / 50 or shifted > 10:
        return 0, 255
    return (0, 1) if 1 < gain < 10 and shifted < 1 else None


def _number(node: onnx.NodeProto, value: str, constants: dict[str, onnx.TensorProto]) -> float | None:
    """The (mean of the) constant that a node combines its value with."""
    other = next((n for n in node.input if n != value), "")
    tensor = constants.get(other)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(tensor.dims)) > 16:
        return None
    try:
        array = np.asarray(numpy_helper.to_array(tensor), np.float64)
    except (ValueError, TypeError):
        return None
    mean = float(array.mean()) if array.size else 0.0
    return mean if np.isfinite(mean) and mean != 0 else None


def _parsed_names(text: str) -> tuple[str, ...]:
    """A list or mapping as JSON or as Python writes it, or names with commas or line ends between them."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            if isinstance(value, dict):
                value = {str(k): v for k, v in value.items()}
            return names_in(value, "metadata")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OnnxspectError):
            continue
    separator = "\n" if "\n" in text else ","
    return tuple(n.strip() for n in text.split(separator) if n.strip())
