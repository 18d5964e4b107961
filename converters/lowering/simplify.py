"""Simplify an ONNX graph before it is lowered or searched: inline functions, fold shape constants, drop what does nothing.

A pass in onnx-ir's sense: the input is never mutated, and a report says what was done. What taps and patches address
stays: every initializer keeps its name and values, every value that is still computed keeps its name, and no
floating-point weight is folded into another (a patch must still reach it). Only integers and booleans are folded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from onnxspect.converters.lowering.builder import Builder, Unsupported
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.knowledge import Knowledge, learn
from onnxspect.converters.lowering.lower import load_operators

#: Folded constants of up to this many bytes are written into the graph; larger ones are left to be computed.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class SimplifyReport:
    """What `simplify` did.

    Attributes:
        inlined: local functions of the file whose calls were replaced by their bodies.
        folded: values that are constant now.
        dropped: values that were copies (of Identity, Dropout, a Cast to the same type), as pairs (value, the value
            that now stands for it).
        unused: how many other nodes went because nothing needs their result.
        before: what was inferred of the values of the model, its functions inlined.
        after: what was inferred of the values of the simplified model.
    """

    inlined: int
    folded: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    unused: int
    before: Knowledge = field(repr=False)
    after: Knowledge = field(repr=False)


def simplify(model: onnx.ModelProto) -> tuple[onnx.ModelProto, SimplifyReport]:
    """A simplified copy of `model`, and what was done.

    A value that is an output of the graph keeps being computed under its name. Inferred shapes of the remaining values
    are written to the copy.

    onnx's shape inference runs here; it aborts the process on some damaged files, so an untrusted file must have
    been through it in a child process before (probe.py).

    Raises:
        OnnxspectError: the file's local functions cannot be inlined.
    """
    load_operators()
    result = onnx.ModelProto()
    result.CopyFrom(inline_functions(model))
    before = learn(result)
    knowledge = before.copy()
    folded = _fold(result, knowledge)
    dropped = _drop_copies(result, knowledge)
    unused = _drop_unused(result)
    after = learn(result) if folded or dropped or unused else before
    _declare(result, after)
    return result, SimplifyReport(len(model.functions), tuple(folded), tuple(dropped.items()), unused, before, after)


def _fold(model: onnx.ModelProto, knowledge: Knowledge) -> list[str]:
    """Replace nodes whose results are constant integers or booleans by initializers."""
    graph = model.graph
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    builder = Builder(fx.Graph(), nn.Module(), opsets, knowledge)
    for tensor in graph.initializer:
        builder.constants[tensor.name] = numpy_helper.to_array(tensor)
        builder.dtypes[tensor.name] = tensor.data_type
    outputs = {o.name for o in graph.output}
    kept, folded = [], []
    for node in graph.node:
        try:
            known = builder.evaluate(node)
        except Unsupported:
            known = False
        arrays = {n: builder.constants[n] for n in node.output if n} if known else {}
        if node.op_type == "Constant" or not known or not all(_foldable(n, a, outputs) for n, a in arrays.items()):
            kept.append(node)
            continue
        for name, array in arrays.items():
            dtype = knowledge.dtypes.get(name) or helper.np_dtype_to_tensor_dtype(array.dtype)
            stored = array.astype(helper.tensor_dtype_to_np_dtype(dtype))
            graph.initializer.append(numpy_helper.from_array(stored, name))
            folded.append(name)
    _replace_nodes(graph, kept)
    return folded


def _foldable(name: str, array: np.ndarray, outputs: set[str]) -> bool:
    return name not in outputs and array.dtype.kind in "iub" and array.nbytes <= _MAX_BYTES


def _replace_nodes(graph: onnx.GraphProto, kept: list[onnx.NodeProto]) -> None:
    if len(kept) == len(graph.node):
        return
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _drop_copies(model: onnx.ModelProto, knowledge: Knowledge) -> dict[str, str]:
    """Let the users of a copy use the original; the outputs of the graph stay."""
    graph = model.graph
    outputs = {o.name for o in graph.output}
    original: dict[str, str] = {}
    kept = []
    for node in graph.node:
        _rename_inputs(node, original)
        if _is_copy(node, knowledge) and node.output[0] not in outputs and not any(node.output[1:]):
            original[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)
    return original


def _rename_inputs(node: onnx.NodeProto, original: dict[str, str]) -> None:
    """Also inside the bodies of If, Loop and Scan, which see the values around them."""
    for i, name in enumerate(node.input):
        if name in original:
            node.input[i] = original[name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                _rename_inputs(inner, original)
            for output in body.output:
                if output.name in original:  # an outer value handed out as it is
                    body.node.append(helper.make_node("Identity", [original[output.name]], [output.name]))


def _is_copy(node: onnx.NodeProto, knowledge: Knowledge) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or not node.input[0]:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        return len(node.input) < 3 or not node.input[2]  # a third input may ask for training mode
    if node.op_type == "Cast":
        target = next((a.i for a in node.attribute if a.name == "to"), None)
        return target is not None and knowledge.dtypes.get(node.input[0]) == target
    return False


def _drop_unused(model: onnx.ModelProto) -> int:
    """Remove nodes whose results nothing needs; initializers stay, used or not."""
    graph = model.graph
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(_reads(node))
    unused = len(graph.node) - len(kept)
    _replace_nodes(graph, kept[::-1])
    return unused


def _reads(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                names |= _reads(inner)
            names.update(o.name for o in body.output)
    return names


def _declare(model: onnx.ModelProto, knowledge: Knowledge) -> None:
    """Write what was inferred of the intermediate values, in place of what the file declared."""
    graph = model.graph
    del graph.value_info[:]
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        for name in node.output:
            dtype = knowledge.dtypes.get(name)
            if name and name not in outputs and dtype and dtype != TensorProto.UNDEFINED:
                shape = knowledge.file_shapes.get(name)
                graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))
