"""Portfolios that trade at every close: histories of weights, as many at once as memory holds.

Shapes: T sessions, X any batch dimensions, N assets; inputs broadcast over X.
"""

from dataclasses import replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.portfolio import Frictions, Ledger, PortfolioSimulator, PortfolioState

_BLOCK = 2**18  # numbers: a few tensors of so many stay in the cache


def rebalance(
    simulator: PortfolioSimulator,
    state: PortfolioState,
    actions: PortfolioAction,
    returns_TXN: Tensor,
    market_returns_TX: Tensor,
    beta_XN: Tensor,
    frictions: Frictions | None = None,
) -> tuple[PortfolioState, Ledger]:
    """Hold to the next close and trade there, T times; all assets can be traded.

    Where costs are proportional and nothing is short, hedged, borrowed or waits, wealth grows from close to close by what the
    weights before and after say alone, and many closes are computed at once. Otherwise `drift` and `trade` take turns; the
    result is the same.

    Args:
        actions: of each close, parts [T, X, N] and [T, X].

    Returns:
        The state after the last trade, and what happened up to and at each close, parts [T, X].
    """
    prices = frictions or simulator.frictions(None)
    if _is_plain(simulator, state, actions, prices):
        return _at_once(simulator, state, actions, returns_TXN, prices)
    ledgers = []
    for session, returns_XN in enumerate(returns_TXN):
        action = PortfolioAction(*(part_T[session] for part_T in vars(actions).values()))
        state, drifted = simulator.drift(state, returns_XN, market_returns_TX[session], frictions=prices)
        state, traded = simulator.trade(state, action, beta_XN, None, prices)
        ledgers.append(drifted + traded)
    return state, Ledger(*map(torch.stack, zip(*(vars(one).values() for one in ledgers), strict=True)))


def _is_plain(
    simulator: PortfolioSimulator, state: PortfolioState, actions: PortfolioAction, prices: Frictions
) -> bool:
    """Whether nothing but proportional costs can apply."""
    config = simulator.config
    return (
        prices.impact is None
        and not config.allow_short
        and config.max_gross <= 1
        and state.orders_XN is None
        and bool((state.positions_XN >= 0).all() and (state.cash_X >= 0).all() and (state.hedge_X == 0).all())
        and not (config.allow_hedge and bool((actions.hedge_X != 0).any()))
    )


def _at_once(
    simulator: PortfolioSimulator,
    state: PortfolioState,
    actions: PortfolioAction,
    returns_TXN: Tensor,
    prices: Frictions,
) -> tuple[PortfolioState, Ledger]:
    """By blocks of sessions. Amounts are shares of the wealth after the trade before, then money."""
    config = simulator.config
    held_XN, _ = torch.broadcast_tensors(state.holdings_XN, actions.weights_XN[0])
    length = min(max(1, _BLOCK // held_XN.numel()), len(returns_TXN))
    drifted_TXN = held_XN.new_empty(length, *held_XN.shape)
    amounts_TXN = torch.empty_like(drifted_TXN)  # both for all blocks: new memory costs more than the arithmetic
    orders_TXN, left_TX, found = held_XN.unsqueeze(0), torch.ones_like(held_XN[..., 0]).unsqueeze(0), []
    for begin in range(0, len(returns_TXN), length):
        growth_TXN = 1 + returns_TXN[begin : begin + length]
        sessions = slice(0, len(growth_TXN))
        drifted, amounts = drifted_TXN[sessions], amounts_TXN[sessions]
        torch.mul(orders_TXN[-1], growth_TXN[0], out=drifted[0])
        invested_1X = orders_TXN[-1:].sum(-1)
        now = PortfolioAction(*(part_T[begin : begin + length] for part_T in vars(actions).values()))
        orders_TXN = now.positions(config.allow_short, config.max_gross)
        torch.mul(orders_TXN[:-1], growth_TXN[1:], out=drifted[1:])
        invested_TX = torch.cat([invested_1X, orders_TXN[:-1].sum(-1)])
        interest_TX = config.cash_rate / config.sessions_per_year * (1 - invested_TX).clamp(min=0)
        gain_TX = drifted.sum(-1) - invested_TX + interest_TX
        cost_TX, traded_TX = torch.zeros_like(gain_TX), gain_TX
        for _ in range(prices.rounds(gain_TX.dtype)):
            left_TX = 1 + gain_TX - cost_TX
            torch.addcmul(drifted, orders_TXN, left_TX.unsqueeze(-1), value=-1, out=amounts).abs_()
            cost_TX, _, traded_TX = prices.trading(amounts)
        found.append((gain_TX, cost_TX, traded_TX))
    gain_TX, cost_TX, traded_TX = (torch.cat(parts) for parts in zip(*found, strict=True))
    growth_TX = (1 + gain_TX - cost_TX).cumprod(0)
    wealth_TX = state.wealth_X * torch.cat([torch.ones_like(growth_TX[:1]), growth_TX])
    begun_TX, turnover_TX = wealth_TX[:-1], traded_TX / (2 * (1 + gain_TX))
    positions_XN = orders_TXN[-1] * (left_TX[-1] * begun_TX[-1]).unsqueeze(-1)
    ledger = Ledger.of(pnl_X=begun_TX * gain_TX, spread_X=begun_TX * cost_TX, turnover_X=turnover_TX)
    traded = replace(
        state,
        positions_XN=positions_XN,
        cash_X=wealth_TX[-1] - positions_XN.sum(-1),
        hedge_X=torch.zeros_like(wealth_TX[-1]),
        signals_XN=actions.signals_XN[-1].expand_as(positions_XN),
        hedged_X=torch.zeros_like(actions.hedge_X[-1]),
        peak_X=torch.maximum(state.peak_X, (begun_TX * (1 + gain_TX)).amax(0)),
        step_cost_X=state.step_cost_X + ledger.spread_X.sum(0),
        step_turnover_X=state.step_turnover_X + turnover_TX.sum(0),
    )
    return traded, ledger
