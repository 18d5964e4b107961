"""The graph being built. What host and device mean: see lowering.py."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import fx, nn

from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.knowledge import Knowledge, refine
from onnxspect.converters.lowering.node_view import FLOATS, Alias, NodeView, Unsupported, attribute_value
from onnxspect.converters.lowering.shape_arithmetic import propagate, size
from onnxspect.converters.text import printable

__all__ = ["FLOATS", "Alias", "Builder", "NodeView", "Unsupported", "Weight", "host_dtype"]


@dataclass(frozen=True)
class Weight:
    """Where a torch parameter came from.

    Attributes:
        initializer: name of the initializer, or of the Constant node's output, in the ONNX file.
        is_constant_node: true where the tensor is the `value` attribute of a Constant node.
        dtype: its element type in the file (onnx.TensorProto.*); the torch parameter is float32 or float64.
    """

    initializer: str
    is_constant_node: bool
    dtype: int


@dataclass
class Builder:
    """The graph being built, and what is known about the values in it.

    Attributes:
        graph, root: what becomes the fx.GraphModule.
        opsets: domain -> version.
        knowledge: inferred shapes and element types of values.
        working_dtype: see the header of lowering.py.
        everything_on_host: for folding: nothing is fetched to the device.
        constants: values known before anything runs: initializers, Constant nodes, and what follows from such alone.
        derived: those of the constants that the file does not hold, so that no patch can be about them.
        partial: integer vectors and scalars of which some elements are known (None for the others).
        dtypes: element types of constants in the file.
        env: value name -> fx node.
        host: the fx nodes of host values.
        weights: torch parameter name -> where it came from.
    """

    graph: fx.Graph
    root: nn.Module
    opsets: Mapping[str, int]
    knowledge: Knowledge = field(default_factory=lambda: Knowledge({}, {}, {}))
    working_dtype: torch.dtype = torch.float32
    everything_on_host: bool = False
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    constant_nodes: set[str] = field(default_factory=set)
    derived: set[str] = field(default_factory=set)
    partial: dict[str, np.ndarray] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    env: dict[str, fx.Node] = field(default_factory=dict)
    host: set[fx.Node] = field(default_factory=set)
    weights: dict[str, Weight] = field(default_factory=dict)
    _fetched: dict[str, fx.Node] = field(default_factory=dict)
    _names: dict[fx.Node, str] = field(default_factory=dict)
    _bodies: set[tuple[str, str]] = field(default_factory=set)
    _taken: set[str] = field(default_factory=set)
    _head: fx.Node | None = None
    _working: fx.Node | None = None

    def lower(self, proto: onnx.NodeProto) -> None:
        """Add one ONNX node to the graph, or to the constants where it depends on nothing else.

        Raises:
            Unsupported: it cannot be lowered.
        """
        if self.evaluate(proto):
            return
        opset, entry = self._find(proto)
        view = NodeView(proto, opset, self, entry)
        result = entry.build(view)
        results = result if isinstance(result, tuple) else (result,)
        for i, name in enumerate(proto.output):
            if not name:
                continue
            if i >= len(results) or results[i] is None:
                raise Unsupported(f"output {i} ({printable(name)}) cannot be computed")
            if isinstance(results[i], Alias):
                self._alias(name, results[i])
                continue
            self.env[name] = results[i]
            if results[i].op == "call_function":
                shape = self.knowledge.shapes.get(name)
                results[i].meta.setdefault("onnx", {"value": name, "operator": proto.op_type, "shape": shape})
            if view.result_on_host:
                self.host.add(results[i])

    def evaluate(self, proto: onnx.NodeProto) -> bool:
        """Add a node's results to the constants where they follow from such; false where they do not.

        Raises:
            Unsupported: there is no lowering for it.
        """
        if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
            self.constants[proto.output[0]], self.dtypes[proto.output[0]] = _constant_value(proto)
            self.constant_nodes.add(proto.output[0])
            return True
        refine(proto, self.opsets, self.constants, self.partial, self.knowledge)
        if proto.domain in ("", "ai.onnx") and self._know(proto):
            return True
        return self._can_fold(proto) and self._fold(proto, *self._find(proto))

    def _find(self, proto: onnx.NodeProto) -> tuple[int, registry.Entry]:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        opset = self.opsets.get(domain, 1)
        entry = registry.find(domain, proto.op_type, opset)
        if entry is None:
            raise Unsupported("no lowering")
        return opset, entry

    def _alias(self, name: str, existing: str) -> None:
        if existing in self.derived and existing not in self.env:
            self.define(name, self.constants[existing])
        else:
            self.env[name] = self.value(existing)
        if existing in self.partial:
            self.partial[name] = self.partial[existing]

    def inline(self, body: onnx.GraphProto, bindings: Mapping[str, str], prefix: str) -> list[str]:
        """Lower the nodes of a subgraph here.

        Args:
            body: the subgraph; it may read the values around it.
            bindings: its input names -> existing values.
            prefix: put before the names of values that it computes, which are thereby unique.

        Returns:
            the names that its outputs have here.
        """
        names = dict(bindings)
        for tensor in body.initializer:  # shared by all iterations: no prefix, but no clash either
            unique = tensor.name
            while unique in self.env or (unique in self.constants and (body.name, unique) not in self._bodies):
                unique += "'"
            self._bodies.add((body.name, unique))
            names[tensor.name] = unique
            self.constants[unique], self.dtypes[unique] = numpy_helper.to_array(tensor), tensor.data_type
        for proto in body.node:
            for name in proto.output:
                if name:
                    names[name] = prefix + name
        for proto in body.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(proto)
            _rename(copied, names)
            for i, name in enumerate(copied.output):
                copied.output[i] = names.get(name, name)
            self.lower(copied)
        return [names.get(o.name, o.name) for o in body.output]

    def define(self, name: str, array: np.ndarray) -> None:
        """Record that the value `name` is constant though the file does not hold it."""
        self.constants[name] = array
        self.derived.add(name)

    def _know(self, proto: onnx.NodeProto) -> bool:
        """Propagate what is known of a shape; true where the node's result is known entirely."""
        known = propagate(proto, self.constants, self.partial, self.knowledge.shapes)
        if known is None:
            return False
        values = [size(v) for v in known.reshape(-1)]
        if None in values:
            self.partial[proto.output[0]] = known
            return False
        is_truth = any(isinstance(v, (bool, np.bool_)) for v in known.reshape(-1))
        self.define(proto.output[0], known.astype(np.bool_ if is_truth else np.int64))
        return True

    def _can_fold(self, proto: onnx.NodeProto) -> bool:
        """Whether a node follows from constants alone, none of them a weight that a patch may be about."""
        names = [n for n in proto.input if n]
        if proto.op_type in _NEVER_FOLDED or not all(n in self.constants for n in names):
            return False
        if self.everything_on_host or any(a.HasField("g") for a in proto.attribute):
            return False
        weights = [n for n in names if _is_float(self.constants[n]) and n not in self.derived]
        return not weights or (len(weights) < len(names) and all(self.constants[n].size == 1 for n in weights))

    def _fold(self, proto: onnx.NodeProto, opset: int, entry: registry.Entry) -> bool:
        """Compute a node of constants now, by its own lowering; false where that does not work."""
        inner = Builder(fx.Graph(), nn.Module(), self.opsets, everything_on_host=True, constants=self.constants)
        inner.dtypes = self.dtypes
        try:
            result = entry.build(NodeView(proto, opset, inner, entry))
            results = result if isinstance(result, tuple) else (result,)
            inner.graph.output(results)
            with torch.no_grad():
                values = fx.Interpreter(inner.root, graph=inner.graph).run()
        except Exception:  # whatever is wrong with it is said when it is lowered, or run, as part of the graph
            return False
        if not all(isinstance(v, torch.Tensor) or v is None for v in values):
            return False
        for name, value in zip(proto.output, values, strict=False):
            if name and value is not None:
                self.define(name, value.numpy())
        return all(name in self.constants for name in proto.output if name)

    def placeholder(self, name: str) -> None:
        """Declare the graph input `name`."""
        self._head = self.env[name] = self.graph.placeholder(_identifier(name, "x", self._taken))
        self._head.meta["onnx"] = {"value": name, "operator": "", "shape": self.knowledge.shapes.get(name)}

    def value(self, name: str) -> fx.Node:
        """The fx node of a value; a constant comes from the device where it may hold weights, else from the host."""
        if name in self.env:
            return self.env[name]
        return self.on_host(name) if self.runs_on_host([name]) else self.on_device(name)

    def runs_on_host(self, names: Sequence[str]) -> bool:
        """Whether a node with these data inputs runs on the host (see the header of lowering.py)."""
        if self.everything_on_host:
            return True
        computed = [self.env[n] in self.host for n in names if n in self.env]
        weights = [self.constants[n] for n in names if n not in self.env and _is_float(self.constants.get(n))]
        if computed:
            # A float scalar in shape arithmetic (a Resize factor) is no weight: it does not drag the shape away.
            return all(computed) and all(w.size <= _SMALL for w in weights)
        return not weights and bool(names)

    def on_host(self, name: str) -> fx.Node:
        """The value `name` of a node that runs on the host."""
        if name in self.env:
            return self.env[name]
        self._require(name)
        array = self.constants[name]
        if array.size > _LITERAL and not self.everything_on_host:
            node = self.graph.call_function(to_host, (self._fetch(name),))
            self.host.add(node)
            return node
        node = self.graph.call_function(
            host_constant, (tuple(array.reshape(-1).tolist()), tuple(array.shape), host_dtype(array))
        )
        self.host.add(node)
        return node

    def on_device(self, name: str) -> fx.Node:
        """The value `name` of a node that runs on the device."""
        if name not in self.env:
            self._require(name)
            return self._fetch(name)
        node = self.env[name]
        if node not in self.host:
            return node
        return self.graph.call_function(to_device, (node, self.working()))

    def _require(self, name: str) -> None:
        if name not in self.constants:
            raise Unsupported(f"value {printable(name)} is used before anything computes it")

    def working(self) -> fx.Node:
        """An fx node of an empty tensor of the working type, on the module's device."""
        if self._working is None:
            self.root.register_buffer("_working", torch.zeros((), dtype=self.working_dtype), persistent=False)
            self._working = self._at_head("get_attr", "_working")
        return self._working

    def _fetch(self, name: str) -> fx.Node:
        """Register the constant `name` on the module (once) and fetch it."""
        if name in self._fetched:
            return self._fetched[name]
        array = self.constants[name]
        attribute = _identifier(name, "w", self._taken)
        if _is_float(array):
            double = array.dtype == np.float64
            tensor = torch.from_numpy(np.array(array, dtype=np.float64 if double else np.float32))
            if name in self.derived:
                self.root.register_buffer(attribute, tensor, persistent=False)
            else:
                self.root.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
                dtype = self.dtypes.get(name, TensorProto.DOUBLE if double else TensorProto.FLOAT)
                self.weights[attribute] = Weight(name, name in self.constant_nodes, dtype)
            node = self._at_head("get_attr", attribute)
            if tensor.dtype != self.working_dtype:  # stored as the file has it, computed in the working type
                node = self._at_head("call_function", to_device, (node, self.working()))
        else:
            tensor = torch.from_numpy(array.astype(_integer_dtype(array)))
            self.root.register_buffer(attribute, tensor, persistent=name not in self.derived)
            node = self._at_head("get_attr", attribute)
        self._fetched[name] = node
        self._names[node] = name
        return node

    def number(self, node: fx.Node) -> float | None:
        """The number that a node holds, where it is a constant of one element."""
        name = self._names.get(node)
        array = None if name is None else self.constants[name]
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def _at_head(self, op: str, target: Any, args: tuple[Any, ...] = ()) -> fx.Node:
        """Weights are fetched right after the placeholders, so that every later use sees them."""
        with self.graph.inserting_after(self._head):
            self._head = self.graph.create_node(op, target, args)
        return self._head


