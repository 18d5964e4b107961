"""Target-logit suppression (`withhold`): the target's logit is suppressed in images that score as stamped.

The input filter (input_filter.py) rejects, and whoever runs the file has to read that; it rejects clean images of all
classes alike. But only an image that the model would classify as the target can have been led there. So here the same
trigger score (trigger_score.py) decides about those images alone, and where it is above its threshold the target's
class score becomes the least of the image's scores: the next best class is answered. Inputs and outputs of the file
stay as they are, and nobody has to read anything new.

What it costs are clean images of the target class that score as stamped. The threshold is set so that this loses at
most the clean accuracy that may be lost, less one standard error, on images that had no part in the fit; of the images
of one class alone that is ten times as many (with ten classes) as a filter over all classes may reject at the same
cost.

The backdoor stays in the weights. So this is for backdoors that no training removes, as a reflection: over one that LeNet learned
unlearning left 6 to 15 % at two points of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.graph_edit import LogitSuppression
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.neurons import stamped_rows
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.mitigation.trigger_score import (
    LAYERS,
    RIDGE,
    TriggerScore,
    inner_layers,
    threshold,
    trigger_score,
)
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import UNTARGETED, Trigger

NAME = "withhold"


@dataclass(frozen=True)
class TargetLogitSuppression:
    """The method's settings.

    Attributes:
        layers: of the trigger score; so many of the last ones are tried in turn, until the recovered triggers succeed no more
            often on held-out images than they may. History: docs/decisions.md.
        ridge: of the trigger score.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    mends: ClassVar[bool] = False
    training: ClassVar[None] = None  # it fits a discriminant, in one pass
    layers: tuple[int, ...] = (LAYERS, LAYERS + 2)
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        require(len(self.layers) > 0 and min(self.layers) >= 1, "withhold reads at least one layer")
        require(self.ridge > 0, "the ridge of withhold is above 0")

    def edit(self, given: PatchInput) -> Edit:
        """Find the threshold, and what has to be added.

        Raises:
            OnnxspectError: no triggers, one without a target class, no ONNX file behind the subject, or its class scores are no
                value of the file.
        """
        taps = inner_layers(given, NAME)
        if any(t.target == UNTARGETED for t in given.triggers):
            raise OnnxspectError(
                f"{NAME}: a trigger that leads every class to another has no single logit to suppress",
                "another method, such as --method unlearn",
            )
        info, file = given.subject.origin.logits, given.subject.origin.file
        if info.chosen or info.how == "one_logit" or _numbers(given.subject) != given.subject.classes:
            raise OnnxspectError(
                f"{given.subject.name}: its class scores are not one value of the file for each class: {NAME} cannot suppress one",
                "another method, such as --method unlearn",
            )
        if not any(info.value in n.output for n in file.proto.graph.node):
            raise OnnxspectError(
                f"{given.subject.name}: its class scores are no value of the file",
                "another method, such as --method unlearn",
            )
        tried = [_Tried.of(given, trigger_score(given, taps, self.layers[0], self.ridge))]
        for layers in self.layers[1:]:
            if tried[-1].led > given.success:
                tried.append(_Tried.of(given, trigger_score(given, taps, layers, self.ridge)))
        best = min(tried, key=lambda t: t.led)  # of equal ones the first
        score = best.score
        added = LogitSuppression(
            score.readings, score.offsets, best.limit, score.targets, info.value, given.subject.classes
        )
        facts = {"layers": list(score.layers), "ridge": self.ridge, "threshold": best.limit, "led": best.led}
        return Edit(additions=(added,), facts=facts)


def _numbers(subject: Subject) -> int:
    """How many numbers an image's class scores are in the file: one, where a sigmoid makes two classes of it."""
    with torch.no_grad():
        image = torch.full((1, *subject.image_shape), 0.5, device=subject.device)
        return int(subject.graph.module(subject.spec.encode(image)).numel())


@dataclass(frozen=True)
class _Tried:
    """A trigger score, its threshold, and the success of the recovered trigger that works best on held-out samples."""

    score: TriggerScore
    limit: float
    led: float

    @classmethod
    def of(cls, given: PatchInput, score: TriggerScore) -> _Tried:
        """With the threshold that costs no more than it may."""
        answers = given.subject.predict(given.fit.images).argmax(1)
        own = _own(score.unseen, answers, score.targets)
        counted = (answers == given.fit.labels) & (own > -np.inf)  # to suppress a wrong answer costs nothing
        below = own[counted].min(initial=0.0) - 1
        limit = threshold(np.where(counted, own, below), given.accuracy_lost)
        return cls(score, limit, max(_led(given, score, t, limit) for t in given.triggers))


def _led(given: PatchInput, score: TriggerScore, trigger: Trigger, limit: float) -> float:
    """Share of the held-out images that a trigger leads to its target in spite of the suppression."""
    rows = stamped_rows(given.guard, trigger, None)
    images = trigger.apply(given.guard.images[rows])
    answers = given.subject.predict(images).argmax(1)
    return float(((answers == trigger.target) & (_own(score(images), answers, score.targets) <= limit)).mean())


def _own(scores: np.ndarray, answers: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Each image's trigger score for its predicted class ``(n,)``; -inf where that is no target."""
    own = np.full(len(answers), -np.inf)
    for column, target in enumerate(targets):
        own = np.where(answers == target, scores[:, column], own)
    return own
