"""Null models: how surprising is one class's statistic, were there no backdoor?

`mad` is Neural Cleanse's rule as it stands (Neural Cleanse, Wang et al., 2019, sec. IV): the anomaly index is the
distance to the median in units of 1.4826 times the median absolute deviation; an index above 2 on the suspicious side
is called an outlier.

`leave_one_out` is the calibrated one. With K = 10 classes the median absolute deviation is a poor estimate of scale
(an index above 2 is common on clean models), and norms are skewed. So: logarithms, which are close to normal; each
class against the mean and deviation of the *others*, which an outlier among them cannot inflate; and Student's t
with K - 2 degrees of freedom, which knows that K is small. For x_k ~ N(mu, sigma^2) independent,
t_k = (mean_{-k} - x_k) / (s_{-k} * sqrt(1 + 1/(K-1))) follows t_{K-2} exactly (the deleted studentised residual). The
multiplicity correction for K classes is a factor K (Bonferroni), which holds under any dependence between them.

Several infected classes would hide each other, so the i smallest together, up to a third of all, are tried as a set of
outliers against the classes outside it, with K - i - 1 degrees of freedom. The chance that *all* i members of a fixed set
lie as far out as its weakest does is E[Phi(m - t s c)^i] over the mean m and the deviation s of the rest (for i = 1 it is
Student's tail); there are C(K, i) sets of that size, and the sizes share the error between them (nine tenths for one
class, a tenth, halved again and again, for more): a weighted union bound, so the p-values stay valid. A class's p-value is
the least one of the sets that it belongs to. The joint chance matters among many units: ten pairs of ninety that stand out
together are evidence, though for each of them alone the correction is for all sets of ten.

Classes differ by nature, too: where reference networks could be trained (reference.py), `against_reference` judges what a
class's statistic is beyond what the references lead to expect. With y the subject's logarithms and x the references' means:

* The subject's classes are ordered as the references' are (correlations of 0.5 to 0.9 on fifteen clean models), but a
  well-trained network's differ three times less. So y is compared with b x and not with x: b is the slope (Theil-Sen,
  weighted by distance, kept within 0 and 1), which one to three outliers among the classes do not move. Dividing by the
  references, b = 1, had put their spread *into* the comparison: on a clean model no class then ever came near to
  suspicion, and on an infected one only the loudest.
* A class that is easy on the references (x below their mean) gets credit for all of it when it is its turn to be judged:
  how easy the easiest class is by nature is where a straight line is least to be trusted. All of it is the references'
  reliability (1 but for what they differ among themselves) in place of b: where they barely learned the classes, as on
  five hundred images of CIFAR-10, what they find easy is chance.
* Two clean networks differ in what a class takes by `spread` on the references; classes are not taken to differ by less
  than half of that (the ratio between a well-trained network's and a reference's spread of classes).
* The deviation of few classes is averaged with what is known of it beforehand (`Prior`, spread.py: the moderated t).
* Values far *above* the others (a class that the subject hardly knows) are winsorised at three robust deviations: they
  would hide a small one behind their spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used
from scipy import special

#: Neural Cleanse, sec. IV: 1.4826 makes the median absolute deviation a consistent estimate of a normal's deviation.
MAD_TO_SIGMA = 1.4826
#: Above the median by more robust deviations than this a value is winsorised. History: docs/decisions.md.
WINSORISE_BEYOND = 3.0
#: Fewer values than this are not winsorised: their median absolute deviation says too little.
FEWEST_TO_WINSORISE = 8
#: Classes are taken to differ by at least this share of the references' spread.
SPREAD_SHARE = 0.5
#: Two searches that differ by less than a thousandth on a log scale differ by rounding alone.
ROUNDING = 1e-3
#: Gauss-Hermite nodes for a standard normal, the logarithms of their weights, and steps of the integral over log s.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
_STEPS = 300
#: Fewer classes than this have no outliers that a test could distinguish from chance.
FEWEST_CLASSES = 4


@dataclass(frozen=True)
class Prior:
    """The prior of the classes' deviation: what is known beforehand counts as if `df` more classes had shown it."""

    deviation: float = 0.0
    df: float = 0.0