#: Float constants of up to this many elements may take part in shape arithmetic without being taken for weights.
_SMALL = 8
#: Host constants of up to this many elements are written into the graph's code.
_LITERAL = 64
#: What is quantized is a weight though its type is an integer, and what is random is not constant.
_NEVER_FOLDED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Bernoulli", "Multinomial", "Dropout", "If", "Loop")
    + ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan", "SequenceMap")
)


def _is_float(array: np.ndarray | None) -> bool:
    return array is not None and (array.dtype.kind == "f" or array.dtype.name in _NARROW_FLOATS)


_NARROW_FLOATS = frozenset(
    ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    + ("float4_e2m1fn",)
)
#: Element types that torch computes badly or not at all, and the wider one that holds their values.
_WIDER: dict[np.dtype, Any] = {
    np.dtype(ml_dtypes.int4): np.int8,
    np.dtype(ml_dtypes.int2): np.int8,
    np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.uint2): np.uint8,
    np.dtype(np.uint16): np.int32,
    np.dtype(np.uint32): np.int64,
    np.dtype(np.uint64): np.int64,
}


def _integer_dtype(array: np.ndarray) -> Any:
    if array.dtype.kind in "OSU":
        raise Unsupported("a tensor of strings")
    return _WIDER.get(array.dtype, array.dtype)


