"""Metrics, intervals and corrections against skfolio, ffn, empyrical and scipy, and on cases whose answer is known; who acts."""

import warnings

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import skfolio.measures as skfolio
from scipy.stats import spearmanr

from finjepa_pipeline.backtest import inference, metrics
from finjepa_pipeline.backtest.leaderboard import acting_planner
from finjepa_pipeline.warehouse import insert, migrate, now

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
    result = metrics.measure(RETURNS_T, RETURNS_T, np.zeros(1000))
    assert result["sharpe"] == pytest.approx(empyrical.sharpe_ratio(RETURNS_T), rel=1e-9)
    assert result["annual_return"] == pytest.approx(empyrical.cagr(RETURNS_T), rel=1e-9)
    assert result["annual_volatility"] == pytest.approx(empyrical.annual_volatility(RETURNS_T), rel=1e-9)
    assert result["max_drawdown"] == pytest.approx(empyrical.max_drawdown(RETURNS_T), rel=1e-9)
    assert result["calmar"] == pytest.approx(empyrical.calmar_ratio(RETURNS_T), rel=1e-9)
    assert result["sortino"] == pytest.approx(empyrical.sortino_ratio(RETURNS_T), rel=1e-9)
    assert metrics.cvar(RETURNS_T) == pytest.approx(skfolio.cvar(RETURNS_T, beta=0.95), rel=1e-12)


def test_the_metrics_that_they_have_not_by_hand():
    net_T, gross_T = np.array([0.01, -0.02, 0.03, 0.0]), np.array([0.011, -0.019, 0.031, 0.001])
    result = metrics.measure(net_T, gross_T, np.array([0.5, 0.0, 0.1, 0.0]))
    assert (result["hit_rate"], result["annual_turnover"]) == (0.5, pytest.approx(0.15 * 252))
    assert result["cost_drag"] == pytest.approx(metrics.annual_return(gross_T) - metrics.annual_return(net_T))
    assert metrics.max_drawdown(np.array([-0.2, 0.1, 0.0])) == pytest.approx(-0.2)  # a loss on the first day
    dates_T = np.arange("2020-01-01", "2020-05-01", dtype="datetime64[D]")
    ahead_T = np.where(dates_T < np.datetime64("2020-02-01"), 0.01, -0.001)
    assert metrics.months_better(ahead_T, np.zeros(len(dates_T)), dates_T) == 0.25
    shares, hedge = [0.5, 0.5, 0.0, 0.5, -0.25, 0.0, 0.0, 0.0, 0.0], [1.0] * 3 + [0.0] * 6
    held = metrics.exposure(pl.DataFrame({"date": np.repeat(range(3), 3), "held": shares, "hedge": hedge}))
    expected = ((2 + 0.75**2 / (0.5**2 + 0.25**2)) / 2, 1.75 / 3, 1.25 / 3, 1 / 3)
    assert tuple(held.values()) == pytest.approx(expected)
    still = metrics.measure(np.zeros(50), np.zeros(50), np.zeros(50))
    assert np.isnan([still["sharpe"], still["sortino"], still["calmar"]]).all()
    assert still["max_drawdown"] == 0


def test_the_lo_correction_knows_momentum_from_noise():
    """Independent returns keep their Sharpe ratio; an AR(1) of rho loses sqrt((1 - rho) / (1 + rho)) of it, Lo 2002."""
    noise_T = noise(1, 20000)
    assert metrics.lo_sharpe(noise_T + 0.0005) == pytest.approx(metrics.sharpe(noise_T + 0.0005), rel=0.05)
    trending_T = noise_T.copy()
    for t in range(1, len(trending_T)):
        trending_T[t] += 0.3 * trending_T[t - 1]
    assert metrics.lo_sharpe(trending_T + 0.0005) == pytest.approx(
        metrics.sharpe(trending_T + 0.0005) * (0.7 / 1.3) ** 0.5, rel=0.08
    )


def test_an_interval_does_not_depend_on_the_other_strategies_of_the_table():
    returns_TK = noise(1, 300, 4)
    few, many = (inference.sharpe_intervals(returns_TK[:, :k], 0, samples=200) for k in (2, 4))
    np.testing.assert_array_equal(few["excess_low"], many["excess_low"][:2])
    np.testing.assert_array_equal(few["sharpe_high"], many["sharpe_high"][:2])
    assert few["excess_sharpe"][0] == few["excess_low"][0] == few["excess_high"][0] == 0


