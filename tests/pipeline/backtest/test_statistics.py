"""Metrics, intervals and corrections against skfolio, ffn, empyrical and scipy, and on cases whose answer is known."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import skfolio.measures as skfolio
from scipy.stats import spearmanr

from finjepa_pipeline.backtest.inference import (
    MIN_BLOCK,
    block_length,
    deflated_sharpe,
    detectable_gain,
    effective_trials,
    expected_highest_sharpe,
    information,
    newey_west_error,
    overfitting_logits,
    probabilistic_sharpe,
    probability_of_overfitting,
    sharpe_error,
    sharpe_intervals,
    superior_predictive_ability,
)
from finjepa_pipeline.backtest.metrics import (
    annual_return,
    calibration,
    cvar,
    exposure,
    has_skill,
    lo_sharpe,
    max_drawdown,
    measure,
    months_better,
    same_return_for_all,
    sharpe,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import empyrical
    import ffn.core as ffn

TRIED_TN = 0.0003 + 0.01 * np.random.default_rng(0).standard_t(5, (1000, 12))
RETURNS_T = TRIED_TN[:, 3]
SHARPES_N = TRIED_TN.mean(0) / TRIED_TN.std(0, ddof=1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return 0.01 * np.random.default_rng(seed).standard_normal(shape)


def test_every_metric_agrees_with_empyrical_and_skfolio():
    result = measure(RETURNS_T, RETURNS_T, np.zeros(1000))
    assert result["sharpe"] == pytest.approx(empyrical.sharpe_ratio(RETURNS_T), rel=1e-9)
    assert result["annual_return"] == pytest.approx(empyrical.cagr(RETURNS_T), rel=1e-9)
    assert result["annual_volatility"] == pytest.approx(empyrical.annual_volatility(RETURNS_T), rel=1e-9)
    assert result["max_drawdown"] == pytest.approx(empyrical.max_drawdown(RETURNS_T), rel=1e-9)
    assert result["calmar"] == pytest.approx(empyrical.calmar_ratio(RETURNS_T), rel=1e-9)
    assert result["sortino"] == pytest.approx(empyrical.sortino_ratio(RETURNS_T), rel=1e-9)
    assert cvar(RETURNS_T) == pytest.approx(skfolio.cvar(RETURNS_T, beta=0.95), rel=1e-12)


def test_the_metrics_that_they_have_not_by_hand():
    net_T, gross_T = np.array([0.01, -0.02, 0.03, 0.0]), np.array([0.011, -0.019, 0.031, 0.001])
    result = measure(net_T, gross_T, np.array([0.5, 0.0, 0.1, 0.0]))
    assert (result["hit_rate"], result["annual_turnover"]) == (0.5, pytest.approx(0.15 * 252))
    assert result["cost_drag"] == pytest.approx(annual_return(gross_T) - annual_return(net_T))
    assert max_drawdown(np.array([-0.2, 0.1, 0.0])) == pytest.approx(-0.2)  # a loss on the first day
    dates_T = np.arange("2020-01-01", "2020-05-01", dtype="datetime64[D]")
    ahead_T = np.where(dates_T < np.datetime64("2020-02-01"), 0.01, -0.001)
    assert months_better(ahead_T, np.zeros(len(dates_T)), dates_T) == 0.25
    shares, hedge = [0.5, 0.5, 0.0, 0.5, -0.25, 0.0, 0.0, 0.0, 0.0], [1.0] * 3 + [0.0] * 6
    held = exposure(pl.DataFrame({"date": np.repeat(range(3), 3), "held": shares, "hedge": hedge}))
    expected = ((2 + 0.75**2 / (0.5**2 + 0.25**2)) / 2, 1.75 / 3, 1.25 / 3, 1 / 3)
    assert tuple(held.values()) == pytest.approx(expected)
    still = measure(np.zeros(50), np.zeros(50), np.zeros(50))
    assert np.isnan([still["sharpe"], still["sortino"], still["calmar"]]).all()
    assert still["max_drawdown"] == 0


def test_the_lo_correction_knows_momentum_from_noise():
    """Independent returns keep their Sharpe ratio; an AR(1) of rho loses sqrt((1 - rho) / (1 + rho)) of it, Lo 2002."""
    noise_T = noise(1, 20000)
    assert lo_sharpe(noise_T + 0.0005) == pytest.approx(sharpe(noise_T + 0.0005), rel=0.05)
    trending_T = noise_T.copy()
    for t in range(1, len(trending_T)):
        trending_T[t] += 0.3 * trending_T[t - 1]
    assert lo_sharpe(trending_T + 0.0005) == pytest.approx(sharpe(trending_T + 0.0005) * (0.7 / 1.3) ** 0.5, rel=0.08)


def test_an_interval_does_not_depend_on_the_other_strategies_of_the_table():
    returns_TK = noise(1, 300, 4)
    few, many = (sharpe_intervals(returns_TK[:, :k], 0, samples=200) for k in (2, 4))
    np.testing.assert_array_equal(few["excess_low"], many["excess_low"][:2])
    np.testing.assert_array_equal(few["sharpe_high"], many["sharpe_high"][:2])
    assert few["excess_sharpe"][0] == few["excess_low"][0] == few["excess_high"][0] == 0


def test_a_planted_winner_is_found_and_its_twin_is_not():
    returns_TK = noise(2, 1000, 3)
    returns_TK[:, 1] = returns_TK[:, 0] + 0.002
    result = sharpe_intervals(returns_TK, 0, samples=500)
    assert result["excess_low"][1] > 0
    assert result["probability_better"][1] == 1
    assert result["excess_low"][2] < 0 < result["excess_high"][2]


def test_the_interval_is_as_wide_as_theory_says_and_its_blocks_fit():
    """Independent normal returns: se(SR) = sqrt((1 + SR_d^2 / 2) 252 / T), Lo 2002."""
    result = sharpe_intervals(noise(4, 2520, 1), 0, samples=1000)
    assert (result["sharpe_high"] - result["sharpe_low"])[0] == pytest.approx(2 * 1.96 * 10**-0.5, rel=0.2)
    assert block_length(noise(5, 500)) >= MIN_BLOCK
    assert block_length(np.zeros(10)) == 10


def test_dsr_agrees_with_ffn():
    theirs = ffn.calc_deflated_sharpe_ratio(pd.Series(RETURNS_T), SHARPES_N, nperiods=252, annualized_trials=False)
    assert deflated_sharpe(RETURNS_T, SHARPES_N) == pytest.approx(float(theirs), rel=1e-3)  # another skewness


def test_configurations_without_a_result_count_and_few_of_them_leave_a_probability():
    psr, failed_N = probabilistic_sharpe(RETURNS_T), np.full(30, np.nan)
    few, many = (deflated_sharpe(RETURNS_T, np.append(SHARPES_N, more)) for more in ([], failed_N))
    assert many < few < psr
    assert deflated_sharpe(RETURNS_T, np.array([0.02])) == psr  # nothing else was tried
    assert deflated_sharpe(RETURNS_T, np.array([0.02, 0.02])) == psr  # no spread, no luck
    only_failed_N = np.append(0.02, failed_N)  # their spread is not known: that of independent ones
    assert expected_highest_sharpe(only_failed_N, 0.03) == pytest.approx(0.03 * 2.09, rel=0.01)
    assert deflated_sharpe(RETURNS_T, only_failed_N) < psr
    assert np.isnan(deflated_sharpe(np.zeros(100), np.array([0.02])))  # it is 1/N itself


def test_pbo_agrees_with_ffn_split_by_split_and_tells_a_winner_from_noise():
    for seed in range(3):
        returns_TK = noise(seed, 640, 7)
        logits_C = overfitting_logits(returns_TK, blocks=8)
        assert len(logits_C) == 70
        theirs = float(ffn.calc_prob_backtest_overfitting(pd.DataFrame(returns_TK), n_blocks=8))
        assert probability_of_overfitting(logits_C) == pytest.approx(theirs, abs=1e-12)
    winner_TK = noise(1, 1260, 20) + np.eye(20)[4] * 0.002
    assert probability_of_overfitting(overfitting_logits(winner_TK)) < 0.05
    assert 0.3 < np.mean([probability_of_overfitting(overfitting_logits(noise(s, 640, 20))) for s in range(8)]) < 0.7


def test_copies_of_a_bet_are_one_bet():
    copies_TN = np.repeat(noise(3, 800, 3), 5, axis=1) + 0.2 * noise(4, 800, 15)
    assert effective_trials(copies_TN) == 3
    assert effective_trials(np.column_stack([copies_TN, np.zeros(800)])) == 3  # cash is no bet


def test_spa_finds_a_planted_winner_and_is_level_on_noise():
    found = superior_predictive_ability(noise(4, 600, 5) + np.eye(5)[2] * 0.002, 0, samples=300)
    assert found is not None
    assert found < 0.01
    assert superior_predictive_ability(noise(4, 600, 1), 0) is None
    values = [superior_predictive_ability(noise(seed, 250, 4), 0, samples=100) for seed in range(20)]
    assert 0.2 < np.mean([v for v in values if v is not None]) < 0.8


def test_power_is_that_of_the_formula():
    """A correlation of .9 over 5 years has an error of .20 and needs a true gain of .5 (Jobson and Korkie 1981)."""
    returns_T2 = np.sqrt(0.9) * noise(5, 1260, 1) + np.sqrt(0.1) * noise(6, 1260, 2)
    assert sharpe_error(returns_T2[:, 1]) == pytest.approx(0.45, abs=0.01)
    assert detectable_gain(*returns_T2.T) == pytest.approx(0.5, abs=0.05)


def test_ic_and_rank_ic_agree_with_scipy():
    forecast_KN, outcome_KN = np.random.default_rng(0).standard_normal((2, 40, 8))
    outcome_KN[3, 2] = np.nan  # an asset without an outcome is left out of its decision only
    known = [np.isfinite(o) for o in outcome_KN]
    by_hand = [np.corrcoef(f[k], o[k])[0, 1] for f, o, k in zip(forecast_KN, outcome_KN, known, strict=True)]
    ranked = [spearmanr(f[k], o[k]).statistic for f, o, k in zip(forecast_KN, outcome_KN, known, strict=True)]
    assert information(forecast_KN, outcome_KN, ranks=False).mean == pytest.approx(np.mean(by_hand), rel=1e-12)
    result = information(forecast_KN, outcome_KN, ranks=True)
    assert result.mean == pytest.approx(np.mean(ranked), rel=1e-12)
    assert result.ratio == pytest.approx(np.mean(ranked) / np.std(ranked, ddof=1), rel=1e-12)
    assert result.t == pytest.approx(np.mean(ranked) / (np.std(ranked) / 40**0.5), rel=1e-12)


def test_overlap_widens_the_error_of_a_mean_as_newey_and_west_say():
    """Averages of four neighbours: the error of the mean is that of independent ones, and not four times too small."""
    overlapping_K = np.convolve(np.random.default_rng(1).standard_normal(4000), np.ones(4) / 4, "valid")
    assert newey_west_error(overlapping_K, 12) == pytest.approx(4000**-0.5, rel=0.15)
    assert newey_west_error(overlapping_K, 0) < 0.6 * newey_west_error(overlapping_K, 12)
    series_K, lags = np.random.default_rng(2).standard_normal(30), 5
    distance_KK = np.abs(np.subtract.outer(range(30), range(30)))
    weights_KK = np.clip(1 - distance_KK / (lags + 1), 0, None)
    centred_K = series_K - series_K.mean()
    assert newey_west_error(series_K, lags) == pytest.approx(
        np.sqrt(centred_K @ weights_KK @ centred_K) / 30, rel=1e-12
    )


def test_a_planted_forecast_is_seen_and_noise_is_not():
    signal_KN, noise_KN = np.random.default_rng(3).standard_normal((2, 400, 20))
    assert information(signal_KN, 0.1 * signal_KN + noise_KN, ranks=True).low > 0.05
    assert information(signal_KN, noise_KN, ranks=True).low < 0


def test_a_calibrated_planner_has_slope_one_and_an_overconfident_one_less():
    imagined_D = noise(0, 2000)
    realised_D = imagined_D + 2 * noise(1, 2000)
    volatility_D = np.full(2000, 0.02)
    honest = calibration(imagined_D, volatility_D, realised_D)
    assert honest["slope"] == pytest.approx(1, abs=0.1)
    assert honest["covered"] == pytest.approx(0.954, abs=0.02)
    assert calibration(3 * imagined_D, volatility_D, realised_D)["slope"] < 0.5


def claims(homes: int, tried: int, seed: int, *, common: float = 0.0, edge: float = 0.0) -> np.ndarray:
    """Whether any of `tried` planners of each home is said to have skill; all homes live in one rising market.

    Args:
        common: share of the variance over 1/N that the planners of a home have in common.
        edge: true annual Sharpe ratio of the return over 1/N of the first planner.
    """
    rng, sessions = np.random.default_rng(seed), 756
    market_T = 0.0006 + 0.01 * rng.standard_t(5, sessions)
    shared_THN = np.sqrt(common) * rng.standard_normal((sessions, homes, 1))
    over_THN = 0.004 * (shared_THN + np.sqrt(1 - common) * rng.standard_normal((sessions, homes, tried)))
    over_THN[:, :, 0] += 0.004 * edge / np.sqrt(252)
    net_TK = np.column_stack([market_T, market_T[:, None] + over_THN.reshape(sessions, -1)])
    low_HN = sharpe_intervals(net_TK, 0, samples=200)["excess_low"][1:].reshape(homes, tried)
    ratio_HN = over_THN.mean(0) / over_THN.std(0, ddof=1)
    found_HN = np.zeros((homes, tried), bool)
    for h, n in np.argwhere(low_HN > 0):
        dsr = deflated_sharpe(over_THN[:, h, n], ratio_HN[h])
        found_HN[h, n] = has_skill({"strategy": "mppi", "block": "test", "excess_low": low_HN[h, n], "dsr": dsr})
    return found_HN.any(1)


@pytest.mark.parametrize(("tried", "common"), [(1, 0.0), (5, 0.0), (20, 0.0), (20, 0.9)])
def test_of_sixty_homes_without_skill_at_most_five_percent_claim_some(tried, common):
    assert claims(60, tried, seed=tried, common=common).mean() <= 0.05


def test_a_planner_with_skill_is_found_among_twenty():
    assert claims(20, 20, seed=1, edge=5.0).mean() >= 0.9


def test_a_read_out_that_confirmed_nothing_is_said_first():
    for readout in ({"weighted": 0.0, "t_value": 0.42}, {"rows": 0.0}):
        assert "same return of every asset" in str(same_return_for_all({"readout": readout}))
    for metrics in ({"readout": {"weighted": 3.0, "t_value": 8.0}}, {}):
        assert same_return_for_all(metrics) is None
