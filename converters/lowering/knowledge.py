"""What is known about a graph's values before anything runs: shapes, element types, and parts of computed shapes.

Shapes are inferred afresh: what a file declares of its intermediate values (value_info) may be wrong, and exporters
that write it wrongly exist (jax2onnx).

Many files are made for one batch size, and write it into their shapes; they are to be run at any. So two shapes are
kept for each value: the file's own, and the *free* one, in which every size that may depend on the batch is None. For
such a file the free shapes are inferred node by node (`refine`), because inference of the whole graph takes the batch
that is written into a Reshape for a number like any other; `reshaped` tells which axis it is.

onnx's shape inference aborts the process on some damaged files. An untrusted file has been through it in a child
process (probe.py) before it comes here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnxspect.converters.lowering.shape_arithmetic import Shape, size

_Vectors = Mapping[str, np.ndarray]

#: Constants up to this many elements take part in shape inference (a shape, axes, pads); of others only the type does.
_MAX_ELEMENTS = 512


@dataclass(frozen=True)
class Knowledge:
    """Inferred facts about values, by name; refined where folding tells more (see `refine`).

    Attributes:
        shapes: at any batch size: None for a size that is unknown or may depend on the batch.
        file_shapes: at the file's own batch size, where it has one.
        dtypes: element types (onnx.TensorProto.*).
    """

    shapes: dict[str, Shape]
    file_shapes: dict[str, Shape]
    dtypes: dict[str, int]

    def copy(self) -> Knowledge:
        """The same facts for whoever refines them, so that one inference serves several."""
        own = dict(self.file_shapes)
        return Knowledge(own if self.shapes is self.file_shapes else dict(self.shapes), own, dict(self.dtypes))


def learn(model: onnx.ModelProto) -> Knowledge:
    """Infer shapes and types of all values of `model`, whose functions are inlined already.

    Where an input has a fixed batch, `shapes` holds only the inputs and constants: `refine` adds the rest.
    """
    light = _without_weights(model)
    file_shapes, dtypes = _infer(light)
    images = {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer}
    # An input of rank 1 is no batch of anything.
    fixed = {name for name in images if len(shape := file_shapes.get(name, ())) > 1 and shape[0] is not None}
    if not fixed:
        return Knowledge(file_shapes, file_shapes, dtypes)
    produced = {name for node in model.graph.node for name in node.output}
    shapes = {name: shape for name, shape in file_shapes.items() if name not in produced}
    shapes |= {name: (None, *file_shapes[name][1:]) for name in fixed}
    return Knowledge(shapes, file_shapes, dtypes)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference: large constants become inputs of their type, declared results are dropped."""
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = "g"
    given = {t.name for t in model.graph.initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in given)
    for tensor in model.graph.initializer:
        _add_constant(graph, tensor.name, tensor)
    for node in model.graph.node:
        value = _large_value(node)
        if value is not None:
            _add_constant(graph, node.output[0], value)
        else:
            graph.node.append(node)
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.graph.output)
    return light


