"""If, Loop and Scan whose course is known beforehand (ONNX operator documentation): the body is lowered in place.

A condition or trip count that is only known at run time is refused by name: a torch graph in which pixels
decide what runs has neither a fixed set of layers nor a gradient through the decision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch

from onnxspect.converters.lowering.builder import Alias, NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering

#: Iterations times nodes of the body. A Loop of a few bytes can ask for 2^63.
MAX_UNROLLED = 20_000


@lowering("If", 1, 11, 13, 16, 19, 21, 23, 24, 25, data=())
def if_(node: NodeView) -> Any:
    condition = node.constant(0)
    if condition is None or condition.size != 1:
        raise Unsupported("its condition is only known at run time")
    branch = node.attr("then_branch" if condition.reshape(-1)[0] else "else_branch")
    return tuple(Alias(name) for name in node.builder.inline(branch, {}, f"{node.proto.output[0]}/"))


@lowering("Loop", 1, 11, 13, 16, 19, 21, 23, 24, 25, data=())
def loop(node: NodeView) -> Any:
    body: onnx.GraphProto = node.attr("body")
    trips, condition = node.constant(0), node.constant(1)
    if (node.has(0) and trips is None) or (node.has(1) and condition is None):
        raise Unsupported("its trip count or condition is only known at run time")
    most = MAX_UNROLLED // max(1, len(body.node))
    count = int(trips.reshape(-1)[0]) if trips is not None else most + 1
    going = True if condition is None else bool(condition.reshape(-1)[0])
    if going and count > most and _always_goes_on(body):
        raise Unsupported(f"more than {most} iterations of {len(body.node)} nodes")
    builder = node.builder
    state = [node.proto.input[i] for i in range(2, node.n_inputs)]
    scanned: list[list[str]] = [[] for _ in range(len(body.output) - 1 - len(state))]
    step = 0
    while going and step < count:
        if step >= most:
            raise Unsupported(f"more than {most} iterations of {len(body.node)} nodes")
        prefix = f"{node.proto.output[0]}/{step}/"
        builder.define(f"{prefix}trip", np.asarray(step, np.int64))
        builder.define(f"{prefix}going", np.asarray(True))
        given = [f"{prefix}trip", f"{prefix}going", *state]
        names = [i.name for i in body.input]
        results = builder.inline(body, dict(zip(names, given, strict=False)), prefix)
        proceeds = builder.constants.get(results[0])
        if proceeds is None:
            raise Unsupported("whether it goes on is only known at run time")
        going = bool(proceeds.reshape(-1)[0])
        state = results[1 : 1 + len(state)]
        for values, name in zip(scanned, results[1 + len(state) :], strict=True):
            values.append(name)
        step += 1
    if step == 0 and scanned:
        raise Unsupported("no iteration at all, so what it collects has no shape")
    return (*(Alias(name) for name in state), *(_collect(node, values, 0, False) for values in scanned))


def _always_goes_on(body: onnx.GraphProto) -> bool:
    """Whether the body hands its condition on unchanged, so that only the trip count ends the loop."""
    name = body.output[0].name
    producers = {output: node for node in body.node for output in node.output}
    while name in producers and producers[name].op_type == "Identity":
        name = producers[name].input[0]
    return len(body.input) > 1 and name == body.input[1].name


def _collect(node: NodeView, names: list[str], axis: int, backwards: bool) -> Any:
    """The values of all iterations, stacked along a new axis."""
    builder = node.builder
    ordered = names[::-1] if backwards else names
    on_host = builder.runs_on_host(ordered)
    values = [builder.on_host(n) if on_host else builder.on_device(n) for n in ordered]
    stacked = node.call(torch.stack, values, axis)
    if on_host:
        builder.host.add(stacked)
    return stacked


@lowering("Scan", 9, 11, 16, 19, 21, 23, 24, 25, data=())
def scan(node: NodeView) -> Any:
    body: onnx.GraphProto = node.attr("body")
    n_scanned = int(node.attr("num_scan_inputs", 0))
    n_state = node.n_inputs - n_scanned
    n_collected = len(body.output) - n_state
    axes = list(node.attr("scan_input_axes") or [0] * n_scanned)
    backwards = list(node.attr("scan_input_directions") or [0] * n_scanned)
    out_axes = list(node.attr("scan_output_axes") or [0] * n_collected)
    out_backwards = list(node.attr("scan_output_directions") or [0] * n_collected)
    shape = node.shape(n_state)
    length = None if not shape else shape[axes[0]]
    if length is None and axes[0] == 0 and (exported := node.file_shape(n_state)):
        # Axis 0 is taken to be the batch elsewhere; what is scanned along it is a sequence of the file's own length.
        length = exported[0]
    if length is None:
        raise Unsupported("the length of what it scans is only known at run time")
    if length * len(body.node) > MAX_UNROLLED:
        raise Unsupported(f"{length} iterations of {len(body.node)} nodes")
    builder = node.builder
    state = list(node.proto.input[:n_state])
    collected: list[list[str]] = [[] for _ in range(n_collected)]
    for step in range(length):
        prefix = f"{node.proto.output[0]}/{step}/"
        given = list(state)
        for i in range(n_scanned):
            name, source = f"{prefix}in{i}", builder.value(node.proto.input[n_state + i])
            builder.env[name] = node.call(torch.select, source, axes[i], length - 1 - step if backwards[i] else step)
            if source in builder.host:
                builder.host.add(builder.env[name])
            given.append(name)
        results = builder.inline(body, dict(zip((i.name for i in body.input), given, strict=True)), prefix)
        state = results[:n_state]
        for values, name in zip(collected, results[n_state:], strict=True):
            values.append(name)
    stacks = (_collect(node, values, out_axes[i], bool(out_backwards[i])) for i, values in enumerate(collected))
    return (*(Alias(name) for name in state), *stacks)
