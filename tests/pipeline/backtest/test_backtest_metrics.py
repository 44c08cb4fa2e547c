"""Every metric against skfolio or a second formula, and the bootstrap's promises."""

import warnings

import numpy as np
import pytest
from skfolio.measures import cvar as skfolio_cvar
from skfolio.measures import get_drawdowns, semi_deviation

from finjepa_pipeline.backtest.inference import MIN_BLOCK, block_length, sharpe_intervals
from finjepa_pipeline.backtest.metrics import (
    annual_return,
    cvar,
    exposure,
    lo_sharpe,
    max_drawdown,
    measure,
    months_better,
    sharpe,
    sortino,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import empyrical


@pytest.fixture
def returns_T() -> np.ndarray:
    return 0.0004 + 0.01 * np.random.default_rng(0).standard_t(5, 1000)


def test_sharpe_and_growth_agree_with_plain_formulas(returns_T):
    assert sharpe(returns_T) == pytest.approx(np.mean(returns_T) / np.std(returns_T, ddof=1) * 252**0.5, rel=1e-12)
    wealth = 1.0
    for daily in returns_T:
        wealth *= 1 + daily
    assert annual_return(returns_T) == pytest.approx(wealth ** (252 / 1000) - 1, rel=1e-9)


def test_risk_measures_agree_with_skfolio(returns_T):
    assert max_drawdown(returns_T) == pytest.approx(get_drawdowns(returns_T, compounded=True).min(), rel=1e-12)
    assert cvar(returns_T) == pytest.approx(skfolio_cvar(returns_T, beta=0.95), rel=1e-12)
    downside = semi_deviation(returns_T, min_acceptable_return=0.0, biased=True)
    assert sortino(returns_T) == pytest.approx(252**0.5 * returns_T.mean() / downside, rel=1e-12)


def test_every_ratio_agrees_with_empyrical(returns_T):
    result = measure(returns_T, returns_T, np.zeros(1000))
    assert result.sharpe == pytest.approx(empyrical.sharpe_ratio(returns_T), rel=1e-9)
    assert result.annual_return == pytest.approx(empyrical.cagr(returns_T), rel=1e-9)
    assert result.annual_volatility == pytest.approx(empyrical.annual_volatility(returns_T), rel=1e-9)
    assert result.max_drawdown == pytest.approx(empyrical.max_drawdown(returns_T), rel=1e-9)
    assert result.calmar == pytest.approx(empyrical.calmar_ratio(returns_T), rel=1e-9)
    assert result.sortino == pytest.approx(empyrical.sortino_ratio(returns_T), rel=1e-9)


def test_the_lo_correction_knows_momentum_from_noise():
    """Independent returns keep their Sharpe ratio; an AR(1) of rho loses sqrt((1 - rho) / (1 + rho)) of it, Lo 2002."""
    noise_T = 0.01 * np.random.default_rng(1).standard_normal(20000)
    assert lo_sharpe(noise_T + 0.0005) == pytest.approx(sharpe(noise_T + 0.0005), rel=0.05)
    trending_T = noise_T.copy()
    for t in range(1, len(trending_T)):
        trending_T[t] += 0.3 * trending_T[t - 1]
    trending_T += 0.0005
    assert lo_sharpe(trending_T) == pytest.approx(sharpe(trending_T) * (0.7 / 1.3) ** 0.5, rel=0.08)


def test_months_are_compared_one_by_one():
    dates_T = np.arange("2020-01-01", "2020-05-01", dtype="datetime64[D]")
    ahead_T = np.where(dates_T < np.datetime64("2020-02-01"), 0.01, -0.001)
    assert months_better(ahead_T, np.zeros(len(dates_T)), dates_T) == 0.25


def test_exposure_by_hand():
    held_DR = np.array([[0.5, 0.5, 0.0], [0.5, -0.25, 0.0], [0.0, 0.0, 0.0]])
    result = exposure(held_DR, np.array([1.0, 0.0, 0.0]))
    assert result.gross == pytest.approx(1.75 / 3)
    assert result.net == pytest.approx(1.25 / 3)
    assert result.hedged == pytest.approx(1 / 3)
    assert result.effective_n == pytest.approx((2 + 0.75**2 / (0.5**2 + 0.25**2)) / 2)


def test_a_loss_on_the_first_day_is_a_drawdown():
    assert max_drawdown(np.array([-0.2, 0.1, 0.0])) == pytest.approx(-0.2)


def test_the_rest_by_hand():
    net_T, gross_T = np.array([0.01, -0.02, 0.03, 0.0]), np.array([0.011, -0.019, 0.031, 0.001])
    result = measure(net_T, gross_T, np.array([0.5, 0.0, 0.1, 0.0]))
    assert result.hit_rate == 0.5
    assert result.annual_turnover == pytest.approx(0.15 * 252)
    assert result.cost_drag == pytest.approx(annual_return(gross_T) - annual_return(net_T))
    assert result.calmar == pytest.approx(annual_return(net_T) / 0.02)
    assert result.annual_volatility == pytest.approx(np.std(net_T, ddof=1) * 252**0.5)


def test_what_never_moves_has_no_ratio():
    result = measure(np.zeros(50), np.zeros(50), np.zeros(50))
    assert np.isnan([result.sharpe, result.sortino, result.calmar]).all()
    assert result.max_drawdown == 0


def test_an_interval_does_not_depend_on_who_else_is_on_the_table():
    returns_TK = 0.01 * np.random.default_rng(1).standard_normal((300, 4))
    few, many = (sharpe_intervals(returns_TK[:, :k], 0, samples=200) for k in (2, 4))
    np.testing.assert_array_equal(few.excess_low_K, many.excess_low_K[:2])
    np.testing.assert_array_equal(few.high_K, many.high_K[:2])
    assert few.excess_K[0] == few.excess_low_K[0] == few.excess_high_K[0] == 0


def test_a_planted_winner_is_found_and_its_twin_is_not():
    noise_T = 0.01 * np.random.default_rng(2).standard_normal(1000)
    other_T = 0.01 * np.random.default_rng(3).standard_normal(1000)
    result = sharpe_intervals(np.column_stack([noise_T, noise_T + 0.002, other_T]), 0, samples=500)
    assert result.excess_low_K[1] > 0
    assert result.better_K[1] == 1
    assert result.excess_low_K[2] < 0 < result.excess_high_K[2]


def test_the_interval_is_as_wide_as_theory_says():
    """Independent normal returns: se(SR) = sqrt((1 + SR_d^2 / 2) 252 / T), Lo 2002."""
    returns_T1 = 0.01 * np.random.default_rng(4).standard_normal((2520, 1))
    result = sharpe_intervals(returns_T1, 0, samples=1000)
    assert (result.high_K - result.low_K)[0] == pytest.approx(2 * 1.96 * 10**-0.5, rel=0.2)


def test_blocks_are_at_least_a_month_and_fit_the_series():
    assert block_length(np.random.default_rng(5).standard_normal(500)) >= MIN_BLOCK
    assert block_length(np.zeros(10)) == 10
