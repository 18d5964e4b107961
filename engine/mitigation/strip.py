"""STRIP (Gao et al., 2019): a filter that needs no trigger, for servers that can afford many forward passes.

An input is blended with N clean images, ``x_i = (1 - w) x + w c_i``, and the model's answers are averaged in entropy:
``H(x) = - 1/N sum_i sum_k p_k(x_i) log2 p_k(x_i)`` (their Eq. 4). A clean input's answers change with what is blended
into it; an input with a trigger that survives blending is sent to the target again and again, so its entropy is low.
Inputs whose entropy is below a threshold are rejected; the threshold is a quantile of clean inputs' entropies (they fit
a normal distribution to them first; a quantile assumes less).

Departure: they add the images (and let pixels saturate); here they are blended half and half, which keeps pixels in
[0, 1] without clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_softmax

from onnxspect.engine.errors import InconclusiveError, OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples

NAME = "strip"
#: Pixels ``(n, channels, height, width)`` to class scores (logits) ``(n, classes)``.
Classify = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Strip:
    """The filter's settings.

    Attributes:
        blends: forward passes an input (N).
        weight: of the clean image in a blend.
        false_positives: share of clean inputs that may be rejected.
    """

    blends: int = 32
    weight: float = 0.5
    false_positives: float = 0.05

    def __post_init__(self) -> None:
        if self.blends < 1 or not 0 < self.weight < 1 or not 0 < self.false_positives < 1:
            raise OnnxspectError(
                "STRIP blends at least one image, with a weight and a false-positive rate between 0 and 1"
            )

    def calibrate(self, classify: Classify, clean: Samples, run: RunContext) -> Calibrated:
        """A ready filter: half of the clean samples are blended into inputs, the other half sets the threshold.

        Raises:
            OnnxspectError: fewer than four clean samples.
        """
        if len(clean) < 4:
            raise InconclusiveError(f"{len(clean)} clean samples are too few for STRIP")
        order = run.numpy_generator(NAME, "halves").permutation(len(clean))
        pool, rest = clean.images[np.sort(order[::2])], clean.images[np.sort(order[1::2])]
        filter_ = Calibrated(self, classify, pool, -np.inf, run.key(NAME, "blends"))
        entropies = np.sort(filter_.entropy(rest))
        allowed = int(np.floor(self.false_positives * len(entropies)))
        return Calibrated(self, classify, pool, float(entropies[allowed]), filter_.seed)


@dataclass(frozen=True)
class Calibrated:
    """STRIP over one model.

    Attributes:
        settings: of the filter.
        classify: the model.
        pool: clean images that inputs are blended with.
        threshold: inputs of a lower entropy (bits) are rejected.
        seed: of the draw of partners.
    """

    settings: Strip
    classify: Classify = field(repr=False)
    pool: np.ndarray = field(repr=False)
    threshold: float
    seed: int

    def entropy(self, images: np.ndarray) -> np.ndarray:
        """Mean entropy, in bits, of the answers to an input's blends ``(n,)``."""
        rng = np.random.default_rng(self.seed)
        partners = rng.integers(0, len(self.pool), self.settings.blends)
        total = np.zeros(len(images))
        weight = np.float32(self.settings.weight)
        for partner in partners:
            blended = (1 - weight) * images + weight * self.pool[partner]
            logs = log_softmax(self.classify(blended).astype(np.float64), axis=1)
            total -= (np.exp(logs) * logs).sum(1) / np.log(2)
        return np.asarray(total / self.settings.blends)

    def rejects(self, images: np.ndarray) -> np.ndarray:
        """Which inputs are rejected, bool ``(n,)``."""
        return self.entropy(images) < self.threshold
