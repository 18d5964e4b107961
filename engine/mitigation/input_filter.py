"""The input filter (Neural Cleanse, Wang et al., 2019, sec. VI-A): reject images that excite the trigger's neurons.

An image's score is a linear function of inner activations, fitted to stamped and clean images; images whose score is
above a threshold are rejected. The threshold is calibrated on clean images to a chosen false-positive rate, and what
the filter does is measured on others. The classifier keeps its weights. The filter is part of the file: original
outputs, plus `backdoor_score` and `rejected`.

Two forms:

* `discriminant`, the default: the trigger score (trigger_score.py) of the last few layers; the largest target's counts.
* `profile`, the paper's: the average of the top 1 % of one layer's neurons (activation_profile.py). The paper takes the
  second to last layer; here every layer may serve, and the one is taken that separates best. What each lets through:
  docs/decisions.md and docs/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxspect.converters.lowering.taps import Tap
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.activation_profile import profile
from onnxspect.engine.mitigation.graph_edit import Filter, Reading
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.mitigation.trigger_score import (
    LAYERS,
    RIDGE,
    flat,
    inner_layers,
    rows_of,
    sorts,
    threshold,
    trigger_score,
)
from onnxspect.engine.search.embedding import embed

NAME = "input-filter"
FORMS = ("discriminant", "profile")


@dataclass(frozen=True)
class InputFilter:
    """The method's settings.

    Attributes:
        form: one of `FORMS`.
        false_positives: share of clean images that may be rejected.
        layer: "best" (the form's own choice), or an ONNX value name.
        layers, ridge: of the discriminant (trigger_score.py).
        top: share of a layer's neurons that make the profile (Neural Cleanse: 1 %); at least one.
        trials: at most so many layers are tried for the profile, the deepest first.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    mends: ClassVar[bool] = False
    form: str = "discriminant"
    false_positives: float = 0.05
    layer: str = "best"
    layers: int = LAYERS
    ridge: float = RIDGE
    top: float = 0.01
    trials: int = 8

    def __post_init__(self) -> None:
        require(self.trials >= 1, "a filter tries at least one layer")
        if not 0 < self.top <= 1 or not 0 < self.false_positives < 1:
            raise OnnxspectError("a filter's share of neurons and its false-positive rate lie between 0 and 1")
        if self.form not in FORMS:
            raise OnnxspectError(f"unknown form of filter {self.form!r}", f"one of {', '.join(FORMS)}")
        if self.layers < 1 or self.ridge <= 0:
            raise OnnxspectError("a filter reads one layer at least, and its ridge is above 0")

    def edit(self, given: PatchInput) -> Edit:
        """Build the filter.

        Raises:
            OnnxspectError: no triggers, no ONNX file behind the subject, or no such layer.
        """
        taps = inner_layers(given, NAME)
        if self.layer != "best":
            taps = [t for t in taps if t.name == self.layer]
        if not taps:
            raise OnnxspectError(f"{self.layer}: no such layer in this model", "`onnxspect info` lists the values")
        made = self._discriminant(given, taps) if self.form == "discriminant" else self._best_profile(given, taps)
        return Edit(additions=(made.filter,), facts={"form": self.form, **made.facts})

    def _discriminant(self, given: PatchInput, taps: list[Tap]) -> _Made:
        """By the trigger score of the last layers."""
        score = trigger_score(given, taps, self.layers, self.ridge)
        limit = threshold(score.unseen.max(1), self.false_positives)
        stamped = np.concatenate([score(i).max(1) for t in given.triggers for i in sorts(given.guard, t)])
        facts = {"layers": list(score.layers), "ridge": self.ridge}
        clean = score(given.guard.images).max(1)
        return _Made.judged(Filter(score.readings, score.offsets, limit), clean, stamped, facts)

    def _best_profile(self, given: PatchInput, taps: list[Tap]) -> _Made:
        """The paper's profile at the layer where it separates best; of equal ones the first."""
        tried = [self._profile(given, tap) for tap in taps[-self.trials :]]
        best = max(tried, key=lambda m: (round(1 - m.facts["missed"], 3), m.facts["separation"]))
        return _Made(best.filter, best.facts | {"trials": [m.facts for m in tried]})

    def _profile(self, given: PatchInput, tap: Tap) -> _Made:
        embedding = embed(given.subject, tap.name)
        fit, guard = flat(embedding, given.fit.images), flat(embedding, given.guard.images)
        means: dict[int, list[np.ndarray]] = {}
        for trigger in given.triggers:
            images = trigger.apply(given.fit.images[rows_of(given.fit, trigger)])
            means.setdefault(trigger.target, []).append(flat(embedding, images).mean(0))
        neurons, weights = profile(fit, list(means.values()), self.top)
        # The threshold is a quantile of the same float32 sum that the file computes.
        limit = threshold(fit[:, neurons] @ weights, self.false_positives)
        stamped = [
            flat(embedding, i)[:, neurons] @ weights for t in given.triggers for i in sorts(given.guard, t, hard=False)
        ]
        filter_ = Filter((Reading(tap.name, weights[:, None], neurons),), np.zeros(1, np.float32), limit)
        facts = {"layers": [tap.name], "neurons": len(neurons), "top": self.top}
        return _Made.judged(filter_, guard[:, neurons] @ weights, np.concatenate(stamped), facts)


@dataclass(frozen=True)
class _Made:
    """A filter, and what it does on held-out clean samples: `missed` (share of stamped images under the threshold),
    `rejected` (share of clean ones above it), `separation` (area under the ROC curve)."""

    filter: Filter
    facts: dict[str, Any]

    @classmethod
    def judged(cls, made: Filter, clean: np.ndarray, stamped: np.ndarray, facts: dict[str, Any]) -> _Made:
        """With what its scores of clean and stamped images say."""
        measured = {
            "threshold": made.threshold,
            "separation": _roc_area(clean, stamped),
            "missed": float((stamped <= made.threshold).mean()),
            "rejected": float((clean > made.threshold).mean()),
        }
        return cls(made, facts | measured)


def _roc_area(clean: np.ndarray, stamped: np.ndarray) -> float:
    """Chance that a stamped image scores above a clean one; ties count half."""
    ordered = np.sort(clean)
    below = np.searchsorted(ordered, stamped, "left") + np.searchsorted(ordered, stamped, "right")
    return float(below.mean() / 2 / len(clean))
