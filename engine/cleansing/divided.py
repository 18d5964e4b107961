"""The pattern of RE (Xiang et al., 2020) estimated again, once the trigger-bearing samples are roughly known.

Eq. 9 of RE takes its first term over D_t, all training samples labelled t: most leave when the right pattern is
removed (Eq. 7). But most of D_t are clean, and a pattern that is made to turn them as well costs false positives.

So D_t is divided by the first estimate into those that left, R, and those that stayed, K, and the climb of Algorithm 1
starts again from v = 0 on

    mean over R of log(1 - p_t([x - v]_c))  +  mean over K of log p_t([x - v]_c)  +  lambda * mean over D_s of log p_t([x + v]_c),

stopping where it always does, when a share pi of D_s reaches t; twice over, the second time with R and K of the first.
Without the climb's early end the pattern grows and learns the division with its errors. What each of these was worth:
docs/decisions.md.

The estimate is still the smallest that turns the sources, so it is taken off at the strength, of `STRENGTHS`, at which
most samples leave, less `STILL_LEAVING` times what more leave at half as much again: the trigger is off or on, an
adversarial direction always turns more (`by_trigger.plateau`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.cleansing.by_trigger import Classify, Found, leaving, plateau
from onnxspect.engine.search.objective import (
    Measured,
    Memory,
    Objective,
    ReachTarget,
    StepSettings,
    cross_entropy,
    laid_out,
)
from onnxspect.engine.search.perturbation import Additive, State
from onnxspect.engine.subject.subject import Subject

#: Times that the set is divided and the pattern estimated again. History: docs/decisions.md.
ROUNDS = 2
#: Samples that left, and that stayed, at least, or there is nothing to learn from.
FEWEST = 8
#: The same at most, and samples of D_s; of images with more than 64 x 64 pixels as many as the first climb takes, for a
#: step holds the activations of all.
MOST, MOST_LARGE = 200, 64
#: How many times the new estimate may be taken off.
STRENGTHS = (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class DividedClimb(Objective):
    """Eq. 9 with D_t divided (see the module's header).

    Attributes:
        climb: Eq. 9 itself; its own labelled images are those that left.
        perturbation: of the climb.
        staying: those that stayed ``(n, channels, height, width)``.
    """

    climb: ReachTarget
    perturbation: Additive
    staying: Tensor = field(repr=False, compare=False)

    @property
    def bound(self) -> bool:
        """Those that stayed lie on one device."""
        return True

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """The climb's."""
        return self.climb.start(subject, images, generators)

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """The climb's, and what it costs that those that stayed must stay."""
        measured = self.climb.measure(subject, state, constants, images, targets, multiplier)
        units = len(targets)
        staying = self.staying.expand(units, *self.staying.shape)
        logits = subject(laid_out(self.perturbation.remove(state, staying).flatten(0, 1)))
        stays = cross_entropy(logits.view(units, len(self.staying), -1), targets).mean(1)
        return replace(measured, loss=measured.loss + stays)

    def memory(self, state: State) -> Memory:
        """The climb's."""
        return self.climb.memory(state)

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """The climb's."""
        return self.climb.update(state, gradients, memory, step, settings)

    def trigger(self, state: State) -> dict[str, Tensor]:
        """The climb's."""
        return self.climb.trigger(state)


def most_of(images: np.ndarray) -> int:
    """How many of each kind a climb on such images ``(n, channels, height, width)`` takes at most."""
    return MOST if images.shape[2] * images.shape[3] <= 64 * 64 else MOST_LARGE


def division(found: Found, images: np.ndarray, classify: Classify) -> tuple[np.ndarray, np.ndarray] | None:
    """(rows that leave the class when the pattern is removed, rows that stay), at most `most_of` each.

    None where one of the two is smaller than `FEWEST`. Rows that the model does not take for the class to begin with
    are in neither.

    Args:
        found: an additive pattern and its strength.
        images: training samples labelled to its target ``(n, channels, height, width)``, in random order.
        classify: the model.
    """
    taken = ~leaving(images, found, classify, 0.0)
    left = leaving(images, found, classify)
    most = most_of(images)
    parts = np.flatnonzero(left & taken)[:most], np.flatnonzero(~left & taken)[:most]
    return None if min(map(len, parts)) < FEWEST else parts


def at_best_strength(found: Found, images: np.ndarray, classify: Classify) -> Found:
    """The pattern with the strength, of `STRENGTHS`, at which its share is most of a plateau. Arguments as above."""
    values = [plateau(replace(found, strength=s), images, classify) for s in STRENGTHS]
    return replace(found, strength=STRENGTHS[int(np.argmax(values))])