NO_PRIOR = Prior()


@dataclass(frozen=True)
class Judgement:
    """One null model's view of all classes, each array ``(class,)``.

    Attributes:
        index: distance from the rest on the suspicious side, in deviations (NaN where the class has no statistic).
        p_value: of each class, corrected for multiplicity (all classes); 1 where there is no statistic.
        log10_p: its logarithm, which does not underflow.
        paper_flag: whether the paper's own rule would call the class an outlier.
    """

    index: np.ndarray
    p_value: np.ndarray
    log10_p: np.ndarray
    paper_flag: np.ndarray


def robust_deviation(values: np.ndarray) -> float:
    """The median absolute deviation, brought to the scale of a normal's deviation.

    By the paper's four digits: scipy's `scale="normal"` has them all, which moves every index by 1.5 millionths.
    """
    return float(MAD_TO_SIGMA * scipy.stats.median_abs_deviation(values))


def mad_index(values: np.ndarray) -> np.ndarray:
    """Anomaly index of each value: positive where it is smaller than the median (Neural Cleanse, sec. IV)."""
    values = np.asarray(values, np.float64)
    median, deviation = np.median(values), robust_deviation(values)
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
    log_p = np.log(max(int(known.sum()), 1)) + scipy.stats.norm.logsf(np.nan_to_num(index, nan=-np.inf))
    log_p = np.where(known, np.minimum(log_p, 0.0), 0.0)
    return Judgement(index, np.exp(log_p), log_p / np.log(10), known & (index > threshold))


def leave_one_out(
    values: np.ndarray,
    tail: str = "low",
    log: bool = True,
    threshold: float = 2.0,
    noise: float = 0.0,
    prior: Prior = NO_PRIOR,
) -> Judgement:
    """Each class against the others, on a log scale by default; several outliers at once are allowed for.

    Args:
        values: ``(class,)``, NaN where a class has no statistic.
        tail: "low" or "high", the suspicious side.
        log: take logarithms first (norms, ratios).
        threshold: of the paper's MAD rule, reported beside.
        noise: deviation that measuring alone gives (of a share of k images: sqrt(p (1 - p) / k)), on the scale that is
            judged; the classes are taken to differ by at least as much.
        prior: of the deviation, where it is known what that usually is.
    """
    values = np.array(values, np.float64)
    known, signed = _signed(_scaled(values, log), tail)
    index = np.full(len(values), np.nan)
    log_p = np.zeros(len(values))
    if known.sum() >= FEWEST_CLASSES:
        index[known], log_p[known] = _against_the_rest(_winsorised(signed[known]), max(noise, ROUNDING), prior)
    return Judgement(index, np.exp(log_p), log_p / np.log(10), _mad_flag(values, tail, threshold) & known)


def _mad_flag(values: np.ndarray, tail: str, threshold: float = 2.0) -> np.ndarray:
    """The paper's rule on the bare values ``(class,)``."""
    known, plain = _signed(values, tail)
    flag = np.zeros(len(plain), bool)
    if known.sum() >= 2:
        flag[known] = mad_index(plain[known]) > threshold
    return flag


