"""What further clean images wake: a few of them leave ordinary units asleep that one picture in a hundred wakes.

A part is looked for on few images, since all of the graph is looked at. What was found to sleep is then looked at alone, on many more: a
unit of a layer that a clean image wakes has a slope there, which searches follow, and belongs to what the network sees in clean images. The
image must be answered alike with the unit held asleep: what one unit alone turns to a class is a trigger, and somebody's clean images
may hold a few of those. Payloads sleep on all others. Decisions have no slope however they fall, and are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.observation import answers_of
from onnxspect.converters.lowering.program import Program
from onnxspect.converters.lowering.regimes import Way
from onnxspect.converters.lowering.trial import Tried

#: A unit was awake where a clean image moved it by this share of what it could do; a way was taken, where it went so far along it.
ONCE = 1e-2


def wake_units(program: Program, logits: fx.Node, tried: Tried, further: Sequence[Tensor]) -> None:
    """Leave out the sleeping units beside awake ones that further clean images wake.

    Args:
        program: runs the graph.
        logits: the class scores.
        tried: has listened already; what it suspects becomes less.
        further: batches of clean images, as the model takes them.
    """
    nodes = [n for n in tried.units if n in tried.suspects]
    if not nodes:
        return
    ranges = {n: tried.seen.on_clean[n] for n in nodes}
    for batch in further:
        values, answers = _run(program, logits, batch, nodes)
        for node, value in values.items():
            low, high = ranges[node]
            asleep, could = tried.units[node]
            if value.shape != low.shape:
                continue
            usual = torch.minimum(torch.maximum(value, low), high)
            woken = tried.suspects[node] & ((value - usual).abs() > ONCE * could)
            if woken.any() and not _alike(program, logits, batch, node, torch.where(woken, usual, value), answers):
                value = torch.where(woken, usual, value)
            ranges[node] = torch.minimum(low, value), torch.maximum(high, value)
            tried.units[node] = asleep & (ranges[node][1] - ranges[node][0] <= ONCE * could), could
    tried.seen.on_clean.update(ranges)


def untaken(
    program: Program, logits: fx.Node, ways: Sequence[Way], further: Sequence[Tensor], most: float = math.inf
) -> list[Way]:
    """The ways that further clean images do not take either.

    Args:
        program: runs the graph.
        logits: the class scores.
        ways: that none took before.
        further: batches of clean images, as the model takes them.
        most: how much may be run to look for images that take one, in runs of the whole graph.
    """
    left, place_in = list(ways), {n: i for i, n in enumerate(program.steps)}
    for batch in further:
        last = max((w.place.node for w in left), key=lambda n: place_in.get(n, -1), default=None)
        if last is None or most <= 0:
            break
        most -= (place_in.get(last, 0) + 1) / len(program.steps)
        nodes = {w.place.node for w in left}
        kept: dict[fx.Node, Tensor] = {}
        program.run(batch, _keeping(kept, nodes), until=last)
        answers: Tensor | None = None
        for way in list(left):
            value = kept[way.place.node]
            if value.shape != way.place.asleep.shape:
                continue
            held = way.place.held(value)
            if not bool(((value - held).abs() > ONCE * way.reach).any()):
                continue
            if answers is None:
                _, answers = _run(program, logits, batch, [])
            if _alike(program, logits, batch, way.place.node, held, answers):
                left.remove(way)
    return left


def _run(
    program: Program, logits: fx.Node, batch: Tensor, nodes: Sequence[fx.Node]
) -> tuple[Mapping[fx.Node, Tensor], Tensor]:
    """(the values of nodes, the answers) of a batch."""
    kept: dict[fx.Node, Tensor] = {}
    program.run(batch, _keeping(kept, {*nodes, logits}), until=logits)
    answers = answers_of(kept[logits])
    return {n: kept[n] for n in nodes}, answers


def _alike(program: Program, logits: fx.Node, batch: Tensor, node: fx.Node, instead: Tensor, answers: Tensor) -> bool:
    """Whether a batch is answered alike with another value of a node."""
    kept: dict[fx.Node, Tensor] = {}
    keep = _keeping(kept, {logits})
    program.run(batch, lambda n, result, *_: keep(n, instead if n is node else result), until=logits)
    return bool((answers_of(kept[logits]) == answers).all())


def _keeping(kept: dict[fx.Node, Tensor], wanted: set[fx.Node]) -> Callable[..., Any]:
    def look(node: fx.Node, result: Any, *_: Any) -> Any:
        if node in wanted:
            kept[node] = result
        return result

    return look
