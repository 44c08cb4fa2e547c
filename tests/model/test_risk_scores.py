"""Scores of forecasts of risk against closed forms and simulations."""

import numpy as np
import pytest
from scipy import stats

from finjepa_model.training import risk_scores as scores

LEVELS = np.arange(0.005, 1.0, 0.005)


def test_qlike_is_least_at_the_mean_of_the_variance():
    realised = np.random.default_rng(0).chisquare(5, 100_000) / 5
    losses = [scores.qlike(realised, np.full_like(realised, level)).mean() for level in (0.8, 1.0, 1.25)]
    assert losses[1] < min(losses[0], losses[2])
    assert scores.qlike(realised, realised).max() == pytest.approx(0, abs=1e-12)


def test_r2_within_dates_ignores_the_level_of_a_date():
    random = np.random.default_rng(0)
    date = np.repeat(np.arange(50), 20)
    target = random.standard_normal(1000) + 5 * random.standard_normal(50)[date]
    assert scores.r2_within_dates(target, target + np.sin(date), date) == pytest.approx(1)
    assert scores.r2_within_dates(target, np.zeros(1000), date) == pytest.approx(0)


def test_t_values_count_what_is_correlated_once():
    random = np.random.default_rng(0)
    alone = random.standard_normal(2000) + 0.1
    assert scores.newey_west_t(alone, 0) == pytest.approx(stats.ttest_1samp(alone, 0).statistic, rel=1e-3)
    found = []
    for _ in range(300):
        noise = random.standard_normal(404)
        found.append(scores.newey_west_t(np.lib.stride_tricks.sliding_window_view(noise, 5).mean(1), 10))
    assert np.mean(np.abs(found) > 1.96) < 0.13
    assert np.isnan(scores.newey_west_t(alone[:5], 1))


def test_calibrated_quantiles_are_found_calibrated():
    outcome = np.random.default_rng(0).standard_normal(4000)
    quantile = np.broadcast_to(stats.norm.ppf(LEVELS), (4000, len(LEVELS)))
    # the closed form of the normal distribution (Gneiting and Raftery 2007, section 4.2)
    exact = outcome * (2 * stats.norm.cdf(outcome) - 1) + 2 * stats.norm.pdf(outcome) - 1 / np.sqrt(np.pi)
    assert scores.crps(outcome, quantile, LEVELS).mean() == pytest.approx(exact.mean(), rel=0.01)
    assert stats.kstest(scores.probability_integral(outcome, quantile, LEVELS), "uniform").pvalue > 0.01
    assert scores.coverage(outcome, quantile[:, 9], quantile[:, -10]) == pytest.approx(0.9, abs=0.015)


def test_breaches_are_counted_and_found_in_clusters():
    random = np.random.default_rng(0)
    right, often = random.random(1000) < 0.05, random.random(1000) < 0.09
    ratio = 2 * (stats.binom.logpmf(often.sum(), 1000, often.mean()) - stats.binom.logpmf(often.sum(), 1000, 0.05))
    assert scores.kupiec(often, 0.05) == pytest.approx(stats.chi2.sf(ratio, 1))
    assert scores.kupiec(right, 0.05) > 0.05 > scores.kupiec(often, 0.05)
    assert scores.christoffersen(right) > 0.05 > scores.christoffersen(np.repeat(right[:250], 4))


def test_targeting_utility_of_a_perfect_forecast_is_four_percent():
    realised = np.random.default_rng(0).chisquare(5, 1000)
    assert scores.targeting_utility(realised, realised) == pytest.approx(4.0)
    assert scores.targeting_utility(realised, np.full(1000, realised.mean())).mean() < 4
