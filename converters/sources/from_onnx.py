"""ONNX to ONNX: old operator sets upgraded, where onnxruntime no longer has their operators.

Most old files run as they are and are left alone. For the rest (opset 1 to 6: Add with a `broadcast` attribute, Reshape
with its shape as an attribute) onnx.version_converter rewrites the operators, with two repairs:

* Broadcasting before opset 7 (onnx/docs/Changelog.md, Add-6): with ``broadcast=1, axis=k`` the second input's axes lie on
  the first's from k on. version_converter (onnx 1.23) gives it one trailing axis too many, which is an error at best and
  at worst another function; so these nodes are rewritten here, between opset 6 and the rest.
* It leaves the types of values that it inserts undefined, which onnxruntime rejects; types of intermediate values are
  dropped, and onnxruntime infers its own.

There is no runtime left that could give a reference for such a file: the result is checked by onnx's own Python
reference implementation on the upgraded graph, and the sidecar says that the original could not be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, version_converter
from onnx.reference import ReferenceEvaluator

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.sources.exported import Attempt, Exported, Source, image_layout
from onnxspect.converters.text import printable

TARGET = 17


def export(source: Source) -> Exported:
    """Upgrade the model, and say how it is to be compared."""
    file = read_onnx(source.path)
    model, old = file.proto, file.opset
    upgraded = upgrade(model)
    initializers = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initializers]
    if len(inputs) != 1:
        raise OnnxspectError(
            f"the graph has {len(inputs)} inputs; one image is expected", "export it with one image as its only input"
        )
    declared = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    shape = source.input_shape or tuple(declared[1:])
    if not shape or any(d < 1 for d in shape):
        raise OnnxspectError("takes images of any size", "give the shape of one sample: --input-shape 3,224,224")
    reference = ReferenceEvaluator(upgraded)

    def run(images: np.ndarray) -> np.ndarray:
        found: Any = reference.run(None, {inputs[0].name: images})
        return np.asarray(found[0])

    note = (
        f"opset {old} was upgraded to {TARGET}; no runtime computes the original any more, so the upgraded graph was "
        "compared with onnx's reference implementation of itself"
    )
    return Exported(
        run,
        shape,
        (Attempt(f"onnx.version_converter {onnx.__version__}", lambda: upgraded),),
        {"onnx": onnx.__version__},
        image_layout(shape),
        batch=declared[0] if declared and declared[0] > 0 else 0,
        warnings=(*file.warnings, note),
    )


def upgrade(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 17.

    Raises:
        OnnxspectError: where it cannot be upgraded, with the reason.
    """
    old = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    try:
        if old < 7:
            model = _convert(model, 6) if old < 6 else model
            broadcast_as_numpy(model)
        upgraded = _convert(model, TARGET)
    except OnnxspectError:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()), 300)
        raise OnnxspectError(
            f"opset {old} cannot be upgraded to {TARGET}: {reason}", "export the model again at opset 17"
        ) from None
    upgraded.ir_version = max(upgraded.ir_version, 8)
    return upgraded


def _convert(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    converted: onnx.ModelProto = version_converter.convert_version(model, target)
    converted.graph.ClearField("value_info")
    return converted


_BROADCASTING = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"))
# Operators whose output has the rank of their first input.
_RANK_KEPT = _BROADCASTING | frozenset(
    (
        *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"),
        *("BatchNormalization", "InstanceNormalization", "LRN", "LpNormalization", "Dropout", "Identity", "Cast"),
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Exp"),
        *("Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Floor", "Ceil", "Clip", "Softmax", "LogSoftmax", "Hardmax"),
        *("Concat", "Pad", "Transpose", "Slice", "Split", "Sum", "Max", "Min", "Mean", "Upsample", "Tile"),
        *("SpaceToDepth", "DepthToSpace"),
    )
)


def broadcast_as_numpy(model: onnx.ModelProto) -> None:
    """Rewrite the `broadcast` and `axis` attributes of opset 6 into Unsqueeze nodes, in place.

    Raises:
        OnnxspectError: naming a node where the rank of an input is not known.
    """
    graph = model.graph
    ranks: dict[str, int] = {t.name: len(t.dims) for t in graph.initializer}
    lengths = {t.name: t.dims[0] for t in graph.initializer if len(t.dims) == 1}
    for info in graph.input:
        if info.type.tensor_type.HasField("shape"):
            ranks.setdefault(info.name, len(info.type.tensor_type.shape.dim))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        attributes = {a.name: a for a in node.attribute}
        broadcasts = node.op_type in _BROADCASTING and "broadcast" in attributes and attributes["broadcast"].i
        if broadcasts and "axis" in attributes:
            first, second = (ranks.get(n) for n in node.input[:2])
            if first is None or second is None:
                raise OnnxspectError(
                    f"{node.op_type} {printable(node.name or node.output[0])} broadcasts in the way of opset 6, "
                    "but the rank of its inputs is not known",
                    "export the model again at opset 17",
                )
            axis = attributes["axis"].i % first if first else 0
            trailing = first - axis - second
            if trailing > 0:
                name = f"{node.input[1]}_onnxspect_{len(nodes)}"
                axes = list(range(second, second + trailing))
                nodes.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=axes))
                node.input[1] = name
        if node.op_type in _BROADCASTING:
            kept = [a for a in node.attribute if a.name not in ("broadcast", "axis")]
            del node.attribute[:]
            node.attribute.extend(kept)
        nodes.append(node)
        if node.op_type == "Constant" and "value" in attributes and len(attributes["value"].t.dims) == 1:
            lengths[node.output[0]] = attributes["value"].t.dims[0]
        rank = _rank(node, ranks, lengths, attributes)
        if rank is not None:
            ranks.update((name, rank) for name in node.output)
    del graph.node[:]
    graph.node.extend(nodes)


def _rank(
    node: onnx.NodeProto,
    ranks: Mapping[str, int],
    lengths: Mapping[str, int],
    attributes: Mapping[str, onnx.AttributeProto],
) -> int | None:
    """Rank of the node's outputs, or None where it is not known."""
    first = ranks.get(node.input[0]) if node.input else None
    if node.op_type in _RANK_KEPT:
        return first
    if node.op_type == "Constant" and "value" in attributes:
        return len(attributes["value"].t.dims)
    if node.op_type in ("Gemm", "Flatten"):
        return 2
    if node.op_type == "MatMul":
        second = ranks.get(node.input[1])
        return max(first, second) if first and second else None
    if node.op_type == "Reshape" and len(node.input) > 1:  # since opset 5 the shape is an input: its length is the rank
        return lengths.get(node.input[1])
    if node.op_type in ("Squeeze", "Unsqueeze") and "axes" in attributes and first is not None:
        count = len(attributes["axes"].ints)
        return first - count if node.op_type == "Squeeze" else first + count
    return None
