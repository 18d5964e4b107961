"""Internal layers of a classifier as cuts of its graph, addressed by ONNX value name.

A *cut* is a value through which every path of data from the image to the logits passes (a dominator of the logits).
So the classifier is g(f(x)) with f up to the cut and g from it on, for any topology: the sums of a ResNet, the
concatenations of a DenseNet, the blocks of a transformer. Paths that carry only a shape do not count: a Reshape that
reads the batch size from the image does not join it to the image.

In topological order a value is a cut exactly when no edge jumps over it, among the values that lie between the image
and the logits at all: an edge over it is part of a path around it, and a path around it has such an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.fixed_batch import GroupedGraphModule, graph_module
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.ops.creation import eye_like
from onnxspect.converters.lowering.ops.shape import shape_of, size_of
from onnxspect.converters.text import printable

#: Functions that read the shape of their first argument and nothing else of it.
_SHAPE_ONLY = (shape_of, size_of, eye_like)
#: Batch sizes at which shapes are measured where g must know a shape from before the cut, and one that proves the result.
_PROBES, _PROOF = (2, 3), 5


@dataclass(frozen=True)
class Tap:
    """An internal layer.

    Attributes:
        index: position among the cuts, from the image on.
        name: ONNX value name.
        shape: of the value, None for the batch and for every size that is unknown before anything runs; None where
            even the rank is unknown.
        depth: share of the layers with weights that lie before it, in [0, 1].
        operator: what computes it ("Relu").
    """

    index: int
    name: str
    shape: tuple[int | None, ...] | None
    depth: float
    operator: str


def cuts(source: LoweredModel | onnx.ModelProto, output: str | None = None) -> list[Tap]:
    """All cuts strictly between the image and the logits, in order; copies of one value (Identity, Dropout) once.

    Args:
        source: the torch graph, or the model.
        output: name of the logits; the first output by default.

    Raises:
        OnnxspectError: the model cannot be lowered, or has no such output.
    """
    lowered = _lowered(source, output)
    graph = lowered.module.graph
    logits = results(lowered)[0]
    dominators = _dominators(graph, logits)
    names = first_names(lowered)
    layers = [n for n in graph.nodes if any(_is_weight(a, lowered) for a in n.all_input_nodes) and n.op != "output"]
    position = {node: i for i, node in enumerate(graph.nodes)}
    ancestors = _ancestors(logits)
    counted = sorted(position[n] for n in layers if n in ancestors)
    taps: list[Tap] = []
    for node in dominators:
        if node.op == "placeholder" or node is logits or node not in names:
            continue
        facts = node.meta.get("onnx", {})
        before = sum(p <= position[node] for p in counted)
        depth = before / len(counted) if counted else 0.0
        taps.append(Tap(len(taps), names[node], facts.get("shape"), depth, facts.get("operator", "")))
    return taps


def split(
    source: LoweredModel | onnx.ModelProto, tap: Tap | str, example: Sequence[int] | None = None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(f, g) with g(f(x)) equal to the whole, bit for bit; both share the parameters of the whole.

    f takes what the model takes and returns the value at the cut; g takes that value, of any batch size, and returns
    the logits.

    Where a node behind the cut reads a size of a value before it (a Reshape that asks the image for the batch size),
    g computes that size from its own input: the sizes of the model are measured at a few batch sizes, and must be
    affine in the batch size.

    Args:
        source: the torch graph of the model, or the model.
        tap: a cut, or the name of any ONNX value that is one.
        example: shape of one image as the model takes it, without the batch axis; needed only where g must know a
            shape from before the cut and the model leaves sizes of its input open.

    Raises:
        OnnxspectError: the value is no cut, or g would need a size that does not follow from its input.
    """
    lowered = _lowered(source, None)
    name = tap if isinstance(tap, str) else tap.name
    if name not in lowered.values and isinstance(source, onnx.ModelProto) and _computes(source, name):
        raise OnnxspectError(f"{printable(name)} is no cut: the image reaches the logits without it")
    node = _node_of(lowered, name)
    logits = results(lowered)[0]
    if node not in _dominators(lowered.module.graph, logits):
        raise OnnxspectError(f"{printable(name)} is no cut: there is a path from the image to the logits around it")
    return with_outputs(lowered, [name]).module, _behind(lowered, node, logits, example)


def with_outputs(lowered: LoweredModel, names: Sequence[str]) -> LoweredModel:
    """The same graph, sharing all parameters, that returns these ONNX values instead (one tensor, or a tuple).

    Raises:
        OnnxspectError: a name is not a value that the graph computes.
    """
    if tuple(names) == lowered.outputs:
        return lowered
    targets = [_node_of(lowered, name) for name in names]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _ancestors(*targets)
    for node in lowered.module.graph.nodes:
        if node.op == "placeholder" or (node in needed and node.op != "output"):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    results = [copies[node] for node in targets]
    graph.output(results[0] if len(results) == 1 else tuple(results))
    by_name = {node.name: node for node in lowered.module.graph.nodes}
    values = {k: copies[by_name[v]].name for k, v in lowered.values.items() if by_name[v] in copies}
    module = graph_module(lowered.module, graph, "LoweredOnnx")
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    weights = {k: w for k, w in lowered.weights.items() if k in used}
    return replace(lowered, module=module, outputs=tuple(names), values=values, weights=weights)


