"""A linear discriminant between clean and stamped activations of one layer, regularised (Fisher, 1936; ridge).

For each target class t the direction is

    w_t = (S + lambda * mean eigenvalue of S * I)^-1 (mean shift of t's stamped images),

S being the covariance within the clean and within each sort of stamped images, and a shift what the stamp changes in an
image's activations: of the same images, so that what they show does not matter. Activations are divided by their standard
deviation on clean images first, so that one loud neuron does not drown the others. What separates the two best is then
not the neuron that the trigger excites most, but what it excites *beyond* what clean images vary by.

Scores are expressed in standard deviations of the scores of clean images that had no part in the fit (cross-fitted:
each fifth of them is scored by directions that the other four gave).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxspect.engine.mitigation.neurons import scale_of

#: How many parts the clean images are cut into, each scored by directions fitted without it.
FOLDS = 5
#: Of all stamped images together so many are used to estimate how stamped ones vary.
_RESIDUALS = 400


@dataclass(frozen=True)
class Discriminant:
    """Scores of one layer, in deviations of unseen clean images: `activations @ weights + offsets`.

    Attributes:
        weights: float64 ``(features, targets)``.
        offsets: float64 ``(targets,)``.
        clean: cross-fitted scores of the clean images it was fitted on ``(n, targets)``.
    """

    weights: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    clean: np.ndarray = field(repr=False)

    def scores(self, activations: np.ndarray) -> np.ndarray:
        """Scores ``(n, targets)`` of activations ``(n, features)``."""
        return np.asarray(activations @ self.weights + self.offsets)


@dataclass(frozen=True)
class Shift:
    """What one sort of stamp makes of a layer.

    Attributes:
        mean: by how much it moves the activations, on average ``(features,)``.
        residuals: some stamped images' activations less their mean ``(m, features)``.
        rows: which images those are ``(m,)``.
    """

    mean: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, clean: np.ndarray, stamped: np.ndarray, rows: np.ndarray, sorts: int) -> Shift:
        """From the same images without and with the stamp.

        Args:
            clean, stamped: ``(n, features)``.
            rows: which of the clean images these are ``(n,)``.
            sorts: how many sorts of stamps there are, which share the residuals that are kept.
        """
        mean, few = stamped.mean(0), max(2, _RESIDUALS // sorts)
        return cls(mean - clean.mean(0), stamped[:few] - mean, rows[:few])


def fitted(clean: np.ndarray, apart: np.ndarray, shifts: Sequence[Sequence[Shift]], ridge: float) -> Discriminant:
    """The discriminant of one layer.

    Args:
        clean: activations of clean images ``(n, features)`` to fit on.
        apart: of others ``(m, features)``, perhaps none.
        shifts: for each target those of its sorts of stamps.
        ridge: lambda above.
    """
    middle, scale = clean.mean(0), scale_of(clean)
    inner = (clean - middle) / scale
    residuals = np.concatenate([s.residuals for sorts in shifts for s in sorts]) / scale
    aims = np.stack([np.mean([s.mean for s in sorts], 0) / scale for sorts in shifts], axis=1)
    solver = _Solver(np.concatenate([inner, residuals]), ridge)
    weights = solver.solve(np.ones(len(inner) + len(residuals), bool), aims)
    fold = np.arange(len(inner)) % FOLDS
    carried = np.concatenate([s.rows for sorts in shifts for s in sorts])
    held = np.zeros((len(inner), aims.shape[1]))
    for part in range(min(FOLDS, len(inner) - 1)):
        # An image has no part in its own score stamped either.
        kept = np.concatenate([fold != part, (carried % FOLDS != part) | (carried >= len(inner))])
        others = solver.solve(kept, aims)
        # Fewer images make another length; the direction is what counts.
        others *= np.linalg.norm(weights, axis=0) / np.maximum(np.linalg.norm(others, axis=0), 1e-300)
        held[fold == part] = (inner[fold == part] - inner[fold != part].mean(0)) @ others
    unseen = np.concatenate([held, ((apart - middle) / scale) @ weights])
    mean, spread = unseen.mean(0), unseen.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    rows = weights / scale[:, None] / spread
    return Discriminant(rows, -(middle @ rows) - mean / spread, (held - mean) / spread)


class _Solver:
    """(X'X / n + ridge * mean eigenvalue * I)^-1 B for rows of X ``(n, features)``, by the smaller of X'X and XX'."""

    def __init__(self, rows: np.ndarray, ridge: float) -> None:
        self._wide = rows.shape[1] >= rows.shape[0]
        self._rows = rows if self._wide else rows.astype(np.float64)
        self._gram = (rows @ rows.T).astype(np.float64) if self._wide else np.zeros((0, 0))
        self._ridge = ridge

    def solve(self, kept: np.ndarray, aims: np.ndarray) -> np.ndarray:
        """For aims ``(features, targets)``, with the kept rows bool ``(n,)`` only."""
        rows = self._rows[kept]
        n, features = rows.shape
        if not self._wide:
            covariance = rows.T @ rows / n
            amount = self._amount(np.trace(covariance), min(n, features))
            return np.asarray(np.linalg.solve(covariance + amount * np.eye(features), aims))
        gram = self._gram[np.ix_(kept, kept)]
        amount = self._amount(np.trace(gram) / n, min(n, features))
        inner = np.linalg.solve(gram + n * amount * np.eye(n), rows @ aims)  # Woodbury's identity
        return np.asarray((aims - rows.T @ inner) / amount)

    def _amount(self, trace: float, rank: int) -> float:
        """The ridge; with nothing that varies, any."""
        return float(self._ridge * trace / rank) or 1.0
