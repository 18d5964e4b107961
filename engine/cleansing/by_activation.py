"""Cleansing by activations: spectral signatures, activation clustering and cluster impurity.

They are the baselines of RE (Xiang et al., 2020), which (sec. 3 and 14) describes all three and says where they fail;
what it leaves open is said here.

* *Spectral signatures* (Tran et al., 2018): per class, the squared projection of the centred activation on the first
  right singular vector; the largest are removed. How many is the method's weak point: 1.5 times the share of poison
  that is expected in a class, or a known count (RE gives it 1,000 of 5,500).
* *Activation clustering* (Chen et al., 2018): per class PCA to 10 dimensions, k-means with k = 2; where the silhouette
  is above a threshold the class counts as attacked and its smaller cluster is removed. RE sets the threshold by the
  architecture (0.29 for its compact network, 0.52 for its wide one): 0.29 is the default. The score is how much nearer a
  sample lies to the smaller cluster's centre than to the larger one's.
* *Cluster impurity* (Xiang et al., 2019): per class Gaussian mixtures with full covariances, their number chosen
  by BIC; a component is poisoned if blurring its images changes their decisions, because a small trigger does not
  outlive a blur. With q the share of a component's images whose decision the blur leaves alone, the impurity is the divergence
  of (q, 1 - q) from (1, 0), ``-log q``; above the threshold (0.65, RE's for the compact network) all of it is removed.
  A single component means that nothing was separated, so nothing is removed, as RE counts it. The score is the impurity
  of the sample's component, with the posterior probability as a tie-break.

Full covariances need more samples than dimensions: activations are first brought to at most a tenth as many principal
components as the class has samples (and at most 32); a mixture whose covariances are singular all the same is fitted
again with a larger ridge, and if that fails too it is left out. Both are said in the notes.

Everything is by scikit-learn, from fixed seeds; activations are read class by class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxspect.engine.cleansing.scores import Scores, classes_to_score
from onnxspect.engine.errors import OnnxspectError

SPECTRAL, CLUSTERING, IMPURITY = "spectral-signatures", "activation-clustering", "cluster-impurity"
#: Samples of a class that the silhouette is taken over: it compares every pair.
_SILHOUETTE_SAMPLES = 2000
#: Added to the diagonal of every covariance, as a share of the mean variance; the second where the first is too small.
_RIDGES = (1e-6, 1e-3)


@dataclass(frozen=True)
class PriorKnowledge:
    """Prior knowledge of the attack; RE gives its baselines the same in its tables.

    Attributes:
        targets: the target classes; None takes all classes.
        count: poisoned samples a class, or what is to be removed; None goes by `expected`.
        expected: share of poison to expect in a class, for spectral signatures.
        silhouette: threshold of activation clustering; not used for known targets.
        impurity: threshold of cluster impurity.
        components: at most so many Gaussians a class.
    """

    targets: tuple[int, ...] | None = None
    count: int | None = None
    expected: float = 0.05
    silhouette: float = 0.29
    impurity: float = 0.65
    components: int = 4

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise OnnxspectError(f"a count of {self.count} removes nothing", "one sample at least")
        if not 0 < self.expected < 0.5:
            raise OnnxspectError(
                f"the expected share of poison is {self.expected}, not between 0 and 0.5",
                "0.33 is what the paper takes",
            )
        if self.components < 2:
            raise OnnxspectError("cluster impurity needs at least 2 components to compare", "2 or more")


def spectral_signatures(values: np.ndarray, labels: np.ndarray, known: PriorKnowledge) -> Scores:
    """Outliers along the first singular direction of every class.

    Args:
        values: activations ``(n, d)``; may be mapped from disk.
        labels: ``(n,)``.
        known: the user's prior knowledge.
    """
    score, removed = np.full(len(labels), np.nan), np.zeros(len(labels), bool)
    classes, notes = classes_to_score(labels, known.targets, 3)
    found: dict[int, Mapping[str, Any]] = {}
    for c in classes:
        rows = np.flatnonzero(labels == c)
        own = _rows(values, rows)
        centred = own - own.mean(0)
        score[rows] = (centred @ _first_direction(centred)) ** 2
        count = known.count if known.count is not None else round(1.5 * known.expected * len(rows))
        if count >= len(rows):
            notes.append(f"class {c} has {len(rows)} samples; removing {count} would leave none: one is kept")
            count = len(rows) - 1
        removed[rows[np.argsort(-score[rows], kind="stable")[:count]]] = True
        found[c] = {"looked_at": len(rows), "removed": count}
    return Scores(SPECTRAL, score, removed, found, tuple(notes))


def activation_clustering(values: np.ndarray, labels: np.ndarray, known: PriorKnowledge, seed: int) -> Scores:
    """The smaller of two clusters, in classes that fall into two. Arguments as above, and the seed of the k-means."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    score, removed = np.full(len(labels), np.nan), np.zeros(len(labels), bool)
    classes, notes = classes_to_score(labels, known.targets, 4)
    found: dict[int, Mapping[str, Any]] = {}
    for c in classes:
        rows = np.flatnonzero(labels == c)
        low = _principal(_rows(values, rows), 10, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer distinct points than clusters: handled below
            fitted = KMeans(2, n_init=10, random_state=seed).fit(low)
        sizes = np.bincount(fitted.labels_, minlength=2)
        if sizes.min() == 0:
            notes.append(f"the activations of class {c} are all the same: nothing to cluster")
            score[rows] = 0.0
            continue
        small = int(sizes.argmin())
        distance = fitted.transform(low)
        score[rows] = distance[:, 1 - small] - distance[:, small]
        few = min(_SILHOUETTE_SAMPLES, len(rows))
        value = float(silhouette_score(low, fitted.labels_, sample_size=few, random_state=seed)) if few > 2 else 0.0
        attacked = known.targets is not None or value > known.silhouette
        if attacked:
            removed[rows[fitted.labels_ == small]] = True
        found[c] = {"looked_at": len(rows), "silhouette": value, "removed": int(sizes[small]) if attacked else 0}
    return Scores(CLUSTERING, score, removed, found, tuple(notes))


def cluster_impurity(
    values: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    blurred: Callable[[], np.ndarray],
    known: PriorKnowledge,
    seed: int,
) -> Scores:
    """Components of a Gaussian mixture whose images change their class under a blur.

    Args:
        values, labels, known, seed: as above.
        predicted: the class of every image as it is ``(n,)``.
        blurred: gives the class of every image after a blur ``(n,)``; called once.
    """
    score, removed = np.full(len(labels), np.nan), np.zeros(len(labels), bool)
    classes, notes = classes_to_score(labels, known.targets, 2 * known.components)
    unchanged = blurred() == predicted
    found: dict[int, Mapping[str, Any]] = {}
    for c in classes:
        rows = np.flatnonzero(labels == c)
        own = _rows(values, rows)
        dimensions = int(min(own.shape[1], 32, max(1, len(rows) // 10)))
        low = _principal(own, dimensions, seed)
        component, posterior, bic, ridge = _mixture(low, known.components, seed)
        if ridge > _RIDGES[0]:
            notes.append(f"class {c}: singular covariances, fitted again with a ridge of {ridge:g}")
        if not bic:
            notes.append(f"class {c}: no mixture could be fitted (singular covariances)")
            score[rows] = 0.0
            continue
        number = int(component.max()) + 1
        impurities = []
        for k in range(number):
            members = rows[component == k]
            share = float(unchanged[members].mean()) if len(members) else 1.0
            impurity = -float(np.log(max(share, 1e-6)))
            impurities.append(impurity)
            score[members] = impurity + 1e-6 * posterior[component == k]
            if number > 1 and impurity > known.impurity:
                removed[members] = True
        found[c] = {
            "looked_at": len(rows),
            "components": number,
            "impurities": impurities,
            "dimensions": dimensions,
            "removed": int(removed[rows].sum()),
        }
    return Scores(IMPURITY, score, removed, found, tuple(notes))


def box_blur(images: np.ndarray, size: int = 3) -> np.ndarray:
    """Images ``(n, channels, height, width)`` under an average filter of `size` pixels, edges repeated."""
    from scipy.ndimage import uniform_filter

    return np.asarray(uniform_filter(images, (1, 1, size, size), mode="nearest"), np.float32)


def _mixture(low: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[float], float]:
    """(component ``(n,)``, its posterior ``(n,)``, BIC of every number that could be fitted, the ridge used)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    scale = float(low.var(0).mean()) or 1.0
    best: GaussianMixture | None = None
    values: list[float] = []
    for ridge in _RIDGES:
        best, values = None, []
        for k in range(1, most + 1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model = GaussianMixture(k, covariance_type="full", reg_covar=ridge * scale, random_state=seed)
                    model.fit(low)
            except ValueError:  # a covariance is not positive definite
                break
            values.append(float(model.bic(low)))
            if best is None or values[-1] < min(values[:-1]):
                best = model
        if len(values) == most:
            break
    if best is None:
        return np.zeros(len(low), int), np.zeros(len(low)), [], ridge
    posterior = best.predict_proba(low)
    chosen = posterior.argmax(1)
    return chosen, posterior[np.arange(len(low)), chosen], values, ridge


def _rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One class's activations, in memory.

    Raises:
        OnnxspectError: they are not finite.
    """
    own = np.asarray(values[rows], np.float64).reshape(len(rows), -1)
    if not np.isfinite(own).all():
        raise OnnxspectError("the activations at this tap hold NaN or infinity", "choose another --tap")
    return own


def _principal(own: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """At most so many principal components."""
    from sklearn.decomposition import PCA

    most = min(dimensions, *own.shape)
    if own.shape[1] <= most:
        return own - own.mean(0)
    solver = "randomized" if most < 0.2 * min(own.shape) else "full"
    with np.errstate(invalid="ignore", divide="ignore"):  # no variance at all: the ratio is undefined and unused
        return np.asarray(PCA(most, svd_solver=solver, random_state=seed).fit_transform(own))


def _first_direction(centred: np.ndarray) -> np.ndarray:
    """The first right singular vector ``(d,)``, from the smaller of the two Gram matrices."""
    if centred.shape[1] <= centred.shape[0]:
        vector = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    else:
        vector = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
        vector = vector / (np.linalg.norm(vector) or 1.0)
    return np.asarray(vector)


def known_targets(text: Sequence[int], classes: int) -> tuple[int, ...] | None:
    """The user's target classes, or None where none were named.

    Raises:
        OnnxspectError: one is not a class of the model.
    """
    for target in text:
        if not 0 <= target < classes:
            raise OnnxspectError(
                f"target class {target}, but the model has {classes} classes", f"indices from 0 to {classes - 1}"
            )
    return tuple(sorted(set(text))) or None
