"""From what a network answers to class scores ``(n, classes)``: by what is known of the value that was asked for.

One place for it, because a search, a tap, a patch and a proof must read the same answer the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from onnxspect.converters.lowering.logits import LogitsInfo

#: Probabilities below that are as good as 0: their logarithm stays finite, and float32 does not get there by itself.
SMALLEST_PROBABILITY = 1e-30
#: By so much may the probabilities of one image miss the sum 1, and a single one the interval [0, 1].
_ROUNDING = 1e-3
_MADE_SINGLE = ("before_sigmoid", "one_logit")


def as_scores(answers: Tensor) -> Tensor:
    """A network's answers as ``(n, classes)``, never coarser than float32: a bfloat16 score has ties."""
    scores = answers.reshape(answers.shape[0], -1)
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def class_scores(answers: Tensor, info: LogitsInfo | None) -> Tensor:
    """Class scores ``(n, classes)`` of a network's answers ``(n, ...)``; differentiable.

    Args:
        answers: what the value that `info` names holds.
        info: None where the answers are the scores.
    """
    scores = as_scores(answers)
    if info is None:
        return scores
    if info.how == "log_of_probabilities":
        scores = torch.log(scores.clamp_min(SMALLEST_PROBABILITY))
    if info.how in _MADE_SINGLE and scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    return scores[:, list(info.chosen)] if info.chosen else scores


def scores_array(values: np.ndarray, info: LogitsInfo | None) -> np.ndarray:
    """The same of an array that onnxruntime computed."""
    return np.asarray(class_scores(torch.from_numpy(np.ascontiguousarray(values, np.float32)), info).numpy())


class ClassScores(nn.Module):
    """A network whose answers become class scores.

    Args:
        inner: the network.
        info: what its answers are.
        double: it takes float64.
    """

    def __init__(self, inner: nn.Module, info: LogitsInfo, double: bool = False) -> None:
        super().__init__()
        self.inner, self.info, self.double_input = inner, info, double

    def forward(self, x: Tensor) -> Tensor:
        """``(n, classes)``; of a network of float64 too they are what searches take, float32."""
        if not self.double_input:
            return class_scores(self.inner(x), self.info)
        return class_scores(self.inner(x.double()), self.info).to(x.dtype)


def scoring(module: nn.Module, info: LogitsInfo, double: bool = False) -> nn.Module:
    """The network itself where its answers are the scores, else one that makes them.

    Args:
        module: the network.
        info: what its answers are.
        double: it takes float64.
    """
    plain = info.how in ("logits", "before_softmax") and not info.chosen and not double
    return module if plain else ClassScores(module, info, double)


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether scores ``(n, classes)`` of real images are probabilities: each within [0, 1], every row with the sum 1."""
    if scores.ndim != 2 or scores.shape[1] < 2 or not len(scores) or not np.isfinite(scores).all():
        return False
    within = scores.min() >= -_ROUNDING and scores.max() <= 1 + _ROUNDING
    return bool(within and np.abs(scores.sum(1) - 1).max() <= _ROUNDING)


def of_output(answers: np.ndarray, info: LogitsInfo) -> np.ndarray:
    """Class scores ``(n, classes)`` of what the file's own output says, as whoever deploys it reads it.

    Args:
        answers: of the output, ``(n, ...)``; one number an image is the probability of a second class, or its logit.
        info: of the class scores that lie behind that output.
    """
    scores = answers.reshape(len(answers), -1)
    if scores.shape[1] == 1:
        first = np.zeros_like(scores) if info.how == "one_logit" else 1 - scores
        scores = np.concatenate([first, scores], axis=1)
    return np.log(np.maximum(scores, SMALLEST_PROBABILITY)) if are_probabilities(scores) else scores


@dataclass(frozen=True)
class ModelView:
    """A model, and what of it is looked at; taken wherever a model is.

    Attributes:
        model: in any form (opening.ACCEPTED).
        output: name of the output whose class scores are meant; the likeliest one by default.
        bind: values of inputs other than the image, by name.
    """

    model: object
    output: str = ""
    bind: tuple[tuple[str, float], ...] = ()

    def with_output(self, output: str) -> ModelView:
        """The same, at another output."""
        return replace(self, output=output)
