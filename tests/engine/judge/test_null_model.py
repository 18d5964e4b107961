"""Null models against hand-computed values, against the null distribution itself, and on planted outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy import stats
from tolerances import FORMULA_64, QUOTIENT_64, REORDERED_64, TAIL_64

from onnxspect.engine.judge import null_model
from onnxspect.engine.judge.null_model import (
    against_reference,
    beyond_references,
    harmonic_mean,
    leave_one_out,
    mad,
    mad_index,
    one_against_reference,
    robust_deviation,
)

ALPHA = 0.05

distinct = st.lists(st.integers(10, 100_000).map(lambda n: n / 100), min_size=4, max_size=25, unique=True).map(np.array)


def norms(rng: np.random.Generator, classes: int, sigma: float = 0.3) -> np.ndarray:
    """Statistics of a clean model as the null model assumes them: log-normal, one a class."""
    return np.exp(rng.normal(3.0, sigma, classes))


def test_mad_index_by_hand() -> None:
    # Median 3; distances 2, 1, 0, 1, 97; their median 1.
    index = mad_index(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
    np.testing.assert_allclose(index, np.array([2, 1, 0, -1, -97]) / 1.4826, rtol=FORMULA_64)


def test_mad_index_without_spread() -> None:
    index = mad_index(np.array([5.0, 5.0, 5.0, 1.0, 9.0]))
    assert index.tolist() == [0.0, 0.0, 0.0, np.inf, -np.inf]


def test_mad_p_value_is_the_normal_tail_times_the_classes() -> None:
    values = np.array([10.0, 11.0, 9.0, 10.5, 9.5, 1.0])
    judged = mad(values)
    median, distance = 9.75, 0.75  # distances .25 1.25 .75 .75 .25 8.75
    index = (median - 1.0) / (1.4826 * distance)
    assert judged.index[5] == pytest.approx(index)
    assert judged.p_value[5] == pytest.approx(6 * stats.norm.sf(index))
    assert judged.log10_p[5] == pytest.approx(np.log10(6 * stats.norm.sf(index)))
    assert judged.paper_flag.tolist() == [False] * 5 + [True]
    assert judged.paper_flag.dtype == bool
    assert judged.p_value[0] == 1.0  # a probability, however many tests there are


def test_mad_flags_only_the_suspicious_side() -> None:
    values = np.array([10.0, 11.0, 9.0, 10.5, 9.5, 100.0])
    assert not mad(values, "low").paper_flag.any()
    assert mad(values, "high").paper_flag.tolist() == [False] * 5 + [True]


def test_one_class_by_hand() -> None:
    logs = np.array([0.0, 0.3, -0.2, 0.1, -0.4, 0.2, -3.0])
    others = logs[:-1]
    t = (others.mean() - logs[-1]) / (others.std(ddof=1) * np.sqrt(1 + 1 / 6))
    judged = leave_one_out(np.exp(logs))
    assert judged.index[-1] == pytest.approx(t)
    # Seven classes tested, nine tenths of the error for single classes.
    assert judged.p_value[-1] == pytest.approx(stats.t.sf(t, 5) * 7 / 0.9)


def test_null_statistic_follows_students_t() -> None:
    """The deleted studentised residual of a fixed class is t with K - 2 degrees of freedom, exactly.

    The last class is compared while it is not among the smallest third, where the others below it are left out.
    """
    rng = np.random.default_rng(5)
    logs = rng.standard_normal((800, 4))
    t = np.array([leave_one_out(np.exp(row)).index for row in logs])
    smallest = logs.argmin(1)
    expected = np.array(
        [
            [(np.delete(r, k).mean() - r[k]) / np.delete(r, k).std(ddof=1) / np.sqrt(4 / 3) for k in range(4)]
            for r in logs
        ]
    )
    np.testing.assert_allclose(t, expected, rtol=REORDERED_64, atol=FORMULA_64)
    assert stats.kstest(t[:, 0], stats.t(df=2).cdf).pvalue > 1e-3
    assert (t.argmax(1) == smallest).all()


@pytest.mark.parametrize("classes", [4, 10])
def test_false_alarms_under_the_null(classes: int) -> None:
    rng = np.random.default_rng(classes)
    draws = 1000
    alarms = sum(leave_one_out(norms(rng, classes)).p_value.min() < ALPHA for _ in range(draws))
    assert alarms <= stats.binom.ppf(0.9999, draws, ALPHA)
    # Nine tenths of alpha are spent on single classes, at a cost of next to nothing: the test is no paper tiger.
    assert alarms >= stats.binom.ppf(0.0001, draws, 0.03)


@pytest.mark.parametrize("outliers", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_outliers_do_not_hide_each_other(outliers: int, spread: float) -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        values = norms(rng, 10, sigma=0.15)
        chosen = rng.choice(10, outliers, replace=False)
        values[chosen] = np.exp(3.0 - 5.0 + spread * rng.standard_normal(outliers))
        assert set(np.flatnonzero(leave_one_out(values).p_value < ALPHA)) == set(chosen)


def test_more_than_a_third_are_not_outliers() -> None:
    values = np.exp(np.array([0.0, 0.1, -0.1, 0.05, -0.05, 5.0, 5.1, 4.9, 5.05, 4.95]))
    assert leave_one_out(values).p_value.min() > ALPHA


@settings(max_examples=40)
@given(distinct, st.floats(1e-3, 1e3))
def test_scale_invariance(values: np.ndarray, factor: float) -> None:
    a, b = leave_one_out(values), leave_one_out(values * factor)
    np.testing.assert_allclose(a.log10_p, b.log10_p, rtol=TAIL_64, atol=TAIL_64)
    np.testing.assert_allclose(mad(values).index, mad(values * factor).index, rtol=TAIL_64, atol=TAIL_64)


@settings(max_examples=40)
@given(distinct, st.randoms(use_true_random=False))
def test_permutation_invariance(values: np.ndarray, random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for judge in (leave_one_out, mad):
        a, b = judge(values), judge(values[order])
        np.testing.assert_allclose(a.log10_p[order], b.log10_p, rtol=REORDERED_64, atol=REORDERED_64)
        np.testing.assert_allclose(a.index[order], b.index, rtol=QUOTIENT_64, atol=QUOTIENT_64)


def test_equal_classes_are_judged_alike() -> None:
    """Two classes with the very same statistic: which of them is named must not depend on their numbers."""
    rng = np.random.default_rng(0)
    logs = rng.standard_normal(100)
    logs = (logs - logs.mean()) / logs.std()
    logs[[20, 70]] = -5.0
    judged = leave_one_out(np.exp(logs))
    assert judged.p_value[20] < ALPHA
    assert judged.log10_p[20] == pytest.approx(judged.log10_p[70])
    assert judged.index[20] == pytest.approx(judged.index[70])


@settings(max_examples=40)
@given(distinct)
def test_high_tail_mirrors_low_tail(values: np.ndarray) -> None:
    low, high = leave_one_out(values, "low"), leave_one_out(1 / values, "high")
    np.testing.assert_allclose(low.log10_p, high.log10_p, rtol=TAIL_64, atol=TAIL_64)
    np.testing.assert_allclose(low.index, high.index, rtol=TAIL_64, atol=TAIL_64)
    np.testing.assert_allclose(mad(values, "low").index, mad(-values, "high").index)


@settings(max_examples=40)
@given(distinct, st.sets(st.integers(0, 10), max_size=5))
def test_classes_without_statistic_stay_out(values: np.ndarray, holes: set[int]) -> None:
    with_holes = values
    for hole in sorted(holes):
        with_holes = np.insert(with_holes, min(hole, len(with_holes)), np.nan)
    known = ~np.isnan(with_holes)
    for judge in (leave_one_out, mad):
        a, b = judge(values), judge(with_holes)
        np.testing.assert_array_equal(a.log10_p, b.log10_p[known])
        np.testing.assert_array_equal(a.paper_flag, b.paper_flag[known])
        assert (b.p_value[~known] == 1).all()
        assert np.isnan(b.index[~known]).all()
        assert not b.paper_flag[~known].any()


@pytest.mark.parametrize("known", range(4))
def test_too_few_classes_give_no_p_value(known: int) -> None:
    values = np.full(10, np.nan)
    values[:known] = [1.0, 20.0, 21.0][:known]
    judged = leave_one_out(values)
    assert (judged.p_value == 1).all()
    assert np.isnan(judged.index).all()


def test_a_thousand_classes() -> None:
    values = norms(np.random.default_rng(2), 1000)
    values[[17, 400]] = np.exp(0.0)
    judged = leave_one_out(values)
    assert set(np.flatnonzero(judged.p_value < ALPHA)) == {17, 400}
    assert np.isfinite(judged.log10_p).all()


@pytest.mark.parametrize("classes", [10, 200, 1000])
def test_extreme_outlier_does_not_underflow(classes: int) -> None:
    values = norms(np.random.default_rng(3), classes, sigma=0.01)
    values[4] = 1e-200
    judged = leave_one_out(values)
    assert np.isfinite(judged.log10_p).all()
    assert judged.log10_p.argmin() == 4
    values[4] = 1e-100
    assert judged.log10_p[4] < leave_one_out(values).log10_p[4] < -3


@settings(max_examples=100)
@given(st.lists(st.one_of(st.floats(0, 1e6), st.just(float("nan"))), max_size=12).map(lambda v: np.array(v, float)))
def test_p_values_are_probabilities(values: np.ndarray) -> None:
    for judged in (leave_one_out(values), mad(values)):
        assert judged.p_value.shape == judged.log10_p.shape == judged.index.shape == values.shape
        assert ((judged.p_value >= 0) & (judged.p_value <= 1)).all()
        assert (judged.log10_p <= 0).all()


def test_input_is_left_alone() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    kept = values.copy()
    leave_one_out(values)
    mad(values)
    np.testing.assert_array_equal(values, kept)


def test_unknown_tail() -> None:
    with pytest.raises(ValueError, match="sideways"):
        leave_one_out(np.arange(1, 6), "sideways")


@pytest.mark.parametrize(("n", "members"), [(9, 2), (9, 3), (30, 5)])
def test_joint_tail_is_the_chance_it_says(n: int, members: int) -> None:
    """All members of a fixed set as far below the others as t: against a simulation of exactly that."""
    rng = np.random.default_rng(n * members)
    draws = rng.normal(size=(400_000, n + members))
    rest, weakest = draws[:, members:], draws[:, :members].max(1)
    seen = (rest.mean(1) - weakest) / (rest.std(1, ddof=1) * np.sqrt(1 + 1 / n))
    for t in (0.2, 0.6, 1.0, 1.5):
        expected = np.exp(null_model._log_joint_tail(t, float(stats.t.logsf(t, n - 1)), n, members))
        count = int((seen >= t).sum())
        if count >= 100:
            assert count / len(seen) == pytest.approx(expected, abs=4 * np.sqrt(expected / len(seen)))


def test_ten_pairs_of_ninety_are_found_together() -> None:
    rng = np.random.default_rng(5)
    values = norms(rng, 90)
    assert leave_one_out(values).p_value.min() > ALPHA
    values[:10] *= 0.15
    judged = leave_one_out(values)
    assert (judged.p_value[:10] < 1e-3).all()
    assert (judged.p_value[10:] > ALPHA).all()


def test_shares_of_few_images_are_not_taken_for_exact() -> None:
    """Nine classes at 1.00 and one at 0.94 of 16 images: one image. Without the noise the test takes it for certain."""
    values = np.array([1.0] * 9 + [0.9375])
    assert leave_one_out(values, log=False).p_value[9] < 1e-3
    assert leave_one_out(values, log=False, noise=float(np.sqrt(0.94 * 0.06 / 16))).p_value[9] > ALPHA


def natural(rng: np.random.Generator, classes: int, slope: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """(a clean model's statistics, the references'): the same order of classes, on the subject's narrower scale."""
    easy = rng.normal(0.0, 0.5, classes)
    references = easy + rng.normal(0.0, 0.22, (3, classes)).mean(0)
    return np.exp(3.0 + slope * easy + rng.normal(0.0, 0.12, classes)), np.exp(3.5 + references)


