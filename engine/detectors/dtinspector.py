"""DTInspector (001, Wang et al., "Confidence Matters"): does a patch learned on confident samples carry to the others?

A model with a backdoor is especially sure of its poisoned training samples. So for each class z (sec. 3.1) the training
samples that are predicted z are sorted by confidence; a patch (M, P) is learned that takes most of the confident ones,
D_h, away from z (Eq. 1):

    max over M, P of  sum_{x in D_h} f(g(x'), e^z) - lambda |M|_1,   x' = (1 - M) x + M P,

with f the square of z's probability (to be driven to zero) and lambda moved so that about 95 % leave z. The *transfer
ratio* (sec. 3.3) is the share of the least confident ones, D_l, that leave z with the same patch. In a clean class the
patch is a universal adversarial perturbation and takes D_l along; in an infected class it has only destroyed the trigger,
which D_l does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxspect.engine.detectors.base import AtHand, Detector, search_units
from onnxspect.engine.detectors.confidence import log_odds, superimposed
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.null_model import FEWEST_CLASSES, MAD_TO_SIGMA
from onnxspect.engine.objective import Measured, Objective
from onnxspect.engine.perturbation import MaskPattern, Perturbation, State, stamp
from onnxspect.engine.run import RunContext
from onnxspect.engine.samples import Samples
from onnxspect.engine.search import SearchConfig, UnitResult
from onnxspect.engine.subject import Subject

NAME = "dtinspector"


@dataclass(frozen=True)
class LeaveClass(Objective):
    """One perturbation for all images of a unit, which are to leave the unit's class: Eq. 1.

    Attributes:
        perturbation: the family of input changes.
        loss: "odds" for ``-log(1 - p_z)``, "square" for the paper's ``p_z ** 2``.
        share: of the images, those that leave the class most easily; only they count in the loss.
    """

    perturbation: Perturbation = field(default_factory=MaskPattern)
    loss: str = "odds"
    share: float = 1.0

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """The perturbation's own."""
        channels, height, width = images.shape[2:]
        return self.perturbation.start((channels, height, width), generators)

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Mean loss over the images that count, the perturbation's cost, the share that is no longer of the class."""
        units, n = images.shape[:2]
        logits = subject(self.perturbation.apply(state, images).flatten(0, 1)).view(units, n, -1)
        left = (logits.detach().argmax(2) != targets[:, None]).float().mean(1)
        own = targets[:, None, None].expand(units, n, 1)
        if self.loss == "square":
            each = logits.softmax(2).gather(2, own).squeeze(2).square()
        else:
            rest = logits.scatter(2, own, -torch.inf).logsumexp(2)
            each = functional.softplus(logits.gather(2, own).squeeze(2) - rest)  # -log(1 - p), from the log odds
        counted = max(1, int(np.ceil(self.share * n)))
        if counted < n:
            each = each.sort(1).values[:, :counted]
        return Measured(each.mean(1), self.perturbation.cost(state), left)

    def trigger(self, state: State) -> dict[str, Tensor]:
        """The perturbation's own."""
        return self.perturbation.trigger(state)
