"""Where something sleeps in a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx


@dataclass(frozen=True, eq=False)
class Place:
    """A dormant value in the torch graph.

    Attributes:
        node: that computes it.
        asleep: which of its elements are asleep, bool in its shape (of one image, or one group).
        usual: its value on a clean image; of one that only stays on one side of something, the farthest that any image took it.
        way: how its operands were moved when waking it moved most answers ("up", "far down"); "turned" for a decision.
        side: 0 for what is the same on clean images; 1 for what is never above `usual` on them, -1 for what is never below.
        through: of a value that stays on one side: the nonlinear node that reads it, which is linear there.
        slope: of that node, in the value's elements; zero where they are not asleep.
    """

    node: fx.Node
    asleep: Tensor
    usual: Tensor
    way: str
    side: int = 0
    through: fx.Node | None = None
    slope: Tensor | None = None

    def held(self, value: Tensor) -> Tensor:
        """A value of the node as it would be if the place slept."""
        if self.side:
            usual = torch.minimum(value, self.usual) if self.side > 0 else torch.maximum(value, self.usual)
        else:
            usual = self.usual
        return torch.where(self.asleep, usual, value)