@pytest.mark.parametrize("slope", [0.0, 0.35, 1.0])
def test_false_alarms_against_references(slope: float) -> None:
    rng = np.random.default_rng(5)
    runs = 600
    alarms = sum(against_reference(*natural(rng, 10, slope), spread=0.22).p_value.min() < ALPHA for _ in range(runs))
    # At most alpha, and one in a hundred for chance: three standard deviations of 600 runs are 2.7 %.
    assert alarms <= (ALPHA + 0.027) * runs


def test_references_leave_more_power_than_ratios_do() -> None:
    rng = np.random.default_rng(6)
    found, by_ratio = 0, 0
    for _ in range(100):
        values, references = natural(rng, 10)
        values[4] *= np.exp(-1.2)
        found += against_reference(values, references, spread=0.22).p_value[4] < ALPHA
        by_ratio += leave_one_out(values / references).p_value[4] < ALPHA
    assert found >= 85
    assert found > 1.5 * by_ratio


def test_the_easiest_class_is_credited_with_all_of_its_ease() -> None:
    """One class is far easier than all others, on the references and on the subject: a straight line would not say so."""
    rng = np.random.default_rng(7)
    references = np.exp(np.concatenate([[0.0], 2.0 + rng.normal(0, 0.05, 9)]))
    values = np.exp(np.concatenate([[1.3], 3.0 + rng.normal(0, 0.1, 9)]))
    assert leave_one_out(values).p_value[0] < 0.001
    assert against_reference(values, references).p_value[0] == 1
    values[0] = np.exp(-0.2)  # still far smaller than even that class is
    assert against_reference(values, references).p_value[0] < ALPHA


