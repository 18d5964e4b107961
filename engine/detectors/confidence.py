"""The confidence of a model in its samples: the ranking by which DTInspector (Wang et al., 2022, sec. 3.1) chooses samples.

Confidence is the logarithm of the odds of a class, ``z_k - log sum_{j != k} exp z_j``: the same order as the softmax
probability that the paper sorts by, but without its ties (in float32 half of a training set has probability 1).

Superimposed confidence is the same of ``clip(x + c)``, averaged over a few clean images c of other classes. This is the
superposition of STRIP (Gao et al., 2019): what makes a poisoned sample its class is the trigger, which survives another
image on top; what makes an ordinary sample its class does not. So there are more poisoned samples among the most
confident of the infected class; docs/decisions.md has the shares that were measured.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from onnxspect.engine.subject.subject import Subject

#: Images that are held at once while images are laid over each other.
CHUNK = 2048


def log_odds(logits: np.ndarray, labels: np.ndarray | int) -> np.ndarray:
    """Logarithm of the odds of a class ``(n,)`` float64, given logits ``(n, classes)`` and one class, or one a row.

    The log-probabilities of a model that answers those do as well: a constant a row cancels.
    """
    values = np.array(logits, np.float64)
    rows = np.arange(len(values))
    own = values[rows, labels]
    values[rows, labels] = -np.inf
    return np.asarray(own - logsumexp(values, axis=1))


def superimposed(subject: Subject, images: np.ndarray, label: int, partners: np.ndarray) -> np.ndarray:
    """Mean log odds of class `label` when each of `partners` is laid over the images ``(n,)``.

    Args:
        subject: the classifier.
        images: ``(n, channels, height, width)`` in [0, 1].
        label: the class.
        partners: ``(m, channels, height, width)`` in [0, 1], m at least 1: clean images of other classes.
    """
    total = np.zeros(len(images))
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        for partner in partners:
            logits = subject.predict(np.minimum(part + partner, np.float32(1)))
            total[start : start + CHUNK] += log_odds(logits, label)
    return np.asarray(total / len(partners))


def choose_partners(labels: np.ndarray, label: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most n images to lay over those of class `label`: of every other class in turn.

    Args:
        labels: of the clean images to draw from ``(m,)``.
        label: the class.
        n: how many.
        rng: draws them.
    """
    mixed = rng.permutation(np.flatnonzero(labels != label))
    nth = np.zeros(len(mixed), np.int64)
    for other in np.unique(labels[mixed]):
        own = np.flatnonzero(labels[mixed] == other)
        nth[own] = np.arange(len(own))
    return mixed[np.argsort(nth, kind="stable")][:n]
