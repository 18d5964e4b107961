"""Local functions of an ONNX file, replaced by their bodies (onnx.inliner)."""

from __future__ import annotations

import onnx
import onnx.inliner

from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.file.graph_cost import graph_cost

#: Nodes after inlining. A file of a few kilobytes can ask for 10^15, so they are counted before they are made.
MAX_NODES = 1_000_000


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself where it has no functions of its own, else a copy with every call replaced by the body.

    Names of values outside the functions stay.

    Raises:
        OnnxspectError: the functions expand to more than MAX_NODES nodes, call themselves, or cannot be inlined.
    """
    if not model.functions:
        return model
    cost = graph_cost(model)
    if cost.expanded > MAX_NODES:
        raise OnnxspectError(f"the model's local functions expand to {cost.expanded} nodes; the limit is {MAX_NODES}")
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # onnx raises bare C++ errors here
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise caused_by(error, f"the model's local functions cannot be inlined: {line}") from error
