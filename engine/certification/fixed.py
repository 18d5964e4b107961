"""Fixed (oracle) feasible sets: Algorithm 1 of Steinhardt et al. (2017), the bound U* and the attack that nearly attains it.

With ``U(theta) = L(theta; D_c) / n + epsilon max over F of l(theta; x, y)``, every theta gives a bound:
``M = max over D_p in F of min over theta of L(theta; D_c + D_p) / n <= U(theta)``. The algorithm walks down U by online
learning and keeps the worst point of every step; those epsilon n points are the candidate attack.

Proposition 1, re-derived, because it says how far the two can be apart. Step t sees
``f_t(theta) = L(theta; D_c) / n + epsilon l(theta; x_t, y_t)``, so ``f_t(theta_{t-1}) = U(theta_{t-1}) >= U*``, and the
mean of the f_t is the training loss with the attack. Hence ``U* - min L(theta; D_c + D_p) / n <= Regret / T``. The update
``theta_t = z_t / lambda_t`` with z the negative sum of the subgradients g and lambda non-decreasing is lazy mirror
descent with the regulariser ``lambda_t ||theta||^2 / 2``; telescoping its conjugates gives, against any theta in the
ball, ``Regret <= lambda_T rho^2 / 2 + sum_t ||g_t||^2 / (2 lambda_{t-1})``, which is evaluated as it runs
(`Certificate.regret_bound`). The regret that was really had is measured too (`Certificate.regret`).

Departures, all of which keep U* a bound. (1) The paper's T = epsilon n steps are few when epsilon is small; the walk goes
over a multiple of epsilon n steps where that is less than `steps`, and the attack is every k-th point, each standing for
k steps. (2) U is evaluated at the trained classifier too: any theta is a bound, and this one is often the best.
(3) The paper leaves the step size open. The regret bound is least at ``rho / (G sqrt(T))`` with G the usual norm of a
subgradient; the first one, at zero, is about ten times that, so a tenth of it is used (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxspect.engine.certification.feasible import FeasibleSet, rounded
from onnxspect.engine.certification.hinge import Trained, hinge, hinge_gradient, train, with_bias


@dataclass(frozen=True)
class Attack:
    """A poison set: points that the sanitiser keeps.

    Attributes:
        features: ``(m, d)``.
        signs: labels, -1 or 1 ``(m,)``.
        trained: the best classifier on clean and poison together; its loss is what the attack attains.
    """

    features: np.ndarray
    signs: np.ndarray
    trained: Trained


@dataclass(frozen=True)
class Certificate:
    """Bound and attack for one poison fraction. Losses are sums over clean and poison, divided by the clean count n.

    Attributes:
        epsilon: poison samples as a share of the clean ones.
        upper: U*: no poison set of this size inside the feasible set gives a larger training loss.
        attack: the candidate attack.
        attack_loss: the training loss that it forces on every classifier: the proven lower end of the trained one's, so
            at most `upper`.
        clean_loss: of the attacked classifier on the clean samples.
        regret: measured, per step: the most by which `upper` can exceed `attack_loss` (Prop. 1).
        regret_bound: the same from the update rule alone.
        steps: of the walk.
        walk: U at every step ``(steps,)``.
    """

    epsilon: float
    upper: float
    attack: Attack
    attack_loss: float
    clean_loss: float
    regret: float
    regret_bound: float
    steps: int
    walk: np.ndarray

    @property
    def gap(self) -> float:
        """What is left open between the bound and the attack, as a share of the bound."""
        return (self.upper - self.attack_loss) / self.upper if self.upper > 0 else 0.0


@dataclass(frozen=True)
class _Worst:
    """The worst allowed point for a classifier: where it is, its label, and a bound on its loss."""

    point: np.ndarray
    sign: int
    bound: float


def worst_point(feasible: FeasibleSet, theta: np.ndarray) -> _Worst:
    """``argmax over F of the hinge loss`` of `theta` ``(d + 1,)``, whose last entry is the bias."""
    found = []
    for k, sign in enumerate((-1, 1)):
        far = feasible.farthest(-sign * theta[:-1], k)
        here = 1.0 - sign * float(theta[:-1] @ feasible.centres[k] + theta[-1])
        found.append(_Worst(feasible.centres[k] + far.offset, sign, max(0.0, here + far.bound)))
    return max(found, key=lambda w: w.bound)


def certify_fixed(
    features: np.ndarray,
    signs: np.ndarray,
    feasible: FeasibleSet,
    epsilon: float,
    radius: float,
    rng: np.random.Generator,
    steps: int = 600,
) -> Certificate:
    """The bound and the candidate attack for poison of `epsilon` times the clean samples.

    Args:
        features: clean samples ``(n, d)``.
        signs: their labels, -1 or 1 ``(n,)``.
        feasible: the fixed set.
        epsilon: 0 or more.
        radius: of the ball of parameters, bias included.
        rng: draws the roundings to whole numbers, where the set asks for them.
        steps: of the walk, at least.
    """
    n = len(features)
    rows = with_bias(features)
    share = np.full(n, 1.0 / n)
    count = round(epsilon * n)
    clean = train(rows, signs, share, radius)
    if count == 0:
        empty = Attack(features[:0].astype(np.float64), signs[:0], clean)
        return Certificate(0.0, clean.loss, empty, clean.loss, clean.loss, 0.0, 0.0, 0, np.zeros(0))
    epsilon = count / n
    stride = max(1, -(-steps // count))
    walk = _walk(rows, signs, share, feasible, epsilon, radius, count * stride)
    points, labels = walk.points[::stride], walk.signs[::stride]
    if feasible.integers:
        points = _whole(feasible, points, labels, walk.thetas_of(stride), features, signs, rng)
    both = np.concatenate([rows, with_bias(points).astype(rows.dtype)])
    weights = np.concatenate([share, np.full(count, epsilon / count)])
    trained = train(both, np.concatenate([signs, labels]), weights, radius, start=walk.mean)
    candidates = (walk.best, trained.theta, walk.mean, clean.theta)
    upper = min(_upper(rows, signs, feasible, epsilon, theta) for theta in candidates)
    walked = np.concatenate([rows, with_bias(walk.points).astype(rows.dtype)])
    walked_weights = np.concatenate([share, np.full(len(walk.points), epsilon / len(walk.points))])
    best = (
        trained
        if stride == 1 and not feasible.integers
        else train(walked, np.concatenate([signs, walk.signs]), walked_weights, radius, start=trained.theta)
    )
    return Certificate(
        epsilon,
        upper,
        Attack(points, labels, trained),
        trained.lower,
        float(hinge(trained.theta, rows, signs).mean()),
        float(walk.values.mean() - best.lower),
        walk.regret_bound,
        len(walk.values),
        walk.values,
    )


@dataclass(frozen=True)
class _Walk:
    values: np.ndarray
    points: np.ndarray
    signs: np.ndarray
    thetas: np.ndarray
    best: np.ndarray
    mean: np.ndarray
    regret_bound: float

    def thetas_of(self, stride: int) -> np.ndarray:
        """The classifiers that every `stride`-th point was found for."""
        chosen: np.ndarray = self.thetas[::stride]
        return chosen


def _walk(
    rows: np.ndarray,
    signs: np.ndarray,
    share: np.ndarray,
    feasible: FeasibleSet,
    epsilon: float,
    radius: float,
    steps: int,
) -> _Walk:
    """Algorithm 1."""
    d = rows.shape[1]
    theta, z = np.zeros(d), np.zeros(d)
    inverse_step, squares = 0.0, 0.0
    values, points, labels, thetas = (
        np.zeros(steps),
        np.zeros((steps, d - 1)),
        np.zeros(steps, int),
        np.zeros((steps, d)),
    )
    for t in range(steps):
        worst = worst_point(feasible, theta)
        loss, gradient = hinge_gradient(theta, rows, signs, share)
        values[t], points[t], labels[t], thetas[t] = loss + epsilon * worst.bound, worst.point, worst.sign, theta
        if worst.bound > 0:
            gradient = gradient - epsilon * worst.sign * np.append(worst.point, 1.0)
        if t == 0:
            inverse_step = max(0.1 * float(np.linalg.norm(gradient)) * np.sqrt(steps) / radius, 1e-12)
        squares += float(gradient @ gradient) / (2 * inverse_step)
        z -= gradient
        inverse_step = max(inverse_step, float(np.linalg.norm(z)) / radius)
        theta = z / inverse_step
    regret_bound = (inverse_step * radius**2 / 2 + squares) / steps
    return _Walk(values, points, labels, thetas, thetas[np.argmin(values)], thetas.mean(0), regret_bound)


def _upper(rows: np.ndarray, signs: np.ndarray, feasible: FeasibleSet, epsilon: float, theta: np.ndarray) -> float:
    """U(theta), in double precision."""
    losses = [
        hinge(theta, rows[i : i + 4096].astype(np.float64), signs[i : i + 4096]) for i in range(0, len(rows), 4096)
    ]
    return float(np.concatenate(losses).mean()) + epsilon * worst_point(feasible, theta).bound


def _whole(
    feasible: FeasibleSet,
    points: np.ndarray,
    labels: np.ndarray,
    thetas: np.ndarray,
    features: np.ndarray,
    signs: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    inside = feasible.contains(features, signs)
    spare = {sign: features[inside & (signs == sign)].astype(np.float64) for sign in (-1, 1)}
    found = [
        rounded(feasible, point, int(sign), theta[:-1], spare[int(sign)], rng)
        for point, sign, theta in zip(points, labels, thetas, strict=True)
    ]
    return np.stack(found)
