"""Trigger-bearing samples: which samples of a class they are, and what they have in common.

A class's training samples differ from clean ones by d_z (training_difference.py), because some of them bear a trigger.
They are found by the matched filter, the direction in which the difference stands out most from the natural variation
of images,

    w = (S + ridge * mean eigenvalue of S)^-1 d_z,     score = <w, x>,

S the covariance of training samples of other classes, within their classes (z's own would hide the trigger, which is a
large part of how z varies). d_z alone is no filter: it overlaps with content (docs/decisions.md has the figures).

Scores of a poisoned class are a mixture of two, and are divided where two normal laws cross (scikit-learn's
GaussianMixture). The ridge is the one, of `RIDGES`, that separates best. Below `SEPARATE` standard deviations the class
is
not divided: what a warp moves is another pixel in every image, and no filter detects it.

What the trigger-bearing samples have in common is then known from hundreds of samples and at its true size, which d_z,
a mean over all samples of the class less one over fifty clean ones, is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded where they are first used

#: As shares of the mean eigenvalue of S: the ridges that are tried. History: docs/decisions.md.
RIDGES = (0.1, 0.01, 0.001)
#: Distance of the two means, in the larger of the two deviations, from which on a class is divided.
SEPARATE = 2.5
#: Pixel values of all samples that are held at once, at most.
MOST_VALUES = 2**26
#: Images share a pixel where its deviation among them is below this, in the mean of its channels.
SHARED = 0.05
#: Such a pixel is the class's own where more than a share `USUAL` of its clean samples are within `ALIKE` of its value.
#: History: docs/decisions.md.
USUAL, ALIKE = 0.4, 0.025
#: A mixture of contents is preferred to one class's, or an even one, where it leaves less than this share of what that
#: leaves. History: docs/decisions.md.
MIXED = 0.7


@dataclass(frozen=True)
class Division:
    """Where one class is divided, if it is.

    Attributes:
        threshold: samples above it bear the trigger.
        separation: distance of the two means in standard deviations.
    """

    threshold: float
    separation: float

    def above(self, scores: np.ndarray) -> np.ndarray:
        """Which samples bear the trigger, bool ``(n,)``, by their scores; none where the class is not divided."""
        return np.asarray((scores > self.threshold) & (self.separation >= SEPARATE))


#: Eigenvalues ``(n,)`` and eigenvectors ``(n, n)`` of samples' inner products.
Spectrum = tuple[np.ndarray, np.ndarray]


def spectrum(natural: np.ndarray) -> Spectrum:
    """Of centred samples ``(n, pixels)``: most of a matched filter's work, and the same for every difference."""
    values, vectors = scipy.linalg.eigh(natural @ natural.T / len(natural))
    return np.maximum(values, 0.0), vectors


def matched_filters(d: np.ndarray, natural: np.ndarray, known: Spectrum | None = None) -> np.ndarray:
    """The filters for each of `RIDGES` ``(ridge, pixels)``, each of norm 1.

    With fewer samples than pixels the inverse is had from their inner products (Woodbury), so a large image costs no more
    than its samples.

    Args:
        d: the difference, of any shape with that many pixels.
        natural: centred samples ``(n, pixels)``.
        known: their spectrum, by who asks for several differences.
    """
    n, pixels = natural.shape
    flat = d.ravel().astype(np.float64)
    values, vectors = known or spectrum(natural)
    projected = vectors.T @ (natural @ flat)
    found = []
    for ridge in RIDGES:
        level = ridge * values.sum() / pixels
        if level <= 0:  # samples without any variance: nothing to distinguish them by
            found.append(flat)
            continue
        found.append(flat - natural.T @ (vectors @ (projected / (n * (values + level)))))
    return np.stack([w / max(float(np.linalg.norm(w)), 1e-12) for w in found])


