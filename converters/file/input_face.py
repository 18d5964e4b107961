"""Inputs that are images but do not look like a batch of them: without a batch axis, or without any shape.

Such a file is read with a face: the same graph behind an input (1, channels, height, width), or with the shape that its first
layer asks for. The file on disk stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.bound_inputs import free_inputs
from onnxspect.converters.file.one_image import as_for_one
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.text import printable

_INNER = "{}/onnxspect_single"
#: Operators that change numbers and leave the form of an image as it is.
_ELEMENTWISE = frozenset(("Cast", "Identity", "Sub", "Add", "Mul", "Div", "Clip", "QuantizeLinear", "DequantizeLinear"))


def with_face(file: OnnxFile) -> OnnxFile:
    """The file with an input that is a batch of images, where its own is none, and with choices by the number of images as they are for
    one (one_image.py); else the file itself.

    Raises:
        OnnxspectError: the input has no shape, and nothing in the graph tells which.
    """
    return as_for_one(_of_images(file))


def _of_images(file: OnnxFile) -> OnnxFile:
    free = free_inputs(file.proto)
    if len(free) != 1 or not free[0].type.HasField("tensor_type"):
        return file
    if not free[0].type.tensor_type.HasField("shape"):
        return _declared(file, free[0])
    sizes = _sizes(free[0])
    return _batched(file, free[0], sizes) if _is_one_image(sizes, file) else file


def _sizes(info: onnx.ValueInfoProto) -> list[int]:
    return [max(d.dim_value, 0) for d in info.type.tensor_type.shape.dim]


def _is_one_image(sizes: Sequence[int], file: OnnxFile) -> bool:
    """Whether an input of these sizes is one image: all are fixed, and the answer is one row."""
    outputs = [_sizes(o) for o in file.proto.graph.output if o.type.tensor_type.HasField("shape")]
    if not outputs or any(s < 1 for s in sizes):
        return False
    row = all(len(o) == 1 and o[0] > 1 for o in outputs)
    of_one = row or all(len(o) == 2 and o[0] == 1 and o[1] > 1 for o in outputs)
    if len(sizes) == 3:
        return row or (of_one and 3 in (sizes[0], sizes[2]))
    return len(sizes) == 2 and of_one and min(sizes) > 4 and max(sizes) <= 2 * min(sizes)


def _batched(file: OnnxFile, info: onnx.ValueInfoProto, sizes: Sequence[int]) -> OnnxFile:
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    graph, name = proto.graph, info.name
    inner = _INNER.format(name)
    nodes = list(graph.node)
    outputs = [o for o in graph.output if len(_sizes(o)) == 1]
    renamed = {name: inner} | {o.name: _INNER.format(o.name) for o in outputs}
    for node in nodes:
        for held in (node.input, node.output):
            for i, value in enumerate(held):
                held[i] = renamed.get(value, value)
    axes = "onnxspect/first_axis"
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), axes))
    del graph.node[:]
    graph.node.append(_reform("Squeeze", name, inner, axes, file.opset))
    graph.node.extend(nodes)
    for output in outputs:
        graph.node.append(_reform("Unsqueeze", _INNER.format(output.name), output.name, axes, file.opset))
        output.type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension(dim_value=1))
    given = next(i for i in graph.input if i.name == name)
    given.CopyFrom(helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, [1, *sizes]))
    del graph.value_info[:]
    shown = "x".join(map(str, sizes))
    note = f"its input {printable(name)} is one image ({shown}) without a batch axis: it is run image by image"
    return replace(file, proto=proto, warnings=(*file.warnings, note), faced=True)


def _reform(operator: str, source: str, out: str, axes: str, opset: int) -> onnx.NodeProto:
    name = f"onnxspect/{operator}_{out}"
    if opset >= 13:
        return helper.make_node(operator, [source, axes], [out], name=name)
    return helper.make_node(operator, [source], [out], name=name, axes=[0])


def _declared(file: OnnxFile, info: onnx.ValueInfoProto) -> OnnxFile:
    """The file with the shape that the first layer asks for written to its input."""
    dims = _asked_for(file.proto, info.name)
    if dims is None:
        raise OnnxspectError(
            f"{file.path}: its input {printable(info.name)} has no shape, and its first layer does not tell which",
            "export it with the shape of its input",
        )
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    given = next(i for i in proto.graph.input if i.name == info.name)
    given.CopyFrom(helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, dims))
    shown = ", ".join(map(str, dims))
    note = f"its input {printable(info.name)} has no shape: by its first layer it is ({shown})"
    return replace(file, proto=proto, warnings=(*file.warnings, note), faced=True)


def _asked_for(model: onnx.ModelProto, name: str) -> list[int | str] | None:
    """(batch, ...) as the first layer with weights wants its input."""
    weights = {t.name: t for t in model.graph.initializer}
    last = False
    for _ in range(32):
        users = [n for n in model.graph.node if name in n.input]
        if not users:
            return None
        node = users[0]
        if node.op_type == "Transpose":
            permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            if permutation != [0, 3, 1, 2]:
                return None
            last = True
        elif node.op_type == "Conv" and node.input[1] in weights:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            channels = int(weights[node.input[1]].dims[1]) * group
            return ["batch", "height", "width", channels] if last else ["batch", channels, "height", "width"]
        elif node.op_type in ("Gemm", "MatMul") and len(node.input) > 1 and node.input[1] in weights:
            transposed = node.op_type == "Gemm" and next((a.i for a in node.attribute if a.name == "transB"), 0)
            return ["batch", int(weights[node.input[1]].dims[1 if transposed else 0])]
        elif node.op_type not in _ELEMENTWISE:
            return None
        name = node.output[0]
    return None
