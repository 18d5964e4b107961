"""How hard the task is, which decides how far a clean model's suspicion strays.

On an easy task all clean networks are alike: of ten digits none strays by more than a few tenths. Where a seventh of the answers is wrong a
class's boundary is near, now for one network and now for another, and some clean class stands out farther. Ranked among each other, clean
models of hard tasks would raise most of the alarms and those of easy ones none. So a suspicion is standardised by what is usual at its task's
difficulty before it is ranked (normalised conformal prediction: Papadopoulos, Gammerman and Vovk, 2008):

    (S - a - b d) / max(NARROWEST, c + g d),    d = the larger of two error rates, the model's and the reference networks'

with b, c and g common to clean models of different kinds (c, g >= 0, by iteratively reweighted least squares) and a of each kind. How
accurate a model is, without the references, says less: a good network of a task that few clean samples do not teach is far from its
references. Nothing is extrapolated: of a harder task than any of the bank's what is usual of the hardest is taken, and it is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its `optimize` takes a while to import: it is loaded where it is first used

#: No suspicion is taken to be known more exactly than this. History: docs/decisions.md.
NARROWEST = 0.05
#: Rounds of reweighting; three are within a thousandth of ten.
_ROUNDS = 5


@dataclass(frozen=True)
class Difficulty:
    """What is usual of clean models' suspicions, by the difficulty of their task.

    Attributes:
        slope: b, by which a suspicion rises from difficulty 0 to 1.
        width: c, the mean absolute deviation of a task without errors.
        growth: g, by which that grows from difficulty 0 to 1.
        hardest: the largest difficulty that it was fitted to.
    """

    slope: float
    width: float
    growth: float
    hardest: float

    @classmethod
    def fitted(cls, groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> Difficulty:
        """Of clean models ``(suspicions, difficulties)``, kind by kind, ``(model,)`` each; there is one model at least."""
        kind = np.concatenate([np.full(len(s), i) for i, (s, _) in enumerate(groups)])
        suspicion, difficulty = (np.concatenate([g[j] for g in groups]) for j in (0, 1))
        design = np.column_stack([difficulty, kind[:, None] == np.arange(len(groups))]).astype(np.float64)
        spread = np.column_stack([np.ones(len(difficulty)), difficulty])
        found, law = np.zeros(design.shape[1]), np.array([1.0, 0.0])
        for _ in range(_ROUNDS):
            weight = 1 / np.maximum(NARROWEST, spread @ law)
            found = np.linalg.lstsq(design * weight[:, None], suspicion * weight, rcond=None)[0]
            law = scipy.optimize.nnls(spread, np.abs(suspicion - design @ found))[0]
        return cls(float(found[0]), float(law[0]), float(law[1]), float(difficulty.max()))

    def standardised(self, suspicion: np.ndarray, difficulty: np.ndarray, usual: float = 0.0) -> np.ndarray:
        """Suspicions ``(model,)`` of tasks so difficult ``(model,)``, less what is usual, in mean absolute deviations ``(model,)``.

        Args:
            suspicion, difficulty: of the models.
            usual: a of their kind (`level`).
        """
        known, deviation = self._law(difficulty)
        return np.asarray((suspicion - usual - known) / deviation)

    def level(self, suspicion: np.ndarray, difficulty: np.ndarray) -> float:
        """a of a kind, from its clean models' suspicions and difficulties ``(model,)``: a mean, each weighed by how much it says."""
        known, deviation = self._law(difficulty)
        return float(np.average(suspicion - known, weights=deviation**-2))

    def _law(self, difficulty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(b d, the mean absolute deviation), ``(model,)`` each."""
        d = np.minimum(difficulty, self.hardest)
        return self.slope * d, np.maximum(NARROWEST, self.width + self.growth * d)