def test_ease_on_references_that_are_chance_is_not_credited() -> None:
    """What barely trained networks find easy says nothing: a planted class must not be excused by it."""
    rng = np.random.default_rng(12)
    values, references = np.exp(3 + rng.normal(0, 0.2, 10)), np.exp(3 + rng.normal(0, 0.4, 10))
    easiest = int(references.argmin())
    values[easiest] = np.exp(3 - 1.0)
    trusted = against_reference(values, references, reliability=1.0).p_value[easiest]
    distrusted = against_reference(values, references, reliability=0.0).p_value[easiest]
    assert distrusted < ALPHA
    assert trusted > 2 * distrusted
    # The weakest in between.
    half = against_reference(values, references, reliability=0.5).p_value[easiest]
    assert distrusted <= half <= trusted


def test_without_references_it_is_leave_one_out() -> None:
    values = norms(np.random.default_rng(8), 10)
    judged = against_reference(values, np.full(10, np.nan), noise=0.1)
    np.testing.assert_array_equal(judged.log10_p, leave_one_out(values, noise=0.1).log10_p)
    # Nor do references that tell no class from another change anything.
    level = against_reference(values, np.full(10, 7.0), noise=0.1)
    np.testing.assert_allclose(level.log10_p, leave_one_out(values, noise=0.1).log10_p, atol=REORDERED_64)


