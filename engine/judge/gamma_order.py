"""The inference of RE (Xiang et al., 2020), Eq. 10-11: a Gamma order statistic over reciprocal norms.

Is one target's largest reciprocal norm too large for a Gamma law of the others'? The paper's own rule for source-target
pairs, and (with one column) that of MM-BD for margins. The verdict judges by null_model.py; this is reported beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used
from scipy import special

#: A Gamma law of this shape deviates by a ten-thousandth of its mean.
LARGEST_SHAPE = 1e8


@dataclass(frozen=True)
class PairJudgement:
    """The order-statistic inference of RE, Eq. 10-11, over source-target pairs.

    Attributes:
        log10_p: of each target ``(class,)``, log10 of Eq. 10 (0 where the target has no statistic).
        log10_overall: log10 of Eq. 11, the p-value of the whole model.
        target: the class with the least p-value; None where there is nothing to infer from.
        source: the source of its largest reciprocal statistic.
        paper_flag: whether the paper would raise an alarm: Eq. 11 below `theta`.
    """

    log10_p: np.ndarray
    log10_overall: float
    target: int | None
    source: int | None
    paper_flag: bool


def gamma_order(norms: np.ndarray, theta: float = 0.05) -> PairJudgement:
    """RE's inference: is one target's largest reciprocal norm too large for a Gamma law of all other targets' ones?

    r_st = 1 / d(v_st). For every class c a Gamma density is fitted by maximum likelihood to the reciprocals with t != c;
    Eq. 10: pv_c = 1 - G_c(r_c,max)^n with n the number of reciprocals with t = c (K - 1 in the paper, fewer where a search
    found nothing); Eq. 11: pv = 1 - (1 - min pv_c)^K. All of it in logarithms: the paper's numbers underflow.

    Args:
        norms: ``(class, source)`` d(v_st), target first; NaN (the diagonal, for one) where there is none. One column
            for searches from all other classes together.
        theta: the paper's level.

    Raises:
        ValueError: a norm is zero or negative.
    """
    norms = np.asarray(norms, np.float64)
    known = np.isfinite(norms)
    if (norms[known] <= 0).any():
        raise ValueError("a norm is not positive")
    reciprocals = np.where(known, 1 / np.where(known, norms, 1.0), np.nan)
    classes = len(norms)
    log_p = np.zeros(classes)
    judged = []
    for c in range(classes):
        own, others = reciprocals[c][known[c]], np.delete(reciprocals, c, 0)[np.delete(known, c, 0)]
        if len(own) and len(others) >= 2:
            shape, scale = gamma_fit(others)
            log_p[c] = _log_any_of(_log_gamma_sf(float(own.max()) / scale, shape), len(own))
            judged.append(c)
    if not judged:
        return PairJudgement(log_p, 0.0, None, None, False)
    target = min(judged, key=lambda c: log_p[c])
    log_overall = _log_any_of(float(log_p[target]), len(judged))
    source = int(np.nanargmax(reciprocals[target]))
    return PairJudgement(
        log_p / np.log(10), log_overall / np.log(10), target, source, bool(log_overall < np.log(theta))
    )


def gamma_fit(values: np.ndarray) -> tuple[float, float]:
    """(shape, scale) of a Gamma law by maximum likelihood, log(shape) - digamma(shape) = log(mean) - mean(log): scipy's.

    Values that hardly differ would give an infinite shape, on which scipy's root search fails: it is capped where the
    deviation is a ten-thousandth of the mean.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if float(np.log(mean) - np.log(values).mean()) <= 0.5 / LARGEST_SHAPE:
        return LARGEST_SHAPE, mean / LARGEST_SHAPE
    shape = min(float(scipy.stats.gamma.fit(values, floc=0)[0]), LARGEST_SHAPE)
    return shape, mean / shape


def _log_gamma_sf(x: float, shape: float) -> float:
    """Logarithm of the upper tail of a Gamma law with unit scale, also where it underflows (scipy's `logsf` is -inf there).

    Far out, Gamma(a, x) = e^-x x^a / (x + 1 - a - 1 (1 - a) / (x + 3 - a - ...)), evaluated by Lentz's method (Lentz,
    1976).
    """
    tail = float(special.gammaincc(shape, x))
    if tail > 1e-200:
        return float(np.log(tail))
    tiny = 1e-300
    b = x + 1 - shape
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 10_000):
        a = -i * (i - shape)
        b += 2
        d = 1 / (a * d + b or tiny)
        c = b + a / c or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return float(-x + shape * np.log(x) - special.gammaln(shape) + np.log(fraction))


def _log_any_of(log_p: float, n: int) -> float:
    """log(1 - (1 - p)^n) for a p given by its logarithm."""
    if log_p < -700:  # p itself underflows; n p is exact there
        return float(min(0.0, log_p + np.log(n)))
    p = float(np.exp(log_p))
    return 0.0 if p >= 1 else float(np.log(-np.expm1(n * np.log1p(-p))))
