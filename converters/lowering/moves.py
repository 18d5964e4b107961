"""What a value could be: its node computed once more, from operands that are moved by several times their own spread."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.observation import REACH, Seen, producer, span

#: Ways to move operands. A whole value that is asleep is also tried far out: a trigger is nothing that clean images come near.
NEAR, DISTANT = ("up", "down", "noise"), ("far up", "far down", "far noise")
SHIFTS = (*NEAR, *DISTANT)
BITS = ("a little up", "a little down")
#: ... of single units: every element by its own spread.
OWN = ("own up", "own down")
#: ... and by so small a share of that: what follows has a slope, and searches reach it.
SLIGHTLY, SLOPES = 1e-2, ("slightly up", "slightly down")
FAR = 30.0


def moved_value(
    node: fx.Node,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seen: Seen,
    how: str,
    woken: Collection[fx.Node] = (),
    only: fx.Node | None = None,
) -> Any:
    """The value of a node whose operands are moved by several times their spread; None where it does not run.

    Args:
        node: whose value it is.
        args, kwargs: what it is computed from.
        seen: how far each value moves.
        how: one of the ways above.
        woken: operands that sleep and are moved as far as they could (Seen.could).
        only: the one operand that is moved; all by default.
    """
    generator, shape = torch.Generator().manual_seed(0), seen.shapes.get(node)

    def move(source: Any, value: Any) -> Any:
        if isinstance(source, (list, tuple)):
            return type(value)(move(s, v) for s, v in zip(source, value, strict=True))
        if not isinstance(source, fx.Node) or source not in seen.first or not isinstance(value, Tensor):
            return value
        if only is not None and source is not only:
            return value
        reach = seen.could[source] if source in woken else REACH * seen.spread(source)
        if value.dtype == torch.bool:
            return ~value if reach else value
        if not reach:
            return value
        if how in OWN or how in SLOPES:
            ranges = seen.everywhere.get(source)
            if ranges is None or value.shape != ranges[0].shape or value.shape != shape:
                return value
            share = REACH * (SLIGHTLY if how in SLOPES else 1.0) * (1 if how.endswith("up") else -1)
            return value + share * span(ranges)
        if value.is_floating_point():
            size = FAR if how in DISTANT else SLIGHTLY if how in BITS else 1.0
            if how.endswith("noise"):  # which also moves elements against each other
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
                return value + size * reach * noise.to(value)
            return value + reach * (size if how.endswith("up") else -size)
        if how in BITS:
            return value
        step = max(1, round(reach * (FAR if how.startswith("far") else 1.0)))
        return value + (1 if how.endswith("noise") else step if how.endswith("up") else -step)

    maker = producer(node)
    try:
        operands = [move(s, a) for s, a in zip(maker.args, args, strict=True)]
        value = maker.target(*operands, **kwargs) if callable(maker.target) else None
        return value if maker is node else value[node.args[1]]  # type: ignore[index]
    except Exception:  # an index out of range, a shape: what does not run wakes nothing
        return None
