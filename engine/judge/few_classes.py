"""Two and three classes: too few to be compared with each other, so each is compared with the references of the same data.

How much a model takes as a whole differs between networks, and a well-trained one takes less than a reference. What is
compared is therefore a difference, in which that cancels: a class's logarithm less another's,

    c_kj = y_k - y_j,

and the same on each of R reference networks. Were the subject one more clean network of the same data, c_kj and the
references' c_kjr would be R + 1 draws of one law, and

    t_kj = (mean of c_kjr - c_kj) / (s_kj sqrt(1 + 1/R))

would follow Student's law with R - 1 degrees of freedom (s_kj the references' standard deviation). No deviation is assumed beforehand,
and none is taken from other models: where there are few references the tail is as heavy as that makes it. A difference of two draws of one
law is symmetric, however skewed that law is; the mean of the other classes in place of one of them is not, and did not keep
its level under left-skewed noise. Of three classes the suspicious one must lie below *both* others: its p-value is the larger one.
The correction for K classes is a factor K. A trained subject whose classes differ less than the references' makes the test
conservative.
"""

from __future__ import annotations

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used

from onnxspect.engine.judge.null_model import ROUNDING, Judgement

#: With fewer references there is no test. History: docs/decisions.md.
FEWEST_REFERENCES = 5


def beside_references(
    values: np.ndarray, baselines: np.ndarray, tail: str = "low", log: bool = True, noise: float = 0.0
) -> Judgement:
    """Each of few classes against the same class on the reference networks.

    Args:
        values: ``(class,)``, NaN where a class has no statistic.
        baselines: the same on each reference ``(class, reference)``; a reference that lacks a class is left out.
        tail: "low" or "high", the suspicious side.
        log: take logarithms first.
        noise: deviation that measuring alone gives on that scale; classes are taken to differ by at least as much.
    """
    values, baselines = np.asarray(values, np.float64), np.asarray(baselines, np.float64)
    k = len(values)
    unknown = Judgement(np.full(k, np.nan), np.ones(k), np.zeros(k), np.zeros(k, bool))
    if k < 2 or baselines.shape[:1] != (k,) or not np.isfinite(values).all():
        return unknown
    whole = _complete(baselines, log)
    r = whole.shape[1]
    if r < FEWEST_REFERENCES or (log and (values <= 0).any()):
        return unknown
    sign = 1.0 if tail == "low" else -1.0
    y, b = (sign * (np.log(x) if log else x) for x in (values, whole))
    t = np.min([_distances(y, b, others, noise) for others in _beside(k)], axis=0)
    log_p = np.minimum(0.0, scipy.stats.t.logsf(t, r - 1) + np.log(k))
    return Judgement(t, np.exp(log_p), log_p / np.log(10), np.zeros(k, bool))


def least_seen(baselines: np.ndarray, alpha: float, noise: float = 0.0) -> np.ndarray:
    """How many times less than usual a class must take, beside the others, to be told from chance ``(class,)``.

    Of statistics on a logarithmic scale; usual is what it takes on the references. NaN where there are too few of these.

    Args:
        baselines: of each class on each reference ``(class, reference)``.
        alpha: level of the p-value.
        noise: as for `beside_references`.
    """
    k = len(baselines)
    whole = _complete(baselines)
    r = whole.shape[1]
    if k < 2 or r < FEWEST_REFERENCES:
        return np.full(k, np.nan)
    b = np.log(whole)
    far = np.max([_deviations(b, others, noise) for others in _beside(k)], axis=0)
    return np.asarray(np.exp(scipy.stats.t.isf(alpha / k, r - 1) * far))


def _complete(baselines: np.ndarray, log: bool = True) -> np.ndarray:
    """The references that have the statistic of every class ``(class, reference)``; where logarithms are taken, a positive one."""
    return np.asarray(baselines[:, np.isfinite(baselines).all(0) & ((baselines > 0).all(0) | (not log))])


def _beside(k: int) -> list[np.ndarray]:
    """Which other class each of k is compared with: every other one in turn."""
    return [(np.arange(k) + step) % k for step in range(1, k)]


def _deviations(b: np.ndarray, others: np.ndarray, noise: float) -> np.ndarray:
    """Deviation of a subject's difference from the references' mean one ``(class,)``, where it is one more of them."""
    deviation = np.maximum((b - b[others]).std(1, ddof=1), max(noise, ROUNDING) * np.sqrt(2))
    return np.asarray(deviation * np.sqrt(1 + 1 / b.shape[1]))


def _distances(y: np.ndarray, b: np.ndarray, others: np.ndarray, noise: float) -> np.ndarray:
    """t of each class less one other ``(class,)``: y ``(class,)`` of the subject, b ``(class, reference)``."""
    own, theirs = y - y[others], b - b[others]
    return np.asarray((theirs.mean(1) - own) / _deviations(b, others, noise))