def _lowered(source: LoweredModel | onnx.ModelProto, output: str | None) -> LoweredModel:
    if isinstance(source, LoweredModel):
        return source if output is None or source.outputs[0] == output else with_outputs(source, [output])
    return lower(source, [output if output is not None else source.graph.output[0].name])


def _computes(model: onnx.ModelProto, name: str) -> bool:
    return any(name in node.output for node in model.graph.node)


def results(lowered: LoweredModel) -> list[fx.Node]:
    """The nodes whose values the graph returns."""
    returned = next(node for node in lowered.module.graph.nodes if node.op == "output").args[0]
    return list(returned) if isinstance(returned, tuple) else [returned]


def _node_of(lowered: LoweredModel, name: str) -> fx.Node:
    target = lowered.values.get(name)
    found = next((n for n in lowered.module.graph.nodes if n.name == target), None) if target is not None else None
    if found is None:
        raise OnnxspectError(f"the graph computes no value named {printable(name)}")
    return found


def first_names(lowered: LoweredModel) -> dict[fx.Node, str]:
    """fx node -> the first ONNX value that it computes."""
    by_name = {node.name: node for node in lowered.module.graph.nodes}
    names: dict[fx.Node, str] = {}
    for value, node_name in lowered.values.items():
        names.setdefault(by_name[node_name], value)
    return names


def _is_weight(node: fx.Node, lowered: LoweredModel) -> bool:
    return node.op == "get_attr" and node.target in lowered.weights


def _ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """The nodes themselves and everything they need."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _data_inputs(node: fx.Node) -> Iterable[fx.Node]:
    return () if node.op == "call_function" and node.target in _SHAPE_ONLY else node.all_input_nodes


def _depends_on(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """The sources and every node that data from them reaches."""
    reached = set(sources)
    for node in graph.nodes:
        if any(i in reached for i in _data_inputs(node)):
            reached.add(node)
    return reached


def lying_between(graph: fx.Graph, logits: fx.Node) -> dict[fx.Node, int]:
    """The values on some path of data from the image to the logits, both included, in the graph's order: each one's place."""
    from_image = _depends_on(graph, (n for n in graph.nodes if n.op == "placeholder"))
    between: set[fx.Node] = set()
    stack = [logits]
    while stack:
        node = stack.pop()
        if node in from_image and node not in between:
            between.add(node)
            stack.extend(_data_inputs(node))
    return {node: i for i, node in enumerate(n for n in graph.nodes if n in between)}


def _dominators(graph: fx.Graph, logits: fx.Node) -> list[fx.Node]:
    """The cuts, from the image (if there is only one input) to the logits, both included."""
    position = lying_between(graph, logits)
    ordered = list(position)
    furthest = -1  # the last user of any node before this one
    starts = sum(n.op == "placeholder" for n in ordered)
    found: list[fx.Node] = []
    for i, node in enumerate(ordered):
        if furthest <= i and (i >= starts or starts == 1):
            found.append(node)
        users = [position[u] for u in node.users if u in position and node in _data_inputs(u)]
        furthest = max([furthest, *users])
    return found


def _behind(lowered: LoweredModel, cut: fx.Node, logits: fx.Node, example: Sequence[int] | None) -> fx.GraphModule:
    """g: from the value of `cut` to the logits."""
    whole = lowered.module.graph
    behind = _depends_on(whole, [cut])
    from_image = _depends_on(whole, (n for n in whole.nodes if n.op == "placeholder"))
    needed: set[fx.Node] = set()
    asked: set[fx.Node] = set()  # values before the cut of which something behind it reads the shape
    stack = [logits]
    while stack:
        node = stack.pop()
        if node in needed or node is cut:
            continue
        needed.add(node)
        if node.op == "call_function" and node.target in _SHAPE_ONLY:
            read = node.all_input_nodes[0]
            if read in from_image and read not in behind:
                asked.add(read)
                continue
        stack.extend(node.all_input_nodes)
    if asked and isinstance(lowered.module, GroupedGraphModule):
        raise OnnxspectError("a layer behind this cut reads a size from before it, in a file made for one batch size")
    sizes = _sizes(lowered, cut, asked, example) if asked else {}
    graph = fx.Graph()
    copies = {cut: graph.placeholder("tap")}
    for node in whole.nodes:
        if node not in needed:
            continue
        read = node.all_input_nodes[0] if node.all_input_nodes else node
        if node.op == "call_function" and node.target in _SHAPE_ONLY and read in asked:
            copies[node] = _shape_from(graph, copies[cut], node, sizes[cut], sizes[read])
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(copies[logits])
    return graph_module(lowered.module, graph, "BehindTap", _shape_in_group(lowered, cut))


def _shape_in_group(lowered: LoweredModel, node: fx.Node) -> tuple[int, ...]:
    """Shape of a value at one group of images, where the model is fed in groups; else empty."""
    if not isinstance(lowered.module, GroupedGraphModule):
        return ()
    image = next(n for n in lowered.module.graph.nodes if n.op == "placeholder")
    return _record(lowered, [node], [int(n) for n in image.meta["onnx"]["shape"]])[node]


#: For each axis (slope, intercept): its size is slope * batch + intercept.
_Affine = tuple[tuple[int, int], ...]


def _shape_from(graph: fx.Graph, tap: fx.Node, node: fx.Node, of_tap: _Affine, of_read: _Affine) -> fx.Node:
    """What `node` reads of a shape from before the cut, computed from the batch size, which the tap's shape contains."""
    axis = next((i for i, (slope, _) in enumerate(of_tap) if slope), None)
    if axis is None and any(slope for slope, _ in of_read):
        raise OnnxspectError("the value at this cut does not tell the batch size, which a later layer needs")
    batch_axis = (axis, *of_tap[axis]) if axis is not None else (0, 0, 0)
    if node.target is shape_of:
        _, start, end = node.args
        part: Any = slice(start, end)
        return graph.call_function(shape_from_tap, (tap, batch_axis, of_read[part]))
    if node.target is size_of:
        return graph.call_function(size_from_tap, (tap, batch_axis, of_read))
    raise OnnxspectError("a layer behind this cut needs the shape of one before it in a form that is not supported")


