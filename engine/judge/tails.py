"""How far beyond the others a value may lie by chance, where nobody knows the law of the noise.

Student's tail is that of normal noise. What classes take beyond the references is not exactly normal: a few classes are easier by
nature than any straight line says, which is a longer tail on the suspicious side. Among ten classes that hardly matters;
the most extreme of a hundred is where laws differ. So a distance t, in deviations that were estimated with `df` degrees of
freedom, gets the largest of the tails of several laws:

* normal (Student's tail of t, in closed form),
* Student's with TAIL_DF degrees of freedom, brought to deviation 1,
* minus a Gumbel law, brought to deviation 1: left-skewed (-1.14), with an exponential tail.

For the last two the deviation's own uncertainty is integrated: E[S(t s)] with df s^2 ~ chi2(df). The estimate is rougher under
such laws than under the normal one: the variance of a sample variance is sigma^4 (2 / (n - 1) + kappa / n), with kappa the excess
kurtosis; degrees of freedom are lowered to what that is for `KURTOSIS`. Simulated by benchmarks/level.py: the chance
of an alarm on a clean model, by law and number of classes.

Where the noise is known to be of another kind (shares of samples, on the scale of angles), Student's tail is right, and is used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special

#: Degrees of freedom of the heavy-tailed law. History: docs/decisions.md.
TAIL_DF = 5.0
#: Excess kurtosis that the degrees of freedom of a deviation allow for. History: docs/decisions.md.
KURTOSIS = 0.0
#: Gauss-Hermite nodes for a standard normal, the logarithms of their weights, and steps of the integral over log s.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
_STEPS, _FEW_STEPS = 300, 80
#: Beyond so many deviations a tail is not evaluated but continued: as a power of the distance.
_FARTHEST = 1e6


def log_tail(t: float, df: float) -> float:
    """Logarithm of Student's upper tail, where scipy's underflows too.

    sf(t) = I_x(df/2, 1/2) / 2 with x = df / (df + t^2), and I_x(a, b) -> x^a / (a B(a, b)) for x -> 0.
    """
    sf = float(special.stdtr(df, -t))
    if sf > 1e-200:
        return float(np.log(sf))
    a = df / 2
    return float(a * np.log(df / (df + t * t)) - np.log(2 * a) - special.betaln(a, 0.5))


def log_alone(t: float, df: float, n: int, normal: bool = False) -> float:
    """Log of the chance that one value lies t deviations below n others, by the most careful of the laws.

    Args:
        t: the distance.
        df: degrees of freedom of the deviation.
        n: how many others.
        normal: the noise is known to be normal.
    """
    student = log_tail(t, df)
    return student if normal or t <= 0 else max(student, _log_by_law(t, df, n, 1))


def log_together(t: float, alone: float, df: float, n: int, members: int, normal: bool = False) -> float:
    """Log of the chance that `members` values all lie at least t deviations below n others.

    Under the normal law E[Phi(m - t s c)^members]: m ~ N(0, 1/n) and s^2 ~ chi2(df) / df are the mean and the (moderated)
    variance of the others, c = sqrt(1 + 1/n). Integrated over m by Gauss-Hermite quadrature and over the logarithm of s
    by the midpoint rule.

    Args:
        t: of the weakest member.
        alone: log of the chance of one member (`log_alone`).
        df, n: as for `log_alone`.
        members: how many values.
        normal: the noise is known to be normal.
    """
    if members == 1 or t <= 0:
        return alone
    m = _NODES / np.sqrt(n)
    log_s, log_density = _deviations(_rounded(t), df, _STEPS)
    inner = special.log_ndtr(m[None, :] - t * np.exp(log_s)[:, None] * np.sqrt(1 + 1 / n)) * members
    joint = float(special.logsumexp(log_density[:, None] + inner + _LOG_WEIGHTS[None, :]))
    return min(alone, joint if normal else max(joint, _log_by_law(t, df, n, members)))


def _log_by_law(t: float, df: float, n: int, members: int) -> float:
    """The same under the laws that are not normal: the largest of E[S(t s)^members]."""
    df = 2 / (2 / df + KURTOSIS / n)
    log_s, log_density = _deviations(_rounded(t), df, _FEW_STEPS)
    x = t * np.exp(log_s)
    laws = (_log_student(x), _log_gumbel(x))
    return max(float(special.logsumexp(log_density + members * law)) for law in laws)


def _log_student(x: np.ndarray) -> np.ndarray:
    """Log of the upper tail of Student's law with TAIL_DF degrees of freedom, of deviation 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(special.stdtr(TAIL_DF, -np.minimum(x, _FARTHEST) * np.sqrt(TAIL_DF / (TAIL_DF - 2)))))


def _log_gumbel(x: np.ndarray) -> np.ndarray:
    """Log of the lower tail, x deviations below the mean, of minus a Gumbel variable: log(1 - exp(-exp(-z)))."""
    z = np.minimum(x, _FARTHEST) * np.pi / np.sqrt(6) + np.euler_gamma
    inner = np.exp(-z)
    with np.errstate(divide="ignore"):
        return np.where(inner > 1e-12, np.log(-np.expm1(-inner)), -z)


def _rounded(t: float) -> float:
    """The distance that a grid is laid for: grids are shared by distances of the same power of 2."""
    return float(2.0 ** np.ceil(np.log2(max(t, 1.0))))


@lru_cache(maxsize=512)
def _deviations(t: float, df: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(log s, log of the weight of each) of the deviation s of df + 1 normal values: df s^2 ~ chi2(df).

    The integrand lives where s is usual and where it is so small that t is not far: down to s = 1e-3 / t.
    """
    edges = np.linspace(np.log(1e-3 / t), np.log(1 + 8 / np.sqrt(df)), steps + 1)
    log_s = (edges[1:] + edges[:-1]) / 2
    log_density = (
        np.log(2.0) + (df / 2) * np.log(df / 2) - special.gammaln(df / 2) + df * log_s - df * np.exp(2 * log_s) / 2
    )
    return log_s, log_density + np.log(edges[1] - edges[0])


def log_subsets(k: int, size: int) -> float:
    """Logarithm of the multiplicity correction for all subsets of that size among k classes."""
    share = 0.9 if size == 1 else 0.1 * 0.5 ** (size - 1)
    return float(special.gammaln(k + 1) - special.gammaln(size + 1) - special.gammaln(k - size + 1) - np.log(share))