def _add_constant(graph: onnx.GraphProto, name: str, tensor: TensorProto) -> None:
    if math.prod(tensor.dims) <= _MAX_ELEMENTS:
        graph.initializer.append(tensor)
        graph.initializer[-1].name = name
    else:
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _large_value(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant node that is too large for shape inference."""
    if node.op_type != "Constant":
        return None
    for attribute in node.attribute:
        if attribute.HasField("t") and math.prod(attribute.t.dims) > _MAX_ELEMENTS:
            return attribute.t
    return None


def _infer(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    try:
        inferred = shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)
    except Exception:  # what it cannot infer is simply not known
        inferred = model
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, int] = {}
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if not info.type.HasField("tensor_type"):
            continue
        dtypes[info.name] = info.type.tensor_type.elem_type
        if info.type.tensor_type.HasField("shape"):
            shapes[info.name] = tuple(_size(d) for d in info.type.tensor_type.shape.dim)
    for tensor in inferred.graph.initializer:
        dtypes[tensor.name] = tensor.data_type
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes, dtypes


def _size(dim: Any) -> int | None:
    # Exporters of the first years wrote 0 or -1 for a size that is not fixed.
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None


def refine(
    node: onnx.NodeProto, opsets: Mapping[str, int], constants: _Vectors, partial: _Vectors, knowledge: Knowledge
) -> None:
    """Infer the shapes of one node's results, where they are unknown or folding has made more of its inputs known.

    Inference of the whole graph does not see through a Slice whose bounds are computed; folding does.
    """
    if node.domain not in ("", "ai.onnx") or any(a.HasField("g") for a in node.attribute):
        return
    free, own = knowledge.shapes, knowledge.file_shapes
    for shapes in (own, free) if own is not free else (free,):
        if all(name in shapes and None not in shapes[name][1:] for name in node.output if name):
            continue
        if node.op_type == "Reshape" and len(node.input) > 1:
            known = _reshape_result(node, constants, partial, knowledge, is_free=shapes is free)
            if known is not None:
                shapes[node.output[0]] = known
                continue
        _infer_node(node, opsets, constants, shapes, knowledge.dtypes)


def _infer_node(
    node: onnx.NodeProto,
    opsets: Mapping[str, int],
    constants: _Vectors,
    shapes: dict[str, Shape],
    dtypes: dict[str, int],
) -> None:
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, TensorProto] = {}
    for name in node.input:
        if not name:
            continue
        constant = constants.get(name)
        shape = tuple(constant.shape) if constant is not None else shapes.get(name)
        dtype = dtypes.get(name) or (TensorProto.INT64 if constant is not None else None)
        if shape is None or not dtype:
            return
        types[name] = helper.make_tensor_type_proto(dtype, shape)
        if constant is not None and constant.dtype.kind == "i" and constant.size <= _MAX_ELEMENTS:
            data[name] = numpy_helper.from_array(constant)
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get("", 1), "")
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        found = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except Exception:  # what it cannot infer is simply not known
        return
    for name, kind in found.items():
        if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            continue
        sizes = [_size(d) for d in kind.tensor_type.shape.dim]
        if node.op_type == "Concat":
            # Inference lets a known size win over an unknown one; a class token made for one image meets a batch.
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % len(sizes)
            inputs = [shapes.get(i, ()) for i in node.input]
            sizes = [
                n if i == axis or all(len(s) > i and s[i] is not None for s in inputs) else None
                for i, n in enumerate(sizes)
            ]
        shapes[name] = tuple(sizes)
        dtypes.setdefault(name, kind.tensor_type.elem_type)


def _reshape_result(
    node: onnx.NodeProto, constants: _Vectors, partial: _Vectors, knowledge: Knowledge, *, is_free: bool
) -> Shape | None:
    """The shape that a Reshape gives, from what is known of its target."""
    target = constants.get(node.input[1])
    if target is not None:
        wanted = [int(v) for v in target.reshape(-1)]
        free, own = knowledge.shapes.get(node.input[0]), knowledge.file_shapes.get(node.input[0])
        sizes = None if own is None else _resolved(own, wanted)
        axis = reshaped(free, own, wanted) if is_free else None
        if sizes is None or (is_free and axis is None):
            return None
        return tuple(None if i == axis else n for i, n in enumerate(sizes))
    known = partial.get(node.input[1])
    # A 0 or -1 in it stands for a size that is worked out when the graph runs.
    return None if known is None else tuple(n if n is not None and n > 0 else None for n in map(size, known))


def _resolved(own: Shape, target: Sequence[int]) -> list[int] | None:
    """A Reshape target with its 0 and -1 filled in, for an input of the file's own shape."""
    if any(n is None for n in own) or any(n == 0 and i >= len(own) for i, n in enumerate(target)):
        return None
    total = math.prod(n for n in own if n is not None)
    sizes = [own[i] if n == 0 else n for i, n in enumerate(target)]
    rest = math.prod(n for n in sizes if n is not None and n != -1)
    filled = [total // rest if n == -1 and rest else n for n in sizes]
    return [int(n) for n in filled if n is not None] if math.prod(n or 0 for n in filled) == total else None


def reshaped(free: Shape | None, own: Shape | None, target: Sequence[int]) -> int | None:
    """Which axis of a Reshape's result grows with the batch, for a file that is made for one batch size.

    Reshape keeps elements in order, so runs of axes of the input and of the result with equal products correspond.
    The batch lies in one run, and first in it: so did whatever merged it with other axes, and so does what splits it.

    Args:
        free: shape of the input, None where it grows with the batch; it must be one axis.
        own: shape of the input at the file's batch size.
        target: what the file asks for.

    Returns:
        the axis; None where it is ambiguous.
    """
    if free is None or own is None or len(free) != len(own) or sum(n is None for n in free) != 1:
        return None
    sizes = _resolved(own, target)
    if sizes is None:
        return None
    batch = free.index(None)
    known = [int(n or 0) for n in own]
    i = j = 0
    while i < len(known) and j < len(sizes):
        first_in, first_out = i, j
        a, b = known[i], sizes[j]
        while a != b:
            if a < b:
                i += 1
                if i == len(known):
                    return None
                a *= known[i]
            else:
                j += 1
                if j == len(sizes):
                    return None
                b *= sizes[j]
        if first_in <= batch <= i:
            before = math.prod(known[first_in:batch])
            return first_out if before == 1 or first_out == j else None
        i, j = i + 1, j + 1
    return None
