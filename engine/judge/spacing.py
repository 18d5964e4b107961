"""The smallest of many classes, of which only the smallest few were ever measured: is the first one too far ahead?

A search without a target (detectors/attractor.py) finds the class that is cheapest to lead to, then the cheapest among the others, and
so on: the lower order statistics x_(1) <= x_(2) <= ... of all K log sizes, and nothing of the rest. Where the K are
independent draws from one law whose tail falls exponentially or faster (that of any extreme-value domain but the
heavy one), the normalised spacings

    D_i = i (x_(i+1) - x_(i)),   i = 1 .. m - 1

of the m smallest are, for large K, independent exponentials with one mean (Weissman, 1978, "Estimation of parameters and large quantiles
based on the k largest observations"; for the exponential law itself: Renyi, 1953). So whether the i smallest stand apart is asked by D_i against
the mean spacing of clean networks (`Usual`): estimated from n spacings, D_i / mean follows the F law with 2 and 2 n degrees of
freedom, P(F > f) = (1 + f / n)^(-n). The number K of classes hardly enters: a normal law's spacings shrink as 1 / sqrt(2 log K).

A network's own later spacings are not asked: each search ends near, not at, the class that comes next, and one that ended far off would
hide the first gap behind its error. The usual spacing was measured on searches that do the same, so that their error is in it.

Several backdoors stand out together: the i smallest are tried as a set for i up to `most`, and the sizes share the error (nine
tenths for one class, a tenth, halved again and again, for more).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Usual:
    """What is known beforehand of the spacing between the smallest classes of a clean network.

    Attributes:
        spacing: mean of the first normalised spacing of log sizes, D_1.
        count: of how many spacings it is the mean.
        further: the same of D_2, D_3 and so on, as far as it is known apart; where it is not, the last that is. Later classes are searched
            for less, and end farther from their size, which D_i multiplies by i.
    """

    spacing: float
    count: float
    further: tuple[float, ...] = ()

    def of(self, i: int) -> float:
        """The mean of D_i, i from 1."""
        return (self.spacing, *self.further)[min(i - 1, len(self.further))]

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"spacing": self.spacing, "count": self.count, "further": list(self.further)}

    @classmethod
    def described(cls, row: Mapping[str, Any]) -> Usual:
        """What `describe` wrote, or an earlier version, which knew of one spacing."""
        return cls(row["spacing"], row["count"], tuple(row.get("further", ())))


def smallest_stand_apart(values: np.ndarray, usual: Usual, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """How far the smallest values stand apart from those that follow.

    Args:
        values: sizes of the smallest classes ``(class,)``, positive; NaN where a class has none. A value that is only known to be at
            least so large (a search that did not get there) may stand in for the last one.
        usual: see there; its `count` must be positive.
        most: at most so many classes stand apart together; never all but one.

    Returns:
        index ``(class,)``, D_i over the usual spacing for the set that a class belongs to (NaN outside any), and the natural logarithm of its
        p-value ``(class,)``, 0 outside any set.
    """
    index, log_p = np.full(len(values), np.nan), np.zeros(len(values))
    known = np.flatnonzero(np.isfinite(values) & (values > 0))
    order = known[np.argsort(values[known], kind="stable")]
    logs = np.log(values[order])
    spacings = np.arange(1, len(logs)) * np.diff(logs)
    for i in range(1, min(most, len(spacings)) + 1):
        ratio = spacings[i - 1] / usual.of(i)
        # The spacing i (x_(i+1) - x_(i)) says that *all* i lie below the rest by at least that much.
        found = min(0.0, -usual.count * np.log1p(ratio / usual.count) - np.log(_share(i)))
        for k in order[:i]:
            if found < log_p[k] or np.isnan(index[k]):
                index[k], log_p[k] = ratio, min(found, log_p[k])
    return index, log_p


def _share(i: int) -> float:
    """The share of the error that sets of i classes get."""
    return 0.9 if i == 1 else 0.1 * 0.5 ** (i - 1)
