"""Forcing: a value of the graph is made to be something else, everything else stays. Which answers move, and do they all move to one class?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.intervention import FIRST, JUDGED
from onnxspect.converters.lowering.observation import answers_of
from onnxspect.converters.lowering.program import Program, unchanged
from onnxspect.converters.lowering.replaced import DoesNotRun, Smaller, answers_with

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


@dataclass(frozen=True)
class Forcing:
    """What forcing values did.

    Attributes:
        led: index of a try -> what it did, of those that lead to a class, and do so more than what lies beside them.
        not_run: index of a try that did not -> the node that raised, of those where what follows the value does not run.
    """

    led: Mapping[int, Led] = field(default_factory=dict)
    not_run: Mapping[int, fx.Node] = field(default_factory=dict)


def led(program: Program, logits: fx.Node, tries: Sequence[Forced], images: Sequence[Tensor]) -> Forcing:
    """What forcing values does. Where what follows one does not run, smaller ones are tried in its place.

    Args:
        program: of the graph.
        logits: its class scores.
        tries: what is forced.
        images: clean batches, those first that are answered differently.
    """
    behind = {t.node: program.behind(t.node) for t in tries}
    answers: dict[tuple[int, int], list[Tensor]] = {}
    plain: list[Tensor] = []
    alive, raised = list(range(len(tries))), dict[int, fx.Node]()
    smaller = Smaller(logits, len(program.steps))
    for i, batch in enumerate(images[:JUDGED]):
        if i == FIRST:
            alive = [t for t in alive if _most(torch.cat(plain), torch.cat(answers[t, -1])) is not None]
        if not alive:
            break
        env = program.run(batch, unchanged, keep=True)
        plain.append(answers_of(env[logits]))
        for t in alive:
            node = tries[t].node
            for which, make in enumerate((tries[t].make, *tries[t].controls), -1):
                after = None
                if (value := _made(make, env)) is not None:
                    try:
                        after = answers_with(node, value, behind[node], env, logits)
                    except DoesNotRun as error:
                        if which < 0:
                            raised.setdefault(t, error.at)
                            after = smaller.answers(node, value, behind[node], env, plain[-1])
                answers.setdefault((t, which), []).append(plain[-1] if after is None else after)
    found: dict[int, Led] = {}
    before = torch.cat(plain) if alive else torch.empty(0)
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
    return Forcing(found, {t: at for t, at in raised.items() if t not in found})


def _made(make: Make, env: Mapping[fx.Node, Any]) -> Tensor | None:
    try:
        return make(env)
    except Exception:  # what cannot be made is not tried: each operator has its own error
        return None


def _most(before: Tensor, after: Tensor) -> Led | None:
    """The class that most answers move to; None where none moves."""
    if after.shape != before.shape or not bool((moved := after != before).any()):
        return None
    target = int(torch.bincount(after[moved]).argmax())
    counted = before != target
    return Led(float((after == target)[counted].double().mean()), target)