def test_the_interval_is_as_wide_as_theory_says_and_its_blocks_fit():
    """Independent normal returns: se(SR) = sqrt((1 + SR_d^2 / 2) 252 / T), Lo 2002."""
    result = inference.sharpe_intervals(noise(4, 2520, 1), 0, samples=1000)
    assert (result["sharpe_high"] - result["sharpe_low"])[0] == pytest.approx(2 * 1.96 * 10**-0.5, rel=0.2)
    assert inference.block_length(noise(5, 500)) >= inference.MIN_BLOCK
    assert inference.block_length(np.zeros(10)) == 10
    for sessions in (metrics.SHORTEST, 300, 1000):  # an interval rests on ten blocks or more
        wandering_T = np.cumsum(np.random.default_rng(0).standard_normal(sessions))  # asks for very long blocks
        assert inference.block_length(wandering_T) <= sessions / 10


def test_dsr_agrees_with_ffn():
    theirs = ffn.calc_deflated_sharpe_ratio(pd.Series(RETURNS_T), SHARPES_N, nperiods=252, annualized_trials=False)
    assert inference.deflated_sharpe(RETURNS_T, SHARPES_N) == pytest.approx(float(theirs), rel=1e-3)  # another skewness


def test_configurations_without_a_result_count_and_few_of_them_leave_a_probability():
    psr, failed_N = inference.probabilistic_sharpe(RETURNS_T), np.full(30, np.nan)
    few, many = (inference.deflated_sharpe(RETURNS_T, np.append(SHARPES_N, more)) for more in ([], failed_N))
    assert many < few < psr
    assert inference.deflated_sharpe(RETURNS_T, np.array([0.02])) == psr  # nothing else was tried
    assert inference.deflated_sharpe(RETURNS_T, np.array([0.02, 0.02])) == psr  # no spread, no luck
    only_failed_N = np.append(0.02, failed_N)  # their spread is not known: that of independent ones
    assert inference.expected_highest_sharpe(only_failed_N, 0.03) == pytest.approx(0.03 * 2.09, rel=0.01)
    assert inference.deflated_sharpe(RETURNS_T, only_failed_N) < psr
    assert np.isnan(inference.deflated_sharpe(np.zeros(100), np.array([0.02])))  # it is 1/N itself


def test_pbo_agrees_with_ffn_split_by_split_and_tells_a_winner_from_noise():
    for seed in range(3):
        returns_TK = noise(seed, 640, 7)
        logits_C = inference.overfitting_logits(returns_TK, blocks=8)
        assert len(logits_C) == 70
        theirs = float(ffn.calc_prob_backtest_overfitting(pd.DataFrame(returns_TK), n_blocks=8))
        assert inference.probability_of_overfitting(logits_C) == pytest.approx(theirs, abs=1e-12)
    winner_TK = noise(1, 1260, 20) + np.eye(20)[4] * 0.002
    assert inference.probability_of_overfitting(inference.overfitting_logits(winner_TK)) < 0.05
    logits = [inference.overfitting_logits(noise(seed, 640, 20)) for seed in range(8)]
    assert 0.3 < np.mean([inference.probability_of_overfitting(logits_C) for logits_C in logits]) < 0.7


def test_copies_of_a_bet_are_one_bet():
    copies_TN = np.repeat(noise(3, 800, 3), 5, axis=1) + 0.2 * noise(4, 800, 15)
    assert inference.effective_trials(copies_TN) == 3
    assert inference.effective_trials(np.column_stack([copies_TN, np.zeros(800)])) == 3  # cash is no bet


def test_spa_finds_a_planted_winner_and_is_level_on_noise():
    found = inference.superior_predictive_ability(noise(4, 600, 5) + np.eye(5)[2] * 0.002, 0, samples=300)
    assert found is not None
    assert found < 0.01
    assert inference.superior_predictive_ability(noise(4, 600, 1), 0) is None
    values = [inference.superior_predictive_ability(noise(seed, 250, 4), 0, samples=100) for seed in range(20)]
    assert 0.2 < np.mean([v for v in values if v is not None]) < 0.8


def test_power_is_that_of_the_formula():
    """A correlation of .9 over 5 years has an error of .20 and needs a true gain of .5 (Jobson and Korkie 1981)."""
    returns_T2 = np.sqrt(0.9) * noise(5, 1260, 1) + np.sqrt(0.1) * noise(6, 1260, 2)
    assert inference.sharpe_error(returns_T2[:, 1]) == pytest.approx(0.45, abs=0.01)
    assert inference.detectable_gain(*returns_T2.T) == pytest.approx(0.5, abs=0.05)


