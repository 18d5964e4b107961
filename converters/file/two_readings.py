"""Files that two readers read in two ways: named and refused, with the reading that onnxruntime takes.

Whoever checks a file with one library and runs it with another has then checked something else than he runs. No exporter writes
such files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import TensorProto

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.external_data import ExternalFile, tensors
from onnxspect.converters.text import printable

_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_HINT = "no exporter writes that: ask whoever made the file, or export the model anew"
_LISTED = 3


def refuse_two_readings(model: onnx.ModelProto) -> None:
    """Refuse a model, as it was parsed and before its external data are read, that can be read in more than one way.

    Raises:
        OnnxspectError: naming everything that has two readings.
    """
    found = [*_tensors(model), *_names(model), *_attributes(model), *_functions(model)]
    if found:
        more = f"; and {len(found) - _LISTED} more of the kind" if len(found) > _LISTED else ""
        raise OnnxspectError(f"can be read in two ways: {'; '.join(found[:_LISTED])}{more}", _HINT)


def refuse_overlaps(pieces: Sequence[ExternalFile]) -> None:
    """Refuse external data that lie partly on top of each other. Two tensors may share one piece: tied weights do.

    Raises:
        OnnxspectError: naming two tensors whose data overlap.
    """
    last: ExternalFile | None = None
    for piece in sorted((p for p in pieces if p.length), key=lambda p: (p.location, p.offset, p.length)):
        other = last is not None and piece.location == last.location and piece.offset < last.offset + last.length
        if other and last is not None and (piece.offset, piece.length) != (last.offset, last.length):
            raise OnnxspectError(
                f"the external data of {printable(last.tensor)} and {printable(piece.tensor)} overlap in "
                f"{printable(piece.location)}: a change of one changes the other",
                _HINT,
            )
        if last is None or piece.location != last.location or piece.offset + piece.length > last.offset + last.length:
            last = piece


def _tensors(model: onnx.ModelProto) -> Iterator[str]:
    for tensor in tensors(model):
        filled = [f for f in _TYPED if len(getattr(tensor, f))]
        raw = len(tensor.raw_data) > 0
        name = printable(tensor.name) or "without a name"
        if tensor.data_location == TensorProto.EXTERNAL:
            if raw or filled:
                inside = "raw_data" if raw else filled[0]
                yield f"tensor {name} has its values in another file and in {inside} as well (onnxruntime takes the other file)"
        elif raw and filled:
            yield f"tensor {name} has its values in raw_data and in {filled[0]} as well (onnxruntime takes raw_data)"
        elif len(filled) > 1:
            yield f"tensor {name} has values in {' and '.join(filled)} (onnxruntime takes the one of its element type)"


def _names(model: onnx.ModelProto) -> Iterator[str]:
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        held = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
        for name in _repeated(held):
            yield f"two initializers have the name {printable(name)} (onnxruntime takes the last)"
        for name in _repeated(i.name for i in graph.input):
            yield f"two inputs have the name {printable(name)} (onnxruntime refuses it)"
        made = [o for n in graph.node for o in n.output if o]
        for name in _repeated(made):
            yield f"two nodes compute a value of the name {printable(name)} (onnxruntime refuses it)"
        outputs = set(made)
        for name in held:
            if name in outputs:
                yield f"{printable(name)} is an initializer and computed by a node (onnxruntime refuses it)"
        for name in (i.name for i in graph.input):
            if name in outputs:
                yield f"{printable(name)} is an input and computed by a node (onnxruntime refuses it)"
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _attributes(model: onnx.ModelProto) -> Iterator[str]:
    for node in _nodes(model):
        for name in _repeated(a.name for a in node.attribute):
            where = printable(node.name or (node.output[0] if node.output else "?"))
            yield f"{printable(node.op_type)} {where} has the attribute {printable(name)} twice (onnxruntime refuses it)"


def _functions(model: onnx.ModelProto) -> Iterator[str]:
    for name in _repeated(f"{f.domain}:{f.name}:{getattr(f, 'overload', '')}" for f in model.functions):
        yield f"two functions have the name {printable(name)} (readers take the first or the last)"
    for function in model.functions:
        declared = [*function.attribute, *(a.name for a in function.attribute_proto)]
        shown = printable(function.name)
        for name in _repeated(declared):
            yield f"function {shown} declares the attribute {printable(name)} twice, with and without a default"
        made = [*function.input, *(o for n in function.node for o in n.output if o)]
        for name in _repeated(made):
            yield f"function {shown} has two values of the name {printable(name)}"


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)
