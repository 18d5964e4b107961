"""Every difference between two ONNX files: tensors by relative change, nodes, interface, metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import numpy_helper

from onnxspect.converters.text import printable

_VERSION_FIELDS = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        kind: "tensor" (same name, shape and type, other values), "initializer" (added, removed, or of another shape
            or type), "node", "interface" (inputs or outputs), "version" (IR, opset, producer), "metadata" or "other".
        name: of the thing that differs.
        text: one line for people.
        relative: for a tensor, ‖b - a‖ / ‖a‖ in l2; else 0.
    """

    kind: str
    name: str
    text: str
    relative: float = 0.0


def compare(a: onnx.ModelProto, b: onnx.ModelProto) -> list[Difference]:
    """All differences from `a` to `b`, in a stable order; empty where the models are the same."""
    found = [*_versions(a, b), *_interface(a, b), *_nodes(a, b), *_initializers(a, b), *_metadata(a, b)]
    return [*found, *_rest(a, b)]


def _versions(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    for field in _VERSION_FIELDS:
        x, y = getattr(a, field), getattr(b, field)
        if x != y:
            yield Difference("version", field, f"{field}: {printable(str(x))} -> {printable(str(y))}")
    x, y = ({o.domain: o.version for o in m.opset_import} for m in (a, b))
    for domain in sorted({*x, *y}):
        if x.get(domain) != y.get(domain):
            yield Difference("version", domain, f"opset of {domain or 'ai.onnx'}: {x.get(domain)} -> {y.get(domain)}")


def _interface(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    for what in ("input", "output"):
        x, y = list(getattr(a.graph, what)), list(getattr(b.graph, what))
        if [v.name for v in x] != [v.name for v in y]:
            names = " -> ".join(", ".join(printable(v.name) for v in side) for side in (x, y))
            yield Difference("interface", what, f"{what}s: {names}")
            continue
        for v, w in zip(x, y, strict=True):
            if v.SerializeToString(deterministic=True) != w.SerializeToString(deterministic=True):
                yield Difference("interface", v.name, f"{what} {printable(v.name)}: another type or shape")


def _nodes(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    x, y = list(a.graph.node), list(b.graph.node)
    tensors: list[tuple[str, onnx.TensorProto, onnx.TensorProto]] = []
    for i, (v, w) in enumerate(zip(x, y, strict=False)):
        if v.SerializeToString(deterministic=True) == w.SerializeToString(deterministic=True):
            continue
        pair = _constant_pair(v, w)
        if pair is not None:
            tensors.append((v.output[0], *pair))
            continue
        where = printable(v.name or (v.output[0] if v.output else str(i)))
        yield Difference(
            "node", v.name, f"node {i} ({where}): {printable(v.op_type)} -> {printable(w.op_type)} changed"
        )
    if len(x) != len(y):
        yield Difference("node", "", f"{len(x)} nodes -> {len(y)} nodes")
    for name, t, u in tensors:
        yield _tensor(name, t, u)


def _constant_pair(v: onnx.NodeProto, w: onnx.NodeProto) -> tuple[onnx.TensorProto, onnx.TensorProto] | None:
    """The two tensors of Constant nodes that differ in their values alone."""
    if v.op_type != "Constant" or w.op_type != "Constant" or list(v.output) != list(w.output):
        return None
    if len(v.attribute) != 1 or len(w.attribute) != 1 or v.attribute[0].name != "value":
        return None
    t, u = v.attribute[0].t, w.attribute[0].t
    same = w.attribute[0].name == "value" and list(t.dims) == list(u.dims) and t.data_type == u.data_type
    return (t, u) if same else None


def _initializers(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    x, y = ({t.name: t for t in m.graph.initializer} for m in (a, b))
    for name in [*x, *(n for n in y if n not in x)]:
        shown = printable(name)
        if name not in y:
            yield Difference("initializer", name, f"initializer {shown}: removed")
        elif name not in x:
            yield Difference("initializer", name, f"initializer {shown}: added")
        elif list(x[name].dims) != list(y[name].dims) or x[name].data_type != y[name].data_type:
            yield Difference("initializer", name, f"initializer {shown}: another shape or type")
        elif x[name].SerializeToString(deterministic=True) != y[name].SerializeToString(deterministic=True):
            yield _tensor(name, x[name], y[name])


def _tensor(name: str, t: onnx.TensorProto, u: onnx.TensorProto) -> Difference:
    before, after = numpy_helper.to_array(t).astype(np.float64), numpy_helper.to_array(u).astype(np.float64)
    norm = float(np.linalg.norm(before))
    distance = float(np.linalg.norm(after - before))
    relative = distance / norm if norm else (0.0 if distance == 0 else float("inf"))
    return Difference("tensor", name, f"tensor {printable(name)}: relative change {relative:.3g}", relative)


def _metadata(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    x, y = ({p.key: p.value for p in m.metadata_props} for m in (a, b))
    for key in [*x, *(k for k in y if k not in x)]:
        if x.get(key) != y.get(key):
            old, new = (printable(side[key]) if key in side else "(none)" for side in (x, y))
            yield Difference("metadata", key, f"metadata {printable(key)}: {old} -> {new}")


def _rest(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    """What neither weights nor nodes nor interface nor metadata hold: functions, inferred shapes, names, unknown fields, ..."""
    compared_elsewhere = {"node", "initializer", "input", "output"}
    pairs: list[tuple[str, Message, Message, set[str]]] = [
        ("model", a, b, {"graph", "metadata_props", "opset_import", *_VERSION_FIELDS}),
        ("graph", a.graph, b.graph, compared_elsewhere),
    ]
    for where, x, y, known in pairs:
        for field in x.DESCRIPTOR.fields:
            if field.name not in known and _bytes(x, field.name) != _bytes(y, field.name):
                yield Difference("other", field.name, f"{where}: {field.name} differs")
        if _unknown(x) != _unknown(y):
            numbers = sorted({n for n, _, _ in _unknown(x) ^ _unknown(y)})
            listed = ", ".join(map(str, numbers[:5]))
            yield Difference("other", "", f"{where}: fields that ONNX does not know differ (number {listed})")
    for name in ("opset_import", "metadata_props"):
        # Compared by key above; what repeats a key, or holds more than a key and a value, is seen here alone.
        x_entries, y_entries = list(getattr(a, name)), list(getattr(b, name))
        more = [m for m in (*x_entries, *y_entries) if _unknown(m)]
        keys = [[m.domain if name == "opset_import" else m.key for m in side] for side in (x_entries, y_entries)]
        if (more or any(len(set(k)) < len(k) for k in keys)) and sorted(_bytes(a, name)) != sorted(_bytes(b, name)):
            yield Difference("other", name, f"model: {name} differs (repeated keys, or fields that ONNX does not know)")


def _unknown(message: Message) -> set[tuple[int, int, str]]:
    """The fields of a message, of itself alone, that this version of ONNX has no name for: number, wire type, content."""
    return {(f.field_number, f.wire_type, repr(f.data)) for f in UnknownFieldSet(message)}


def _bytes(message: Message, field: str) -> list[bytes]:
    """The serialized value(s) of one field."""
    value = getattr(message, field)
    if isinstance(value, Message):
        return [value.SerializeToString(deterministic=True)]
    if isinstance(value, str | bytes | int | float):
        return [str(value).encode()]
    return [v.SerializeToString(deterministic=True) if isinstance(v, Message) else str(v).encode() for v in value]
