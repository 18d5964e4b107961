"""Null models: how surprising is one class's statistic, were there no backdoor?

`mad` is Neural Cleanse's rule as it stands (002, sec. IV): the anomaly index is the distance to the median in units
of 1.4826 times the median absolute deviation; an index above 2 on the suspicious side is called an outlier.

`leave_one_out` is the calibrated one. With K = 10 classes the median absolute deviation is a poor estimate of scale
(an index above 2 is common on clean models), and norms are skewed. So: logarithms, which are close to normal; each
class against the mean and deviation of the *others*, which an outlier among them cannot inflate; and Student's t
with K - 2 degrees of freedom, which knows that K is small. For x_k ~ N(mu, sigma^2) independent,
t_k = (mean_{-k} - x_k) / (s_{-k} * sqrt(1 + 1/(K-1))) follows t_{K-2} exactly (the deleted studentised residual). Looking at K
classes costs a factor K (Bonferroni), which holds under any dependence between them.

Several infected classes would hide each other, so the i smallest together, up to a third of all, are tried as a set of
outliers: its weakest member against the classes outside it, with K - i - 1 degrees of freedom. A fixed set passes by
chance with at most that tail probability, there are C(K, i) sets of that size, and the sizes share the error between
them (nine tenths for one class, a tenth, halved again and again, for more): a weighted union bound, so the p-values
stay valid. A class's p-value is the least one of the sets that it belongs to.

Classes differ by nature, too. Where reference networks could be trained (reference.py), the values judged here are the
ratios of a class's statistic to its own on the references, and not the bare statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

#: 002, sec. IV: 1.4826 makes the median absolute deviation a consistent estimate of a normal's deviation.
MAD_TO_SIGMA = 1.4826
#: Fewer classes than this have no outliers that a test could tell from chance.
FEWEST_CLASSES = 4


@dataclass(frozen=True)
class Judgement:
    """One null model's view of all classes, each array ``(class,)``.

    Attributes:
        index: distance from the rest on the suspicious side, in deviations (NaN where the class has no statistic).
        p_value: of each class, corrected for looking at all of them; 1 where there is no statistic.
        log10_p: its logarithm, which does not underflow.
        paper_flag: whether the paper's own rule would call the class an outlier.
    """

    index: np.ndarray
    p_value: np.ndarray
    log10_p: np.ndarray
    paper_flag: np.ndarray


def mad_index(values: np.ndarray) -> np.ndarray:
    """Anomaly index of each value: positive where it is smaller than the median (002, sec. IV)."""
    values = np.asarray(values, np.float64)
    median = np.median(values)
    deviation = MAD_TO_SIGMA * np.median(np.abs(values - median))
    if deviation == 0:
        return np.where(values == median, 0.0, np.where(values < median, np.inf, -np.inf))
    with np.errstate(over="ignore"):
        return np.asarray((median - values) / deviation)


def mad(values: np.ndarray, tail: str = "low", threshold: float = 2.0) -> Judgement:
    """Neural Cleanse's rule. The p-value is the normal tail beyond the index, times the number of classes."""
    known, signed = _signed(values, tail)
    index = np.full(len(values), np.nan)
    if known.sum() >= 2:
        index[known] = mad_index(signed[known])
    log_p = np.log(max(int(known.sum()), 1)) + stats.norm.logsf(np.nan_to_num(index, nan=-np.inf))
    log_p = np.where(known, np.minimum(log_p, 0.0), 0.0)
    return Judgement(index, np.exp(log_p), log_p / np.log(10), known & (index > threshold))


def leave_one_out(
    values: np.ndarray,
    tail: str = "low",
    log: bool = True,
    threshold: float = 2.0,
) -> Judgement:
    """Each class against the others, on a log scale by default; several outliers at once are allowed for.

    Args:
        values: ``(class,)``, NaN where a class has no statistic.
        tail: "low" or "high", the suspicious side.
        log: take logarithms first (norms, ratios).
        threshold: of the paper's MAD rule, reported beside.
    """
    values = np.array(values, np.float64)
    flag = np.zeros(len(values), bool)
    _, plain = _signed(values, tail)
    if np.isfinite(plain).sum() >= 2:
        flag[np.isfinite(plain)] = mad_index(plain[np.isfinite(plain)]) > threshold
    scaled = np.log(np.maximum(values, np.finfo(np.float64).tiny)) if log else values
    known, signed = _signed(scaled, tail)
    index = np.full(len(values), np.nan)
    log_p = np.zeros(len(values))
    if known.sum() >= FEWEST_CLASSES:
        index[known], log_p[known] = _against_the_rest(signed[known])
    return Judgement(index, np.exp(log_p), log_p / np.log(10), flag & known)


def _against_the_rest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(t, log of the corrected p-value) of each value, small values giving large t."""
    k = len(values)
    order = np.argsort(values, kind="stable")
    most = max(1, k // 3)
    log_sets = [_log_subsets(k, i) + _t(values[order[i - 1]], values[order[i:]])[1] for i in range(1, most + 1)]
    t, log_p = np.zeros(k), np.zeros(k)
    for j in range(k):
        place = int((values <= values[j]).sum()) - 1  # equal classes share the last place among them
        smaller = values < values[j] if place < most else np.zeros(k, bool)
        others = ~smaller
        others[j] = False
        t[j] = _t(values[j], values[others])[0]
        # Every set that the class is in may speak for it: itself alone, and those of the smallest that reach to it.
        alone = _log_subsets(k, 1) + _t(values[j], np.delete(values, j))[1]
        log_p[j] = min(0.0, alone, *log_sets[place:])
    return t, log_p


def _t(value: float, rest: np.ndarray) -> tuple[float, float]:
    """(t, log of its upper tail) of `value` being below `rest`: the deleted studentised residual."""
    n = len(rest)
    # Below a thousandth on a log scale two searches do not differ by anything but rounding.
    deviation = max(float(rest.std(ddof=1)), 1e-3)
    t = (float(rest.mean()) - value) / (deviation * np.sqrt(1 + 1 / n))
    return t, _log_tail(t, n - 1)


def _log_tail(t: float, df: int) -> float:
    """Logarithm of Student's upper tail, where scipy's underflows too.

    sf(t) = I_x(df/2, 1/2) / 2 with x = df / (df + t^2), and I_x(a, b) -> x^a / (a B(a, b)) for x -> 0.
    """
    log_sf = float(stats.t.logsf(t, df=df))
    if log_sf > -500:
        return log_sf
    a = df / 2
    return float(a * np.log(df / (df + t * t)) - np.log(2 * a) - special.betaln(a, 0.5))


def _log_subsets(k: int, size: int) -> float:
    """Logarithm of the price of having looked at all subsets of that size among k classes."""
    share = 0.9 if size == 1 else 0.1 * 0.5 ** (size - 1)
    return float(special.gammaln(k + 1) - special.gammaln(size + 1) - special.gammaln(k - size + 1) - np.log(share))


def _signed(values: np.ndarray, tail: str) -> tuple[np.ndarray, np.ndarray]:
    """(which values are known, values turned so that small is suspicious)."""
    if tail not in ("low", "high"):
        raise ValueError(f"tail is {tail!r}, not low or high")
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    return known, values if tail == "low" else -values
