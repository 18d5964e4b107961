"""ONNX -> torch.fx, exact and complete: one ONNX node becomes one (or a few) calls in an fx graph.

The graph is *functional*: no nn.Conv2d, no nn.BatchNorm2d. Every initializer becomes one torch parameter (floating
point) or buffer (the rest) of the same shape, fetched by ``get_attr`` wherever it is used, and every operator is a
call of a plain function on tensors. So

* an initializer that ten nodes share is one parameter, and a patch cannot split it;
* the way back from parameter to initializer is the identity (a cast, for fp16 storage), for every operator, so that
  a patch of any weight is exact (converters/proof/writeback.py);
* ``parameters()`` holds all weights: those of MatMul, embeddings and scales too.

This departs from DESIGN.md's first plan, onnx2torch: its module-per-node design copies shared initializers, keeps
MatMul weights as buffers, covers no operator version after opset 16, and imports torchvision, whose published wheel
does not load beside a CPU build of torch. It stays in the benchmarks as a second opinion.

**Host and device.** Shapes are data in ONNX: Shape -> Gather -> Concat -> Reshape. Such values are small and steer the
computation, so they stay on the CPU (*host* values) in the file's own element types, wherever the module lives, and no
accelerator is ever waited for to learn a shape. A node runs on the host if all its data inputs are host values or
constants without weights; as soon as one input is a device value, the others are moved to it.

**Precision.** Device values that are floating point have one *working* type: that of the parameters, float32 unless
the file's input is DOUBLE. fp16 and bf16 are computed in it, and a Cast between floating types is the identity. So
``module.double()`` is the same graph in float64, which is how gradients are checked.

A value of the ONNX graph keeps its name: `LoweredModel.values` maps it to its fx node, which is how a tap is found.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.builder import FLOATS, Builder, NodeView, Unsupported, Weight, host_dtype
from onnxspect.converters.lowering.fixed_batch import frees_batch, graph_module, in_groups
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.fusions import fuse
from onnxspect.converters.lowering.knowledge import Knowledge, learn
from onnxspect.converters.text import printable

__all__ = ["LoweredModel", "NodeView", "Unsupported", "Weight", "load_operators", "lower", "printable"]


@dataclass(frozen=True)
class LoweredModel:
    """A differentiable torch graph of an ONNX model.

    Attributes:
        module: fx.GraphModule from the graph inputs (in file order) to the requested outputs; a single tensor where
            one output was asked for, else a tuple. In evaluation mode, parameters frozen (requires_grad False).
        inputs: names of the graph inputs that the module takes, in order.
        outputs: names of the ONNX values that it returns, in order.
        weights: torch parameter name -> where it came from.
        values: ONNX value name -> fx node name, for every value that is computed.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Weight]
    values: Mapping[str, str]


def lower(
    model: onnx.ModelProto, outputs: Sequence[str] | None = None, knowledge: Knowledge | None = None
) -> LoweredModel:
    """Turn `model` into a differentiable torch graph.

    Args:
        model: a valid ModelProto whose tensors are inside it (external data already read).
        outputs: ONNX value names to return, internal ones included; the graph's own outputs by default. Nodes that
            none of them needs are not lowered, and so need not be supported.
        knowledge: what is inferred of the values of `model`, its functions inlined, where that is at hand; not changed.

    Raises:
        OnnxspectError: naming *all* unsupported operators, or the output that does not exist.
    """
    load_operators()
    model = inline_functions(model)
    wanted = tuple(outputs) if outputs is not None else tuple(o.name for o in model.graph.output)
    knowledge = learn(model) if knowledge is None else knowledge.copy()
    lowered = _build(model, wanted, knowledge)
    own = knowledge.file_shapes.get(lowered.inputs[0], ()) if len(lowered.inputs) == 1 else ()
    if knowledge.shapes is knowledge.file_shapes or not own or None in own:
        return lowered
    # The file is made for one batch size.
    sizes = [int(n or 0) for n in own]
    like = _input_like(lowered, knowledge)
    if frees_batch(lowered.module, sizes, like):
        return lowered
    as_written = _build(model, wanted, Knowledge(knowledge.file_shapes, knowledge.file_shapes, knowledge.dtypes))
    return replace(as_written, module=in_groups(as_written.module, sizes, like))


def _input_like(lowered: LoweredModel, knowledge: Knowledge) -> torch.Tensor:
    """An empty tensor of the type that the one input takes."""
    dtype = knowledge.dtypes.get(lowered.inputs[0], TensorProto.FLOAT)
    if dtype in FLOATS:
        return torch.zeros(0, dtype=torch.float64 if dtype == TensorProto.DOUBLE else torch.float32)
    return torch.zeros(0, dtype=host_dtype(np.zeros(0, helper.tensor_dtype_to_np_dtype(dtype))))


