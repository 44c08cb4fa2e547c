"""Corrections for the number of trials, against skfolio and ffn, and on cases whose answer is known."""

import time
import warnings

import numpy as np
import pandas as pd
import pytest
from skfolio.measures import deflated_sharpe_ratio, expected_max_sharpe_ratio, probabilistic_sharpe_ratio

from finjepa_pipeline.backtest.inference import power, superior_predictive_ability
from finjepa_pipeline.backtest.overfitting import (
    deflated_sharpe,
    effective_trials,
    expected_highest_sharpe,
    overfitting_logits,
    probabilistic_sharpe,
    probability_of_overfitting,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ffn.core as ffn


@pytest.fixture
def trials_TN() -> np.ndarray:
    return 0.0003 + 0.01 * np.random.default_rng(0).standard_t(5, (1000, 12))


def test_psr_and_dsr_agree_with_skfolio_and_ffn(trials_TN):
    returns_T = trials_TN[:, 3]
    sharpes_N = trials_TN.mean(0) / trials_TN.std(0, ddof=1)
    assert probabilistic_sharpe(returns_T) == pytest.approx(float(probabilistic_sharpe_ratio(returns_T)), rel=1e-9)
    assert expected_highest_sharpe(sharpes_N, 12) == pytest.approx(
        float(expected_max_sharpe_ratio(12, sharpes_N.std(ddof=1))), rel=1e-9
    )
    ours = deflated_sharpe(returns_T, sharpes_N, 12)
    assert ours == pytest.approx(float(deflated_sharpe_ratio(returns_T, sharpes_N)), rel=1e-6)
    theirs = ffn.calc_deflated_sharpe_ratio(pd.Series(returns_T), sharpes_N, nperiods=252, annualized_trials=False)
    assert ours == pytest.approx(float(theirs), rel=1e-3)  # its skewness has a correction for small samples


def test_trials_without_a_result_still_count(trials_TN):
    """A configuration that failed was tried all the same: it raises the bar."""
    sharpes_N = trials_TN.mean(0) / trials_TN.std(0, ddof=1)
    failed_N = np.concatenate([sharpes_N, [np.nan] * 30])
    few, many = (deflated_sharpe(trials_TN[:, 0], s, len(s)) for s in (sharpes_N, failed_N))
    assert many < few < probabilistic_sharpe(trials_TN[:, 0])


def test_few_or_equal_trials_still_leave_a_probability(trials_TN):
    excess_T = trials_TN[:, 0]
    one_N = np.array([0.02])
    assert deflated_sharpe(excess_T, one_N, 1) == probabilistic_sharpe(excess_T)  # nothing else was tried
    assert deflated_sharpe(excess_T, np.array([0.02, 0.02]), 2) == probabilistic_sharpe(excess_T)  # no spread, no luck
    only_failed_N = np.concatenate([one_N, [np.nan] * 30])  # their spread is not known: that of independent trials
    assert expected_highest_sharpe(only_failed_N, 31, 0.03) == pytest.approx(0.03 * 2.09, rel=0.01)
    assert deflated_sharpe(excess_T, only_failed_N, 31) < probabilistic_sharpe(excess_T)
    assert np.isnan(deflated_sharpe(np.zeros(100), one_N, 1))  # it is 1/N itself


@pytest.mark.parametrize("seed", range(3))
def test_pbo_agrees_with_ffn_split_by_split(seed):
    returns_TK = 0.01 * np.random.default_rng(seed).standard_normal((640, 7))
    logits_C = overfitting_logits(returns_TK, blocks=8)
    theirs = ffn.calc_prob_backtest_overfitting(pd.DataFrame(returns_TK), n_blocks=8)
    assert len(logits_C) == 70
    assert probability_of_overfitting(logits_C) == pytest.approx(float(theirs), abs=1e-12)


def test_pbo_is_low_for_a_planted_winner_and_not_for_noise():
    rng = np.random.default_rng(1)
    noise_TK = 0.01 * rng.standard_normal((1260, 20))
    winner_TK = noise_TK + np.eye(20)[4] * 0.002
    assert probability_of_overfitting(overfitting_logits(winner_TK)) < 0.05
    noisy = [probability_of_overfitting(overfitting_logits(0.01 * rng.standard_normal((640, 20)))) for _ in range(8)]
    assert 0.3 < np.mean(noisy) < 0.7


def test_pbo_of_twenty_strategies_takes_less_than_a_second():
    returns_TK = 0.01 * np.random.default_rng(2).standard_normal((2520, 20))
    started = time.perf_counter()
    assert len(overfitting_logits(returns_TK)) == 12870
    assert time.perf_counter() - started < 1


def test_copies_of_a_bet_are_one_bet():
    rng = np.random.default_rng(3)
    bets_TB = rng.standard_normal((800, 3))
    copies_TN = np.repeat(bets_TB, 5, axis=1) + 0.2 * rng.standard_normal((800, 15))
    assert effective_trials(copies_TN) == 3
    assert effective_trials(np.column_stack([copies_TN, np.zeros(800)])) == 3  # cash is no bet


def test_spa_finds_a_planted_winner_and_is_level_on_noise():
    rng = np.random.default_rng(4)
    noise_TK = 0.01 * rng.standard_normal((600, 5))
    assert superior_predictive_ability(noise_TK + np.eye(5)[2] * 0.002, 0, samples=300) < 0.01  # type: ignore[operator]
    assert superior_predictive_ability(noise_TK[:, :1], 0) is None
    values = [superior_predictive_ability(0.01 * rng.standard_normal((250, 4)), 0, samples=200) for _ in range(30)]
    assert 0.2 < np.mean([v for v in values if v is not None]) < 0.8


def test_power_is_that_of_the_formula():
    """finance.md 3.4: correlation .9 over 5 years has an error of .20 and needs a true gain of .5."""
    rng = np.random.default_rng(5)
    common_T = rng.standard_normal((1260, 1))
    pair_T2 = 0.01 * (np.sqrt(0.9) * common_T + np.sqrt(0.1) * rng.standard_normal((1260, 2)))
    result = power(pair_T2, 1, 0)
    assert result.years == 5
    assert result.error == pytest.approx(0.45, abs=0.01)
    assert result.difference_error == pytest.approx(0.2, abs=0.02)
    assert result.detectable == pytest.approx(0.5, abs=0.05)