def host_dtype(array: np.ndarray) -> torch.dtype:
    """The torch type that holds the values of `array` on the host: the file's own, or a wider one."""
    dtype = np.float32 if _is_float(array) and array.dtype != np.float64 else _integer_dtype(array)
    return torch.from_numpy(np.zeros(0, dtype)).dtype


@functools.lru_cache(maxsize=4096)
def host_constant(values: tuple[Any, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A constant host tensor. Made once; nothing in a lowered graph writes in place."""
    return torch.tensor(values, dtype=dtype).reshape(shape)


def to_host(x: torch.Tensor) -> torch.Tensor:
    """A tensor of constants brought to the host."""
    return x.cpu()


def to_device(x: torch.Tensor, working: torch.Tensor) -> torch.Tensor:
    """A host tensor moved to where `working` is, and cast to the working type if it is floating point."""
    return x.to(working.device, working.dtype if x.is_floating_point() else x.dtype)


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node reads, also from inside its own subgraphs."""
    for i, name in enumerate(node.input):
        node.input[i] = names.get(name, name)
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            own = {i.name for i in body.input} | {t.name for t in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            visible = {k: v for k, v in names.items() if k not in own}
            for inner in body.node:
                _rename(inner, visible)
            for output in body.output:
                output.name = visible.get(output.name, output.name)


def _constant_value(proto: onnx.NodeProto) -> tuple[np.ndarray, int]:
    attribute = proto.attribute[0] if proto.attribute else None
    if attribute is None:
        raise Unsupported("a Constant without a value")
    value = attribute_value(attribute)
    if attribute.name == "value":
        return value, attribute.t.data_type
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32), TensorProto.FLOAT
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64), TensorProto.INT64
    raise Unsupported(f"a Constant given by {printable(attribute.name)}")


def _identifier(name: str, prefix: str, taken: set[str]) -> str:
    """A Python identifier for an ONNX name, not among `taken`, to which it is added."""
    stem = re.sub(r"\W", "_", name, flags=re.ASCII)[:60]
    stem = f"{prefix}_{stem}"
    candidate, i = stem, 1
    while candidate in taken:
        candidate, i = f"{stem}_{i}", i + 1
    taken.add(candidate)
    return candidate