@given(distinct, st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_units_of_the_subject_and_of_the_references_do_not_matter(values: np.ndarray, a: float, b: float) -> None:
    references = np.random.default_rng(9).permutation(values)
    first, second = against_reference(values, references), against_reference(a * values, b * references)
    np.testing.assert_allclose(first.log10_p, second.log10_p, rtol=TAIL_64, atol=TAIL_64)


def test_large_values_do_not_hide_a_small_one() -> None:
    values = np.exp(np.array([0.0, 2.0, 2.1, 2.2, 1.9, 1.8, 2.05, 2.15, 3.0, 6.0]))
    assert leave_one_out(values).p_value[0] < ALPHA
    assert leave_one_out(values[:8]).p_value[0] < ALPHA  # as without them


def test_one_value_beside_the_classes() -> None:
    rng = np.random.default_rng(10)
    p = []
    for _ in range(2000):
        values, references = natural(rng, 11)
        p.append(10 ** one_against_reference(values[0], references[0], values[1:], references[1:], spread=0.22)[1])
    # A p-value: not below alpha more often than that (three standard deviations of 2,000 runs are 1.5 %).
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p) < level) <= level + 3 * np.sqrt(level * (1 - level) / 2000)
    values, references = natural(rng, 11)
    t, log10_p = one_against_reference(values.min() / 20, references[0], values[1:], references[1:])
    assert t > 4
    assert log10_p < -3
    assert one_against_reference(1.0, 1.0, np.full(10, np.nan), np.ones(10)) == (pytest.approx(np.nan, nan_ok=True), 0)


