"""The input filter (002, sec. VI-A): reject images that excite the neurons which the trigger excites.

An image's score is a linear function of inner activations, told by stamped and clean images; images whose score is above
a threshold are rejected. The threshold is calibrated on clean images to a chosen false-positive rate, and what the filter does is
measured on others. The classifier keeps its weights. The filter is part of the file: original outputs, plus `backdoor_score` and `rejected`.

Two forms:

* `discriminant`, the default: for each target class the direction that separates stamped from clean images best
  (discriminant.py) at each of the last few layers, in deviations of unseen clean images; the layers' scores are added,
  and the largest target counts. Where the attacker's trigger is not the one recovered, the last layers before the logits
  are where the two meet: every image that is led to the target has to pass there.
* `profile`, the paper's: the average of the top 1 % of one layer's neurons (activation_profile.py). The paper takes the
  second to last layer; here every layer may serve, and the one is taken that separates best. Over the zoo it lets 95 % of
  a warping attack's images through, 41 % of a reflection's and 9 % of nine patches' (measured in November 2026); the
  discriminant's figures are in docs/results.md.

The recovered trigger is stamped at half, once and twice its strength, and as whole pixels, because the attacker's own
differs from it; a trigger with a source is stamped on images of its source alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxspect.converters.taps import Tap, cuts
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.activation_profile import profile
from onnxspect.engine.mitigation.discriminant import Discriminant, Shift, fitted
from onnxspect.engine.mitigation.graph_edit import Filter, Reading
from onnxspect.engine.mitigation.method import Case, Edit, Trigger, hardened, strengthened
from onnxspect.engine.mitigation.neurons import Halves, stamped_rows
from onnxspect.engine.perturbation import stamp
from onnxspect.engine.samples import Samples

NAME = "input_filter"
FORMS = ("discriminant", "profile")
#: Clean images that a filter is fitted on, and images that each sort of trigger is stamped on, at most.
_MOST_CLEAN, _MOST_STAMPED = 1000, 100
#: A layer with more features is passed over where there is another: its weights would be a large part of the file.
_MOST_FEATURES = 1 << 17
#: Operators that only arrange or thin out what the layer before has said.
_SAME = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "AveragePool"))


@dataclass(frozen=True)
class InputFilter:
    """The method's settings.

    Attributes:
        form: one of `FORMS`.
        false_positives: share of clean images that may be rejected.
        layer: "best" (the form's own choice), or an ONNX value name.
        layers: so many of the last layers the discriminant adds up. Over six attacks three let at most 1.6 % through, two 2.6 %,
            four 3.1 %, and single ones up to 24 % (a warp) or 14 % (an L in a corner).
        ridge: of the discriminant. 0.1 to 1 made no difference above 1 %.
        top: share of a layer's neurons that make the profile (002: 1 %); at least one.
        trials: at most so many layers are tried for the profile, the deepest first.
        strengths: the trigger is stamped at each of these multiples.
        hard: and as whole pixels, where its mask is above these shares of its maximum.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    form: str = "discriminant"
    false_positives: float = 0.05
    layer: str = "best"
    layers: int = 3
    ridge: float = 0.3
    top: float = 0.01
    trials: int = 8
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    hard: tuple[float, ...] = (0.15, 0.35)

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1 or not 0 < self.false_positives < 1:
            raise OnnxspectError("a filter's share of neurons and its false-positive rate lie between 0 and 1")
        if self.form not in FORMS:
            raise OnnxspectError(f"unknown form of filter {self.form!r}", f"one of {', '.join(FORMS)}")
        if self.layers < 1 or self.ridge <= 0:
            raise OnnxspectError("a filter reads one layer at least, and its ridge is above 0")

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
        made = self._discriminant(case, taps) if self.form == "discriminant" else self._best_profile(case, taps)
        return Edit(additions=(made.filter,), facts={"form": self.form, **made.facts})

    def _discriminant(self, case: Case, taps: list[Tap]) -> _Made:
        """Of the last layers, one discriminant each."""
        own = [t for t in taps if t.operator not in _SAME] or taps
        targets = sorted({t.target for t in case.triggers})
        fit, apart = case.fit.images[:_MOST_CLEAN], case.fit.images[_MOST_CLEAN:]
        stamps = [(t.target, _rows(case.fit, t), list(self._sorts(case.fit, t))) for t in case.triggers]
        sorts = sum(len(images) for *_, images in stamps)
        parts: list[tuple[Tap, Halves, Discriminant]] = []
        unseen: list[np.ndarray] = []
        for tap in reversed(own):
            halves = Halves(case.subject, tap)
            clean = _flat(halves, fit)
            if clean.shape[1] > _MOST_FEATURES and (parts or tap is not own[0]):
                continue
            others = _flat(halves, apart) if len(apart) else clean[:0]
            shifts: dict[int, list[Shift]] = {target: [] for target in targets}
            for target, rows, images in stamps:
                plain = _flat(halves, case.fit.images[rows])
                shifts[target] += [Shift.of(plain, _flat(halves, i), rows, sorts) for i in images]
            found = fitted(clean, others, list(shifts.values()), self.ridge)
            parts.append((tap, halves, found))
            unseen.append(np.concatenate([found.clean, found.scores(others)]))
            if len(parts) == self.layers:
                break
        threshold = _threshold(np.sum(unseen, axis=0).max(1), self.false_positives)

        def score(images: np.ndarray) -> np.ndarray:
            return np.asarray(np.sum([d.scores(_flat(h, images)) for _, h, d in parts], axis=0).max(1))

        readings = tuple(Reading(t.name, d.weights.astype(np.float32)) for t, _, d in reversed(parts))
        offsets = np.sum([d.offsets for *_, d in parts], axis=0).astype(np.float32)
        stamped = np.concatenate([score(i) for t in case.triggers for i in self._sorts(case.guard, t)])
        facts = {"layers": [t.name for t, *_ in reversed(parts)], "ridge": self.ridge}
        return _Made.judged(Filter(readings, offsets, threshold), score(case.guard.images), stamped, facts)

    def _best_profile(self, case: Case, taps: list[Tap]) -> _Made:
        """The paper's profile at the layer where it separates best; of equal ones the first."""
        tried = [self._profile(case, tap) for tap in taps[-self.trials :]]
        best = max(tried, key=lambda m: (round(1 - m.facts["missed"], 3), m.facts["separation"]))
        return _Made(best.filter, best.facts | {"trials": [m.facts for m in tried]})

    def _profile(self, case: Case, tap: Tap) -> _Made:
        halves = Halves(case.subject, tap)
        fit, guard = _flat(halves, case.fit.images), _flat(halves, case.guard.images)
        means: dict[int, list[np.ndarray]] = {}
        for trigger in case.triggers:
            images = stamp(case.fit.images[_rows(case.fit, trigger)], dict(trigger.arrays))
            means.setdefault(trigger.target, []).append(_flat(halves, images).mean(0))
        neurons, weights = profile(fit, list(means.values()), self.top)
        # The threshold is a quantile of the same float32 sum that the file computes.
        threshold = _threshold(fit[:, neurons] @ weights, self.false_positives)
        stamped = [
            _flat(halves, i)[:, neurons] @ weights
            for t in case.triggers
            for i in self._sorts(case.guard, t, hard=False)
        ]
        filter_ = Filter((Reading(tap.name, weights[:, None], neurons),), np.zeros(1, np.float32), threshold)
        facts = {"layers": [tap.name], "neurons": len(neurons), "top": self.top}
        return _Made.judged(filter_, guard[:, neurons] @ weights, np.concatenate(stamped), facts)

    def _sorts(self, samples: Samples, trigger: Trigger, hard: bool = True) -> Iterator[np.ndarray]:
        """Stamped images, one array for each strength, and for each way to make whole pixels of a mask.

        Raises:
            OnnxspectError: there are no images to stamp.
        """
        rows = _rows(samples, trigger)
        forms = [strengthened(trigger, s) for s in self.strengths]
        if hard and "mask" in trigger.arrays:
            forms += [hardened(trigger, bar) for bar in self.hard]
        for arrays in forms:
            yield stamp(samples.images[rows], arrays)


@dataclass(frozen=True)
class _Made:
    """A filter, and what it does on clean samples kept apart: `missed` (share of stamped images under the threshold),
    `rejected` (share of clean ones above it), `separation` (area under the ROC curve)."""

    filter: Filter
    facts: dict[str, Any]

    @classmethod
    def judged(cls, made: Filter, clean: np.ndarray, stamped: np.ndarray, facts: dict[str, Any]) -> _Made:
        """With what its scores of clean and stamped images say."""
        told = {
            "threshold": made.threshold,
            "separation": _roc_area(clean, stamped),
            "missed": float((stamped <= made.threshold).mean()),
            "rejected": float((clean > made.threshold).mean()),
        }
        return cls(made, facts | told)


def _rows(samples: Samples, trigger: Trigger) -> np.ndarray:
    """The first images that count for a trigger's success."""
    rows = stamped_rows(samples, trigger, None)[:_MOST_STAMPED]
    if not len(rows):
        raise OnnxspectError(f"no samples of any class but {trigger.target} to measure the trigger on")
    return rows


def _flat(halves: Halves, images: np.ndarray) -> np.ndarray:
    """Activations float32 ``(n, features)``."""
    return halves.activations(images).flatten(1).float().numpy()


def _threshold(scores: np.ndarray, false_positives: float) -> float:
    """A score that at most the allowed share of clean images exceeds: halfway between two of theirs, where rounding is no matter.

    One standard error fewer of those at hand exceed it: where exactly the share of a few hundred does, more of all images do in
    one draw of two.
    """
    n = len(scores)
    allowed = n * false_positives - (n * false_positives * (1 - false_positives)) ** 0.5
    ordered = np.sort(scores)
    last = n - 1 - max(0, int(np.floor(allowed)))
    if last == n - 1:  # too few images for that share: above all of them
        return float(ordered[-1] + (ordered[-1] - ordered[-2]) / 2) if n > 1 else float(ordered[-1])
    return float(ordered[last : last + 2].mean())


def _roc_area(clean: np.ndarray, stamped: np.ndarray) -> float:
    """Chance that a stamped image scores above a clean one; ties count half."""
    ordered = np.sort(clean)
    below = np.searchsorted(ordered, stamped, "left") + np.searchsorted(ordered, stamped, "right")
    return float(below.mean() / 2 / len(clean))
