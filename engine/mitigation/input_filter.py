"""The input filter (002, sec. VI-A): reject images that excite the neurons which the trigger excites.

An image's activation profile is the average activation of the top 1 % of neurons, ranked by how much more they answer
to stamped than to clean images; images whose profile is above a threshold are rejected. The threshold is calibrated on
clean images to a chosen false-positive rate.

Departures, and why:

* Each neuron's activation is first divided by its standard deviation on clean images, so that one loud neuron does not
  drown the others; and neurons are ranked by the gap in these units.
* The paper takes the second to last layer. Here every layer may serve, and the one is taken that separates stamped from
  clean images best; the recovered trigger is judged at half its strength too, because the attacker's own differs from it.
* With several target classes each has its own neurons; the one filter takes the top ones of each.
* The classifier keeps its weights. The filter is part of the file: original outputs, plus `backdoor_score` and
  `rejected`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np

from onnxspect.converters.taps import Tap, cuts
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.graph_edit import Filter
from onnxspect.engine.mitigation.method import Case, Edit, Trigger, strengthened
from onnxspect.engine.mitigation.neurons import MOST_IMAGES, Halves, stamped_rows
from onnxspect.engine.perturbation import stamp

NAME = "input_filter"


@dataclass(frozen=True)
class Profile:
    """The filter at one layer, and how well it separates on clean samples kept apart.

    Attributes:
        layer: ONNX value name.
        neurons: how many it looks at.
        separation: area under the ROC curve, stamped against clean.
        missed: share of stamped images under the threshold (false negatives).
        rejected: share of clean images above it (false positives).
    """

    layer: str
    neurons: int
    separation: float
    missed: float
    rejected: float


@dataclass(frozen=True)
class InputFilter:
    """The method's settings.

    Attributes:
        top: share of a layer's neurons that make the profile (002: 1 %); at least one.
        false_positives: share of clean images that may be rejected.
        layer: "best" (by trial), or an ONNX value name.
        trials: at most so many layers are tried, the deepest first.
        strengths: the trigger counts at each of these multiples.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = False
    top: float = 0.01
    false_positives: float = 0.05
    layer: str = "best"
    trials: int = 8
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1 or not 0 < self.false_positives < 1:
            raise OnnxspectError("a filter's share of neurons and its false-positive rate lie between 0 and 1")

    def edit(self, case: Case) -> Edit:
        """Build the filter.

        Raises:
            OnnxspectError: no triggers, no ONNX file behind the subject, or no such layer.
        """
        case.needs_triggers(NAME)
        if case.subject.lowered is None:
            raise OnnxspectError(f"{case.subject.name}: no ONNX file behind this subject", "export it first")
        taps = [t for t in cuts(case.subject.lowered) if t.depth > 0]
        if self.layer != "best":
            taps = [t for t in taps if t.name == self.layer]
        if not taps:
            raise OnnxspectError(f"{self.layer}: no such layer in this model", "`onnxspect info` lists the values")
        found = [self._at(case, tap) for tap in taps[-self.trials :]]
        best = max(range(len(found)), key=lambda i: (round(1 - found[i][0].missed, 3), found[i][0].separation))
        profile, filter_ = found[best]
        facts = asdict(profile) | {"threshold": filter_.threshold, "top": self.top}
        return Edit(additions=(filter_,), facts=facts | {"trials": [asdict(p) for p, _ in found]})

    def _at(self, case: Case, tap: Tap) -> tuple[Profile, Filter]:
        halves = Halves(case.subject, tap)
        fit = halves.activations(case.fit.images).flatten(1).numpy()
        mean, deviation = fit.mean(0), fit.std(0)
        scale = deviation + 1e-3 * float(deviation.max() or 1.0)  # a neuron that clean images leave silent is no
        # infinitely sharp witness: few clean images say only that it is rare
        weights = self._weights(case, halves, mean, scale)
        neurons = np.flatnonzero(weights)
        picked = (weights[neurons] / scale[neurons]).astype(np.float32)
        # The threshold is a quantile of the same float32 sum that the file computes, over all clean samples at hand.
        clean = halves.activations(case.guard.images).flatten(1).numpy()
        scores = np.concatenate([fit, clean])[:, neurons] @ picked
        threshold = _threshold(scores, self.false_positives)
        stamped = np.concatenate([self._scores(case, halves, t, neurons, picked) for t in self._strengthened(case)])
        guard_scores = clean[:, neurons] @ picked
        profile = Profile(
            tap.name,
            len(neurons),
            separation=_roc_area(guard_scores, stamped),
            missed=float((stamped <= threshold).mean()),
            rejected=float((guard_scores > threshold).mean()),
        )
        return profile, Filter(tap.name, neurons, picked, threshold)

    def _strengthened(self, case: Case) -> list[Trigger]:
        return [replace(t, arrays=strengthened(t, s)) for t in case.triggers for s in self.strengths]

    def _weights(self, case: Case, halves: Halves, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """1 / k for the k neurons of each target's profile, else 0."""
        k = max(1, round(self.top * len(mean)))
        weights = np.zeros(len(mean), np.float32)
        targets: dict[int, list[np.ndarray]] = {}
        for trigger in case.triggers:
            rows = np.flatnonzero(case.fit.labels != trigger.target)[:MOST_IMAGES]
            stamped = stamp(case.fit.images[rows], dict(trigger.arrays))
            gap = (halves.activations(stamped).flatten(1).numpy().mean(0) - mean) / scale
            targets.setdefault(trigger.target, []).append(gap)
        for gaps in targets.values():
            top = np.argsort(-np.mean(gaps, axis=0), kind="stable")[:k]
            weights[top] = 1.0 / k
        return weights

    def _scores(
        self, case: Case, halves: Halves, trigger: Trigger, neurons: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        rows = stamped_rows(case.guard, trigger, None)
        if not len(rows):
            raise OnnxspectError(f"no samples of any class but {trigger.target} to measure the trigger on")
        stamped = stamp(case.guard.images[rows], dict(trigger.arrays))
        return np.asarray(halves.activations(stamped).flatten(1).numpy()[:, neurons] @ weights)


def _threshold(scores: np.ndarray, false_positives: float) -> float:
    """The smallest score that at most the allowed share of clean images exceeds."""
    ordered = np.sort(scores)
    allowed = int(np.floor(false_positives * len(ordered)))
    return float(ordered[len(ordered) - 1 - allowed])


def _roc_area(clean: np.ndarray, stamped: np.ndarray) -> float:
    """Chance that a stamped image scores above a clean one; ties count half."""
    ordered = np.sort(clean)
    below = np.searchsorted(ordered, stamped, "left") + np.searchsorted(ordered, stamped, "right")
    return float(below.mean() / 2 / len(clean))
