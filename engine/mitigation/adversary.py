"""A trigger that moves with the model while its backdoor is unlearned.

A recovered trigger is one point of a region of triggers that all open the same backdoor; unlearning it alone leaves the
rest of the region, the attacker's own trigger perhaps among it. So while the student learns, the trigger is carried on:
before a batch it takes a few gradient steps towards its target on the student as it is by then, and stays within a
multiple of the recovered trigger's size. This is the inner problem of adversarial unlearning (ibau.py; Zeng et al.,
2022, Eq. 1) in the ball that the detection has measured, instead of in one that is guessed: as small as the backdoor's
triggers are, which is what keeps its cost in clean accuracy low.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.subject.precision import as_searched, searching
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import DELTA, DISPLACEMENT, UNTARGETED, Trigger, stamp

#: Images that a step is taken on, at most.
IMAGES = 32
#: Length of an additive trigger's step, or a warp's, as a share of its bound; and the most that a step changes a mask or a pattern.
_LONG, _MASK_STEP, _PATTERN_STEP = 0.3, 0.3, 0.2


class MovingTrigger:
    """A trigger; each `advance` moves it on the student as it is now: towards its target, or away from all labels.

    Args:
        trigger: where it starts; not changed.
        samples: clean images, of which those that the trigger counts on (Trigger.counts_on) are used.
        reach: it may grow to so many times the size of `trigger` (Trigger.size).
        steps: gradient steps an `advance`.

    Raises:
        OnnxspectError: there are no such images.
    """

    def __init__(self, trigger: Trigger, samples: Samples, reach: float, steps: int) -> None:
        wanted = trigger.counts_on(samples.labels)
        rows = np.flatnonzero(wanted)
        if not len(rows):
            raise InconclusiveError(f"no samples of any class but {trigger.target} to move a trigger on")
        self._images = torch.from_numpy(samples.images[rows])
        away = trigger.target == UNTARGETED
        self._classes = torch.from_numpy(samples.labels[rows]) if away else torch.full((len(rows),), trigger.target)
        self._sign = -1.0 if away else 1.0
        self._bound = reach * trigger.size
        self._steps = steps
        self._state = {name: torch.from_numpy(np.array(array)) for name, array in trigger.arrays.items()}

    def advance(self, student: Subject, generator: torch.Generator) -> dict[str, np.ndarray]:
        """The trigger's arrays after its steps, as `Trigger.arrays`."""
        rows = torch.randperm(len(self._images), generator=generator)[:IMAGES]
        images = self._images[rows].to(student.device)
        classes = self._classes[rows].to(student.device)
        for _ in range(self._steps):
            leaves = {n: t.to(student.device).requires_grad_(True) for n, t in self._state.items()}
            with searching(student.device):
                loss = self._sign * functional.cross_entropy(student(as_searched(stamp(images, leaves))), classes)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            with torch.no_grad():
                found = {n: torch.nan_to_num(g).cpu() for n, g in zip(leaves, gradients, strict=True)}
                self._state = self._moved(found)
        return {name: tensor.numpy().copy() for name, tensor in self._state.items()}

    def _moved(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step down the gradient, and back into the bounds."""
        if DELTA in gradient:
            return {DELTA: _on(self._state[DELTA], gradient[DELTA], self._bound).clamp(-1, 1)}
        if DISPLACEMENT in gradient:
            field = self._state[DISPLACEMENT]
            longest = self._bound * float(field[0].numel()) ** 0.5  # the bound is a root mean square over pixels
            return {DISPLACEMENT: _on(field, gradient[DISPLACEMENT], longest)}
        down = gradient["mask"] / gradient["mask"].abs().amax().clamp_min(1e-12)
        mask = (self._state["mask"] - _MASK_STEP * down).clamp(0, 1)
        pattern = (self._state["pattern"] - _PATTERN_STEP * gradient["pattern"].sign()).clamp(0, 1)
        return {"mask": within(mask, self._bound), "pattern": pattern}


def _on(state: Tensor, gradient: Tensor, bound: float) -> Tensor:
    """A step down the gradient, and back to an l2 norm of at most `bound`."""
    moved = state - _LONG * bound * gradient / gradient.norm().clamp_min(1e-12)
    return moved * min(1.0, bound / float(moved.norm().clamp_min(1e-12)))


def within(mask: Tensor, bound: float) -> Tensor:
    """The mask of L1 norm at most `bound` that is nearest to a mask of values in [0, 1] (projection on the L1 ball).

    Duchi et al. (2008), Fig. 1: all values fall by the same amount, none below 0.
    """
    if float(mask.sum()) <= bound:
        return mask
    ordered = mask.flatten().sort(descending=True).values.double()
    excess = (ordered.cumsum(0) - bound) / torch.arange(1, len(ordered) + 1)
    last = int(torch.nonzero(ordered >= excess).max())
    return (mask - float(excess[last])).clamp_min(0)
