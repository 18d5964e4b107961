"""Ways beyond which a node only saturates, where nothing takes its slope off: a search sees all that it does.

``Clip(h, 0, 6)`` of a channel that stays between 0 and 6 is linear on every clean image, and so is a ReLU6 of an ordinary network with a channel
that is always awake. A payload can lie behind the first: ``h - Clip(h, 0, 6)``, with the `h` from elsewhere, is zero until the trigger
comes, since one slope takes off the other. Behind the second there is nothing: what the node answers beyond its way lies between
what it answers now and what its slope promises, and the slope reaches the scores.

Whether it does is measured in pixels: with g the gradient of a direction in the scores that goes through the channel, and r that of all other
paths, sum <g, r> / sum <g, g> over images and directions is -1 where they take each other off, and near 0 where they have nothing to do
with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.observation import producer
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program, operands

#: Slopes that take each other off by more than this share hide what lies beyond.
TAKEN_OFF = 0.5
#: Directions in the scores, a batch.
_DIRECTIONS = 3


def only_saturates(program: Program, logits: fx.Node, place: Place, steps: Sequence[Tensor]) -> bool:
    """Whether a way hides nothing: the node saturates beyond it, and its slope reaches the scores from the pixels.

    Args:
        program: runs the graph.
        logits: the class scores.
        place: of the operand (`regimes.Way.place`).
        steps: batches as the model takes them.
    """
    if place.through is None or place.slope is None or not bool((place.slope != 0).any()):
        return False
    through, generator = place.through, torch.Generator().manual_seed(0)
    own = together = 0.0
    for batch in steps:
        pixels = batch.detach().requires_grad_(True)
        with torch.enable_grad():
            env = program.run(pixels, lambda _, result, *__: result, keep=True)
            scores, value, operand = env[logits], env[through], env[place.node]
            if value.shape != operand.shape or not (scores.requires_grad and value.requires_grad):
                return False
            if not _between(through, place, env):
                return False
            for _ in range(_DIRECTIONS):
                signs = (torch.randint(0, 2, scores.shape, generator=generator) * 2 - 1).to(scores)
                whole, at_value = torch.autograd.grad(scores, [pixels, value], grad_outputs=signs, retain_graph=True)
                channel = torch.where(place.asleep, at_value, torch.zeros_like(at_value))
                (ours,) = torch.autograd.grad(value, pixels, grad_outputs=channel, retain_graph=True)
                own += float(ours.square().sum())
                together += float((ours * (whole - ours)).sum())
    return own > 0 and together > -TAKEN_OFF * own


def _between(through: fx.Node, place: Place, env: dict[fx.Node, Any]) -> bool:
    """Whether, where the operand goes on beyond the way, the value stays between what it is and what its slope promises."""
    args, kwargs = operands(producer(through), env)
    position = next(i for i, a in enumerate(producer(through).args) if a is place.node)
    x, slope = args[position].detach(), place.slope
    assert slope is not None
    with torch.no_grad():
        held = place.held(x)
        reach = (x - held).abs().amax() + (held - x.mean()).abs().amax() + 1
        for share in (0.1, 0.3, 1.0, 3.0, 10.0):
            step = torch.where(place.asleep, place.side * share * reach, torch.zeros_like(x))
            moved = producer(through).target(*args[:position], x + step, *args[position + 1 :], **kwargs)  # type: ignore[operator]
            if moved.shape != x.shape:
                return False
            change, promised = moved - env[through].detach(), slope * step
            # Rounding in what is far larger than the way itself.
            slack = 1e-4 * (promised.abs() + 1e-6)
            low, high = (
                torch.minimum(promised, torch.zeros_like(promised)),
                torch.maximum(promised, torch.zeros_like(promised)),
            )
            if bool(((change < low - slack) | (change > high + slack))[place.asleep].any()):
                return False
    return True
