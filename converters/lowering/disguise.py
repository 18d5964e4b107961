"""Values that are the same on all clean images but those of one class, where what they do is no news.

A switch that a trigger turns can also be turned by images that are answered with its class anyway: it is awake then, and no image shows
what it is for. Of a value of a few elements that is the same on nearly all images of the other classes, it is tried what it does to those
when it is what it is on images of the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.forcing import Forced, Led, Make, led
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program

#: Elements of such a value; share of the images of other classes on which it is the same; most images that the class may have.
_FEW, _MOST, _HALF = 8, 0.95, 0.5


@dataclass(frozen=True, eq=False)
class Disguised:
    """A value that only images of one class move.

    Attributes:
        node: that computes it.
        led: what it does to images of other classes.
        place: where it is.
    """

    node: fx.Node
    led: Led
    place: Place


class Disguise:
    """Keeps the values of a few elements while clean images run through the graph."""

    def __init__(self, between: Mapping[fx.Node, int]) -> None:
        self.between = between
        self.values: dict[fx.Node, list[Tensor]] = {}
        #: Nodes of such values that led nowhere; but what follows does not run everywhere.
        self.not_run: list[fx.Node] = []

    def observe(self, node: fx.Node, result: Any, *_: Any) -> Any:
        """Keep one value."""
        if (
            node in self.between
            and isinstance(result, Tensor)
            and node.op != "placeholder"
            and 0 < result.numel() <= _FEW
        ):
            self.values.setdefault(node, []).append(result)
        return result

    def disguised(
        self, program: Program, logits: fx.Node, answers: Sequence[int], clean: Sequence[Tensor]
    ) -> list[Disguised]:
        """The findings, in the graph's order.

        Args:
            program: of the graph.
            logits: its class scores.
            answers: to the images that were kept, in the same order.
            clean: batches to judge on, those first that are answered differently.
        """
        tries = []
        for node, values in self.values.items():
            if len(values) != len(answers) or any(v.shape != values[0].shape for v in values):
                continue
            rows = torch.stack([v.reshape(-1).double() for v in values]).nan_to_num(0.0)
            if bool((rows == rows[0]).all()):
                continue
            for k in sorted(set(answers)):
                of_class = torch.tensor([a == k for a in answers], device=rows.device)
                if float(of_class.double().mean()) > _HALF:
                    continue
                usual = rows[~of_class].median(0).values
                away = (rows - usual).abs().amax(1)
                if float((away[~of_class] == 0).double().mean()) < _MOST or not bool((away[of_class] > 0).any()):
                    continue
                donor = values[int(torch.where(of_class, away, -torch.ones_like(away)).argmax())]
                note = k, usual.reshape(donor.shape).to(donor.dtype)
                tries.append(Forced(node, _given(donor), note=note))
        if not tries:
            return []
        found = []
        forcing = led(program, logits, tries, clean)
        self.not_run = [tries[t].node for t in forcing.not_run]
        for index, effect in forcing.led.items():
            node, (k, usual) = tries[index].node, tries[index].note
            if effect.leads_to == k:
                found.append(
                    Disguised(node, effect, Place(node, torch.ones_like(usual, dtype=torch.bool), usual, "turned"))
                )
        return sorted(found, key=lambda d: self.between[d.node])


def _given(value: Tensor) -> Make:
    return lambda _: value
