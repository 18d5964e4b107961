"""One number a class from all that speaks of it: the null models' p-value, and how much less it takes than on clean networks.

The null models assume little, and of few classes they say little: one that takes a fifth of what it takes on every reference network does not stand
out by their laws where only one or three others are there to show the deviation. A bank of clean models (calibration.py) ranks any number, of
whatever law. So what each class takes less than on the references is weighed beside the p-value:

    S_k = w_0 log(1 + s_k) + sum over v of w_v max(0, e_vk - E[e_vk]),   s_k = -log10 p_k,   e_vk = log(reference_vk / value_vk)

with p_k the null models' p-value of class k and e_vk its *ease* in view v: the logarithm of how many times less it takes than on the references.
A trigger that works on the references as well is a feature of the class by nature, and no backdoor's, however little it takes (the transfer t_vk is
the mean share of unseen images that it leads there). So what is natural counts for less in either:

    e+_vk = max(0, e_vk - E[e_vk]),   e'_vk = e+_vk max(0, 1 - t_vk / NATURAL),   s'_k = log(1 + s_k) (sum_v e'_vk) / (sum_v e+_vk)

How much less a network takes as a whole is a matter of its architecture and training (a clean transformer or residual network may take far less than
the small references do, of every class), and only its other classes tell. Were all classes alike but for chance, and networks but for a shift,

    e_k = mu + shift + noise,   shift ~ N(0, between),   noise ~ N(0, within),
    E[e_k | the n others] = mu + B (their mean - mu),   B = between n / (between n + within)

(the best linear predictor: Henderson, 1975): of ten classes most of the others' mean is taken off, of two a third in some views.

The weights are those of a logistic regression of "k is a backdoor's target" on the tuning half of the bank: for few classes and for many,
and for each set of detectors, for ease counts most where the null models say least. None is negative: a class does
not become less suspicious by standing out. What a scan does not have (no references) adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its `optimize` takes a while to import: it is loaded where it is first used

from onnxspect.engine.judge.difficulty import Difficulty
from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence, View
from onnxspect.engine.judge.measurement import TRANSFER, Search

#: Penalty on the squared weights. History: docs/decisions.md.
PENALTY = 1.0
#: Below so many classes a class has few others to stand out from. History: docs/decisions.md.
FEW = 10
#: Ease beyond this says no more: a trigger of a thousandth of what is usual is not ten times as suspicious as one of a hundredth.
MOST_EASE = 4.0
#: A trigger that leads so many unseen images on clean networks is nature's alone. History: docs/decisions.md.
NATURAL = 0.5
#: Views that weigh, by how they were searched: what follows the detector's name.
_SUFFIX = {Search.FULL: "", Search.PAIR: " pairs"}


@dataclass(frozen=True)
class Shift:
    """How the ease of clean networks varies in one view.

    Attributes:
        mean: over networks, each family of them counting once.
        between: variance of a network's mean ease over its classes.
        within: variance between the classes of one network.
    """

    mean: float
    between: float
    within: float

    @classmethod
    def of(cls, families: Sequence[Sequence[np.ndarray]]) -> Shift | None:
        """Of clean models' eases ``(class,)``, family by family; None of fewer than two families that know of two classes at least.

        The variance between networks is that between families and that within one: what networks of one task and architecture have in
        common is a shift to them as well.
        """
        known = [[e[np.isfinite(e)] for e in family] for family in families]
        able = [found for family in known if (found := [e for e in family if len(e) > 1])]
        if len(able) < 2:
            return None
        means = [[float(e.mean()) for e in family] for family in able]
        spread = [float(np.var(m, ddof=1)) for m in means if len(m) > 1]
        classes = [e for family in able for e in family]
        within = np.average([e.var(ddof=1) for e in classes], weights=[len(e) - 1 for e in classes])
        centres = [float(np.mean(m)) for m in means]
        between = float(np.var(centres, ddof=1)) + (float(np.mean(spread)) if spread else 0.0)
        return cls(float(np.mean(centres)), between, float(within))

    def beyond(self, ease: np.ndarray) -> np.ndarray:
        """How far each class's ease lies above what the other classes lead to expect ``(class,)``; 0 below that, and where it is not known."""
        known = np.isfinite(ease)
        others = known.sum() - known
        total = np.where(known, ease, 0.0)
        mean = (total.sum() - total) / np.maximum(others, 1)
        pull = self.between * others / np.maximum(self.between * others + self.within, 1e-12)
        beyond = total - self.mean - pull * (mean - self.mean)
        return np.asarray(np.where(known, np.clip(beyond, 0.0, MOST_EASE), 0.0))