def divide(scores: np.ndarray, seed: int) -> Division:
    """Two normal laws fitted to the scores ``(n,)`` of a class, and where the upper one takes over."""
    from sklearn.mixture import GaussianMixture  # a second to import; a scan without a training set does without

    spread = scores.std()
    if not np.isfinite(spread) or spread <= 0:
        return Division(float(np.max(scores, initial=0.0)), 0.0)
    shifted = ((scores - scores.mean()) / spread)[:, None]
    mixture = GaussianMixture(2, random_state=seed, n_init=3).fit(shifted)
    upper = int(np.argmax(mixture.means_[:, 0]))
    ordered = np.sort(shifted[:, 0])
    # The last one of the lower law, below the upper one's mean: the wider law takes over again at the far end.
    lower = mixture.predict_proba(ordered[:, None])[:, upper] < 0.5
    below = np.flatnonzero(lower & (ordered < mixture.means_[upper, 0]))
    last = int(below[-1]) if len(below) else 0
    threshold = float(ordered[last : last + 2].mean())  # halfway to the next
    deviation = float(np.sqrt(mixture.covariances_[:, 0, 0].max()))
    distance = float(np.abs(np.diff(mixture.means_[:, 0]))[0])
    return Division(threshold * spread + float(scores.mean()), distance / max(deviation, 1e-12))


def some_of(rows: np.ndarray, most: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many of the rows, in order, and no more than `MOST_VALUES` allow of images with that many pixel values."""
    return np.sort(rng.permutation(rows)[: max(2, min(most, MOST_VALUES // pixels))])


def centred(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images ``(n, channels, height, width)`` less the means of their classes, as ``(n, pixels)`` float64."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    for c in np.unique(labels):
        flat[labels == c] -= flat[labels == c].mean(0)
    return flat


def divided(scores: np.ndarray, seed: int) -> tuple[int, Division]:
    """The filter, of scores ``(filter, n)``, that separates best, and where."""
    divisions = [divide(one, seed) for one in scores]
    best = int(np.argmax([d.separation for d in divisions]))
    return best, divisions[best]


def trigger_of(bearing: np.ndarray, others: np.ndarray, means: Mapping[int, np.ndarray], label: int) -> np.ndarray:
    """What is added to the trigger-bearing samples: their mean less that of their content ``(channels, height, width)`` float32.

    Their content is not known: their own class where labels were left alone, one other class or all others evenly where
    they were changed. The one is taken that leaves least; or a mixture (non-negative least squares, shares of sum 1),
    where that leaves far less (`MIXED`), since fitting a mixture always takes a part of the trigger for content.

    Args:
        bearing: the trigger-bearing samples ``(n, channels, height, width)``.
        others: samples of the class without the trigger; possibly none.
        means: class -> mean image, at least of the other classes.
        label: the class.
    """
    shown = {c: m.astype(np.float64) for c, m in means.items() if c != label}
    mean = bearing.mean(0, dtype=np.float64)
    own = others.mean(0, dtype=np.float64) if len(others) else means.get(label)
    contents = [*shown.values(), np.mean(list(shown.values()), axis=0)] + ([np.asarray(own)] if own is not None else [])
    simple = min((mean - c for c in contents), key=lambda rest: float(np.linalg.norm(rest)))
    basis = np.stack([c.ravel() for c in contents], 1)
    weight = 10 * np.linalg.norm(basis)  # of the condition that shares add up to 1
    shares, _ = scipy.optimize.nnls(
        np.vstack([basis, np.full(basis.shape[1], weight)]), np.append(mean.ravel(), weight)
    )
    mixed = mean - (basis @ shares).reshape(mean.shape)
    rest = mixed if np.linalg.norm(mixed) < MIXED * np.linalg.norm(simple) else simple
    return np.asarray(rest, np.float32)


def shared_pixels(images: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where images ``(n, channels, height, width)`` are all alike and clean ones are not: (mask ``(1, height, width)`` bool, their
    median image). A trigger that replaces pixels is there to the pixel."""
    pattern = np.median(images, axis=0).astype(np.float32)
    return (images.std(0).mean(0, keepdims=True) < SHARED) & foreign(pattern, clean), pattern


def foreign(pattern: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Which pixels of a pattern clean images ``(n, channels, height, width)`` rarely have ``(1, height, width)``; all where there are
    no such images."""
    if not len(clean):
        return np.ones((1, *pattern.shape[1:]), bool)
    return np.asarray((np.abs(clean - pattern).mean(1, keepdims=True) < ALIKE).mean(0) < USUAL)
