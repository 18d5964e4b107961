"""Places that no image points at: a table's row, a column of the scores.

An index by data moves on clean images, and so does what it takes; the row that it never takes may hold anything. Every whole number of a
few elements that is used as an index is made to be each of the numbers near those that images made it, and of those it never was
the ones are findings that lead to a class, more than the ones do that it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.forcing import Forced, Led, led
from onnxspect.converters.lowering.observation import operator_of, producer
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program, unchanged

_INDEXED = frozenset(
    ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "OneHot", "Slice", "ArrayFeatureExtractor")
)
#: Elements of an index; numbers beyond those seen that are tried; of the ones seen, how many are compared with.
_FEW, _BEYOND, _CONTROLS = 16, 32, 4


@dataclass(frozen=True, eq=False)
class Pointer:
    """An index that, where it points at what no image points at, leads to a class.

    Attributes:
        node: that computes it.
        number: that it is forced to be.
        led: what forcing it does.
        place: beyond which numbers it would do so; None where that lies between numbers that it was.
    """

    node: fx.Node
    number: int
    led: Led
    place: Place | None


class Indices:
    """Looks at indices while images run through the graph."""

    def __init__(self, between: Mapping[fx.Node, int]) -> None:
        self.between = between
        self.wanted = {
            n
            for n in between
            if any(operator_of(producer(u)) in _INDEXED or operator_of(u) in _INDEXED for u in n.users)
        }
        self.visited: dict[fx.Node, set[int]] = {}
        self.large: set[fx.Node] = set()
        #: Indices that led nowhere, though numbers that what reads them takes do not run further on.
        self.not_run: list[fx.Node] = []

    def observe(self, node: fx.Node, result: Any, *_: Any) -> Any:
        """Keep the numbers that an index was."""
        if node not in self.wanted or node in self.large or not isinstance(result, Tensor):
            return result
        if result.is_floating_point() or result.dtype == torch.bool or result.numel() > _FEW:
            self.large.add(node)
        else:
            self.visited.setdefault(node, set()).update(result.reshape(-1).tolist())
        return result

    def pointers(self, program: Program, logits: fx.Node, clean: Sequence[Tensor]) -> list[Pointer]:
        """The findings, one a node, in the graph's order."""
        tries = [
            Forced(node, _number(node, n), tuple(_number(node, v) for v in sorted(seen)[:_CONTROLS]), n)
            for node, seen in self.visited.items()
            if node not in self.large
            for n in range(min(seen) - _BEYOND, max(seen) + _BEYOND + 1)
            if n not in seen
        ]
        if not tries:
            return []
        env = program.run(clean[0], unchanged, keep=True)
        found: dict[fx.Node, Pointer] = {}
        forcing = led(program, logits, tries, clean)
        # A number that the reader itself does not take is out of range in the file too.
        self.not_run = [tries[t].node for t, at in forcing.not_run.items() if tries[t].node not in at.all_input_nodes]
        for index, effect in forcing.led.items():
            node, number = tries[index].node, int(tries[index].note)
            known = found.get(node)
            # Of equal ones a number that is not negative: the negative ones count the same rows from the end.
            if known is not None and (known.led.share, known.number >= 0) >= (effect.share, number >= 0):
                continue
            low, high = min(self.visited[node]), max(self.visited[node])
            side = 1 if number > high else -1 if number < low else 0
            place = None
            if side:
                limit = torch.full_like(env[node], high if side > 0 else low)
                place = Place(node, torch.ones_like(limit, dtype=torch.bool), limit, "up" if side > 0 else "down", side)
            found[node] = Pointer(node, number, effect, place)
        return sorted(found.values(), key=lambda p: self.between[p.node])


def _number(node: fx.Node, number: int) -> Any:
    return lambda env: torch.full_like(env[node], number)
