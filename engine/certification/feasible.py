"""Feasible sets: which training points a sanitiser keeps (Steinhardt et al., 2017: "Data sanitation via feasible set").

* Sphere: ``||x - mu_y||_2 <= r_y``. Slab: ``|<x - mu_y, mu_y - mu_{-y}>| <= s_y``. Either or both.
* Integrity: a box (pixels: [0, 1]), or non-negative integers (counts).

The paper leaves the radii open. Here r_y and s_y are quantiles, over the clean samples of class y, of the two left-hand
sides, so a set is said by the one number `keep`. Each constraint keeps that share, both together somewhat less.

What an attacker can do against a linear classifier needs ``max <g, x - mu_y>`` over the set, exactly:

* without a box the answer lies in the plane of g and the axis ``mu_y - mu_{-y}``: along the axis as far as the slab
  allows, the rest of the radius across it;
* with a box the set is a ball, a slab and a box. The slab gets a multiplier nu, found by bisection, because
  ``<axis, x(nu)>`` falls as nu grows; for a given nu the point is ``clip(tau c_i)`` with the one tau that meets the radius,
  solved exactly by sorting the corners. Every nu gives a dual bound and the two ends of the bracket a feasible point
  between them, so the value is enclosed from both sides;
* non-negative integers are relaxed to ``x >= 0`` for the bound (the relaxed set is larger, so the bound stays one),
  and an attack's points are rounded at random and checked, as in the paper's text experiments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.errors import OnnxspectError

SETS = ("sphere", "slab", "both")
INTEGRITY = ("none", "box", "counts")
#: A point this far over a limit, as a share of it, still counts as inside: rounding of float32 features.
SLACK = 1e-5
#: The bracket of a box-constrained maximum is closed when its two ends differ by this share.
_CLOSED = 1e-7


@dataclass(frozen=True)
class Farthest:
    """Where a linear function is largest on one class's part of the set.

    Attributes:
        offset: the point minus the centre ``(d,)``; inside the set.
        value: of the function at that offset.
        bound: no point of the set has a larger value.
    """

    offset: np.ndarray
    value: float
    bound: float


@dataclass(frozen=True)
class FeasibleSet:
    """A set of allowed points for each of two classes.

    Attributes:
        kind: "sphere", "slab" or "both".
        centres: ``(2, d)`` float64, row 0 of class -1.
        radii: ``(2,)``; infinite where there is no sphere.
        slabs: ``(2,)``; infinite where there is no slab.
        low, high: of every feature; infinite where there is no box.
        integers: features are whole numbers.
    """

    kind: str
    centres: np.ndarray
    radii: np.ndarray
    slabs: np.ndarray
    low: float = -np.inf
    high: float = np.inf
    integers: bool = False

    @property
    def axis(self) -> np.ndarray:
        """``mu_+ - mu_-`` ``(d,)``; the other class's axis is its negative, which changes no slab."""
        axis: np.ndarray = self.centres[1] - self.centres[0]
        return axis

    def at(self, centres: np.ndarray) -> FeasibleSet:
        """The same sizes around other centres: the data-dependent set."""
        return replace(self, centres=centres)

    def contains(self, features: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """Which of the rows ``(n, d)`` with labels -1 or 1 ``(n,)`` lie inside: bool ``(n,)``."""
        inside = np.ones(len(features), bool)
        if np.isfinite([self.low, self.high]).any():
            slack = SLACK * max(1.0, abs(self.high)) if np.isfinite(self.high) else SLACK
            inside &= ((features >= self.low - slack) & (features <= self.high + slack)).all(1)
        if self.integers:
            inside &= (features == np.round(features)).all(1)
        for k, sign in enumerate((-1, 1)):
            rows = np.flatnonzero(signs == sign)
            distance, along = self._measures(features[rows], k)
            inside[rows] &= (distance <= self.radii[k] * (1 + SLACK)) & (along <= self.slabs[k] * (1 + SLACK))
        return inside

    def excess(self, features: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """How far out each row is: the larger of distance / radius and slab / its width; at most 1 inside ``(n,)``."""
        worst = np.zeros(len(features))
        for k, sign in enumerate((-1, 1)):
            rows = np.flatnonzero(signs == sign)
            distance, along = self._measures(features[rows], k)
            worst[rows] = np.maximum(distance / self.radii[k], along / self.slabs[k])
        return worst

    def _measures(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances from the centre of class k and ``|<x - mu, axis>|``, both ``(n,)``."""
        offsets = features.astype(np.float64) - self.centres[k]
        return np.linalg.norm(offsets, axis=1), np.abs(offsets @ self.axis)

    def farthest(self, direction: np.ndarray, k: int) -> Farthest:
        """Where ``<direction, x - mu_k>`` is largest among the allowed points of class k (0: label -1, 1: label 1).

        Whole numbers are relaxed to the reals.
        """
        if np.isfinite([self.low, self.high]).any():
            low, high = self.low - self.centres[k], self.high - self.centres[k]
            return _in_box(direction, self.axis, self.radii[k], self.slabs[k], low, high)
        offset = _in_plane(direction, self.axis, float(self.radii[k]), float(self.slabs[k]))
        value = float(direction @ offset)
        return Farthest(offset, value, value)


def fit(features: np.ndarray, signs: np.ndarray, kind: str, keep: float, integrity: str = "none") -> FeasibleSet:
    """The set whose every constraint keeps the share `keep` of each class.

    Args:
        features: clean samples ``(n, d)``, for an oracle set; the samples at hand, for a data-dependent one.
        signs: -1 or 1 ``(n,)``.
        kind: "sphere", "slab" or "both".
        keep: in (0, 1].
        integrity: "none", "box" ([0, 1]) or "counts" (non-negative integers).

    Raises:
        OnnxspectError: a class is empty, the two centres coincide, the features break the integrity constraint, or the
            set would be unbounded.
    """
    if kind not in SETS or integrity not in INTEGRITY:
        known = SETS if kind not in SETS else INTEGRITY
        raise OnnxspectError(f"unknown {'set' if kind not in SETS else 'integrity constraint'}", ", ".join(known))
    if not 0 < keep <= 1:
        raise OnnxspectError(
            f"keep is {keep}, not a share above 0 and at most 1", "0.95 keeps all but the farthest twentieth"
        )
    if kind == "slab" and integrity != "box":
        raise OnnxspectError(
            "a slab alone does not bound the features, so it certifies nothing",
            "add the sphere (both), or a box where features lie in [0, 1]",
        )
    if any(not (signs == sign).any() for sign in (-1, 1)):
        raise OnnxspectError("one of the two classes has no samples", "give samples of both")
    low, high = {"none": (-np.inf, np.inf), "box": (0.0, 1.0), "counts": (0.0, np.inf)}[integrity]
    if features.min() < low - SLACK or features.max() > high + SLACK:
        raise OnnxspectError(
            f"features span {features.min():.3g}..{features.max():.3g}, outside [{low:g}, {high:g}]",
            "give features that meet the integrity constraint, or choose --integrity none",
        )
    if integrity == "counts" and not np.array_equal(features, np.round(features)):
        raise OnnxspectError("features are not whole numbers", "choose --integrity none or box")
    centres = np.stack([features[signs == sign].mean(0, dtype=np.float64) for sign in (-1, 1)])
    if np.linalg.norm(centres[1] - centres[0]) < 1e-9 * max(1.0, float(np.abs(centres).max())):
        raise OnnxspectError("the two classes have the same mean", "these features do not tell the classes apart")
    everything = FeasibleSet(kind, centres, np.full(2, np.inf), np.full(2, np.inf), low, high, integrity == "counts")
    measured = [everything._measures(features[signs == sign], k) for k, sign in enumerate((-1, 1))]
    radii = [np.quantile(m[0], keep) if kind != "slab" else np.inf for m in measured]
    slabs = [np.quantile(m[1], keep) if kind != "sphere" else np.inf for m in measured]
    if min(*radii, *slabs) <= 0:
        raise OnnxspectError("a class has no spread: its samples are all the same", "more, and different, samples")
    return replace(everything, radii=np.asarray(radii), slabs=np.asarray(slabs))


def rounded(
    feasible: FeasibleSet, point: np.ndarray, sign: int, theta: np.ndarray, spare: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Whole numbers near `point` ``(d,)`` inside the set: the worst for `theta` of 64 random roundings and of `spare`.

    Each feature is rounded up with the probability of its fraction, so the mean of the roundings is the point itself.

    Args:
        feasible: the set.
        point: non-negative reals.
        sign: its label.
        theta: weights ``(d,)``; the worst point has the lowest ``sign * <theta, x>``.
        spare: whole-number points of this label inside the set ``(m, d)``, for when every rounding falls outside.
        rng: draws the roundings.

    Raises:
        OnnxspectError: every rounding falls outside and there is no spare.
    """
    base = np.floor(point)
    tries = base + (rng.random((64, len(point))) < point - base)
    tries = np.concatenate([tries[feasible.contains(tries, np.full(64, sign))], spare])
    if not len(tries):
        raise OnnxspectError("no whole-number point of one class lies inside the set", "raise --keep")
    worst: np.ndarray = tries[np.argmin(sign * (tries @ theta))]
    return worst


def _in_plane(direction: np.ndarray, axis: np.ndarray, radius: float, slab: float) -> np.ndarray:
    """Argmax of ``<direction, d>`` over ``||d|| <= radius`` and ``|<axis, d>| <= slab``."""
    size = float(np.linalg.norm(direction))
    if size == 0:
        return np.zeros_like(direction)
    unit = axis / np.linalg.norm(axis)
    most = min(slab / float(np.linalg.norm(axis)), radius)
    along = float(np.clip(radius * float(direction @ unit) / size, -most, most))
    across = direction - float(direction @ unit) * unit
    width = float(np.linalg.norm(across))
    rest = np.sqrt(max(radius**2 - along**2, 0.0)) / width if width > 1e-12 * size else 0.0
    offset: np.ndarray = along * unit + rest * across
    return offset


def _in_box(
    direction: np.ndarray, axis: np.ndarray, radius: float, slab: float, low: np.ndarray, high: np.ndarray
) -> Farthest:
    """The same with ``low <= d <= high`` (which holds at d = 0) as well."""
    free = _in_ball_and_box(direction, radius, low, high)
    along = float(axis @ free)
    if abs(along) <= slab:
        value = float(direction @ free)
        return Farthest(free, value, value + _CLOSED * abs(value))
    side = 1.0 if along > 0 else -1.0
    bound = np.inf
    near, far = 0.0, float(np.linalg.norm(direction) / np.linalg.norm(axis))
    outside, inside = free, free
    while True:  # widen until the slab holds; the limit minimises side * <axis, d>, which d = 0 shows to be <= 0
        inside = _in_ball_and_box(direction - side * far * axis, radius, low, high)
        bound = min(bound, float((direction - side * far * axis) @ inside) + far * slab)
        if side * float(axis @ inside) <= slab:
            break
        near, outside, far = far, inside, 2 * far
    best, value = inside, float(direction @ inside)
    for _ in range(100):
        high_end, low_end = side * float(axis @ outside), side * float(axis @ inside)
        if high_end <= low_end:  # the bracket is as narrow as rounding allows
            break
        mix = (slab - low_end) / (high_end - low_end)
        between = mix * outside + (1 - mix) * inside
        if float(direction @ between) > value:
            best, value = between, float(direction @ between)
        if bound - value <= _CLOSED * max(abs(bound), 1e-12):
            break
        middle = (near + far) / 2
        point = _in_ball_and_box(direction - side * middle * axis, radius, low, high)
        bound = min(bound, float((direction - side * middle * axis) @ point) + middle * slab)
        if side * float(axis @ point) > slab:
            near, outside = middle, point
        else:
            far, inside = middle, point
    return Farthest(best, value, bound + _CLOSED * abs(bound))


def _in_ball_and_box(direction: np.ndarray, radius: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Argmax of ``<direction, d>`` over ``||d|| <= radius`` and ``low <= d <= high``, where ``low <= 0 <= high``."""
    limit = np.where(direction > 0, high, np.where(direction < 0, low, 0.0))
    if np.linalg.norm(limit) <= radius:
        return limit
    # d(tau) = clip(tau * direction) grows with tau; coordinate i stops at its corner tau_i = limit_i / direction_i
    moving = np.flatnonzero(direction)
    corner = limit[moving] / direction[moving]
    order = np.argsort(corner, kind="stable")
    moving, corner = moving[order], corner[order]
    stopped = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(corner), limit[moving] ** 2, 0.0))])
    squares = direction[moving] ** 2
    running = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
    finite = np.isfinite(corner)  # a coordinate without a limit never stops: the norm has no end there
    reached = np.where(finite, corner, 0.0)
    norms = np.where(finite, stopped[1:] + reached**2 * running[1:], np.inf)
    first = int(np.searchsorted(norms, radius**2))
    tau = np.sqrt(max(radius**2 - stopped[first], 0.0) / running[first])
    offset: np.ndarray = np.clip(tau * direction, low, high)
    return offset
