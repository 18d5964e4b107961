"""The linear classifier of the certificate: hinge loss over an l2 ball of parameters, solved to a stated accuracy.

``loss(theta) = mean_i weight_i max(0, 1 - y_i <theta, x_i>)`` over ``||theta|| <= radius`` (Steinhardt et al., 2017: a
binary SVM; the ball is the paper's Theta). A bias is one more feature that is always 1, so it counts in the norm.

The hinge is smoothed into a Huber hinge (Nesterov, 2005) of falling width and minimised by accelerated projected
gradient with restarts (Beck and Teboulle, 2009; O'Donoghue and Candes, 2015). Every smoothed gradient is a dual point:
for any ``a_i`` in [0, weight_i], ``min loss >= sum_i a_i - radius ||sum_i a_i y_i x_i||`` (exchange min and max in
``max(0, m) = max over a in [0, 1] of a m``). So the result carries a proven lower bound, and `gap` says how far it is
from the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Widths of the Huber hinge, widest first; each starts from the last one's result.
_WIDTHS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class Trained:
    """A classifier and how good it is.

    Attributes:
        theta: float64 ``(d,)``.
        loss: its loss.
        lower: no parameters in the ball have a smaller one.
    """

    theta: np.ndarray
    loss: float
    lower: float

    @property
    def gap(self) -> float:
        """How much better the best parameters could be, at most."""
        return self.loss - self.lower


def hinge(theta: np.ndarray, features: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Losses ``(n,)`` of rows ``(n, d)`` with labels -1 or 1 ``(n,)``."""
    losses: np.ndarray = np.maximum(0.0, 1.0 - signs * (features @ theta))
    return losses


def hinge_gradient(
    theta: np.ndarray, features: np.ndarray, signs: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """The weighted loss, and a subgradient ``(d,)`` of it."""
    margins = 1.0 - signs * (features @ theta)
    wrong = margins > 0
    pull = np.where(wrong, -signs * weights, 0).astype(features.dtype)
    return float((weights * np.where(wrong, margins, 0)).sum()), (pull @ features).astype(np.float64)


def with_bias(features: np.ndarray) -> np.ndarray:
    """The rows with one more feature that is always 1."""
    return np.concatenate([features, np.ones((len(features), 1), features.dtype)], axis=1)


def into_ball(theta: np.ndarray, radius: float) -> np.ndarray:
    """The nearest point with a norm of at most `radius`."""
    norm = float(np.linalg.norm(theta))
    return theta * (radius / norm) if norm > radius else theta


def train(
    features: np.ndarray,
    signs: np.ndarray,
    weights: np.ndarray,
    radius: float,
    tolerance: float = 1e-3,
    start: np.ndarray | None = None,
    steps: int = 400,
) -> Trained:
    """The best parameters in the ball.

    Args:
        features: ``(n, d)``.
        signs: labels, -1 or 1 ``(n,)``.
        weights: of each row's loss ``(n,)``, not negative.
        radius: of the ball.
        tolerance: stop once the result is proven to be within this share of the best loss (or 1e-6 absolutely).
        start: where to begin; zero by default.
        steps: gradient steps for each width of the smoothed hinge, at most.
    """
    signed = signs[:, None].astype(features.dtype) * features
    theta = into_ball(start.astype(np.float64), radius) if start is not None else np.zeros(features.shape[1])
    curvature = _largest_eigenvalue(signed, weights)
    best, best_loss, lower = theta, float((weights * np.maximum(0, 1 - signed @ theta)).sum()), 0.0
    for width in _WIDTHS:
        step = width / max(curvature, 1e-12)
        ahead, momentum, before = theta, 1.0, np.inf
        for _ in range(steps):
            margins = 1.0 - (signed @ ahead.astype(features.dtype)).astype(np.float64)
            dual = weights * np.clip(margins / width, 0, 1)
            gradient = -(dual.astype(features.dtype) @ signed).astype(np.float64)
            # dual bound: at the duals of any point, here the extrapolated one
            lower = max(lower, float(dual.sum() - radius * np.linalg.norm(gradient)))
            smooth = float((dual * margins - dual * np.clip(margins / width, 0, 1) * width / 2).sum())
            loss = float((weights * np.maximum(0, margins)).sum())
            if loss < best_loss and np.linalg.norm(ahead) <= radius * (1 + 1e-12):
                best, best_loss = ahead, loss
            if best_loss - lower <= max(tolerance * best_loss, 1e-6):
                return Trained(best, best_loss, lower)
            after = into_ball(ahead - step * gradient, radius)
            if smooth > before:  # the momentum overshot: begin again from here
                momentum = 1.0
            before = smooth
            grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = into_ball(after + (momentum - 1) / grown * (after - theta), radius)
            theta, momentum = after, grown
        loss = float((weights * np.maximum(0, 1 - signed @ theta)).sum())
        if loss < best_loss:
            best, best_loss = theta, loss
    return Trained(best, best_loss, lower)


def _largest_eigenvalue(signed: np.ndarray, weights: np.ndarray) -> float:
    """Of ``sum_i weight_i x_i x_i^T``, by power iteration from a fixed start, with a tenth to spare."""
    vector = np.abs(signed).mean(0).astype(np.float64) + 1e-9
    value = 0.0
    for _ in range(50):
        vector /= np.linalg.norm(vector)
        image = ((weights * (signed @ vector.astype(signed.dtype))).astype(signed.dtype) @ signed).astype(np.float64)
        new = float(np.linalg.norm(image))
        if new <= value * (1 + 1e-4):
            break
        value, vector = new, image
    return 1.1 * max(value, new)
