"""RE's (Xiang et al., 2020) order statistic over pairs: against scipy, under its own null, and where probabilities underflow."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from tolerances import FITTED_64, FORMULA_64, REORDERED_64, ROUNDING_64, SOLVED_COARSELY_64, TAIL_64

from onnxspect.engine.judge.gamma_order import LARGEST_SHAPE, _log_gamma_sf, gamma_fit, gamma_order


def reciprocal_norms(rng: np.random.Generator, classes: int = 10, shape: float = 9.0) -> np.ndarray:
    """Norms of a clean model as RE's null has it: reciprocals of one Gamma law, none on the diagonal."""
    norms = 1 / rng.gamma(shape, 0.1, (classes, classes))
    np.fill_diagonal(norms, np.nan)
    return norms


@settings(max_examples=40)
@given(st.floats(0.3, 200), st.floats(1e-3, 1e3), st.integers(0, 5))
def test_gamma_fit_is_the_maximum_of_the_likelihood(shape: float, scale: float, seed: int) -> None:
    values = np.random.default_rng(seed).gamma(shape, scale, 60)
    fitted = gamma_fit(values)
    theirs = stats.gamma.fit(values, floc=0)
    np.testing.assert_allclose(fitted, (theirs[0], theirs[2]), rtol=FITTED_64)
    best = stats.gamma.logpdf(values, fitted[0], scale=fitted[1]).sum()
    for a, b in [(1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)]:
        assert stats.gamma.logpdf(values, fitted[0] * a, scale=fitted[1] * b).sum() < best


@pytest.mark.parametrize("deviation", [3e-4, 1.1e-4, 0.9e-4, 1e-6, 1e-12])
@pytest.mark.parametrize("n", [2, 9, 90])
def test_gamma_fit_of_values_that_hardly_differ(deviation: float, n: int) -> None:
    """Around the cap and far below it: never a failure or a warning, and the mean is kept."""
    values = 5.0 * (1 + deviation * np.random.default_rng(n).standard_normal(n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape, scale = gamma_fit(values)
    assert shape * scale == pytest.approx(5.0, rel=SOLVED_COARSELY_64)
    assert 1e5 < shape <= LARGEST_SHAPE


def test_gamma_fit_solves_the_likelihood_equation() -> None:
    """log(shape) - digamma(shape) = log(mean) - mean(log), whatever solves it."""
    rng = np.random.default_rng(0)
    for shape in 10 ** rng.uniform(-1, 5, 40):
        values = rng.gamma(shape, 2.0, 50)
        fitted, scale = gamma_fit(values)
        gap = np.log(values.mean()) - np.log(values).mean()
        assert np.log(fitted) - special.digamma(fitted) == pytest.approx(gap, rel=FITTED_64)
        assert fitted * scale == pytest.approx(values.mean(), rel=FORMULA_64)


def test_the_tail_is_finite_where_scipys_is_not() -> None:
    assert stats.gamma.logsf(700.0, 2.0) == pytest.approx(_log_gamma_sf(700.0, 2.0), rel=FORMULA_64)
    with np.errstate(divide="ignore"):
        assert np.isneginf(stats.gamma.logsf(2000.0, 2.0))  # then ours can go
    assert _log_gamma_sf(2000.0, 2.0) == pytest.approx(-2000 + np.log(2001), rel=ROUNDING_64)  # (1 + x) e^-x


def test_gamma_fit_of_equal_values() -> None:
    shape, scale = gamma_fit(np.full(5, 3.0))
    assert shape * scale == pytest.approx(3.0)
    assert np.isfinite(shape)


def test_order_statistic_p_values_by_hand() -> None:
    """RE's Eq. 10 and 11 written out with scipy where nothing underflows."""
    norms = reciprocal_norms(np.random.default_rng(5))
    judged = gamma_order(norms)
    pv = np.empty(10)
    for c in range(10):
        others = 1 / np.delete(norms, c, 0)
        shape, _, scale = stats.gamma.fit(others[np.isfinite(others)], floc=0)
        pv[c] = 1 - stats.gamma.cdf(np.nanmax(1 / norms[c]), shape, scale=scale) ** 9
    np.testing.assert_allclose(10**judged.log10_p, pv, rtol=FITTED_64)
    assert judged.target == pv.argmin()
    assert judged.source == np.nanargmin(norms[pv.argmin()])
    assert 10**judged.log10_overall == pytest.approx(1 - (1 - pv.min()) ** 10, rel=FITTED_64)


def test_the_paper_s_level_is_kept_under_its_own_null() -> None:
    """Under the null that RE assumes, Eq. 11 is below 0.05 in about one model of twenty."""
    rng = np.random.default_rng(6)
    alarms = sum(gamma_order(reciprocal_norms(rng)).paper_flag for _ in range(300))
    assert stats.binom.cdf(alarms, 300, 0.05) > 1e-4
    assert stats.binom.sf(alarms - 1, 300, 0.08) > 1e-4  # the fit makes it a little liberal


@pytest.mark.parametrize("smaller", [1.0, 10.0, 1e3, 1e6, 1e12])
def test_order_statistics_do_not_underflow(smaller: float) -> None:
    norms = reciprocal_norms(np.random.default_rng(7))
    norms[3, 8] /= smaller
    judged = gamma_order(norms)
    assert np.isfinite(judged.log10_p).all()
    assert np.isfinite(judged.log10_overall)
    if smaller > 1:
        assert (judged.target, judged.source, judged.paper_flag) == (3, 8, True)
        # e^-x x^a / Gamma(a), up to a factor near 1: the tail goes down with the reciprocal itself
        shape, scale = gamma_fit(np.delete(1 / norms, 3, 0)[np.isfinite(np.delete(norms, 3, 0))])
        x = 1 / norms[3, 8] / scale
        assert judged.log10_p[3] == pytest.approx(
            (stats.gamma.logpdf(x, shape) + np.log(9)) / np.log(10), rel=0.05, abs=0.5
        )


def test_order_statistics_with_holes_and_one_column() -> None:
    norms = reciprocal_norms(np.random.default_rng(8), 6)
    norms[2] = np.nan
    judged = gamma_order(norms)
    assert judged.log10_p[2] == 0
    assert judged.target != 2
    column = np.array([[3.0], [3.2], [2.9], [0.2], [3.1]])
    judged = gamma_order(column)
    assert (judged.target, judged.source, judged.paper_flag) == (3, 0, True)
    nothing = gamma_order(np.full((4, 4), np.nan))
    assert (nothing.target, nothing.source, nothing.log10_overall, nothing.paper_flag) == (None, None, 0.0, False)
    with pytest.raises(ValueError, match="not positive"):
        gamma_order(np.zeros((3, 3)))


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(1e-3, 1e3))
def test_order_statistics_do_not_depend_on_unit_or_order(seed: int, classes: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    norms = reciprocal_norms(rng, classes)
    judged, scaled = gamma_order(norms), gamma_order(norms * unit)
    np.testing.assert_allclose(judged.log10_p, scaled.log10_p, rtol=TAIL_64, atol=REORDERED_64)
    order = rng.permutation(classes)
    moved = gamma_order(norms[order][:, order])
    np.testing.assert_allclose(judged.log10_p[order], moved.log10_p, rtol=TAIL_64, atol=REORDERED_64)
    assert (judged.log10_p <= 0).all()
