"""The activation profile of Neural Cleanse (Wang et al., 2019), sec. VI-A: the mean of the neurons that a trigger excites.

The score of an image is the mean activation of the top 1 % of a layer's neurons, ranked by how much more they answer to
stamped than to clean images. Departures: each neuron's activation is first divided by its standard deviation on clean
images, so that one loud neuron does not drown the others; with several target classes each has its own neurons, and the
one score takes the top ones of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxspect.engine.mitigation.neurons import scale_of


def profile(clean: np.ndarray, stamped: Sequence[Sequence[np.ndarray]], top: float) -> tuple[np.ndarray, np.ndarray]:
    """(indices ``(k,)`` of the neurons in the profile, their weights ``(k,)``); the score is `activations[indices] @ weights`.

    Args:
        clean: activations of clean images ``(n, features)``.
        stamped: for each target the mean activations ``(features,)`` of each of its triggers' stamped images.
        top: share of the neurons that a target's profile takes; at least one.
    """
    mean, scale = clean.mean(0), scale_of(clean)
    k = max(1, round(top * len(mean)))
    weights = np.zeros(len(mean), np.float32)
    for means in stamped:
        gap = np.mean([(m - mean) / scale for m in means], axis=0)
        weights[np.argsort(-gap, kind="stable")[:k]] = 1.0 / k
    neurons = np.flatnonzero(weights)
    return neurons, (weights[neurons] / scale[neurons]).astype(np.float32)
