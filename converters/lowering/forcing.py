"""Forcing: a value of the graph is made to be something else, everything else stays. Which answers move, and do they all move to one class?"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.intervention import FIRST, JUDGED
from onnxspect.converters.lowering.observation import answers_of
from onnxspect.converters.lowering.program import Program, operands, unchanged

#: A value leads to a class where, forced, it brings at least this share of the clean images of other classes there.
LEADS = 0.5
#: ... and twice as many as the values beside it do when they are forced as far.
BESIDE = 2.0

#: (values of all nodes on one batch) -> what the node is made to be; None where that cannot be.
Make = Callable[[Mapping[fx.Node, Any]], Tensor | None]


@dataclass(frozen=True, eq=False)
class Forced:
    """What is to be tried.

    Attributes:
        node: whose value is replaced.
        make: by what.
        controls: the same of values beside it, which are awake.
        note: whatever the caller wants to know it by.
    """

    node: fx.Node
    make: Make
    controls: tuple[Make, ...] = field(default=())
    note: Any = None


@dataclass(frozen=True)
class Led:
    """What forcing did.

    Attributes:
        share: of the clean images that were of other classes, those that are answered with the class.
        leads_to: the class.
    """

    share: float
    leads_to: int


def led(program: Program, logits: fx.Node, tries: Sequence[Forced], images: Sequence[Tensor]) -> dict[int, Led]:
    """Index of a try -> what it did, of those that lead to a class, and do so more than what lies beside them.

    Args:
        program: of the graph.
        logits: its class scores.
        tries: what is forced.
        images: clean batches, those first that are answered differently.
    """
    behind = {t.node: program.behind(t.node) for t in tries}
    answers: dict[tuple[int, int], list[Tensor]] = {}
    plain: list[Tensor] = []
    alive = list(range(len(tries)))
    for i, batch in enumerate(images[:JUDGED]):
        if i == FIRST:
            alive = [t for t in alive if _most(torch.cat(plain), torch.cat(answers[t, -1])) is not None]
        if not alive:
            return {}
        env = program.run(batch, unchanged, keep=True)
        plain.append(answers_of(env[logits]))
        for t in alive:
            for which, make in enumerate((tries[t].make, *tries[t].controls), -1):
                try:
                    value = make(env)
                    after = (
                        plain[-1]
                        if value is None
                        else _answers_with(tries[t].node, value, behind[tries[t].node], env, logits)
                    )
                except Exception:  # an index out of range, a shape: what does not run leads nowhere
                    after = plain[-1]
                answers.setdefault((t, which), []).append(after)
    before, found = torch.cat(plain), {}
    for t in alive:
        best = _most(before, torch.cat(answers[t, -1]))
        if best is None or best.share < LEADS:
            continue
        others = sorted(
            0.0 if (o := _most(before, torch.cat(answers[t, c]))) is None else o.share
            for c in range(len(tries[t].controls))
        )
        if not others or best.share >= BESIDE * others[len(others) // 2]:
            found[t] = best
    return found


def _answers_with(
    node: fx.Node, value: Tensor, behind: Sequence[fx.Node], env: Mapping[fx.Node, Any], logits: fx.Node
) -> Tensor:
    """The answers where the node has another value: what is behind it runs again."""
    changed: ChainMap[fx.Node, Any] = ChainMap({node: value}, env)  # type: ignore[arg-type]
    for step in behind:
        args, kwargs = operands(step, changed)
        changed[step] = step.target(*args, **kwargs)  # type: ignore[operator]
    return answers_of(changed[logits])


def _most(before: Tensor, after: Tensor) -> Led | None:
    """The class that most answers move to; None where none moves."""
    if after.shape != before.shape or not bool((moved := after != before).any()):
        return None
    target = int(torch.bincount(after[moved]).argmax())
    counted = before != target
    return Led(float((after == target)[counted].double().mean()), target)
