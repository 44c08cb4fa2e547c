"""Homes without skill claim none, however many configurations they tried; a planner with skill is found."""

import numpy as np
import pytest

from finjepa_pipeline.backtest.claim import has_skill, same_return_for_all
from finjepa_pipeline.backtest.inference import sharpe_intervals
from finjepa_pipeline.backtest.overfitting import deflated_sharpe

SESSIONS = 756


def claims(homes: int, tried: int, seed: int, *, common: float = 0.0, edge: float = 0.0) -> np.ndarray:
    """Whether any of `tried` planners of each home is said to have skill; all homes live in one rising market.

    Args:
        common: share of the variance over 1/N that the planners of a home have in common.
        edge: true annual Sharpe ratio of the return over 1/N of the first planner.
    """
    rng = np.random.default_rng(seed)
    market_T = 0.0006 + 0.01 * rng.standard_t(5, SESSIONS)
    shared_THN = np.sqrt(common) * rng.standard_normal((SESSIONS, homes, 1))
    over_THN = 0.004 * (shared_THN + np.sqrt(1 - common) * rng.standard_normal((SESSIONS, homes, tried)))
    over_THN[:, :, 0] += 0.004 * edge / np.sqrt(252)
    net_TK = np.column_stack([market_T, market_T[:, None] + over_THN.reshape(SESSIONS, -1)])
    low_HN = sharpe_intervals(net_TK, 0, samples=200).excess_low_K[1:].reshape(homes, tried)
    ratio_HN = over_THN.mean(0) / over_THN.std(0, ddof=1)
    found_HN = np.zeros((homes, tried), bool)
    for h, n in np.argwhere(low_HN > 0):
        dsr = deflated_sharpe(over_THN[:, h, n], ratio_HN[h], tried)
        found_HN[h, n] = has_skill({"strategy": "mppi", "block": "test", "excess_low": low_HN[h, n], "dsr": dsr})
    return found_HN.any(1)


@pytest.mark.parametrize(("tried", "common"), [(1, 0.0), (2, 0.0), (5, 0.0), (20, 0.0), (20, 0.9)])
def test_of_sixty_homes_without_skill_at_most_five_percent_claim_some(tried, common):
    assert claims(60, tried, seed=tried, common=common).mean() <= 0.05


def test_a_planner_with_skill_is_found_among_twenty():
    assert claims(20, 20, seed=1, edge=5.0).mean() >= 0.9


def test_a_read_out_that_confirmed_nothing_is_said_first():
    assert "same return of every asset" in str(same_return_for_all({"readout": {"weighted": 0.0, "t_value": 0.42}}))
    assert "same return of every asset" in str(same_return_for_all({"readout": {"rows": 0.0}}))
    assert same_return_for_all({"readout": {"weighted": 3.0, "t_value": 8.0}}) is None
    assert same_return_for_all({}) is None