def test_ic_and_rank_ic_agree_with_scipy():
    forecast_KN, outcome_KN = np.random.default_rng(0).standard_normal((2, 40, 8))
    outcome_KN[3, 2] = np.nan  # an asset without an outcome is left out of its decision only
    known = [np.isfinite(o) for o in outcome_KN]
    by_hand = [np.corrcoef(f[k], o[k])[0, 1] for f, o, k in zip(forecast_KN, outcome_KN, known, strict=True)]
    ranked = [spearmanr(f[k], o[k]).statistic for f, o, k in zip(forecast_KN, outcome_KN, known, strict=True)]
    found = inference.information(forecast_KN, outcome_KN, ranks=False)
    assert found["mean"] == pytest.approx(np.mean(by_hand), rel=1e-12)
    result = inference.information(forecast_KN, outcome_KN, ranks=True)
    assert result["mean"] == pytest.approx(np.mean(ranked), rel=1e-12)
    assert result["ratio"] == pytest.approx(np.mean(ranked) / np.std(ranked, ddof=1), rel=1e-12)
    assert result["t"] == pytest.approx(np.mean(ranked) / (np.std(ranked) / 40**0.5), rel=1e-12)


def test_overlap_widens_the_error_of_a_mean_as_newey_and_west_say():
    """Averages of four neighbours: the error of the mean is that of independent ones, and not four times too small."""
    overlapping_K = np.convolve(np.random.default_rng(1).standard_normal(4000), np.ones(4) / 4, "valid")
    assert inference.newey_west_error(overlapping_K, 12) == pytest.approx(4000**-0.5, rel=0.15)
    assert inference.newey_west_error(overlapping_K, 0) < 0.6 * inference.newey_west_error(overlapping_K, 12)
    series_K, lags = np.random.default_rng(2).standard_normal(30), 5
    distance_KK = np.abs(np.subtract.outer(range(30), range(30)))
    weights_KK = np.clip(1 - distance_KK / (lags + 1), 0, None)
    centred_K = series_K - series_K.mean()
    assert inference.newey_west_error(series_K, lags) == pytest.approx(
        np.sqrt(centred_K @ weights_KK @ centred_K) / 30, rel=1e-12
    )


def test_a_planted_forecast_is_seen_and_noise_is_not():
    signal_KN, noise_KN = np.random.default_rng(3).standard_normal((2, 400, 20))
    assert inference.information(signal_KN, 0.1 * signal_KN + noise_KN, ranks=True)["low"] > 0.05
    assert inference.information(signal_KN, noise_KN, ranks=True)["low"] < 0


def test_a_calibrated_planner_has_slope_one_and_an_overconfident_one_less():
    imagined_D = noise(0, 2000)
    realised_D = imagined_D + 2 * noise(1, 2000)
    volatility_D = np.full(2000, 0.02)
    honest = metrics.calibration(imagined_D, volatility_D, realised_D)
    assert honest["slope"] == pytest.approx(1, abs=0.1)
    assert honest["covered"] == pytest.approx(0.954, abs=0.02)
    assert metrics.calibration(3 * imagined_D, volatility_D, realised_D)["slope"] < 0.5


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
    low_HN = inference.sharpe_intervals(net_TK, 0, samples=200)["excess_low"][1:].reshape(homes, tried)
    ratio_HN = over_THN.mean(0) / over_THN.std(0, ddof=1)
    found_HN = np.zeros((homes, tried), bool)
    for h, n in np.argwhere(low_HN > 0):
        dsr = inference.deflated_sharpe(over_THN[:, h, n], ratio_HN[h])
        found_HN[h, n] = metrics.has_skill(
            {"strategy": "mppi", "block": "test", "excess_low": low_HN[h, n], "dsr": dsr}
        )
    return found_HN.any(1)


@pytest.mark.parametrize(("tried", "common"), [(1, 0.0), (5, 0.0), (20, 0.0), (20, 0.9)])
def test_of_sixty_homes_without_skill_at_most_five_percent_claim_some(tried, common):
    assert claims(60, tried, seed=tried, common=common).mean() <= 0.05


def test_a_planner_with_skill_is_found_among_twenty():
    assert claims(20, 20, seed=1, edge=5.0).mean() >= 0.9


