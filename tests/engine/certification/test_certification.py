"""Certification (Steinhardt et al., 2017): feasible sets, the hinge classifier, Algorithm 1, and the data-dependent bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tolerances import FITTED_64, FORMULA_64, REORDERED_64, SOLVED_64, SOLVED_COARSELY_64, SOLVED_TWICE_64

from onnxspect.engine.certification.data_dependent import (
    Inner,
    Role,
    certify_data_dependent,
    inside_own_set,
    splits,
)
from onnxspect.engine.certification.feasible import FeasibleSet, fit
from onnxspect.engine.certification.fixed import certify_fixed, worst_point
from onnxspect.engine.certification.hinge import hinge, train, with_bias
from onnxspect.engine.errors import OnnxspectError


def two_classes(seed: int, n: int = 60, d: int = 6, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian clouds ``(n, d)`` whose means are `apart` standard deviations from each other in every feature."""
    rng = np.random.default_rng(seed)
    signs = np.where(np.arange(n) % 2 == 0, -1, 1)
    return rng.standard_normal((n, d)) + apart * (signs[:, None] == 1), signs


def in_box(seed: int, n: int = 60, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The same in [0, 1]."""
    rng = np.random.default_rng(seed)
    signs = np.where(np.arange(n) % 2 == 0, -1, 1)
    return np.clip(rng.random((n, d)) * 0.7 + 0.3 * (signs[:, None] == 1), 0, 1), signs


def inside(feasible: FeasibleSet, k: int, rng: np.random.Generator, n: int = 400) -> np.ndarray:
    """Points of class k inside the set, by rejection around its centre at many scales."""
    d = feasible.centres.shape[1]
    reach = min(float(feasible.radii[k]), 3.0)
    steps = rng.standard_normal((n, d)) * rng.uniform(0, reach / np.sqrt(d), (n, 1))
    points = feasible.centres[k] + steps
    return points[feasible.contains(points, np.full(n, 2 * k - 1))]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["sphere", "slab", "both"]),
    box=st.booleans(),
    keep=st.floats(0.2, 1.0),
    k=st.integers(0, 1),
)
def test_the_farthest_point_is_inside_and_nothing_inside_is_farther(
    seed: int, kind: str, box: bool, keep: float, k: int
) -> None:
    features, signs = in_box(seed)
    feasible = fit(features, signs, kind, keep, "box" if box or kind == "slab" else "none")
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(features.shape[1])
    found = feasible.farthest(direction, k)
    assert feasible.contains((feasible.centres[k] + found.offset)[None], np.array([2 * k - 1])).all()
    assert found.value == pytest.approx(float(direction @ found.offset))
    assert found.value <= found.bound + FORMULA_64
    assert found.bound - found.value <= FITTED_64 * max(1.0, abs(found.bound))
    others = inside(feasible, k, rng)
    assert len(others)
    # `contains` allows for rounding; the bound is for the exact set
    assert ((others - feasible.centres[k]) @ direction).max() <= found.bound * (1 + SOLVED_64) + REORDERED_64


@pytest.mark.parametrize("seed", range(6))
def test_the_farthest_point_agrees_with_a_general_solver(seed: int) -> None:
    features, signs = in_box(seed)
    feasible = fit(features, signs, "both", 0.6, "box")
    direction = np.random.default_rng(seed).standard_normal(6) - 2 * feasible.axis * (seed % 2)
    limits = [
        {"type": "ineq", "fun": lambda v: feasible.radii[1] ** 2 - v @ v},
        {"type": "ineq", "fun": lambda v: feasible.slabs[1] - feasible.axis @ v},
        {"type": "ineq", "fun": lambda v: feasible.slabs[1] + feasible.axis @ v},
    ]
    bounds = [(-c, 1 - c) for c in feasible.centres[1]]
    start = np.zeros(6)
    solved = minimize(lambda v: -direction @ v, start, constraints=limits, bounds=bounds, method="SLSQP", tol=1e-10)
    assert feasible.farthest(direction, 1).value == pytest.approx(-solved.fun, rel=SOLVED_64)


def test_a_wide_box_changes_nothing() -> None:
    features, signs = two_classes(3)
    free = fit(features, signs, "both", 0.7)
    boxed = FeasibleSet("both", free.centres, free.radii, free.slabs, -1e6, 1e6)
    for seed in range(10):
        direction = np.random.default_rng(seed).standard_normal(6)
        assert boxed.farthest(direction, 0).value == pytest.approx(
            free.farthest(direction, 0).value, rel=SOLVED_TWICE_64
        )


def test_each_constraint_keeps_its_share() -> None:
    features, signs = two_classes(0, n=400)
    for kind in ("sphere", "both"):
        kept = fit(features, signs, kind, 0.8).contains(features, signs).mean()
        assert (kept == pytest.approx(0.8, abs=0.02)) if kind == "sphere" else (0.55 < kept < 0.8)


@pytest.mark.parametrize(
    ("kind", "keep", "integrity", "message"),
    [
        ("slab", 0.9, "none", "slab alone"),
        ("both", 0.0, "none", "keep"),
        ("both", 1.5, "none", "keep"),
        ("both", 0.9, "box", "outside"),
        ("both", 0.9, "counts", "outside"),
        ("cube", 0.9, "none", "unknown set"),
    ],
)
def test_sets_that_make_no_sense_are_refused(kind: str, keep: float, integrity: str, message: str) -> None:
    features, signs = two_classes(0)
    with pytest.raises(OnnxspectError, match=message):
        fit(features, signs, kind, keep, integrity)


def test_classes_that_are_empty_or_the_same_are_refused() -> None:
    features, signs = two_classes(0)
    with pytest.raises(OnnxspectError, match="no samples"):
        fit(features, np.ones_like(signs), "both", 0.9)
    with pytest.raises(OnnxspectError, match="same mean"):
        fit(np.ones_like(features), signs, "both", 0.9)
    with pytest.raises(OnnxspectError, match="whole numbers"):
        fit(np.abs(features), signs, "both", 0.9, "counts")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.floats(0.1, 5))
def test_training_is_within_its_own_gap_of_every_other_classifier(seed: int, radius: float) -> None:
    features, signs = two_classes(seed, n=40, d=4)
    rows, share = with_bias(features), np.full(40, 1 / 40)
    trained = train(rows, signs, share, radius)
    assert np.linalg.norm(trained.theta) <= radius * (1 + REORDERED_64)
    assert trained.loss == pytest.approx(float(hinge(trained.theta, rows, signs).mean()))
    assert -FORMULA_64 <= trained.gap <= 0.02 * trained.loss + SOLVED_COARSELY_64
    rng = np.random.default_rng(seed)
    for _ in range(50):
        other = rng.standard_normal(5)
        other *= radius * rng.random() / np.linalg.norm(other)
        assert hinge(other, rows, signs).mean() >= trained.lower - REORDERED_64


@pytest.mark.parametrize("integrity", ["none", "box"])
@pytest.mark.parametrize("kind", ["sphere", "both"])
def test_the_bound_holds_for_the_attack_and_for_any_other(kind: str, integrity: str) -> None:
    features, signs = in_box(5, n=120)
    feasible = fit(features, signs, kind, 0.8, integrity)
    rng = np.random.default_rng(0)
    done = certify_fixed(features, signs, feasible, 0.2, 3.0, rng, steps=200)
    assert len(done.attack.signs) == 24
    assert feasible.contains(done.attack.features, done.attack.signs).all()
    assert done.attack.trained.lower == done.attack_loss <= done.upper
    assert 0 <= done.gap < 0.1
    # Proposition 1, measured and from the update rule
    assert done.upper - done.attack_loss <= done.regret + 0.01 * done.upper
    assert done.regret <= done.regret_bound
    for _ in range(5):
        k = int(rng.integers(2))
        points = inside(feasible, k, rng)[:24]
        rows = with_bias(np.concatenate([features, points]))
        labels = np.concatenate([signs, np.full(len(points), 2 * k - 1)])
        assert train(rows, labels, np.full(len(rows), 1 / 120), 3.0).lower <= done.upper + REORDERED_64


def test_without_poison_the_bound_is_the_clean_loss() -> None:
    features, signs = two_classes(1)
    done = certify_fixed(features, signs, fit(features, signs, "both", 0.9), 0.0, 2.0, np.random.default_rng(0))
    assert done.upper == done.attack_loss == done.clean_loss
    assert len(done.attack.signs) == 0


def test_an_attack_on_counts_is_made_of_counts() -> None:
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(80) % 2 == 0, -1, 1)
    features = rng.poisson(np.where(signs[:, None] == 1, 3.0, 1.0), (80, 8)).astype(float)
    feasible = fit(features, signs, "both", 0.9, "counts")
    done = certify_fixed(features, signs, feasible, 0.2, 1.0, rng, steps=60)
    assert np.array_equal(done.attack.features, np.round(done.attack.features))
    assert done.attack.features.min() >= 0
    assert feasible.contains(done.attack.features, done.attack.signs).all()
    assert done.attack.trained.lower <= done.upper + REORDERED_64
    assert done.attack_loss > train(with_bias(features), signs, np.full(80, 1 / 80), 1.0).loss


def test_the_worst_point_is_worse_than_every_allowed_one() -> None:
    features, signs = two_classes(2)
    feasible = fit(features, signs, "both", 0.9)
    theta = np.random.default_rng(1).standard_normal(7)
    worst = worst_point(feasible, theta)
    kept = feasible.contains(features, signs)
    assert hinge(theta, with_bias(features[kept]), signs[kept]).max() <= worst.bound
    assert hinge(theta, with_bias(worst.point[None]), np.array([worst.sign]))[0] == pytest.approx(worst.bound)


# ---- data-dependent --------------------------------------------------------------------------------------------------


def own_set(inner: Inner, roles: tuple[Role, ...], points: np.ndarray) -> float:
    """The largest constraint value minus its limit, relative, for points with these roles around the moved centres."""
    feasible = inner.feasible
    centres = []
    for k in (0, 1):
        own = [(r.mass, p) for r, p in zip(roles, points, strict=True) if r.k == k]
        mass = sum(m for m, _ in own)
        total = inner.shares[k] * feasible.centres[k] + sum((m * p for m, p in own), np.zeros(points.shape[1]))
        centres.append(total / (inner.shares[k] + mass))
    worst = -np.inf
    for role, point in zip(roles, points, strict=True):
        offset = point - centres[role.k]
        worst = max(worst, float(np.linalg.norm(offset)) / feasible.radii[role.k] - 1)
        worst = max(worst, abs(float(offset @ (centres[1] - centres[0]))) / feasible.slabs[role.k] - 1)
    return worst


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0), pulling=st.booleans())
def test_the_semidefinite_bound_is_attained_inside_the_set(seed: int, share: float, pulling: bool) -> None:
    features, signs = two_classes(seed, n=80, d=8)
    inner = Inner(fit(features, signs, "both", 0.8), np.array([0.5, 0.5]), np.random.default_rng(seed))
    theta = np.random.default_rng(seed + 1).standard_normal(9)
    roles = (Role(0, 0.2 * share), Role(1, 0.2 * (1 - share)))
    roles += (Role(0, 0.05, False),) if pulling else ()
    worst = inner.worst(theta, roles)
    assert own_set(inner, worst.roles, worst.points) <= SOLVED_64
    assert worst.value >= worst.bound - SOLVED_COARSELY_64 * max(1.0, worst.bound)
    rng = np.random.default_rng(seed + 2)
    for _ in range(20):
        steps = rng.standard_normal(worst.points.shape)
        points = worst.points + steps * rng.uniform(0, 1)
        if own_set(inner, worst.roles, points) <= 0:
            signs_of = np.array([2 * r.k - 1 for r in worst.roles])
            losses = 1 - signs_of * (points @ theta[:-1] + theta[-1])  # the counted part is linear by construction
            value = sum(r.mass * x for r, x in zip(worst.roles, losses, strict=True) if r.counts)
            assert value <= worst.bound + REORDERED_64


def test_the_semidefinite_bound_agrees_with_a_local_solver() -> None:
    features, signs = two_classes(4, n=80)
    inner = Inner(fit(features, signs, "both", 0.8), np.array([0.5, 0.5]), np.random.default_rng(0))
    theta = np.random.default_rng(1).standard_normal(7)
    roles = (Role(0, 0.1), Role(1, 0.2))

    def loss(flat: np.ndarray) -> float:
        points = flat.reshape(2, 6)
        return -sum(r.mass * (1 - (2 * r.k - 1) * float(p @ theta[:-1] + theta[-1])) for r, p in zip(roles, points))  # noqa: B905

    limit = {"type": "ineq", "fun": lambda flat: -own_set(inner, roles, flat.reshape(2, 6))}
    rng = np.random.default_rng(2)
    starts = [(inner.feasible.centres + 0.3 * rng.standard_normal((2, 6))).ravel() for _ in range(6)]
    solved = [minimize(loss, s, constraints=[limit], method="SLSQP", options={"maxiter": 300}) for s in starts]
    best = max(-s.fun for s in solved if limit["fun"](s.x) > -1e-6)
    assert inner.worst(theta, roles).bound == pytest.approx(best, rel=SOLVED_COARSELY_64)


def test_any_split_of_the_poison_is_below_the_bound_that_needs_no_split() -> None:
    features, signs = two_classes(6, n=80)
    inner = Inner(fit(features, signs, "both", 0.8), np.array([0.5, 0.5]), np.random.default_rng(0))
    for seed in range(5):
        theta = np.random.default_rng(seed).standard_normal(7)
        most = max(inner.worst(theta, roles).bound for roles in splits(0.2, fine=True))
        assert most <= inner.any_split(theta, 0.2) * (1 + SOLVED_TWICE_64)


def test_moving_centres_give_a_stronger_attack_under_a_valid_bound() -> None:
    features, signs = two_classes(7, n=120, d=8, apart=1.5)
    feasible = fit(features, signs, "both", 0.7)
    moved = certify_data_dependent(features, signs, feasible, 0.3, 2.0, np.random.default_rng(0), steps=40)
    fixed = certify_fixed(features, signs, feasible, 0.3, 2.0, np.random.default_rng(0), steps=200)
    assert inside_own_set(feasible, features, signs, moved.attack.features, moved.attack.signs).all()
    assert moved.attack.trained.lower <= moved.upper <= moved.any_split + REORDERED_64
    assert moved.attack_loss > 1.5 * fixed.attack_loss
    assert not feasible.contains(moved.attack.features, moved.attack.signs).all()


def test_a_data_dependent_set_needs_a_sphere_and_some_dimensions() -> None:
    features, signs = in_box(0)
    with pytest.raises(OnnxspectError, match="slab alone"):
        Inner(fit(features, signs, "slab", 0.9, "box"), np.array([0.5, 0.5]), np.random.default_rng(0))
    small = fit(features[:, :3], signs, "both", 0.9)
    with pytest.raises(OnnxspectError, match="6 features"):
        Inner(small, np.array([0.5, 0.5]), np.random.default_rng(0))
