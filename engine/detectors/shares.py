"""Shares of samples on the scale on which their noise is known: arcsin(sqrt(share)), the angle of Fisher and Bartlett."""

from __future__ import annotations

import numpy as np


def angle(share: float) -> float:
    """arcsin(sqrt(share)) in radians: a share of n has the same deviation there, 1 / (2 sqrt n), whatever it is."""
    return float(np.arcsin(np.sqrt(share)))


def angle_noise(n: int) -> float:
    """Deviation of the angle of a share of n samples."""
    return 0.5 / float(np.sqrt(max(1, n)))
