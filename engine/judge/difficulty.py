"""How hard the task is, which raises every clean model's suspicion.

On an easy task clean networks are alike: of ten digits no class takes much less than on the references. Where a seventh of the answers is wrong a
class's boundary is near, now for one network and now for another, and some clean class stands out. Ranked among each other, clean models of
hard tasks would raise most of the alarms and those of easy ones none. So what is usual at its task's difficulty is taken off a suspicion before it is
ranked (conformal prediction with a nonconformity measure that knows of the object: Papadopoulos, Gammerman and Vovk, 2008):

    S - b d,    d = the larger of two error rates on clean samples, the model's and the reference networks'

with b common to clean models of different kinds, by least squares, not negative. How accurate a model is, without the references, says less: a good
network of a task that few clean samples do not teach is far from its references. Nothing is extrapolated: of a harder task than
any of the bank's what is usual of the hardest is taken off, and it is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difficulty:
    """What is usual of clean models' suspicions, by the difficulty of their task.

    Attributes:
        slope: b, by which a suspicion rises from difficulty 0 to 1.
        hardest: the largest difficulty that it was fitted to.
    """

    slope: float
    hardest: float

    @classmethod
    def fitted(cls, kinds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Difficulty:
        """Of clean models ``(suspicions, difficulties)``, kind by kind, ``(model,)`` each; there is one model at least."""
        suspicion, difficulty = (np.concatenate([kind[j] - kind[j].mean() for kind in kinds]) for j in (0, 1))
        varies = float(np.square(difficulty).sum())
        slope = float(suspicion @ difficulty) / varies if varies > 1e-12 else 0.0
        return cls(max(0.0, slope), float(max(d.max() for _, d in kinds)))

    def beyond(self, suspicion: np.ndarray, difficulty: np.ndarray) -> np.ndarray:
        """Suspicions ``(model,)`` of tasks so difficult ``(model,)``, less what is usual ``(model,)``."""
        return np.asarray(suspicion - self.slope * np.minimum(difficulty, self.hardest))
