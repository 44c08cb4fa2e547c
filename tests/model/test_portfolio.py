"""Money is conserved, and nothing is held, traded or charged that the rules do not allow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model import rebalancing
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import SCALARS, Liquidity, PortfolioSimulator

F64 = torch.float64


def draw_action(generator, batch, assets):
    weights_XN = torch.softmax(2 * torch.randn(batch, assets, generator=generator, dtype=F64), -1)
    signals_XN = torch.randint(-1, 2, (batch, assets), generator=generator).to(F64)
    return PortfolioAction(weights_XN, signals_XN, torch.randint(0, 2, (batch,), generator=generator).to(F64))


def order(*weights, signals=None, hedge=0.0):
    weights_XN = torch.tensor([weights], dtype=F64)
    signals_XN = torch.ones_like(weights_XN) if signals is None else torch.tensor([signals], dtype=F64)
    return PortfolioAction(weights_XN, signals_XN, torch.tensor([hedge], dtype=F64))


def simulator_of(**rules):
    """Nothing costs anything but what is named."""
    return PortfolioSimulator(PortfolioConfig(**({"cost_bps": 0.0, "hedge_cost_bps": 0.0, "borrow_rate": 0.0} | rules)))


def trade(simulator, action, state=None, tradable=None, beta=None):
    """The state after one trade, from cash unless a state is given, and its ledger; betas are 1."""
    assets = action.weights_XN.shape[-1]
    beta_XN = torch.ones(1, assets, dtype=F64) if beta is None else beta
    tradable_XN = torch.tensor([tradable or [True] * assets])
    return simulator.trade(state or simulator.start((1, assets)), action, beta_XN, tradable_XN)


@st.composite
def markets(draw):
    """Rules, prices of trading for 4 portfolios, a source of noise, and the number of assets."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    config = PortfolioConfig(
        cost_bps=draw(st.sampled_from([0.0, 1.0, 10.0, 100.0, 3000.0])),
        hedge_cost_bps=draw(st.sampled_from([0.0, 2.0, 50.0])),
        impact=draw(st.sampled_from([0.0, 0.1, 1.0])),
        capital=draw(st.sampled_from([1e4, 1e6, 1e9])),
        borrow_rate=draw(st.sampled_from([0.0, 0.01, 0.2])),
        cash_rate=draw(st.sampled_from([0.0, 0.05])),
        short_rebate=draw(st.sampled_from([0.0, 0.03])),
        allow_short=draw(st.booleans()),
        allow_hedge=draw(st.booleans()),
        max_gross=draw(st.sampled_from([0.5, 1.0, 2.0])),
    )
    assets = draw(st.integers(1, 9))
    liquidity = draw(st.sampled_from([None, draw_liquidity(generator, assets)]))
    return config, PortfolioSimulator(config).frictions(liquidity), generator, assets


def draw_liquidity(generator, assets):
    """Volumes from a thousand dollars to a billion a day; some are unknown."""
    volume_XN = 10 ** (3 + 6 * torch.rand(4, assets, generator=generator, dtype=F64))
    volume_XN[torch.rand(4, assets, generator=generator) < 0.2] = torch.nan
    return Liquidity(volume_XN, 0.005 + 0.05 * torch.rand(4, assets, generator=generator, dtype=F64))


@given(markets())
def test_money_is_conserved(market):
    """Wealth after = wealth before + P&L - costs, session by session: through trades and orders that wait, all costs,
    interest, rebate, fees, the hedge, and delistings at any return."""
    config, frictions, generator, assets = market
    simulator, batch, sessions = PortfolioSimulator(config), 4, 3
    state = simulator.start((batch, assets))
    beta_XN = 0.5 + torch.rand(batch, assets, generator=generator, dtype=F64)
    for decision in range(4):
        returns_XTN = 0.05 * torch.randn(batch, sessions, assets, generator=generator, dtype=F64)
        market_XT = 0.02 * torch.randn(batch, sessions, generator=generator, dtype=F64)
        tradable_XTN = torch.rand(batch, sessions, assets, generator=generator) < 0.7
        delisted_XTN = (torch.rand(batch, sessions, assets, generator=generator) < 0.05).cummax(1).values
        before_X = state.wealth_X
        action = None if decision == 2 else draw_action(generator, batch, assets)
        at_XN = -torch.rand(batch, assets, generator=generator, dtype=F64)
        moves = (returns_XTN, market_XT, beta_XN, tradable_XTN, delisted_XTN, at_XN)
        state, ledgers = simulator.step(state, action, *moves, frictions)
        for ledger in ledgers:
            parts = (ledger.spread_X, ledger.impact_X, ledger.borrow_X, ledger.turnover_X)
            assert all((part_X >= 0).all() for part_X in parts)
        pnl_X = torch.stack([ledger.pnl_X for ledger in ledgers]).sum(0)
        cost_X = torch.stack([ledger.cost_X for ledger in ledgers]).sum(0)
        assert torch.allclose(state.wealth_X, before_X + pnl_X - cost_X, rtol=0, atol=1e-9)
        assert torch.allclose(state.step_cost_X, cost_X, rtol=0, atol=1e-12)