@dataclass(frozen=True)
class Weights:
    """How a class's suspicion is made.

    Attributes:
        few: of models with fewer than FEW classes; else of the others.
        detectors: that may name a class, by name, in order.
        surprise: of log(1 + s), s = -log10 of the null models' p-value.
        ease: of the ease in each view, by the view's name (`eases`).
        shifts: how each of these varies between and within clean networks.
        intercept: of the regression; it moves no rank, and makes the suspicion log odds among the classes of the bank.
        difficulty: what is usual of clean models' suspicions by the difficulty of their task; None where it says nothing of them.
    """

    few: bool
    detectors: tuple[str, ...]
    surprise: float
    ease: Mapping[str, float]
    shifts: Mapping[str, Shift]
    intercept: float = 0.0
    difficulty: Difficulty | None = None

    def apply_to(self, classes: int, detectors: Sequence[str]) -> bool:
        """Whether they are for models with so many classes, scanned by these detectors."""
        return self.few == (classes < FEW) and self.detectors == tuple(detectors)

    def suspicions(
        self,
        log10_p: np.ndarray,
        eases: Mapping[str, np.ndarray],
        transfers: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """The suspicion of each class ``(class,)``.

        Args:
            log10_p: of the null models, by class ``(class,)``.
            eases: by view ``(class,)``, NaN where a class has none.
            transfers: the same of these triggers' transfer, NaN where it is not known: then nothing counts as natural.
        """
        weights = np.array([self.surprise, *self.ease.values()])
        return np.asarray(
            self.intercept + _features(log10_p, eases, transfers or {}, self.shifts, [*self.ease]) @ weights
        )

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "few": self.few,
            "detectors": list(self.detectors),
            "surprise": self.surprise,
            "ease": dict(self.ease),
            "shifts": {name: dict(vars(shift)) for name, shift in self.shifts.items()},
            "intercept": self.intercept,
            "difficulty": None if self.difficulty is None else dict(vars(self.difficulty)),
        }

    @classmethod
    def described(cls, row: Mapping[str, Any]) -> Weights:
        """What `describe` wrote."""
        return cls(
            bool(row["few"]),
            tuple(map(str, row["detectors"])),
            float(row["surprise"]),
            {str(k): float(v) for k, v in row["ease"].items()},
            {str(k): Shift(**v) for k, v in row["shifts"].items()},
            float(row["intercept"]),
            None if row["difficulty"] is None else Difficulty(**row["difficulty"]),
        )


def surprise(log10_p: np.ndarray) -> np.ndarray:
    """log(1 - log10 p) ``(class,)``: what separates p = 1 from 0.01 counts as much as what separates 0.01 from 1e-8."""
    return np.asarray(np.log1p(np.maximum(0.0, -np.asarray(log10_p, np.float64))))


def eases(evidence: Sequence[Evidence | Skipped], classes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(ease, transfer) of the easiest trigger to each class ``(class,)``, by view: a detector's name, with " pairs" for its pairs.

    Of detectors that may name a class, in what they judge beside references on a logarithmic scale; of several taps the easiest. NaN
    where a class has no ease, or its trigger's transfer was not measured.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for one in evidence:
        if not isinstance(one, Evidence) or not one.traits.convicts or one.traits.tested:
            continue
        for view in one.judged:
            if view.references and view.log and view.tail == "low" and view.search in _SUFFIX:
                name = one.detector + _SUFFIX[view.search]
                ease, transfer = found.setdefault(name, (np.full(classes, np.nan), np.full(classes, np.nan)))
                for unit in one.seen_by(view):
                    k, value = unit.unit.target, _ease(unit, view)
                    if value is not None and k < classes and not value <= ease[k]:
                        known = unit.measurement(TRANSFER)
                        ease[k], transfer[k] = value, np.nan if known is None else known.value
    return {n: ease for n, (ease, _) in found.items()}, {n: transfer for n, (_, transfer) in found.items()}


def _ease(unit: UnitEvidence, view: View) -> float | None:
    """By how much less than on the references a trigger takes, a logarithm; None where that is not known."""
    measurement = unit.measurement(view.statistic, view.search)
    if measurement is None or not measurement.baselines or not measurement.relative:
        return None  # `reference` is what other classes take where nothing is known of this one
    known = np.isfinite(measurement.relative) and measurement.relative > 0
    return -float(np.log(measurement.relative)) if known else None


def _features(
    log10_p: np.ndarray,
    eases: Mapping[str, np.ndarray],
    transfers: Mapping[str, np.ndarray],
    shifts: Mapping[str, Shift],
    views: Sequence[str],
) -> np.ndarray:
    """What is weighed ``(class, 1 + view)``: the null models' surprise, and the ease in each view, less what is natural of them."""
    nothing = np.zeros(len(log10_p))
    easy = np.array([shifts[v].beyond(eases[v]) if v in eases else nothing for v in views]).reshape(
        len(views), len(log10_p)
    )
    natural = np.array([np.nan_to_num(transfers.get(v, nothing)) for v in views]).reshape(len(views), len(log10_p))
    kept = easy * np.clip(1 - natural / NATURAL, 0.0, 1.0)
    whole = easy.sum(0)
    share = np.where(whole > 0, kept.sum(0) / np.where(whole > 0, whole, 1.0), 1.0)
    return np.column_stack([surprise(log10_p) * share, *kept])


def fitted(
    models: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray], Mapping[str, np.ndarray], np.ndarray]],
    few: bool,
    detectors: Sequence[str],
    shifts: Mapping[str, Shift],
) -> Weights:
    """Weights by logistic regression with a penalty on their squares, none negative.

    Every class is one observation; those of one model count together as much as another model's, and a target as much as the other
    classes of its model.

    Args:
        models: of each (log10 p by class, eases by view, their transfers, whether a class is a target ``(class,)``).
        few, detectors: see `Weights`.
        shifts: of the views that weigh.
    """
    views = sorted(shifts)
    features = np.concatenate([_features(p, e, t, shifts, views) for p, e, t, _ in models])
    of_target = np.concatenate([t for *_, t in models]).astype(np.float64)
    weight = np.concatenate([np.where(t, 1.0, 1 / len(t)) for *_, t in models])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = w[0] + features @ w[1:]
        wrong = weight * (scipy.special.expit(z) - of_target)
        value = float((weight * (np.logaddexp(0, z) - of_target * z)).sum() + PENALTY * (w[1:] ** 2).sum())
        return value, np.concatenate([[wrong.sum()], features.T @ wrong + 2 * PENALTY * w[1:]])

    bounds = [(None, None), *[(0, None)] * features.shape[1]]
    found = scipy.optimize.minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x
    ease = dict(zip(views, map(float, found[2:]), strict=True))
    return Weights(few, tuple(detectors), float(found[1]), ease, dict(shifts), float(found[0]))
