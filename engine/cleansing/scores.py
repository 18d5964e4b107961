"""What a cleansing method hands over: a score and a decision for every training sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxspect.engine.errors import OnnxspectError


@dataclass(frozen=True)
class Scores:
    """One method's judgement of a training set.

    Attributes:
        detector: the method's name.
        score: float64 ``(n,)``, larger is more suspicious; comparable within a class only. NaN where the sample's class
            was not scored.
        removed: bool ``(n,)``: the decision.
        classes: what was found in each class that was scored, by class index.
        notes: fallbacks and anything else worth knowing, in sentences.
    """

    detector: str
    score: np.ndarray
    removed: np.ndarray
    classes: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rates:
    """How well a decision matches the truth (RE, Xiang et al., 2020, sec. 5.2.3).

    Attributes:
        tpr: share of the poisoned samples that were removed.
        fpr: share of the clean samples *labelled to a target class* that were removed: the paper's definition.
        fpr_all: share of all clean samples that were removed.
        poisoned: how many there are.
    """

    tpr: float
    fpr: float
    fpr_all: float
    poisoned: int


def rates(removed: np.ndarray, labels: np.ndarray, poisoned: np.ndarray) -> Rates:
    """TPR and FPR of a decision ``(n,)``, the truth being the indices `poisoned`.

    Raises:
        OnnxspectError: the truth names no sample, one twice, or one that is not there.
    """
    if not len(poisoned):
        raise OnnxspectError(
            "the truth names no poisoned sample, so there is no rate to measure",
            "leave the truth away where it is not known",
        )
    if len(np.unique(poisoned)) != len(poisoned):
        raise OnnxspectError("the truth names a sample twice", "each poisoned index once")
    if poisoned.min() < 0 or poisoned.max() >= len(labels):
        raise OnnxspectError(
            f"the truth names sample {poisoned.max()}, but there are {len(labels)}",
            "indices count from 0, in the order of the training set",
        )
    truth = np.zeros(len(labels), bool)
    truth[poisoned] = True
    of_targets = ~truth & np.isin(labels, np.unique(labels[truth]))
    return Rates(
        tpr=float(removed[truth].mean()),
        fpr=float(removed[of_targets].mean()) if of_targets.any() else 0.0,
        fpr_all=float(removed[~truth].mean()) if (~truth).any() else 0.0,
        poisoned=len(poisoned),
    )


def classes_to_score(labels: np.ndarray, targets: Sequence[int] | None, least: int) -> tuple[list[int], list[str]]:
    """Classes with at least `least` samples, and a note on each that has fewer.

    Args:
        labels: ``(n,)``.
        targets: only these, where they are known.
        least: samples that the method needs.
    """
    wanted = sorted(set(targets)) if targets is not None else sorted(set(labels.tolist()))
    sizes = {c: int((labels == c).sum()) for c in wanted}
    notes = [
        f"class {c} has {n} samples, fewer than the {least} that this needs: not scored"
        for c, n in sizes.items()
        if n < least
    ]
    return [c for c in wanted if sizes[c] >= least], notes