def against_reference(
    values: np.ndarray,
    references: np.ndarray,
    tail: str = "low",
    log: bool = True,
    noise: float = 0.0,
    spread: float = 0.0,
    reliability: float = 1.0,
    prior: Prior = NO_PRIOR,
) -> Judgement:
    """Each class against the others, given what each takes on clean reference networks.

    Args:
        values: ``(class,)``, NaN where a class has no statistic.
        references: ``(class,)``, the same on the references; all NaN where there are none, and `leave_one_out` judges.
        tail, log, noise: as for `leave_one_out`.
        spread: deviation of the statistic of one class between two references, on the scale that is judged.
        reliability: share of the variance between classes on the references that is not chance.
        prior: of the deviation beyond the references; without references it is not used.
    """
    values, references = np.asarray(values, np.float64), np.asarray(references, np.float64)
    known, y, x = _side_by_side(values, references, tail, log)
    able = known & np.isfinite(x)
    if able.sum() < FEWEST_CLASSES:
        return leave_one_out(values, tail, log, noise=noise)
    floor = max(noise, SPREAD_SHARE * spread, ROUNDING)
    rest, credit = _beyond(y[able], x[able], reliability)
    t, log_p = _against_the_rest(rest, floor, prior)
    for k in np.flatnonzero((credit > 0) & (log_p < 0)):
        with_credit = rest.copy()
        with_credit[k] += credit[k]
        one_t, one_log_p = _against_the_rest(with_credit, floor, prior)
        t[k], log_p[k] = one_t[k], one_log_p[k]
    index, log10_p = np.full(len(values), np.nan), np.zeros(len(values))
    index[able], log10_p[able] = t, log_p / np.log(10)
    return Judgement(index, 10**log10_p, log10_p, _mad_flag(values, tail) & known)


def one_against_reference(
    value: float,
    reference: float,
    others: np.ndarray,
    references: np.ndarray,
    tail: str = "low",
    log: bool = True,
    noise: float = 0.0,
    spread: float = 0.0,
    reliability: float = 1.0,
    prior: Prior = NO_PRIOR,
) -> tuple[float, float]:
    """One value that was measured beside K others, and is not one of them, given what all of them are on the references.

    Args:
        value, reference: judged; the same on the references.
        others, references: ``(class,)``, NaN where a class has no statistic; the same on the references, NaN for none.
        tail, log, noise, spread, reliability, prior: as for `against_reference`.

    Returns:
        (distance in deviations, log10 of the p-value): Student's t with K - 1 degrees of freedom; (NaN, 0) where there
        is too little to compare with.
    """
    known, y, x = _side_by_side(np.array([value, *others]), np.array([reference, *references]), tail, log)
    able = known & np.isfinite(x)
    if not able[0] or able.sum() - 1 < FEWEST_CLASSES:
        able, x, prior = known, np.zeros_like(x), NO_PRIOR
    if not able[0] or able.sum() - 1 < FEWEST_CLASSES:
        return float("nan"), 0.0
    y, x = y[able], x[able]
    b = _slope(x[1:], y[1:])
    ahead = max(0.0, float(x[1:].mean() - x[0]))
    rest = _winsorised(y[1:] - b * x[1:])
    floor = max(noise, SPREAD_SHARE * spread, ROUNDING)
    t, log_p = _t(y[0] - b * x[0] + max(0.0, reliability - b) * ahead, rest, floor, prior)
    return t, log_p / float(np.log(10))


def beyond_references(values: np.ndarray, references: np.ndarray, tail: str = "low", log: bool = True) -> np.ndarray:
    """What is left of the classes' values ``(class,)`` beyond b times the references', small being suspicious.

    Of those that are known on both; empty where fewer than `FEWEST_CLASSES` are.
    """
    known, y, x = _side_by_side(np.asarray(values, np.float64), np.asarray(references, np.float64), tail, log)
    able = known & np.isfinite(x)
    return _beyond(y[able], x[able], 1.0)[0] if able.sum() >= FEWEST_CLASSES else np.empty(0)


