"""Torch parameters -> initializers of the original file.

The original ModelProto is the truth: a patch replaces the data of named initializers (or of Constant nodes) and
nothing else, so inputs, outputs, names, opset, IR version and metadata stay as they were. Because lowering gives
every initializer one parameter of the same shape (converters/lowering/lower.py), the way back is the identity, followed by
a cast where the file stores fp16 or bf16.

A tensor is written the way it was stored: raw bytes stay raw bytes, typed fields stay typed fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxspect.converters.errors import InconclusiveError, InternalError
from onnxspect.converters.file.external_layout import is_kept
from onnxspect.converters.file.oversized import copied
from onnxspect.converters.lowering.lower import LoweredModel, Weight
from onnxspect.converters.text import printable

#: (operator, input) -> what the tensor does there. Anything else is a constant of the computation, not a weight.
_ROLES: dict[tuple[str, int], str] = {
    ("Conv", 1): "weight",
    ("Conv", 2): "bias",
    ("ConvTranspose", 1): "weight",
    ("ConvTranspose", 2): "bias",
    ("Gemm", 0): "weight",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("MatMul", 0): "weight",
    ("MatMul", 1): "weight",
    ("Einsum", 0): "weight",
    ("Einsum", 1): "weight",
    **{(op, 1): "scale" for op in ("BatchNormalization", "InstanceNormalization", "LayerNormalization")},
    **{(op, 2): "bias" for op in ("BatchNormalization", "InstanceNormalization", "LayerNormalization")},
    ("GroupNormalization", 1): "scale",
    ("GroupNormalization", 2): "bias",
    ("RMSNormalization", 1): "scale",
    ("BatchNormalization", 3): "statistic",
    ("BatchNormalization", 4): "statistic",
    **{(op, i): r for op in ("LSTM", "GRU", "RNN") for i, r in ((1, "weight"), (2, "weight"), (3, "bias"))},
    ("PRelu", 1): "slope",
    ("Gather", 0): "embedding",
    ("Add", 0): "offset",
    ("Add", 1): "offset",
    ("Sum", 0): "offset",
    ("Sum", 1): "offset",
    ("Mul", 0): "gain",
    ("Mul", 1): "gain",
}
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Gather"})
#: Operators that hand a weight on unchanged in content: what comes out of them is the same weight.
_PASS_THROUGH = frozenset({"Identity", "Cast", "CastLike", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
#: Prefix of the metadata entries that a patch adds to say where it came from.
PROVENANCE = "onnxspect."
TRAINABLE = frozenset({"weight", "bias", "scale", "slope", "embedding", "offset", "gain"})


def roles(model: onnx.ModelProto, lowered: LoweredModel) -> dict[str, str]:
    """What each torch parameter does: "weight", "bias", "scale", "statistic" (of BatchNorm), ..., or "constant".

    An Add or Mul before the first layer is the file's own preprocessing, not a bias: it stays a "constant", as does
    any scalar operand.
    """
    sizes = {name: parameter.numel() for name, parameter in lowered.module.named_parameters()}
    by_initializer = {w.initializer: name for name, w in lowered.weights.items()}
    carried = dict(by_initializer)  # ONNX value -> the parameter that it holds
    after_layer: set[str] = set()
    found = dict.fromkeys(lowered.weights, "constant")
    for node in model.graph.node:
        if node.op_type in _PASS_THROUGH and node.input and node.input[0] in carried:
            carried[node.output[0]] = carried[node.input[0]]
            continue
        deep = any(i in after_layer for i in node.input)
        for i, value in enumerate(node.input):
            role = _ROLES.get((node.op_type, i))
            if value not in carried or role is None:
                continue
            parameter = carried[value]
            if role in ("offset", "gain") and (not deep or sizes[parameter] < 2):
                continue
            found[parameter] = role
        if deep or (node.op_type in _LAYERS and any(i in carried for i in node.input)):
            after_layer.update(node.output)
    return found


@dataclass(frozen=True)
class Change:
    """One tensor that a patch changed.

    Attributes:
        initializer: its name in the file.
        relative: ‖after - before‖ / ‖before‖ in l2, of the values as stored.
    """

    initializer: str
    relative: float


def write_back(
    original: onnx.ModelProto, weights: Mapping[str, Weight], values: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, list[Change]]:
    """A copy of `original` with the given parameters written into it.

    Args:
        original: never mutated.
        weights: torch parameter name -> where it came from (LoweredModel.weights).
        values: torch parameter name -> its new value; those equal to the stored ones are left alone.

    Returns:
        the patched model (of one that is too large for a message, without the large tensors that stay as they were:
        `external_layout.write_like` takes them from the original), and what changed in it.

    Raises:
        OnnxspectError: a tensor is not in the file under its name or shape, or is not finite.
    """
    patched = copied(original)
    stored = {t.name: t for t in original.graph.initializer}
    tensors = {t.name: t for t in patched.graph.initializer}
    constants = {
        node.output[0]: attribute.t
        for node in patched.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    changes = []
    for parameter, value in values.items():
        weight = weights[parameter]
        tensor = (constants if weight.is_constant_node else tensors).get(weight.initializer)
        if tensor is None:
            raise InternalError(f"{printable(weight.initializer)}: no such initializer in the original file")
        if tuple(tensor.dims) != value.shape:
            raise InternalError(
                f"{printable(weight.initializer)}: shape {value.shape} does not fit the file's {tuple(tensor.dims)}"
            )
        if not np.isfinite(value).all():
            raise InconclusiveError(f"{printable(weight.initializer)}: the new values are not finite")
        before = numpy_helper.to_array(stored[tensor.name] if is_kept(tensor) else tensor)
        with np.errstate(over="ignore"):
            after = value.astype(before.dtype)
        if not np.isfinite(after.astype(np.float64)).all():
            raise InconclusiveError(f"{printable(weight.initializer)}: the new values are not finite as {before.dtype}")
        if np.array_equal(before, after):
            continue
        store(tensor, after)
        scale = float(np.linalg.norm(before.astype(np.float64))) or 1.0
        distance = float(np.linalg.norm(after.astype(np.float64) - before.astype(np.float64)))
        changes.append(Change(weight.initializer, distance / scale))
    return patched, changes


def store(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    """Replace a tensor's values in place, keeping its name, type, documentation and way of storage."""
    fresh = numpy_helper.from_array(value)
    if fresh.data_type != tensor.data_type:
        raise InternalError(
            f"{printable(tensor.name)}: {helper.tensor_dtype_to_string(fresh.data_type)} cannot replace "
            f"{helper.tensor_dtype_to_string(tensor.data_type)}"
        )
    if is_kept(tensor):
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = b""
    if tensor.HasField("raw_data"):
        tensor.raw_data = fresh.raw_data
        return
    field = helper.tensor_dtype_to_field(tensor.data_type)
    typed = helper.make_tensor("", tensor.data_type, tensor.dims, value.flatten())
    target = getattr(tensor, field)
    del target[:]
    target.extend(getattr(typed, field))
