"""How many nodes a graph is really: local functions expanded, loops multiplied, before anything runs.

A file of a few kilobytes can hold fifty nested functions, each calling the next one twice: 10^15 nodes once onnxruntime
inlines them; or a Loop that never ends. Here calls and bodies are only *counted*: each function once, from the inside
out, with Python's unbounded integers, so the time is linear in the file's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable

_Key = tuple[str, str, str]  # domain, name, overload
_CEILING = 10**18  # counts stop growing here, so that a chain of 10^5 doublings is no sum of 10^5-bit numbers
_WEIGHT_LIMIT = 1 << 16  # a trip count is a scalar; a larger constant is not read


@dataclass(frozen=True)
class GraphCost:
    """Counted, not run.

    Attributes:
        written: nodes in the file.
        expanded: nodes when every call of a local function is replaced by its body.
        executed: node executions when, besides, every loop of known length runs its body that often; unknown
            lengths count as one.
    """

    written: int
    expanded: int
    executed: int


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """Count the nodes of `model`.

    Raises:
        OnnxspectError: if a local function calls itself, directly or through others, or a Loop has no end.
    """
    functions = {_function_key(f): f for f in model.functions}
    costs: dict[_Key, GraphCost] = {}
    written = 0
    for key in _inside_out(functions):
        costs[key] = _count(functions[key].node, (), functions, costs)
        written += costs[key].written
    main = _count(model.graph.node, model.graph.initializer, functions, costs)
    return GraphCost(written + main.written, main.expanded, main.executed)


def _count(
    nodes: Iterable[onnx.NodeProto],
    initializers: Iterable[TensorProto],
    functions: Mapping[_Key, onnx.FunctionProto],
    costs: Mapping[_Key, GraphCost],
    outer: Mapping[str, TensorProto] | None = None,
) -> GraphCost:
    """The cost of a list of nodes; `outer` are the constants of the graphs around it. Nesting is at most 100 deep,
    because protobuf's parser allows no more."""
    constants = dict(outer or {})
    constants.update((t.name, t) for t in initializers)
    written = expanded = executed = 0
    for node in nodes:
        if node.op_type == "Constant" and len(node.output) == 1:
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value" and a.HasField("t"))
        call = costs.get(_node_key(node))
        written += 1
        expanded += 1 if call is None else call.expanded
        executed += 1 if call is None else call.executed
        bodies = list(_bodies(node))
        if bodies:
            trips = _trips(node, constants)
            for body in bodies:
                inner = _count(body.node, body.initializer, functions, costs, constants)
                written += inner.written
                expanded += inner.expanded
                executed += inner.executed * trips
        expanded, executed = min(expanded, _CEILING), min(executed, _CEILING)
    return GraphCost(written, expanded, executed)


def _trips(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> int:
    """How often the node's body runs where that is certain (a Loop by count), else 1.

    `while` loops are written with a trip count of 2^63 - 1 and a condition; those count as one.
    """
    if node.op_type != "Loop" or _domain(node.domain):
        return 1
    if not _always_true(node, constants):
        return 1
    limit = node.input[0] if node.input else ""
    if not limit:
        raise OnnxspectError(f"Loop {printable(node.name)} has no end: no trip count, and its condition is always true")
    trips = _scalar(constants.get(limit))
    return 1 if trips is None else max(int(trips), 0)


def _always_true(loop: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    start = loop.input[1] if len(loop.input) > 1 else ""
    if start and not _scalar(constants.get(start)):
        return False
    for body in _bodies(loop):
        if not body.output:
            return False
        name = body.output[0].name
        inner = {t.name: t for t in body.initializer}
        sources: dict[str, onnx.NodeProto] = {o: n for n in body.node for o in n.output}
        for _ in range(len(body.node) + 1):
            source = sources.get(name)
            if source is None or source.op_type != "Identity" or not source.input:
                break
            name = source.input[0]
        given = body.input[1].name if len(body.input) > 1 else None
        source = sources.get(name)
        if source is not None and source.op_type == "Constant":
            inner.update((name, a.t) for a in source.attribute if a.name == "value" and a.HasField("t"))
        if name != given and not _scalar(inner.get(name, constants.get(name))):
            return False
    return True


def _scalar(tensor: TensorProto | None) -> float | None:
    if tensor is None or any(d != 1 for d in tensor.dims) or tensor.ByteSize() > _WEIGHT_LIMIT:
        return None
    try:
        array = numpy_helper.to_array(tensor)
        return array.reshape(-1)[0].item() if array.size == 1 and array.dtype.kind in "iufb" else None
    except (ValueError, TypeError, KeyError, IndexError):  # a damaged tensor is reported by the checker
        return None


def _inside_out(functions: Mapping[_Key, onnx.FunctionProto]) -> Iterator[_Key]:
    """Function keys, callees before callers; without recursion in Python, since chains may be 10^5 long."""
    done: set[_Key] = set()
    active: set[_Key] = set()
    for root in functions:
        stack: list[tuple[_Key, Iterator[_Key]]] = []
        if root not in done:
            active.add(root)
            stack.append((root, _calls(functions[root], functions)))
        while stack:
            key, callees = stack[-1]
            callee = next((c for c in callees if c not in done), None)
            if callee is None:
                stack.pop()
                active.discard(key)
                done.add(key)
                yield key
            elif callee in active:
                raise OnnxspectError(f"local function {printable(callee[1])} calls itself")
            else:
                active.add(callee)
                stack.append((callee, _calls(functions[callee], functions)))


def _calls(function: onnx.FunctionProto, functions: Mapping[_Key, onnx.FunctionProto]) -> Iterator[_Key]:
    groups: list[Iterable[onnx.NodeProto]] = [function.node]
    while groups:
        for node in groups.pop():
            key = _node_key(node)
            if key in functions:
                yield key
            groups += [body.node for body in _bodies(node)]


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _function_key(function: onnx.FunctionProto) -> _Key:
    return _domain(function.domain), function.name, getattr(function, "overload", "")


def _node_key(node: onnx.NodeProto) -> _Key:
    return _domain(node.domain), node.op_type, getattr(node, "overload", "")


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