@given(markets())
def test_a_trade_costs_exactly_its_price_and_meets_its_targets(market):
    config, frictions, generator, assets = market
    simulator = PortfolioSimulator(config)
    state = simulator.start((4, assets))
    beta_XN, everyone_XN = torch.ones(4, assets, dtype=F64), torch.ones(4, assets, dtype=torch.bool)
    state, _ = simulator.trade(state, draw_action(generator, 4, assets), beta_XN, everyone_XN, frictions)
    action = draw_action(generator, 4, assets)
    after, ledger = simulator.trade(state, action, beta_XN, everyone_XN, frictions)
    traded_XN = (after.positions_XN - state.positions_XN).abs()
    spread_X = (frictions.spread * traded_XN).sum(-1)
    spread_X = spread_X + config.hedge_cost_bps * 1e-4 * (after.hedge_X - state.hedge_X).abs()
    assert torch.allclose(ledger.spread_X, spread_X, rtol=0, atol=1e-12)
    if frictions.impact is None:
        assert (ledger.impact_X == 0).all()
    else:
        law_XN = (frictions.impact * traded_XN.sqrt()).clamp(max=0.1) * traded_XN
        assert torch.allclose(ledger.impact_X, law_XN.sum(-1), rtol=0, atol=1e-12)
    wanted_XN = action.positions(config.allow_short, config.max_gross)
    gentle = frictions.impact is None or frictions.impact.max() < 0.01
    assert torch.allclose(after.holdings_XN, wanted_XN, rtol=0, atol=1e-9 if gentle else 1e-3)
    assert (after.positions_XN[action.signals_XN == 0] == 0).all()


@pytest.mark.parametrize(
    "applies", [{}, {"allow_short": True}, {"allow_hedge": True}, {"max_gross": 2.0}, {"impact": 0.1}]
)
@given(market=markets())
def test_many_closes_at_once_are_closes_in_turn(applies, market):
    """State and every part of the ledger, of portfolios with proportional costs alone, and where one thing more applies."""
    config, frictions, generator, assets = market
    plain = {"allow_short": False, "allow_hedge": False, "max_gross": min(config.max_gross, 1.0), "impact": 0.0}
    config = replace(config, **(plain | applies))
    frictions = replace(frictions, impact=torch.full((assets,), 0.01, dtype=F64) if "impact" in applies else None)
    simulator, sessions = PortfolioSimulator(config), 7
    state = simulator.start((4, assets))
    beta_XN = 0.5 + torch.rand(4, assets, generator=generator, dtype=F64)
    state, _ = simulator.trade(state, draw_action(generator, 4, assets), beta_XN, None, frictions)
    drawn = [vars(draw_action(generator, 4, assets)).values() for _ in range(sessions)]
    actions = PortfolioAction(*map(torch.stack, zip(*drawn, strict=True)))
    returns_TXN = (0.1 * torch.randn(sessions, 1, assets, generator=generator, dtype=F64)).clamp(min=-1)
    market_TX = returns_TXN.mean(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebalancing, "_BLOCK", 3 * 4 * assets)  # a whole number of blocks and a session
        together, ledger_TX = rebalancing.rebalance(
            simulator, state, actions, returns_TXN, market_TX, beta_XN, frictions
        )
    for session in range(sessions):
        state, drifted = simulator.drift(state, returns_TXN[session], market_TX[session], frictions=frictions)
        action = PortfolioAction(*(part_T[session] for part_T in vars(actions).values()))
        state, traded = simulator.trade(state, action, beta_XN, None, frictions)
        for name, part_X in vars(drifted + traded).items():
            assert torch.allclose(getattr(ledger_TX, name)[session], part_X.expand(4), rtol=0, atol=1e-12), name
    for name, part_X in vars(state).items():
        if part_X is not None:
            assert torch.allclose(getattr(together, name), part_X, rtol=0, atol=1e-12), name
    assert together.orders_XN is None