def _build(model: onnx.ModelProto, wanted: tuple[str, ...], knowledge: Knowledge) -> LoweredModel:
    graph = model.graph
    nodes = _needed(graph, wanted)
    opsets = {o.domain or "": o.version for o in model.opset_import}
    opsets.setdefault("", opsets.pop("ai.onnx", 1))
    _refuse_unknown(nodes, opsets)

    builder = Builder(fx.Graph(), nn.Module(), opsets, knowledge)
    for tensor in graph.initializer:
        builder.constants[tensor.name] = numpy_helper.to_array(tensor)
        builder.dtypes[tensor.name] = tensor.data_type
    inputs = tuple(i.name for i in graph.input if i.name not in builder.constants)
    if any(knowledge.dtypes.get(name) == TensorProto.DOUBLE for name in inputs):
        builder.working_dtype = torch.float64
    for name in inputs:
        builder.placeholder(name)

    failures: list[str] = []
    for proto in nodes:
        try:
            builder.lower(proto)
        except Unsupported as error:
            failures.append(f"{_describe(proto, opsets)}: {error}")
            for name in proto.output:  # keep going, to list every failure and not the first
                if name and name not in builder.env:
                    builder.env[name] = builder.graph.call_function(torch.empty, ((0,),))
    if failures:
        raise unsupported_error(failures)

    missing = [name for name in wanted if name not in builder.env and name not in builder.constants]
    if missing:
        raise OnnxspectError(
            f"the graph has no value named {', '.join(map(printable, missing))}", "`onnxspect info` lists the values"
        )
    return _finish(builder, inputs, wanted)


def _finish(builder: Builder, inputs: tuple[str, ...], wanted: tuple[str, ...]) -> LoweredModel:
    graph = builder.graph
    try:
        results = [builder.value(name) for name in wanted]
    except Unsupported as error:
        raise OnnxspectError(f"an output cannot be computed: {error}") from error
    graph.output(results[0] if len(results) == 1 else tuple(results))
    fused = fuse(graph, builder.number)
    graph.eliminate_dead_code()  # also shape arithmetic whose result was known beforehand
    alive = set(graph.nodes)
    env = {name: fused.get(node, node) for name, node in builder.env.items()}
    values = {name: node.name for name, node in env.items() if node in alive}
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    weights = {name: weight for name, weight in builder.weights.items() if name in used}
    module = graph_module(builder.root, graph, "LoweredOnnx")
    return LoweredModel(module, inputs, wanted, weights, values)


def _refuse_unknown(nodes: Iterable[onnx.NodeProto], opsets: Mapping[str, int]) -> None:
    failures = []
    for proto in nodes:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        if proto.op_type == "Constant" and not domain:
            continue
        if registry.find(domain, proto.op_type, opsets.get(domain, 1)) is None:
            failures.append(_describe(proto, opsets))
    if failures:
        raise unsupported_error(failures)


def unsupported_error(failures: Sequence[str]) -> OnnxspectError:
    """One error for all nodes that cannot be lowered."""
    shown = sorted(set(failures))
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return OnnxspectError(
        f"{len(failures)} node(s) cannot be turned into a torch graph: {'; '.join(shown[:20])}{more}",
        _way_out(shown),
    )


def _way_out(failures: Sequence[str]) -> str:
    """What to do about operators that are not supported, by whose they are."""
    if any(f.startswith("com.microsoft.nchwc:") for f in failures):
        return (
            "the file was saved by onnxruntime's optimiser for one kind of processor: scan the original, or save it at the level "
            "ORT_ENABLE_EXTENDED"
        )
    if all("only known at run time" in f for f in failures):
        return (
            "fix the sizes of its input, so that its course is known beforehand: "
            "python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name NAME --input_shape 1,3,224,224 IN OUT"
        )
    if all(f.startswith(("com.microsoft:", "ai.onnx.contrib:", "com.ms.")) for f in failures):
        return "these are onnxruntime's own operators: scan the model before it was optimised or extended"
    if any(f.startswith("ai.onnx.ml:") for f in failures):
        return "no gradient passes through trees, neighbours and support vectors: what is searched are neural networks and logistic regression"
    if all("training_mode" in f for f in failures):
        return "it was exported as it trains: export it as it is used, after model.eval() (and without training=TrainingMode.TRAINING)"
    return "docs/operators.md lists what is supported; exporting again at another opset may avoid these operators"


def _needed(graph: onnx.GraphProto, wanted: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that `wanted` depends on, in file (topological) order."""
    producer = {name: node for node in graph.node for name in node.output if name}
    needed: set[int] = set()
    stack = list(wanted)
    seen: set[str] = set()
    while stack:
        name = stack.pop()
        if name in seen or name not in producer:
            continue
        seen.add(name)
        node = producer[name]
        if id(node) in needed:
            continue
        needed.add(id(node))
        stack.extend(i for i in node.input if i)
        for attribute in node.attribute:  # a branch or loop body reads values of the graph around it
            for body in (attribute.g, *attribute.graphs):
                stack.extend(i for inner in body.node for i in inner.input if i)
    return [node for node in graph.node if id(node) in needed]


def _describe(proto: onnx.NodeProto, opsets: Mapping[str, int]) -> str:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    where = printable(proto.name) or printable(proto.output[0] if proto.output else "?")
    prefix = f"{printable(domain)}:" if domain else ""
    return f"{prefix}{printable(proto.op_type)} (opset {opsets.get(domain, '?')}) at {where}"


@functools.cache
def load_operators() -> None:
    """Import every module of ops/ once, so that its lowerings are registered."""
    package = importlib.import_module(f"{__package__}.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
