"""One decision out of several methods': in every class the method decides whose scores separate best, and it is said where they disagree.

Each method gives a score and a decision for every sample (scores.py); alone, each fails somewhere: a trigger of a scan that never
saw the training set may be none of its attacker's, spectral signatures remove a fixed share of whatever there is. How far a decision
is to be trusted shows in its own scores: *separation* is Ashman's D of what it removes and what it keeps,

    D = sqrt(2) |m1 - m0| / sqrt(s1^2 + s0^2).

Cutting one normal law in two gives 2.65, cutting an even one 3.46; a cut through two groups gives more. (Of spectral signatures, which remove
a fixed share off the end whatever there is, D is taken in units of what chance gives so few samples, `tail_separation`.) Below `APART` a decision
does not count. (Cluster impurity scores components and not samples: its D is the gap of their impurities in units of its threshold,
times `APART`.) Of the methods that remove something of a class and are above, the one with the largest D decides (two that test
samples for triggers together). A method that uses the training difference and divides the class decides before all others, as its
matched filter tests for the trigger itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from onnxspect.engine.cleansing.by_activation import IMPURITY, SPECTRAL, PriorKnowledge
from onnxspect.engine.cleansing.by_presence import APART, PRESENCE
from onnxspect.engine.cleansing.by_trigger import GREATEST, REMOVE, SUPERIMPOSE
from onnxspect.engine.cleansing.scores import Scores

#: Two decisions agree where they share so much of what either removes.
AGREE = 0.5
#: Methods whose decision stands on a trigger, tested sample by sample: what a margin of logits says needs no two groups.
_TESTED = (REMOVE, SUPERIMPOSE)
#: Draws of a class that has one group, and samples in it at most: with more the quantile hardly moves.
_DRAWS, _MOST_DRAWN, _SEED = 4000, 400, 0
#: A cleansing that removes no more than this share of a set has found next to nothing.
NEXT_TO_NOTHING = 0.002


@dataclass(frozen=True)
class Weighed:
    """The decision of all methods together.

    Attributes:
        scores: `removed` is the decision; `score` is that of the method that decides the sample's class.
        notes: who decided, who disagrees, and what was found too little to count.
    """

    scores: Scores
    notes: tuple[str, ...]


def separation(score: np.ndarray, removed: np.ndarray) -> float:
    """Ashman's D of what a method removes of a class and what it keeps; 0 where it removes nothing or all.

    Args:
        score: of the class's samples ``(n,)``; NaN where one was not scored.
        removed: of the same ``(n,)``.
    """
    known = np.isfinite(score)
    above, below = score[known & removed], score[known & ~removed]
    if not len(above) or not len(below):
        return 0.0
    spread = float(np.sqrt(above.var() + below.var()))
    gap = float(above.mean() - below.mean())
    return float(np.sqrt(2) * gap / spread) if spread > 0 else (np.inf if gap > 0 else 0.0)


def weighed(scores: Sequence[Scores], labels: np.ndarray) -> Weighed:
    """Weigh several methods by how well their scores separate.

    Args:
        scores: of all methods.
        labels: of the training set ``(n,)``.
    """
    removed, score = np.zeros(len(labels), bool), np.full(len(labels), np.nan)
    notes: list[str] = []
    for c in sorted(set(labels.tolist())):
        rows = np.flatnonzero(labels == c)
        able = [(_weight(one, rows), one) for one in scores if one.removed[rows].any()]
        counting = sorted(((w, one) for w, one in able if w >= APART), key=lambda p: -p[0])
        weak = [one.detector for w, one in able if w < APART and one.removed[rows].mean() <= GREATEST]
        if not counting:
            if weak:
                notes.append(
                    f"class {c}: {', '.join(weak)} would remove samples, but no two groups are there: nothing is removed"
                )
            score[rows] = _first_finite(scores, rows)
            continue
        weight, best = counting[0]
        # Two that test each sample for a trigger may test for different ones.
        same = [one for _, one in counting if one is best or {one.detector, best.detector} <= set(_TESTED)]
        decision = np.any([one.removed[rows] for one in same], axis=0)
        removed[rows], score[rows] = decision, best.score[rows]
        count = int(decision.sum())
        said = "the training difference" if best.detector == PRESENCE else f"separation {weight:.1f}"
        notes.append(f"class {c}: {best.detector} decides ({said}): {count} of {len(rows)} samples")
        for w, other in ((w, one) for w, one in counting if not any(one is s for s in same)):
            both = int((other.removed[rows] & decision).sum())
            either = int((other.removed[rows] | decision).sum())
            if both < AGREE * either:
                notes.append(
                    f"class {c}: {other.detector} disagrees: it would remove {int(other.removed[rows].sum())} samples, {both} of them "
                    f"the same (separation {w:.1f})"
                )
    score = np.where(np.isnan(score), _first_finite(scores, np.arange(len(labels))), score)
    total = int(removed.sum())
    if 0 < total <= NEXT_TO_NOTHING * len(labels):
        notes.append(
            f"next to nothing was found: {total} of {len(labels)} samples. A poisoned set usually has more, so look at them before "
            "you take the rest for clean"
        )
    elif not total:
        notes.append(
            "no method separates any class into two groups: nothing is removed, which is no proof that the set is clean"
        )
    return Weighed(Scores("all methods", score, removed), tuple(notes))


def _weight(one: Scores, rows: np.ndarray) -> float:
    """How far a method's decision in a class counts."""
    removed = one.removed[rows]
    if removed.mean() > GREATEST:
        return 0.0  # most of a class is no poison
    if one.detector == PRESENCE:
        return np.inf
    if one.detector == IMPURITY:  # a score a component: within one there is no spread that a gap could be measured by
        score = one.score[rows]
        gap = float(score[removed].min() - score[~removed].max()) if not removed.all() else 0.0
        return APART * gap / PriorKnowledge.impurity
    if one.detector == SPECTRAL:  # squares of projections, of which it always removes a fixed share off the end
        usual = tail_separation(
            min(len(rows), _MOST_DRAWN), max(1, round(removed.mean() * min(len(rows), _MOST_DRAWN)))
        )
        return separation(np.sqrt(one.score[rows]), removed) * APART / max(APART, usual)
    found = separation(one.score[rows], removed)
    return max(found, APART) if one.detector in _TESTED else found


@lru_cache(maxsize=256)
def tail_separation(n: int, removed: int) -> float:
    """Separation that the largest `removed` of `n` absolute values of one normal law have by chance in one draw of a thousand."""
    drawn = np.abs(np.random.default_rng(_SEED).standard_normal((_DRAWS, n)))
    drawn.sort(axis=1)
    above, below = drawn[:, n - removed :], drawn[:, : n - removed]
    apart = np.sqrt(2) * (above.mean(1) - below.mean(1)) / np.sqrt(above.var(1) + below.var(1))
    return float(np.quantile(apart, 0.999))


def _first_finite(scores: Sequence[Scores], rows: np.ndarray) -> np.ndarray:
    """Scores of the first method that has any there."""
    found = np.full(len(rows), np.nan)
    for one in scores:
        found = np.where(np.isnan(found), one.score[rows], found)
    return found
