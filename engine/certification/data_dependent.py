"""Data-dependent feasible sets (Steinhardt et al., 2017): the centres are means over clean and poison together.

So the poison moves them.

``U(theta) = L(theta; D_c) / n + epsilon max over pi with support in F(pi) of E_pi[l(theta; x, y)]`` bounds M for every
theta. Derivation of the inner maximum, which the slides that this follows (docs/bibliography.md) leave out:

* *Few points suffice.* Split the support of a worst pi by class, and by whether the hinge is positive. Replacing each part
  by its mean keeps the centres, keeps the loss (the hinge is linear on a part) and keeps every point inside (for given
  centres sphere and slab are convex). So four points are enough: for each class one whose loss counts and one that
  only pulls the centre.
* *For given masses it is a semidefinite program.* With clean shares p_y and poison masses a_j of points x_j, the centre is
  ``(p_y mu_y + sum_j a_j x_j) / (p_y + sum_j a_j)``; sphere and slab are quadratic in the points, so they are linear in
  their inner products. In an orthonormal basis of the plane of theta and ``mu_+ - mu_-``, around the middle of the two
  clean centres, the unknown is ``[[I, P], [P', G]] >= 0`` (P: the points' coordinates in the plane, G: their Gram
  matrix), at most 6x6. Every such matrix belongs to real points wherever the features have as many dimensions
  as it has rows, so nothing is relaxed. Solved by Clarabel (an open interior-point solver); the bound is read from its
  dual solution, forced into the dual cone, with what that breaks of the dual's equations paid for by the largest norm
  that a point can have. So it does not depend on how well the solver converged.
* *Over the masses* the problem is not concave. They are tried on a grid. So the result bounds every attack with one of
  these splits; `Bound.any_split` needs no grid: dropping the slab leaves the sphere, where ``||x - mu_hat|| <= r`` means
  ``||x - mu|| <= r (1 + a / p)`` for a class with poison mass a, and putting all mass in one class is worst. It
  holds for every attack, and is weaker.

The outer minimisation is the walk of `fixed`. It has no regret guarantee for the attack here (the paper: weaker
theoretical guarantees): an average of feasible distributions need not be feasible. So the walk is also taken against each
split alone, and its distributions (one point a class) and means of them are tried as attacks: moved towards the clean
centres until every point lies inside the set *that they themselves move*, and trained against. The best is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxspect.engine.certification.feasible import FeasibleSet
from onnxspect.engine.certification.fixed import Attack
from onnxspect.engine.certification.hinge import Trained, hinge, hinge_gradient, train, with_bias
from onnxspect.engine.errors import OnnxspectError

#: So many steps of each walk are tried as attacks, and the means over such shares of its last steps.
_TRIED, _WINDOWS = 6, (0.1, 0.5)
#: Relative accuracy of the training that compares attacks.
_ROUGH = 0.02


@dataclass(frozen=True)
class Role:
    """One support point: its class (0: label -1, 1: label 1), its mass, and whether its loss counts."""

    k: int
    mass: float
    counts: bool = True


@dataclass(frozen=True)
class Worst:
    """The worst distribution for a classifier.

    Attributes:
        roles: of the support points.
        points: ``(m, d)``.
        value: expected loss times epsilon.
        bound: no distribution with these masses has a larger one.
    """

    roles: tuple[Role, ...]
    points: np.ndarray
    value: float
    bound: float


@dataclass(frozen=True)
class Bound:
    """Bound and attack for one poison fraction against a data-dependent set; see `fixed.Certificate`.

    Attributes:
        epsilon: poison samples as a share of the clean ones.
        upper: bound on the training loss over the splits of the poison that were tried.
        any_split: a weaker bound that holds for every attack.
        attack: the best attack that was found; every point lies inside the set that the attack itself moves.
        attack_loss: the training loss that it forces on every classifier, by its proven lower end.
        clean_loss: of the attacked classifier on the clean samples.
        steps: of the walk.
        walk: U at every step ``(steps,)``.
    """

    epsilon: float
    upper: float
    any_split: float
    attack: Attack
    attack_loss: float
    clean_loss: float
    steps: int
    walk: np.ndarray

    @property
    def gap(self) -> float:
        """What is left open between the bound and the attack, as a share of the bound."""
        return (self.upper - self.attack_loss) / self.upper if self.upper > 0 else 0.0


class Inner:
    """The inner maximum for one clean set, over classifiers and splits.

    Args:
        feasible: sizes of the set; its centres are the clean ones.
        shares: of the clean samples in class -1 and 1.
        rng: draws the directions across the plane, in which only distances matter.

    Raises:
        OnnxspectError: no sphere, fewer than six features, or Clarabel is not installed.
    """

    def __init__(self, feasible: FeasibleSet, shares: np.ndarray, rng: np.random.Generator) -> None:
        if not np.isfinite(feasible.radii).all():
            raise OnnxspectError("a data-dependent slab alone does not bound the features", "add the sphere (both)")
        if feasible.centres.shape[1] < 6:
            raise OnnxspectError("a data-dependent certificate needs at least 6 features", "use oracle centroids")
        self._solver = _clarabel()
        self.feasible, self.shares = feasible, shares
        self._middle = feasible.centres.mean(0)
        self._spare = rng.standard_normal((feasible.centres.shape[1], 4))

    def worst(self, theta: np.ndarray, roles: Sequence[Role]) -> Worst:
        """The worst distribution with these roles for `theta` ``(d + 1,)``, bias last."""
        roles = tuple(r for r in roles if r.mass > 0)
        basis, _ = np.linalg.qr(np.column_stack([self.feasible.axis, theta[:-1], self._spare[:, : len(roles)]]))
        plane, across = basis[:, :2], basis[:, 2:]
        offset = float(theta[:-1] @ self._middle + theta[-1])
        weights = plane.T @ theta[:-1]
        signs = np.array([2 * r.k - 1 for r in roles])
        masses = np.array([r.mass if r.counts else 0.0 for r in roles])
        program = self._program(roles, plane.T @ self.feasible.axis / 2)
        gain = -(masses * signs)[None, :] * weights[:, None]
        constant = float((masses * (1 - signs * offset)).sum())
        coordinates, gram, bound = program.solve(self._solver, gain)
        rest = gram - coordinates.T @ coordinates
        values, vectors = np.linalg.eigh((rest + rest.T) / 2)
        heights = (vectors * np.sqrt(np.maximum(values, 0))).T
        points = self._middle + (plane @ coordinates + across[:, : len(roles)] @ heights).T
        margins = 1 - signs * (points @ theta[:-1] + theta[-1])
        value = float((masses * np.maximum(0, margins)).sum())
        return Worst(roles, points, value, max(0.0, constant + bound))

    def any_split(self, theta: np.ndarray, epsilon: float) -> float:
        """A bound over all distributions of mass `epsilon`, from the sphere alone."""
        worst = 0.0
        for k, sign in enumerate((-1, 1)):
            radius = self.feasible.radii[k] * (1 + epsilon / self.shares[k])
            here = 1 - sign * float(theta[:-1] @ self.feasible.centres[k] + theta[-1])
            worst = max(worst, epsilon * (here + radius * float(np.linalg.norm(theta[:-1]))))
        return worst

    def _program(self, roles: Sequence[Role], half: np.ndarray) -> _Program:
        """Constraints as quadratic forms in the atoms (two basis vectors, then the points)."""
        m = len(roles)
        centres, moved = [], []
        for k, sign in enumerate((-1, 1)):
            clean = np.concatenate([sign * half, np.zeros(m)])
            total = np.zeros(m + 2)
            mass = 0.0
            for j, role in enumerate(roles):
                if role.k == k:
                    total[2 + j] = role.mass
                    mass += role.mass
            centres.append((self.shares[k] * clean + total) / (self.shares[k] + mass))
            moved.append(float(np.linalg.norm(half)) + self.feasible.radii[k] * (1 + mass / self.shares[k]))
        forms, limits = [], []
        axis = centres[1] - centres[0]
        for j, role in enumerate(roles):
            offset = -centres[role.k].copy()
            offset[2 + j] += 1.0
            # Divided by the limit, so that every inequality reads <= 1.
            forms.append(np.outer(offset, offset) / self.feasible.radii[role.k] ** 2)
            limits.append(1.0)
            if np.isfinite(self.feasible.slabs[role.k]):
                slab = (np.outer(offset, axis) + np.outer(axis, offset)) / (2 * self.feasible.slabs[role.k])
                forms += [slab, -slab]
                limits += [1.0, 1.0]
        return _Program(forms, np.array(limits), m, max(moved))


@dataclass(frozen=True)
class _Program:
    """``max <gain, P>`` over ``[[I, P], [P', G]] >= 0`` and ``<form_i, matrix> <= limit_i``; points no longer than `reach`."""

    forms: Sequence[np.ndarray]
    limits: np.ndarray
    m: int
    reach: float

    def solve(self, solver: Any, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """(P ``(2, m)``, G ``(m, m)``, a bound on the maximum that holds whatever the solver did)."""
        from scipy import sparse

        size = self.m + 2
        rows, columns = np.triu_indices(size)
        by_column = np.lexsort((rows, columns))  # Clarabel's order: upper triangle, column by column
        rows, columns = rows[by_column], columns[by_column]
        unknown = columns >= 2
        weight = np.where(rows == columns, 1.0, 2.0)  # an off-diagonal entry appears twice in <form, matrix>
        scale = self.reach ** ((rows >= 2).astype(float) + (columns >= 2))  # unknowns of order one
        flat = np.stack([form[rows, columns] for form in self.forms]) * weight * scale
        inequality, known_part = flat[:, unknown], flat[:, ~unknown] @ (rows == columns)[~unknown].astype(float)
        root = np.where(rows == columns, 1.0, np.sqrt(2.0))
        cone = -np.diag(root)[:, unknown]
        target = np.where(unknown, 0.0, (rows == columns) * 1.0)
        a = np.vstack([inequality, cone])
        b = np.concatenate([self.limits - known_part, target])
        full = np.zeros((size, size))
        full[:2, 2:] = gain
        c = (full[rows, columns] * scale)[unknown]
        unit = max(float(np.abs(c).max()), 1e-300)
        settings = solver.DefaultSettings()
        settings.verbose = False
        settings.max_threads = 1
        cones = [solver.NonnegativeConeT(len(self.limits)), solver.PSDTriangleConeT(size)]
        found = solver.DefaultSolver(
            sparse.csc_matrix((len(c), len(c))), -c / unit, sparse.csc_matrix(a), b, cones, settings
        ).solve()
        primal, dual = np.asarray(found.x), np.asarray(found.z)
        matrix = np.zeros((size, size))
        matrix[rows, columns] = np.where(unknown, 0.0, rows == columns)
        matrix[rows[unknown], columns[unknown]] = primal * scale[unknown]
        matrix = np.triu(matrix) + np.triu(matrix, 1).T
        return matrix[:2, 2:], matrix[2:, 2:], unit * self._bound(a, b, c / unit, dual, rows, columns, root)

    def _bound(
        self, a: np.ndarray, b: np.ndarray, c: np.ndarray, dual: np.ndarray, rows: np.ndarray, columns: np.ndarray,
        root: np.ndarray,
    ) -> float:  # fmt: skip
        """Weak duality: ``<c, x> <= <b, z>`` for z in the cone with ``A'z = c``; a residual costs its 1-norm."""
        count = len(self.limits)
        size = self.m + 2
        inequality = np.maximum(np.nan_to_num(dual[:count]), 0)
        matrix = np.zeros((size, size))
        matrix[rows, columns] = np.nan_to_num(dual[count:]) / root
        matrix = np.triu(matrix) + np.triu(matrix, 1).T
        values, vectors = np.linalg.eigh(matrix)
        matrix = (vectors * np.maximum(values, 0)) @ vectors.T
        z = np.concatenate([inequality, matrix[rows, columns] * root])
        residual = np.abs(a.T @ z - c).sum()  # every unknown, in units of the reach, is at most 1 in size
        return float(b @ z + residual)


def splits(epsilon: float, fine: bool = False) -> list[tuple[Role, ...]]:
    """The ways to divide the poison that are tried: both classes counted; and, if `fine`, one part only pulling."""
    shares = np.linspace(0, 1, 9 if fine else 5)
    found: list[tuple[Role, ...]] = [(Role(0, epsilon * (1 - f)), Role(1, epsilon * f)) for f in shares]
    if fine:
        for f in (0.25, 0.5, 0.75):
            for k in (0, 1):
                found += [(Role(k, epsilon * f), Role(other, epsilon * (1 - f), False)) for other in (0, 1)]
    return found


def certify_data_dependent(
    features: np.ndarray,
    signs: np.ndarray,
    feasible: FeasibleSet,
    epsilon: float,
    radius: float,
    rng: np.random.Generator,
    steps: int = 150,
) -> Bound:
    """The bound and an attack for poison of `epsilon` times the clean samples.

    Args:
        features: clean samples ``(n, d)``.
        signs: their labels, -1 or 1 ``(n,)``.
        feasible: the set around the clean centres; its sizes are kept, its centres move. A box is not used for the bound
            (which stays one) nor for the attack.
        epsilon: 0 or more.
        radius: of the ball of parameters, bias included.
        rng: draws directions in which only distances matter.
        steps: of the walk.
    """
    n = len(features)
    rows, share = with_bias(features), np.full(n, 1.0 / n)
    clean = train(rows, signs, share, radius)
    count = round(epsilon * n)
    if count == 0:
        empty = Attack(features[:0].astype(np.float64), signs[:0], clean)
        return Bound(0.0, clean.loss, clean.loss, empty, clean.loss, clean.loss, 0, np.zeros(0))
    epsilon = count / n
    inner = Inner(feasible, np.array([(signs == -1).mean(), (signs == 1).mean()]), rng)
    walk = _walk(inner, rows, signs, splits(epsilon), radius, steps)
    attack = _best_attack(inner, rows, signs, epsilon, count, radius, steps // 2)
    candidates = [walk.thetas[int(np.argmin(walk.values))], np.mean(walk.thetas, 0), clean.theta, attack.trained.theta]
    # U is convex along a ray, and 1 + epsilon at zero: shorter ones of the same direction are often better bounds.
    scaled = [scale * theta for theta in candidates for scale in (1.0, 0.5, 0.2)] + [0 * clean.theta]
    totals = [_upper(inner, theta, rows, signs, epsilon, attack) for theta in scaled]
    return Bound(
        epsilon,
        min(t[0] for t in totals),
        min(t[1] for t in totals),
        attack,
        attack.trained.lower,
        float(hinge(attack.trained.theta, rows, signs).mean()),
        steps,
        walk.values,
    )


@dataclass(frozen=True)
class _Walk:
    values: np.ndarray
    thetas: list[np.ndarray]
    found: list[Worst]


def _walk(
    inner: Inner,
    rows: np.ndarray,
    signs: np.ndarray,
    tried: Sequence[tuple[Role, ...]],
    radius: float,
    steps: int,
) -> _Walk:
    """The walk of `fixed`, against the worst distribution over the given splits."""
    share = np.full(len(rows), 1.0 / len(rows))
    theta, z, inverse_step = np.zeros(rows.shape[1]), np.zeros(rows.shape[1]), 0.0
    values, thetas, found = np.zeros(steps), [], []
    for t in range(steps):
        worst = max((inner.worst(theta, roles) for roles in tried), key=lambda w: w.bound)
        loss, gradient = hinge_gradient(theta, rows, signs, share)
        values[t] = loss + worst.bound
        thetas.append(theta)
        found.append(worst)
        for role, point in zip(worst.roles, worst.points, strict=True):
            sign = 2 * role.k - 1
            if 1 - sign * float(theta @ np.append(point, 1.0)) > 0:
                gradient = gradient - role.mass * sign * np.append(point, 1.0)
        if t == 0:
            inverse_step = max(0.1 * float(np.linalg.norm(gradient)) * np.sqrt(steps) / radius, 1e-12)
        z -= gradient
        inverse_step = max(inverse_step, float(np.linalg.norm(z)) / radius)
        theta = z / inverse_step
    return _Walk(values, thetas, found)


def _upper(
    inner: Inner, theta: np.ndarray, rows: np.ndarray, signs: np.ndarray, epsilon: float, attack: Attack
) -> tuple[float, float]:
    """(bound over the splits, bound over any split), the attack's own split among those tried."""
    own = []
    losses = hinge(theta, with_bias(attack.features), attack.signs)
    for k, sign in enumerate((-1, 1)):
        for counts in (True, False):
            mass = epsilon * float(((attack.signs == sign) & ((losses > 0) == counts)).mean())
            own.append(Role(k, mass, counts))
    base = float(hinge(theta, rows, signs).mean())
    over_splits = max(inner.worst(theta, roles).bound for roles in [*splits(epsilon, fine=True), tuple(own)])
    return base + over_splits, base + max(over_splits, inner.any_split(theta, epsilon))


def inside_own_set(
    feasible: FeasibleSet, features: np.ndarray, signs: np.ndarray, poison: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Which poison points lie inside the set whose centres are the means of clean and poison together ``(m,)``."""
    sums = [features[signs == s].sum(0, dtype=np.float64) + poison[labels == s].sum(0) for s in (-1, 1)]
    counts = [int((signs == s).sum() + (labels == s).sum()) for s in (-1, 1)]
    moved = feasible.at(np.stack([total / count for total, count in zip(sums, counts, strict=True)]))
    return moved.contains(poison, labels)


def _best_attack(
    inner: Inner, rows: np.ndarray, signs: np.ndarray, epsilon: float, count: int, radius: float, steps: int
) -> Attack:
    """The best of many distributions, each met on the walk against one split.

    A step's distribution is one point a class, which lies inside the set that it moves. The points of several steps
    together do not (their common centre is elsewhere), but the *mean* of a class's points over some steps nearly does.
    """
    tried: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
    features = rows[:, :-1]
    for roles in splits(epsilon):
        walk = _walk(inner, rows, signs, [roles], radius, steps)
        kept = walk.found[0].roles
        stacked = np.stack([w.points for w in walk.found])
        choices = [stacked[t] for t in np.linspace(0, steps - 1, _TRIED).astype(int)]
        choices += [stacked[-max(1, round(share * steps)) :].mean(0) for share in _WINDOWS]
        for points in choices:
            poison, labels = _inside(inner.feasible, features, signs, points, kept, count)
            trained = _retrained(rows, signs, poison, labels, radius, walk.thetas[-1], _ROUGH)
            tried.append((trained.lower, poison, labels, trained.theta))
    _, poison, labels, theta = max(tried, key=lambda found: found[0])
    return Attack(poison, labels, _retrained(rows, signs, poison, labels, radius, theta))


def _retrained(
    rows: np.ndarray,
    signs: np.ndarray,
    poison: np.ndarray,
    labels: np.ndarray,
    radius: float,
    start: np.ndarray,
    tolerance: float = 1e-3,
) -> Trained:
    """The best classifier on clean and poison; equal poison points are one row with their weight."""
    _, index, copies = np.unique(np.column_stack([labels, poison]), axis=0, return_index=True, return_counts=True)
    both = np.concatenate([rows, with_bias(poison[index]).astype(rows.dtype)])
    weights = np.concatenate([np.ones(len(rows)), copies]) / len(rows)
    return train(both, np.concatenate([signs, labels[index]]), weights, radius, tolerance, start)


def _inside(
    feasible: FeasibleSet,
    features: np.ndarray,
    signs: np.ndarray,
    points: np.ndarray,
    roles: Sequence[Role],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` points in the proportion of the roles' masses, drawn to the clean centres until all lie inside."""
    running = np.cumsum([r.mass for r in roles])
    chosen = np.minimum(np.searchsorted(running / running[-1], (np.arange(count) + 0.5) / count), len(roles) - 1)
    labels = np.array([2 * r.k - 1 for r in roles])[chosen]
    poison, centres = points[chosen], feasible.centres[(labels == 1).astype(int)]
    if inside_own_set(feasible, features, signs, poison, labels).all():
        return poison, labels
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if inside_own_set(feasible, features, signs, centres + middle * (poison - centres), labels).all():
            low = middle
        else:
            high = middle
    return centres + low * (poison - centres), labels


def _clarabel() -> Any:
    try:
        import clarabel
    except ImportError as error:
        raise OnnxspectError(
            "data-dependent centroids need the solver Clarabel", "pip install 'onnxspect[certify]'"
        ) from error
    return clarabel