def test_prices_of_trading_are_by_tier_and_impact_goes_with_the_root_of_size():
    config = PortfolioConfig(cost_bps=10.0, capital=1e6, impact=0.1, borrow_rate=0.005)
    volume_XN = torch.tensor([[1e9, 2e7, 1e6, torch.nan]], dtype=F64)
    liquidity = Liquidity(volume_XN, torch.full((1, 4), 0.02, dtype=F64))
    frictions = PortfolioSimulator(config).frictions(liquidity)
    assert liquidity.tier(config).tolist() == [[0, 1, 2, 0]]
    assert torch.allclose(frictions.spread, torch.tensor([[10.0, 15.0, 35.0, 10.0]], dtype=F64) * 1e-4)
    assert torch.allclose(frictions.borrow * 252, torch.tensor([[0.005, 0.03, 0.10, 0.005]], dtype=F64))
    _, impact_X, _ = frictions.trading(torch.tensor([[0.0, 0.2, 0.0, 0.0]], dtype=F64))
    assert impact_X.item() == pytest.approx(0.2 * 0.1 * 0.02 * (0.2e6 / 2e7) ** 0.5)  # 200,000 of 20 million dollars
    _, unknown_X, _ = frictions.trading(torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=F64))
    assert unknown_X.item() == 0


def test_full_investment_never_borrows_not_even_beside_a_stuck_position():
    simulator = simulator_of(cost_bps=100.0)
    state, _ = trade(simulator, order(0.5, 0.5))
    assert state.cash_X.item() == pytest.approx(0, abs=1e-12)
    assert state.wealth_X.item() == pytest.approx(1 / 1.01, abs=1e-12)
    state, _ = trade(simulator, order(0.4, 0.6, 0.0))
    after, _ = trade(simulator, order(0.0, 0.0, 1.0), state, [False, True, True])
    assert after.holdings_XN.abs().sum().item() <= 1 + 1e-9
    assert after.positions_XN[0, 0] == state.positions_XN[0, 0]
    assert after.cash_X.item() >= -1e-9


def test_hedge_shorts_the_market_by_beta_and_takes_the_market_out():
    beta_XN, action = torch.tensor([[0.5, 1.5]], dtype=F64), order(0.25, 0.75, hedge=1.0)
    hedged, _ = trade(simulator_of(), action, beta=beta_XN)
    assert hedged.hedge_X.item() == pytest.approx(-1.25)
    assert hedged.scalars(beta_XN, torch.zeros(1, dtype=F64))[0, SCALARS.index("beta")].item() == pytest.approx(
        0, abs=1e-12
    )
    crashed, _ = simulator_of().drift(hedged, -0.2 * beta_XN, torch.tensor([-0.2], dtype=F64))
    assert crashed.wealth_X.item() == pytest.approx(1)
    assert trade(simulator_of(allow_hedge=False), action, beta=beta_XN)[0].hedge_X.item() == 0


def test_wealth_is_differentiable_in_weights_and_relaxed_signals():
    simulator = simulator_of(allow_short=True, cash_rate=0.02, cost_bps=10.0)
    generator = torch.Generator().manual_seed(0)
    frictions = simulator.frictions(draw_liquidity(generator, 3))
    beta_XN, open_XTN = torch.ones(4, 3, dtype=F64), torch.ones(4, 2, 3, dtype=torch.bool)
    held, _ = simulator.trade(simulator.start((4, 3)), draw_action(generator, 4, 3), beta_XN, open_XTN[:, 0])
    returns_XTN = 0.02 * torch.randn(4, 2, 3, generator=generator, dtype=F64)

    def wealth(*action):
        moves = (returns_XTN, returns_XTN.mean(-1), beta_XN, open_XTN)
        return simulator.step(held, PortfolioAction(*action), *moves, frictions=frictions)[0].wealth_X

    weights_XN = torch.softmax(torch.randn(4, 3, generator=generator, dtype=F64), -1).requires_grad_()
    signals_XN = (2 * torch.rand(4, 3, generator=generator, dtype=F64) - 1).requires_grad_()
    hedge_X = torch.rand(4, generator=generator, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(wealth, (weights_XN, signals_XN, hedge_X), atol=1e-6)