def test_one_value_by_hand() -> None:
    others, references = np.array([5.0, 6.0, 7.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])
    # What all of the others follow, the value does too: nothing is left, neither of it nor of them.
    assert one_against_reference(1.0, -3.0, others, references, log=False)[0] == pytest.approx(0.0, abs=FORMULA_64)
    # Without the value's reference it is Student's t of the bare values, and so it is of the fewest that are judged.
    t = (6.5 - 1.0) / (np.std(others, ddof=1) * np.sqrt(1 + 1 / 4))
    for unknown in (np.full(4, np.nan), references):
        judged = one_against_reference(1.0, float("nan"), others, unknown, log=False)
        assert judged == pytest.approx((t, np.log10(stats.t.sf(t, 3))))
    fewer = one_against_reference(1.0, 0.0, others[: null_model.FEWEST_CLASSES - 1], references[:-1], log=False)
    assert fewer == (pytest.approx(np.nan, nan_ok=True), 0)


def test_what_is_left_beyond_references_by_hand() -> None:
    values, references = np.array([2.0, 3.0, 4.0, 5.0, np.nan]), np.array([4.0, 6.0, 8.0, 10.0, 1.0])
    np.testing.assert_allclose(beyond_references(values, references, log=False), np.zeros(4), atol=FORMULA_64)
    assert beyond_references(values[2:], references[2:], log=False).shape == (0,)


def test_references_are_reliable_unless_it_is_said_that_they_are_not() -> None:
    values, references = natural(np.random.default_rng(12), 10)
    values[references.argmin()] /= 10
    judged, said, doubted = (
        against_reference(values, references, **given).log10_p
        for given in ({}, {"reliability": 1.0}, {"reliability": 0.0})
    )
    np.testing.assert_array_equal(judged, said)
    assert (judged != doubted).any()


@pytest.mark.parametrize("df", [2, 3.5, 9, 40])
@pytest.mark.parametrize("log10_t", [1, 40, 101, 140])
def test_students_tail_where_it_underflows(df: float, log10_t: int) -> None:
    """Beside mpmath, in as many digits as it takes."""
    t = 10.0**log10_t
    with mp.workdps(50):
        exact = mp.log(mp.betainc(mp.mpf(df) / 2, mp.mpf(1) / 2, 0, df / (df + mp.mpf(t) ** 2), regularized=True) / 2)
    assert null_model._log_tail(t, df) == pytest.approx(float(exact), rel=TAIL_64)


def test_members_above_the_rest_are_not_joined() -> None:
    """Below the mean of the rest there is nothing to be joined: that several lie there says no more than that one does."""
    for t in (-1.0, 0.0):
        alone = float(stats.t.logsf(t, 8))
        assert null_model._log_joint_tail(t, alone, 9, 3) == alone


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([-2.5]) == -2.5
    assert harmonic_mean([0.0, 0.0, 0.0]) == 0.0
    mean = (1000 + 1 + 1) / 3
    assert harmonic_mean([-3.0, 0.0, 0.0]) == pytest.approx(-np.log10(mean - np.log(3) - 0.874))
    weighted = 0.9 * 100 + 0.1 * 10
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert harmonic_mean([-2.0, -1.0], [9.0, 1.0]) == pytest.approx(-np.log10(weighted - entropy - 0.874))
    half = np.log10(0.5)  # a sum of 2, which is more than the law's location, 1.57, and less than one beyond it
    assert harmonic_mean([half, half]) == 0.0
    assert harmonic_mean([-500.0, -3.0]) == pytest.approx(-500 + np.log10(2))  # nothing underflows


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
def test_dependent_tests_keep_the_level_together(correlation: float) -> None:
    """The reason for the harmonic mean: p-values of normal statistics, alike to any degree."""
    rng = np.random.default_rng(11)
    common, own = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 3))
    z = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    logs = stats.norm.logsf(z) / np.log(10)
    for alpha in (0.05, 0.01):
        rate = np.mean([harmonic_mean(row) < np.log10(alpha) for row in logs[:6000].tolist()])
        assert rate <= 1.1 * alpha + 3 * np.sqrt(alpha / 6000)
        if correlation == 1.0:  # Bonferroni would be left with a third
            assert rate > 0.75 * alpha


def test_the_robust_deviation_is_the_papers_to_the_bit() -> None:
    """scipy's median absolute deviation times 1.4826: what the formula of Neural Cleanse gives, with no rounding of its own."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.normal(size=rng.integers(1, 40)) * 10 ** rng.uniform(-5, 5)
        assert robust_deviation(values) == 1.4826 * np.median(np.abs(values - np.median(values)))
