"""Decisions that guard a point which no image comes upon: ``Where(norm > 0, x / norm, 0)``.

Such a decision falls the same way on every clean image, as a trigger's does. What tells them apart: it is made of the very value
that it chooses for, without weights (a norm, a maximum, a sum of squares), and steps of that value along the decision's own gradient,
short and long, do not turn it: they pass the point. A threshold that can be passed is turned by such a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.program import Program, unchanged

#: Comparisons that have a distance from their threshold.
_ORDERED = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
#: They take some elements and leave others, as a place in the image is taken.
_TAKING = frozenset(("Slice", "Gather", "GatherElements", "GatherND", "Split", "ArgMax", "ArgMin", "TopK", "Compress"))
#: Steps, as shares of the one that would reach the threshold of a linear function (which itself is the point that is guarded).
_STEPS = (0.75, 1.25, 2.0, 8.0, 64.0)
#: Nodes from the value to the choice, at most.
_NEAR = 16


def guards(
    program: Program, decisions: Sequence[fx.Node], between: Mapping[fx.Node, int], images: Sequence[Tensor]
) -> set[fx.Node]:
    """Those of the decisions that guard a point.

    Args:
        program: of the graph.
        decisions: nodes that fall the same way on clean images.
        between: the nodes between image and scores, in order.
        images: clean batches.
    """
    likely = {d: regions for d in decisions if (regions := list(_regions(d, program, between)))}
    if not likely:
        return set()
    kept = [program.run(batch, unchanged, keep=True) for batch in images]
    return {d for d, regions in likely.items() if any(all(_holds(d, r, env) for env in kept) for r in regions)}


def _regions(decision: fx.Node, program: Program, between: Mapping[fx.Node, int]) -> Iterator[list[fx.Node]]:
    """Ways back: a value that all of choice and decision is computed from, then the nodes up to the decision; nearest value first."""
    if decision.meta.get("onnx", {}).get("operator") not in _ORDERED or not decision.users:
        return
    if any(u.target is not torch.where or u.args[0] is not decision for u in decision.users):
        return
    inside = set(decision.users)  # from the choice backwards, the latest first
    for node in reversed(list(between)):
        if node not in inside:
            continue
        if node not in decision.users and inside == {node}:  # everything goes through it
            if node.op == "placeholder":
                return
            cone = _cone(node, decision, between)
            if cone:
                yield [node, *cone]
        sources = [n for n in node.all_input_nodes if n in between]
        if not _weightless(node, program) or len(inside) > _NEAR:
            return
        inside.discard(node)
        inside.update(sources)


def _cone(start: fx.Node, end: fx.Node, between: Mapping[fx.Node, int]) -> list[fx.Node]:
    reached = {start}
    for node in between:
        if between[start] < between[node] <= between[end] and any(i in reached for i in node.all_input_nodes):
            reached.add(node)
    return [n for n in between if n in reached and n is not start] if end in reached else []


def _weightless(node: fx.Node, program: Program) -> bool:
    """Whether an operator treats all elements alike: no constant of several elements, nothing taken out."""
    if node.op != "call_function" or node.meta.get("onnx", {}).get("operator") in _TAKING:
        return False
    constants = [program.constants[n] for n in node.all_input_nodes if n in program.constants]
    return all(not isinstance(c, Tensor) or not c.is_floating_point() or c.numel() == 1 for c in constants)


def _holds(decision: fx.Node, region: Sequence[fx.Node], env: Mapping[fx.Node, Any]) -> bool:
    """Whether no step turns any element of the decision, where there is a slope to step along."""
    start, *cone = region
    before = env[decision]
    value = env[start]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False

    def decided(at: Tensor) -> tuple[Tensor, Tensor]:
        """(distance from the threshold, decision)"""
        changed = {start: at}

        def current(node: fx.Node) -> Any:
            return changed[node] if node in changed else env[node]

        for node in cone:
            args: Any = fx.map_arg(node.args, current)
            kwargs: Any = fx.map_arg(node.kwargs, current)
            if node is decision:
                return args[0] - args[1], node.target(*args, **kwargs)  # type: ignore[operator]
            changed[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        raise AssertionError("the decision is the end of its region")

    with torch.enable_grad():
        at = value.detach().requires_grad_(True)
        distance, _ = decided(at)
        if not distance.requires_grad:
            return False
        (slope,) = torch.autograd.grad(distance.abs().sum(), at)
    square = slope.double().square().sum()
    if not bool(torch.isfinite(square)) or not bool(square > 0):
        return False
    full = (distance.detach().abs().double().sum() / square * slope.double()).to(value)
    return all(bool((decided(value - step * full)[1] == before).all()) for step in _STEPS)