def _sizes_from_tap(tap: Tensor, batch_axis: tuple[int, int, int], sizes: _Affine) -> list[int]:
    axis, slope, intercept = batch_axis
    batch = (tap.shape[axis] - intercept) // slope if slope else 0
    return [a * batch + b for a, b in sizes]


def shape_from_tap(tap: Tensor, batch_axis: tuple[int, int, int], sizes: _Affine) -> Tensor:
    """A shape as a host tensor, from the batch size in axis `batch_axis[0]` of the tap."""
    return torch.tensor(_sizes_from_tap(tap, batch_axis, sizes), dtype=torch.int64)


def size_from_tap(tap: Tensor, batch_axis: tuple[int, int, int], sizes: _Affine) -> Tensor:
    """A number of elements as a host tensor, from the batch size in axis `batch_axis[0]` of the tap."""
    return torch.tensor(int(torch.Size(_sizes_from_tap(tap, batch_axis, sizes)).numel()), dtype=torch.int64)


def _sizes(
    lowered: LoweredModel, cut: fx.Node, asked: Iterable[fx.Node], example: Sequence[int] | None
) -> Mapping[fx.Node, _Affine]:
    """How the shapes of the cut and of the asked values depend on the batch size: tried out, and proved at one more."""
    image = next(n for n in lowered.module.graph.nodes if n.op == "placeholder")
    shape = example if example is not None else (image.meta.get("onnx", {}).get("shape") or (None,))[1:]
    if not shape or any(n is None for n in shape):
        raise OnnxspectError(
            "the sizes of the model's input are open, and a layer behind this cut reads a size from before it",
            "say the shape of one image (argument `example`)",
        )
    nodes = [cut, *asked]
    seen = {n: _record(lowered, nodes, [n, *(int(size or 1) for size in shape)]) for n in (*_PROBES, _PROOF)}
    found: dict[fx.Node, _Affine] = {}
    low, high = _PROBES
    for node in nodes:
        slopes = [(b - a) // (high - low) for a, b in zip(seen[low][node], seen[high][node], strict=True)]
        affine = tuple((s, a - s * low) for s, a in zip(slopes, seen[low][node], strict=True))
        if [s * _PROOF + b for s, b in affine] != list(seen[_PROOF][node]):
            raise OnnxspectError(
                f"the shape of {printable(first_names(lowered).get(node, node.name))} does not follow from the batch "
                "size, and a layer behind this cut reads it"
            )
        found[node] = affine
    return found


def _record(lowered: LoweredModel, nodes: Sequence[fx.Node], shape: Sequence[int]) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of values when the model is run on an input of `shape`."""
    parameter = next(iter(lowered.module.parameters()), torch.zeros(()))
    recorder = _ShapeRecorder(lowered.module, set(nodes))
    with torch.no_grad():
        recorder.run(torch.zeros(list(shape), dtype=parameter.dtype, device=parameter.device))
    return recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and keeps the shapes of some of its values."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As fx.Interpreter."""
        result = super().run_node(n)
        if n in self.wanted:
            self.shapes[n] = tuple(result.shape)
        return result