def test_a_read_out_that_confirmed_nothing_is_said_first():
    for readout in ({"weighted": 0.0, "t_value": 0.42}, {"rows": 0.0}):
        assert "same return of every asset" in str(metrics.same_return_for_all({"readout": readout}))
    for found in ({"readout": {"weighted": 3.0, "t_value": 8.0}}, {}):
        assert metrics.same_return_for_all(found) is None


SESSIONS = 800


@pytest.fixture
def con():
    with duckdb.connect() as con:
        migrate(con)
        yield con


def add_planner(con, name: str, gain: float = 0.0, seed: int = 0, sessions: int = SESSIONS, versions: int = 1) -> None:
    """A planner that shares the market's noise, and earns `gain` a day with noise of its own."""
    market_T, own_T = 0.01 * np.random.default_rng(0).standard_normal((2, sessions))
    own_T = 0.002 * np.random.default_rng(seed).standard_normal(sessions)
    own_T -= own_T.mean()  # exactly `gain`
    net_T, dates_T = market_T + gain + own_T, np.datetime64("2015-01-01") + np.arange(sessions)
    key = {"checkpoint": "c1", "data_version": "d1", "block": "validation", "setup": "s1"}
    insert(
        con, "backtest_returns", key | {"strategy": name}, {"date": dates_T, "net_return": net_T, "gross_return": net_T}
    )
    span = {"start_date": dates_T[0].item(), "end_date": dates_T[-1].item(), "created_at": now()}
    ratios = [gain + 0.001 * version for version in range(versions)]
    insert(con, "backtest_trials", key | {"strategy": name} | span, {"excess_sharpe": ratios})


def acts(con, chosen: str = "qp") -> str | None:
    return acting_planner(con, "c1", "d1", chosen).strategy


def test_luck_on_validation_changes_nothing_and_evidence_does(con):
    add_planner(con, "qp", seed=1)
    add_planner(con, "mppi", gain=0.00005, seed=2)  # half a standard error
    assert acts(con) == "qp"
    assert acts(con, "mppi") == "mppi"
    add_planner(con, "cem", gain=0.0005, seed=3)
    found = acting_planner(con, "c1", "d1", "qp")
    assert found.strategy == "cem"
    assert "Net utility of mppi minus that of qp" in found.text
    assert "no evidence" in found.text


def test_evidence_counts_what_was_tried(con):
    add_planner(con, "qp", seed=1)
    add_planner(con, "cem", gain=0.0003, seed=3)
    assert acts(con) == "cem"
    add_planner(con, "mppi", gain=-0.001, seed=2, versions=2000)
    assert acts(con) == "qp"


def test_a_short_block_gives_no_evidence_and_no_choice_among_several_that_were_not_chosen(con):
    add_planner(con, "mppi", sessions=100)
    assert acts(con) == "mppi"  # the only one
    add_planner(con, "qp | log_growth - 5*variance", gain=0.01, seed=1, sessions=100)
    assert acts(con) == "qp | log_growth - 5*variance"
    assert acts(con, "mppi") == "mppi"
    assert acts(con, "cem") is None
    assert acting_planner(con, "c1", "d2", "qp").strategy is None


def test_parts_add_up_and_a_part_that_helps_is_seen():
    random, sessions = np.random.default_rng(0), 800
    noise_T = 0.01 * random.standard_normal(sessions)
    worth = {"equal_weight": 0.0, "qp": 8e-4, "qp with shuffled_actions": 0.0}
    worth |= {"qp with ewma": 2e-4, "qp with untrained": 2e-4}
    net = {name: noise_T + gain + 1e-3 * random.standard_normal(sessions) for name, gain in worth.items()}
    net["qp with ledoit_wolf"] = 1.5 * net["qp"]
    dates = np.datetime64("2015-01-01") + np.arange(sessions)
    frames = [pl.DataFrame({"strategy": name, "date": dates, "net_return": x}) for name, x in net.items()]
    parts = {one.part: one for one in inference.parts_of(pl.concat(frames), "qp")}
    steps = [parts[name].utility.mean for name in ("planner", "risk model, nothing fitted", "learned part")]
    assert sum(steps) == pytest.approx(parts["all of it"].utility.mean)
    assert parts["learned part"].utility.low > 0
    nothing = parts["risk model, nothing fitted"].utility
    assert nothing.low < 0 < nothing.high
    calmer = parts["risk model, against Ledoit-Wolf"].volatility
    assert calmer.low < 1 / 1.5 - 1 + 0.06  # by a third, to the first order a little more than half of 1 - 1 / 1.5^2
    assert calmer.high < 0
    assert inference.parts_of(pl.concat(frames).head(100), "qp") == []