def _side_by_side(
    values: np.ndarray, references: np.ndarray, tail: str, log: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(which values are known, values and references on the scale that is judged, turned so that small is suspicious)."""
    known, y = _signed(_scaled(values, log), tail)
    _, x = _signed(_scaled(references, log), tail)
    return known, y, x


def _beyond(y: np.ndarray, x: np.ndarray, reliability: float) -> tuple[np.ndarray, np.ndarray]:
    """(the residual of y beyond b x, winsorised above; what each easy class is credited with when it is judged)."""
    b = _slope(x, y)
    return _winsorised(y - b * x), max(0.0, reliability - b) * np.maximum(x.mean() - x, 0.0)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Theil-Sen: the median of the slopes through pairs of points, weighted by their distance in x, within 0 and 1."""
    i, j = np.triu_indices(len(x), 1)
    dx, dy = x[j] - x[i], y[j] - y[i]
    apart = np.abs(dx) > ROUNDING
    if not apart.any():
        return 0.0
    slopes, weights = dy[apart] / dx[apart], np.abs(dx[apart])
    order = np.argsort(slopes, kind="stable")
    total = np.cumsum(weights[order])
    return float(np.clip(slopes[order][np.searchsorted(total, total[-1] / 2)], 0.0, 1.0))


def _winsorised(values: np.ndarray) -> np.ndarray:
    """The values winsorised: those more than `WINSORISE_BEYOND` robust deviations above the median set to that; of few values, none."""
    if len(values) < FEWEST_TO_WINSORISE:
        return values
    deviation = robust_deviation(values)
    return np.minimum(values, np.median(values) + WINSORISE_BEYOND * deviation) if deviation > 0 else values


def _scaled(values: np.ndarray, log: bool) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.log(np.maximum(values, np.finfo(np.float64).tiny)) if log else values


def harmonic_mean(log10_p: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """log10 of one p-value for several tests of the same hypothesis: the harmonic mean p-value (Wilson, 2019).

    Unlike Fisher's it does not count dependent tests twice, and unlike Bonferroni's it gains where they agree: three
    tests at p give p and not 3 p, while one alone at p gives 3 p. The sum S of w_i / p_i has, under independence,
    Landau's law with location H(w) + 0.874 (H the entropy of the weights: log L for L equal ones), whose tail is 1 / (S
    - location) to first order; positive dependence makes that conservative.

    Args:
        log10_p: of each test, at most 0.
        weights: of each; equal by default. They are brought to a sum of 1.
    """
    logs = np.asarray(log10_p, np.float64) * np.log(10)
    w = np.ones(len(logs)) if weights is None else np.asarray(weights, np.float64)
    if len(logs) == 1:
        return float(min(0.0, log10_p[0]))
    w = w / w.sum()
    log_sum = float(special.logsumexp(-logs, b=w))
    location = float(special.entr(w).sum()) + 0.874
    if log_sum <= np.log(1 + location):
        return 0.0
    return float(-(log_sum + np.log1p(-location * np.exp(-log_sum))) / np.log(10))


def _against_the_rest(values: np.ndarray, floor: float, prior: Prior = NO_PRIOR) -> tuple[np.ndarray, np.ndarray]:
    """(t, log of the corrected p-value) of each value, small values giving large t."""
    k = len(values)
    order = np.argsort(values, kind="stable")
    most = max(1, k // 3)
    log_sets = [
        _log_subsets(k, i)
        + _log_joint_tail(*_t(values[order[i - 1]], values[order[i:]], floor, prior), k - i, i, prior.df)
        for i in range(1, most + 1)
    ]
    t, log_p = np.zeros(k), np.zeros(k)
    for j in range(k):
        place = int((values <= values[j]).sum()) - 1  # equal classes share the last place among them
        smaller = values < values[j] if place < most else np.zeros(k, bool)
        others = ~smaller
        others[j] = False
        t[j] = _studentised(values[j], values[others], floor, prior)[0]
        # A class takes the least p-value of the sets that it is in: itself alone, and those of the smallest that reach
        # to it.
        alone = _log_subsets(k, 1) + _t(values[j], np.delete(values, j), floor, prior)[1]
        log_p[j] = min(0.0, alone, *log_sets[place:])
    return t, log_p


def _t(value: float, rest: np.ndarray, floor: float, prior: Prior) -> tuple[float, float]:
    """(t, log of its upper tail) of `value` being below `rest`."""
    t, df = _studentised(value, rest, floor, prior)
    return t, _log_tail(t, df)


def _studentised(value: float, rest: np.ndarray, floor: float, prior: Prior) -> tuple[float, float]:
    """(t, degrees of freedom) of `value` being below `rest`: the deleted studentised residual, moderated."""
    n = len(rest)
    df = n - 1 + prior.df
    variance = ((n - 1) * float(rest.var(ddof=1)) + prior.df * prior.deviation**2) / df
    t = (float(rest.mean()) - value) / (max(variance**0.5, floor) * np.sqrt(1 + 1 / n))
    return t, df


def _log_joint_tail(t: float, log_alone: float, n: int, members: int, prior_df: float = 0.0) -> float:
    """Log of the chance that `members` normal values all lie at least t below n others: E[Phi(m - t s c)^members].

    m ~ N(0, 1/n) and s^2 ~ chi2(df) / df are the mean and the (moderated) variance of the others, df = n - 1 + prior_df,
    c = sqrt(1 + 1/n). Integrated over m by Gauss-Hermite quadrature and over the logarithm of s by the midpoint rule.

    Args:
        t: of the weakest member.
        log_alone: log of Student's tail at t, the chance of one member.
        n: how many others.
        members: how many values.
        prior_df: of the prior that moderates the variance.
    """
    if members == 1 or t <= 0:
        return log_alone
    df = n - 1 + prior_df
    m = _NODES / np.sqrt(n)
    # The integrand lives where s is usual and where it is so small that t is not far: down to s = 1e-3 / t.
    edges = np.linspace(np.log(1e-3 / max(t, 1.0)), np.log(1 + 8 / np.sqrt(df)), _STEPS + 1)
    log_s = (edges[1:] + edges[:-1]) / 2
    log_density = _log_chi(log_s, df) + np.log(edges[1] - edges[0])
    inner = special.log_ndtr(m[None, :] - t * np.exp(log_s)[:, None] * np.sqrt(1 + 1 / n)) * members
    joint = float(special.logsumexp(log_density[:, None] + inner + _LOG_WEIGHTS[None, :]))
    return min(log_alone, joint)


def _log_chi(log_s: np.ndarray, df: float) -> np.ndarray:
    """Log density, over log s, of the deviation s of df + 1 normal values: df s^2 ~ chi2(df)."""
    return np.log(2.0) + (df / 2) * np.log(df / 2) - special.gammaln(df / 2) + df * log_s - df * np.exp(2 * log_s) / 2


def _log_tail(t: float, df: float) -> float:
    """Logarithm of Student's upper tail, where scipy's underflows too.

    sf(t) = I_x(df/2, 1/2) / 2 with x = df / (df + t^2), and I_x(a, b) -> x^a / (a B(a, b)) for x -> 0.
    """
    # What scipy.stats.t.logsf computes too, a hundred times slower.
    sf = float(special.stdtr(df, -t))
    if sf > 1e-200:
        return float(np.log(sf))
    a = df / 2
    return float(a * np.log(df / (df + t * t)) - np.log(2 * a) - special.betaln(a, 0.5))


def _log_subsets(k: int, size: int) -> float:
    """Logarithm of the multiplicity correction for all subsets of that size among k classes."""
    share = 0.9 if size == 1 else 0.1 * 0.5 ** (size - 1)
    return float(special.gammaln(k + 1) - special.gammaln(size + 1) - special.gammaln(k - size + 1) - np.log(share))


def _signed(values: np.ndarray, tail: str) -> tuple[np.ndarray, np.ndarray]:
    """(which values are known, values turned so that small is suspicious)."""
    if tail not in ("low", "high"):
        raise ValueError(f"tail is {tail!r}, not low or high")
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    return known, values if tail == "low" else -values
