"""Money is conserved, and the decode rule holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import PortfolioSimulator

N = 4
share = st.floats(0, 1)
one_day = st.lists(st.floats(-0.3, 0.3), min_size=N, max_size=N)


def _action(weights, signals, hedge):
    raw = torch.tensor([weights], dtype=torch.float64) + 1e-9
    return PortfolioAction(
        raw / raw.sum(), torch.tensor([signals], dtype=torch.float64), torch.tensor([float(hedge)]).double()
    )


def _step(simulator, state, action, returns, market, tradable):
    return simulator.step(
        state,
        action,
        torch.tensor([returns], dtype=torch.float64),
        torch.tensor([market], dtype=torch.float64),
        torch.full((1, N), 0.8, dtype=torch.float64),
        torch.tensor([[tradable] * len(returns)]),
    )


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(share, min_size=N, max_size=N),
    signals=st.lists(st.sampled_from([-1, 0, 1]), min_size=N, max_size=N),
    hedge=st.booleans(),
    days=st.lists(one_day, min_size=1, max_size=4),
    market=st.floats(-0.1, 0.1),
    tradable=st.lists(st.booleans(), min_size=N, max_size=N),
    cost=st.floats(0, 200),
    short=st.booleans(),
)
def test_wealth_after_is_wealth_before_plus_profit_minus_costs(
    weights, signals, hedge, days, market, tradable, cost, short
):
    config = PortfolioConfig(
        cost_bps=cost, hedge_cost_bps=cost / 2, borrow_rate=0.05, cash_rate=0.02, allow_short=short
    )
    simulator = PortfolioSimulator(config)
    state = simulator.start((1, N))
    for _ in range(2):
        before = state.wealth_X
        _, ledgers = _step(simulator, state, _action(weights, signals, hedge), days, [market] * len(days), tradable)
        made = sum(ledger.pnl_X - ledger.cost_X for ledger in ledgers)
        assert float((state.wealth_X - before - made).abs()) < 1e-9
        assert all(float(ledger.cost_X) >= 0 for ledger in ledgers)
        weights = weights[::-1]


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(share, min_size=N, max_size=N),
    signals=st.lists(st.sampled_from([-1, 0, 1]), min_size=N, max_size=N),
)
def test_flat_is_not_held_short_only_where_allowed_and_gross_is_at_most_one(weights, signals):
    for short in (False, True):
        simulator = PortfolioSimulator(PortfolioConfig(allow_short=short))
        action = _action(weights, signals, 0)
        beta, all_tradable = torch.ones(1, N).double(), torch.ones(1, N, dtype=torch.bool)
        state, ledger = simulator.trade(simulator.start((1, N)), action, beta, all_tradable)
        held = state.holdings_XN[0]
        for weight, signal, position in zip(action.weights_XN[0], signals, held, strict=True):
            wanted = signal if short else max(signal, 0)
            assert float(position) == pytest.approx(float(weight) * wanted, abs=1e-12)
        assert float(held.abs().sum()) <= 1 + 1e-9
        assert float(ledger.turnover_X) == pytest.approx(float(state.positions_XN.abs().sum()) / 2)


def test_full_investment_pays_its_costs_and_borrows_nothing():
    simulator = PortfolioSimulator(PortfolioConfig(cost_bps=50))
    all_tradable = torch.ones(1, N, dtype=torch.bool)
    action = _action([1, 1, 1, 1], [1, 1, 1, 1], 0)
    state, ledger = simulator.trade(simulator.start((1, N)), action, torch.ones(1, N).double(), all_tradable)
    assert float(state.cash_X) == pytest.approx(0, abs=1e-12)
    assert float(ledger.cost_X) == pytest.approx(0.005 / 1.005, abs=1e-12)  # 0.5 % of what is bought with the rest


def test_decision_fills_at_the_next_close():
    simulator = PortfolioSimulator(PortfolioConfig(cost_bps=0))
    days = [[0.5, 0, 0, 0], [0.1, 0, 0, 0]]
    _, ledgers = _step(
        simulator, simulator.start((1, N)), _action([1, 0, 0, 0], [1, 1, 1, 1], 0), days, [0, 0], [True] * N
    )
    assert float(ledgers[0].pnl_X) == 0  # the first day's return belongs to who held the day before
    assert float(ledgers[1].pnl_X) == pytest.approx(0.1, abs=1e-6)


def test_hedge_shorts_the_market_by_beta():
    simulator = PortfolioSimulator(PortfolioConfig(cost_bps=0, hedge_cost_bps=0, borrow_rate=0))
    beta, all_tradable = torch.tensor([[0.5, 1, 1.5, 2]]).double(), torch.ones(1, N, dtype=torch.bool)
    state, _ = simulator.trade(simulator.start((1, N)), _action([0, 0, 0, 1], [1] * N, 1), beta, all_tradable)
    assert float(state.hedge_X) == pytest.approx(-2, abs=1e-6)
    moved, ledger = simulator.drift(state, 0.01 * beta, torch.tensor([0.01]).double())
    assert float(ledger.pnl_X) == pytest.approx(0, abs=1e-8)
    assert float(moved.wealth_X) == pytest.approx(1, abs=1e-8)


def test_untradable_positions_stay_and_delisted_ones_become_cash():
    simulator = PortfolioSimulator(PortfolioConfig())
    beta, all_tradable = torch.ones(1, N).double(), torch.ones(1, N, dtype=torch.bool)
    state, _ = simulator.trade(simulator.start((1, N)), _action([1, 1, 0, 0], [1] * N, 0), beta, all_tradable)
    stuck = torch.tensor([[False, True, True, True]])
    after, _ = simulator.trade(state, _action([0, 0, 1, 1], [1] * N, 0), beta, stuck)
    assert float(after.positions_XN[0, 0]) == float(state.positions_XN[0, 0])
    assert float(after.holdings_XN.abs().sum()) <= 1 + 1e-9
    closed, ledger = simulator.delist(after, torch.tensor([[True, False, False, False]]), delisting_return=-0.3)
    assert float(closed.positions_XN[0, 0]) == 0
    assert float(closed.wealth_X - after.wealth_X - ledger.pnl_X) == pytest.approx(0, abs=1e-12)
    assert float(ledger.pnl_X) == pytest.approx(-0.3 * float(after.positions_XN[0, 0]))
