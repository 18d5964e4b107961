"""Choices by the number of images (If on the size of the batch), taken as they are for one image.

What an image is answered must not hang on how many others come with it; a graph that asks has a way for one image, and a
torch graph has to know beforehand which way is gone. So the condition is computed anew from the shape that one image has: the nodes
that lead to it are copied, with that shape in place of the input's. The ways for more images are not looked at, which the report says
(engine/subject/unreached.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from onnxspect.converters.file.bound_inputs import free_inputs
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.text import printable

#: Values that are computed for one image are called so.
_NAME = "onnxspect/one_image/{}"
_SHAPE = "shape of one image"
#: Operators by which exporters make a condition of a shape; none of them sees a pixel.
_OF_SHAPES = frozenset(
    (
        "Shape",
        "Gather",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Cast",
        "Identity",
        "Constant",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
    )
    + ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Xor", "ReduceProd", "Reshape")
)


def as_for_one(file: OnnxFile) -> OnnxFile:
    """The file with every If that asks for the number of images decided as for one; the file itself where there is none.

    Only an input whose other sizes are fixed is taken: by its shape alone everything is known then. Where the batch is fixed too, all is
    decided by that, and nothing is left out.
    """
    nodes = list(file.proto.graph.node)
    asking = [i for i, n in enumerate(nodes) if n.op_type == "If" and n.domain in ("", "ai.onnx")]
    free = free_inputs(file.proto)
    if not asking or len(free) != 1:
        return file
    shape = [d.dim_value for d in free[0].type.tensor_type.shape.dim]
    if len(shape) < 2 or any(n < 1 for n in shape[1:]):
        return file
    images = max(shape[0], 0) or 1  # a file for one size of the batch has decided by that
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    constants = {t.name for t in file.proto.graph.initializer}
    leading = {i: _leading_to(nodes[i].input[0], free[0].name, nodes, producers, constants) for i in asking}
    chosen = [i for i in asking if leading[i]]
    if not chosen:
        return file
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    for i in chosen:
        proto.graph.node[i].input[0] = _NAME.format(nodes[i].input[0])
    copies = [_copied(nodes[i], constants) for i in sorted(set().union(*(leading[i] for i in chosen)))]
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend([*copies, *rest])
    proto.graph.initializer.append(
        numpy_helper.from_array(np.array([images, *shape[1:]], np.int64), _NAME.format(_SHAPE))
    )
    names = tuple(nodes[i].name or nodes[i].output[0] for i in chosen)
    shown = ", ".join(map(printable, names[:5]))
    if shape[0] > 0:
        note = f"it chooses by how many images it is given (If: {shown}), and takes {images}"
        return replace(file, proto=proto, warnings=(*file.warnings, note), faced=True)
    note = f"it chooses by how many images it is given (If: {shown}): it is looked at as it answers one image"
    return replace(file, proto=proto, warnings=(*file.warnings, note), faced=True, chooses=names)


def _leading_to(
    value: str, image: str, nodes: Sequence[onnx.NodeProto], producers: Mapping[str, int], constants: Set[str]
) -> Set[int]:
    """The nodes that compute a value from the shape of the input; none where it hangs on anything else, or on no shape at all."""
    found: set[int] = set()
    stack, of_shape = [value], False
    while stack:
        name = stack.pop()
        if not name or name in constants or producers.get(name) in found:
            continue
        node = nodes[producers[name]] if name in producers else None
        if node is None or node.op_type not in _OF_SHAPES or node.domain not in ("", "ai.onnx"):
            return frozenset()
        if node.op_type == "Shape":
            if node.input[0] != image or node.attribute:
                return frozenset()
            of_shape = True
        else:
            stack.extend(node.input)
        found.add(producers[name])
    return found if of_shape else frozenset()


def _copied(node: onnx.NodeProto, constants: Set[str]) -> onnx.NodeProto:
    """The node with results of other names, made from the shape of one image."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = _NAME.format(node.name or node.output[0])
    if node.op_type == "Shape":
        copy.op_type = "Identity"
        sources = [_NAME.format(_SHAPE)]
    else:
        sources = [n if not n or n in constants else _NAME.format(n) for n in node.input]
    del copy.input[:], copy.output[:]
    copy.input.extend(sources)
    copy.output.extend(_NAME.format(n) for n in node.output)
    return copy
