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
    trial = _Trial(program, logits, tries, images[:JUDGED])
    found: dict[int, Led] = {}
    for t, best in trial.most().items():
        if best.share >= LEADS:
            found[t] = best
    for t, beside in trial.beside([t for t in found if tries[t].controls]).items():
        if found[t].share < BESIDE * sorted(beside)[len(beside) // 2]:
            del found[t]
    return Forcing(found, {t: at for t, at in trial.raised.items() if t not in found})


class _Trial:
    """Runs what is behind forced values again."""

    def __init__(self, program: Program, logits: fx.Node, tries: Sequence[Forced], images: Sequence[Tensor]) -> None:
        self.program, self.logits, self.tries, self.images = program, logits, tries, images
        self.behind = {t.node: program.behind(t.node) for t in tries}
        self.smaller = Smaller(logits, len(program.steps))
        #: Index of a try -> the node that did not run.
        self.raised: dict[int, fx.Node] = {}

    def most(self) -> dict[int, Led]:
        """What the tries do, of those that move answers of the first images, and may still lead most of all to a class."""
        plain: list[Tensor] = []
        answers: dict[int, list[Tensor]] = {t: [] for t in range(len(self.tries))}
        for i, batch in enumerate(self.images):
            if i >= FIRST:
                seen, left = torch.cat(plain), sum(len(b) for b in self.images[i:])
                answers = {t: a for t, a in answers.items() if _may_lead(seen, torch.cat(a), left)}
            if not answers:
                break
            env = self.program.run(batch, unchanged, keep=True)
            plain.append(answers_of(env[self.logits]))
            for t, after in answers.items():
                after.append(self._after(t, self.tries[t].make, env, plain[-1]))
        effects = {t: _most(torch.cat(plain), torch.cat(after)) for t, after in answers.items()}
        return {t: e for t, e in effects.items() if e is not None}

    def beside(self, chosen: Sequence[int]) -> dict[int, list[float]]:
        """The shares that the controls of some tries lead to a class; one that several tries have is run once."""
        plain: list[Tensor] = []
        answers: dict[tuple[fx.Node, Make], list[Tensor]] = {}
        wanted = {(self.tries[t].node, make): t for t in chosen for make in self.tries[t].controls}
        for batch in self.images if chosen else ():
            env = self.program.run(batch, unchanged, keep=True)
            plain.append(answers_of(env[self.logits]))
            for (node, make), t in wanted.items():
                answers.setdefault((node, make), []).append(self._after(t, make, env, plain[-1], control=True))
        effects = {key: _most(torch.cat(plain), torch.cat(after)) for key, after in answers.items()}
        shares = {key: 0.0 if effect is None else effect.share for key, effect in effects.items()}
        return {t: [shares[self.tries[t].node, m] for m in self.tries[t].controls] for t in chosen}

    def _after(self, t: int, make: Make, env: Mapping[fx.Node, Any], plain: Tensor, control: bool = False) -> Tensor:
        """The answers where a try is made; where it cannot be, the usual ones."""
        node, value = self.tries[t].node, _made(make, env)
        if value is None:
            return plain
        try:
            return answers_with(node, value, self.behind[node], env, self.logits)
        except DoesNotRun as error:
            if control:
                return plain
            self.raised.setdefault(t, error.at)
            after = self.smaller.answers(node, value, self.behind[node], env, plain)
            return plain if after is None else after


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


def _may_lead(before: Tensor, after: Tensor, left: int) -> bool:
    """Whether answers move to some class, and LEADS of all images may still, where so many are left."""
    if after.shape != before.shape or not bool((moved := after != before).any()):
        return False
    if left >= len(before):
        return True
    for target in after[moved].unique():
        counted = before != target
        if int((after == target)[counted].sum()) + left >= LEADS * (int(counted.sum()) + left):
            return True
    return False
