"""Which of the usual preprocessings a model was made for: decided by its answers to clean samples, and by what its file says.

Several readings of the same pixels often classify a few samples equally well: a network of ReLUs hardly notices that its input
is 255 times as large. Cross-entropy then prefers whatever makes the logits largest, which is the wrong one. So:

1. *Near ties* are all whose accuracy no paired sign test (exact, one-sided, level `TIE_LEVEL`) can tell from the best.
2. Among these, what the file states (file_facts.py) is believed; BatchNorm statistics of its first tensor count as a statement.
3. Those are left out under which the network would never have been trained: a median margin between the two highest logits above
   `LARGEST_MARGIN` (the cross-entropy of a network so sure has no gradient left), or a mean probability of the first class below
   `LEAST_CONFIDENCE` times the accuracy. Where that leaves none, they stay.
4. Of the rest the plainest is taken, unless another fits better by `EVIDENCE` standard errors of the mean difference of the samples'
   cross-entropies, all logits being brought to the same median margin first, so that their mere size does not count.

What no step can tell apart is said, with what to pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used
from scipy.special import log_softmax

#: Level of the test below which one reading is worse than the best. History: docs/decisions.md.
TIE_LEVEL = 0.05
#: History of the three: docs/decisions.md.
LARGEST_MARGIN = 60.0
LEAST_CONFIDENCE = 0.5
EVIDENCE = 2.5
#: Median margin that all logits are brought to before they are compared.
_MARGIN = 4.0


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        index: among the options.
        accuracies: of every option.
        alike: other options that nothing told from it.
        reason: why it was taken rather than another near tie; "" where accuracy alone says so.
    """

    index: int
    accuracies: np.ndarray
    alike: tuple[int, ...]
    reason: str


def choose(logits: Sequence[np.ndarray], labels: np.ndarray, stated: Mapping[int, str] | None = None) -> Choice:
    """Choose among readings of the same samples, the plainest first.

    Args:
        logits: ``(n, classes)`` under each option.
        labels: ``(n,)``.
        stated: options that the file itself speaks for, and where it says so.
    """
    right = np.array([_right(x, labels) for x in logits])
    accuracies = right.mean(1)
    best = int(np.argmax(accuracies))
    near = [j for j in range(len(logits)) if _tied(right[best], right[j])]
    reason = ""
    stated_ones = [j for j in near if stated and j in stated]
    if stated_ones and len(stated_ones) < len(near):
        near, reason = stated_ones, (stated or {})[stated_ones[0]]
    usual = [j for j in near if _usual(logits[j], accuracies[j])]
    if usual and len(usual) < len(near):
        near = usual
        reason = (
            reason
            or "under others that classify as well its answers are more, or less, certain than training leaves them"
        )
    entropies = {j: _entropies(logits[j], labels) for j in near}
    chosen = near[0]
    for j in near[1:]:
        if _evidence(entropies[chosen] - entropies[j]) > EVIDENCE:
            chosen = j
    alike = tuple(j for j in near if j != chosen and abs(_evidence(entropies[j] - entropies[chosen])) <= EVIDENCE)
    if alike and not reason:
        reason = "the plainest of those that fit equally well"
    return Choice(chosen, accuracies, alike, reason)


def _right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which samples are classified correctly ``(n,)``; an answer that is not finite is wrong."""
    right: np.ndarray = np.isfinite(logits).all(1) & (np.nan_to_num(logits).argmax(1) == labels)
    return right


def _tied(best: np.ndarray, other: np.ndarray) -> bool:
    """Whether no sign test can tell the other from the best one: of the samples that they differ on, either may win each."""
    won, lost = int((best & ~other).sum()), int((other & ~best).sum())
    return won <= lost or float(scipy.stats.binom.sf(won - 1, won + lost, 0.5)) > TIE_LEVEL


def _margins(logits: np.ndarray) -> np.ndarray:
    top = np.sort(logits.astype(np.float64), axis=1)[:, -2:]
    margins: np.ndarray = top[:, 1] - top[:, 0]
    return margins


def _usual(logits: np.ndarray, accuracy: float) -> bool:
    """Whether training would have left the answers as certain as these."""
    if not np.isfinite(logits).all():
        return False
    confidence = float(np.exp(log_softmax(logits.astype(np.float64), axis=1).max(1)).mean())
    return float(np.median(_margins(logits))) <= LARGEST_MARGIN and confidence >= LEAST_CONFIDENCE * accuracy


def _entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of every sample ``(n,)``, the logits brought to a median margin of `_MARGIN`."""
    finite = np.isfinite(logits).all(1)
    scale = float(np.median(_margins(logits[finite]))) if finite.any() else 0.0
    scaled = np.nan_to_num(logits.astype(np.float64)) * (_MARGIN / scale if scale > 0 else 1.0)
    entropies: np.ndarray = -log_softmax(scaled, axis=1)[np.arange(len(labels)), labels]
    return np.where(finite, entropies, entropies.max(initial=0.0) + 100.0)


def _evidence(differences: np.ndarray) -> float:
    """Mean difference in standard errors; positive where the first has the larger cross-entropy."""
    error = float(differences.std(ddof=1)) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / error if error > 0 else 0.0
