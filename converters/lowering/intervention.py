"""Interventions: a value that is asleep is made to be what it could be, everything else stays. Does an answer move?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.moves import OWN, SHIFTS, moved_value
from onnxspect.converters.lowering.observation import Seen, answers_of, producer
from onnxspect.converters.lowering.program import Program, operands, unchanged
from onnxspect.converters.lowering.replaced import DoesNotRun, Smaller, answers_with

#: Clean images on which interventions are judged: first a few, then, where one moved an answer, all. The most that the interventions
#: of one kind on one image may take, in runs of the whole graph.
FIRST, JUDGED, _MOST_RUNS = 2, 8, 24.0
#: What an intervention counts for at least: no more than 480 are made.
_LEAST_RUN = 0.05


def affordable(
    program: Program, suspects: Mapping[fx.Node, Tensor]
) -> tuple[dict[fx.Node, tuple[Tensor, list[fx.Node]]], list[fx.Node]]:
    """(the suspects that are tried: what is asleep of each, and the nodes behind it; the others)."""
    chosen: dict[fx.Node, tuple[Tensor, list[fx.Node]]] = {}
    left: list[fx.Node] = []
    runs = 0.0
    for node, asleep in reversed(list(suspects.items())):  # the last ones take least
        behind = program.behind(node) if runs < _MOST_RUNS else []
        runs += max(_LEAST_RUN, len(behind) / max(1, len(program.steps)))
        if runs > _MOST_RUNS:
            left.append(node)
        else:
            chosen[node] = asleep, behind
    return dict(reversed(chosen.items())), left[::-1]


@dataclass(frozen=True)
class Effect:
    """What waking a value does.

    Attributes:
        moved: share of clean images whose answer changes.
        leads_to: the class that most of these change to.
        way: how its operands were moved ("up", ...); "turned" for a decision.
    """

    moved: float
    leads_to: int
    way: str


class Woken:
    """Interventions: what is asleep of a node is made to be what it could be, everything else stays.

    Attributes:
        not_run: nodes that moved no answer, but what some of their values lead to does not run: what they do is not known.
    """

    def __init__(
        self,
        program: Program,
        logits: fx.Node,
        seen: Seen,
        suspects: Mapping[fx.Node, tuple[Tensor, list[fx.Node]]],
    ) -> None:
        self.program, self.logits, self.seen, self.suspects = program, logits, seen, suspects
        self.not_run: list[fx.Node] = []

    def effects(self, images: Sequence[Tensor]) -> dict[fx.Node, Effect]:
        """What waking each node does, for the way that moves most; of nodes that move any answer."""
        answers: dict[tuple[fx.Node, str], list[Tensor]] = {}
        plain: list[Tensor] = []
        alive, raised = list(self.suspects), set()
        smaller = Smaller(self.logits, len(self.program.steps))
        for i, batch in enumerate(images):
            if i == FIRST:
                alive = [n for n in alive if self._best(n, plain, answers) is not None]
                if not alive:
                    break
            env = self.program.run(batch, unchanged, keep=True)
            plain.append(answers_of(env[self.logits]))
            for node in alive:
                asleep, behind = self.suspects[node]
                for how in self._ways(node, asleep):
                    value = self._value(node, how, asleep, env)
                    after = None
                    if value is None:  # the node itself does not run
                        raised.add(node)
                    else:
                        try:
                            after = answers_with(node, value, behind, env, self.logits)
                        except DoesNotRun:
                            raised.add(node)
                            after = smaller.answers(node, value, behind, env, plain[-1])
                    answers.setdefault((node, how), []).append(plain[-1] if after is None else after)
        found = {n: self._best(n, plain, answers) for n in alive}
        self.not_run = [n for n in self.suspects if n in raised and found.get(n) is None]
        return {n: effect for n, effect in found.items() if effect is not None}

    def _ways(self, node: fx.Node, asleep: Tensor) -> tuple[str, ...]:
        if node in self.seen.often:
            return ("turned",) if asleep.all() else ("turned", "others")
        return SHIFTS if asleep.all() else OWN

    def _value(self, node: fx.Node, how: str, asleep: Tensor, env: Mapping[fx.Node, Any]) -> Tensor | None:
        """What the node is made to be."""
        result: Tensor = env[node]
        if result.shape != asleep.shape:
            return None
        if how == "turned":
            return result ^ asleep
        if how == "others":
            return result ^ _as_many(~asleep, int(asleep.sum()))
        other = moved_value(node, *operands(producer(node), env), self.seen, how, self.seen.joint.get(node, ()))
        if not isinstance(other, Tensor):
            return None
        return other if asleep.all() or other.shape != asleep.shape else torch.where(asleep, other, result)

    def _best(
        self, node: fx.Node, plain: Sequence[Tensor], answers: Mapping[tuple[fx.Node, str], Sequence[Tensor]]
    ) -> Effect | None:
        before = torch.cat(list(plain))
        best: Effect | None = None
        for how in self._ways(node, self.suspects[node][0]):
            after = torch.cat(list(answers[node, how]))
            moved = after != before
            share = float(moved.double().mean())
            if how == "others":  # those beside it do as much
                best = None if best is None or 2 * share >= best.moved else best
            elif share and (best is None or share > best.moved):
                best = Effect(share, int(torch.bincount(after[moved]).argmax()), how)
        return best


def _as_many(elements: Tensor, count: int) -> Tensor:
    """At most so many of the elements, bool in their shape, drawn at random."""
    flat = elements.reshape(-1)
    places = flat.nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count].to(places.device)]
    chosen = torch.zeros_like(flat)
    chosen[drawn] = True
    return chosen.reshape(elements.shape)
