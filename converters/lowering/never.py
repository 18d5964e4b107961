"""Ways of a nonlinear node that no image takes, whatever it is: interval bounds prove it.

``Clip(h, 0, 6)`` of a channel that is a sum of positive shares of a ReLU, and a positive bias, never goes below 0. What lies there was never
taken on clean images, and never will be: forcing the channel to go there shows nothing that the file could do.

The bounds (bounds.py) of the operand must not leave the piece on which the node is linear. Of an operator of one value that is convex, concave
or a Clip it is enough that its derivative at the bound (at the number next to it: the bound may be the very corner) is what it is on an
image; where that is zero, that the value is the same too, for a Clip is flat on two sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.bounds import Interval
from onnxspect.converters.lowering.observation import operator_of

#: Operators of one value whose pieces are such, where whatever else they take is the same for all images.
PIECEWISE = frozenset(("Relu", "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "Abs", "Max", "Min"))

#: Operand -> (value, its derivative).
Look = Callable[[Tensor], tuple[Tensor, Tensor]]


def never_taken(
    node: fx.Node,
    source: fx.Node,
    between: Mapping[fx.Node, int],
    x: Tensor,
    look: Look,
    bounds: Mapping[fx.Node, Interval],
) -> Mapping[float, Tensor]:
    """1.0 and -1.0 -> elements of the operand (bool, in its shape) that never leave the way upwards, or downwards.

    Args:
        node: the nonlinear node.
        source: what computes the operand.
        between: what depends on the image.
        x: the operand on an image, where the node goes the way.
        look: at the node, with another operand.
        bounds: of the values that have any.
    """
    interval, others = bounds.get(source), [n for n in node.all_input_nodes if n is not source]
    if operator_of(node) not in PIECEWISE or interval is None or any(n in between for n in others):
        return {}
    if sum(a is source for a in node.args) != 1:
        return {}
    if interval.low.shape != x.shape or not x.is_floating_point():
        return {}
    value, slope = look(x)
    found = {}
    for sign, end in ((1.0, interval.high), (-1.0, interval.low)):
        there, slope_there = look(torch.nextafter(end, x))
        if there.shape != x.shape:
            return {}
        # Of what is no number all of these are false.
        found[sign] = (slope == slope_there) & ((slope != 0) | (value == there)) & (sign * (end - x) >= 0)
    return found
