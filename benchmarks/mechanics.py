"""Mechanics: the simulator beside vectorbt on the same weights: to the cent, and how fast.

    python benchmarks/mechanics.py [--peer FOLDER]

`--peer` is a site-packages folder with vectorbt (no dependency of this project: its licence forbids bundling). It gets the
simulator's own orders, in shares, so that its bookkeeping of cash, fees and value is an independent check of ours. Prints
Markdown.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import Frictions, Liquidity, PortfolioSimulator, PortfolioState
from finjepa_model.rebalancing import rebalance

CAPITAL = 100_000.0  # dollars
SIMPLE = PortfolioConfig(cost_bps=10.0, allow_hedge=False)  # as much as vectorbt can charge


def market(sessions: int, assets: int) -> np.ndarray:
    """Daily returns of 1 % volatility, [T, N]."""
    return 0.0003 + 0.01 * np.random.default_rng(0).standard_normal((sessions, assets))


@torch.no_grad()
def ours(
    weights_TPN: torch.Tensor,
    returns_TN: torch.Tensor,
    config: PortfolioConfig = SIMPLE,
    frictions: Frictions | None = None,
    signals_PN: torch.Tensor | None = None,
) -> tuple[torch.Tensor, PortfolioState]:
    """Rebalance to the weights at every close: wealth_TP after each trade, and the last state. Signals come with a hedge."""
    sessions, portfolios, assets = weights_TPN.shape
    simulator = PortfolioSimulator(config)
    state = simulator.start((portfolios, assets), dtype=weights_TPN.dtype)
    signals_PN = weights_TPN.new_ones(1, 1) if signals_PN is None else signals_PN
    hedge_TP = weights_TPN.new_full((sessions, portfolios), float(config.allow_hedge))
    actions = PortfolioAction(weights_TPN, signals_PN.expand(sessions, -1, assets), hedge_TP)
    moves = (returns_TN.unsqueeze(1), returns_TN.mean(-1, keepdim=True), weights_TPN.new_ones(assets))
    state, ledger_TP = rebalance(simulator, state, actions, *moves, frictions)
    return 1 + (ledger_TP.pnl_X - ledger_TP.cost_X).cumsum(0), state


def at_scale(sessions: int, portfolios: int, assets: int, block: int) -> float:
    """Seconds for all portfolios, in blocks whose state stays in the cache of a core, one block a thread."""
    returns_TN = torch.from_numpy(market(sessions, assets)).float()
    workers, taken, done = os.cpu_count() or 1, 0.0, 0
    torch.set_num_threads(1)
    with ThreadPoolExecutor(workers) as pool:
        while done < portfolios:
            sizes = [min(block, portfolios - done - k * block) for k in range(workers)]
            blocks = [random_weights(sessions, size, assets, torch.float32) for size in sizes if size > 0]
            begin = time.perf_counter()
            list(pool.map(lambda weights_TPN: ours(weights_TPN, returns_TN), blocks))
            taken += time.perf_counter() - begin
            done += sum(len(weights_TPN[0]) for weights_TPN in blocks)
    return taken


def every_cost(sessions: int, portfolios: int, assets: int) -> float:
    """Asset-days a second of one thread with long, flat and short, hedge, tiers of spread and borrow fee, and impact."""
    config = PortfolioConfig(allow_short=True)
    generator = torch.Generator().manual_seed(0)
    volume_N = 10 ** (5 + 4 * torch.rand(assets, generator=generator))
    frictions = PortfolioSimulator(config).frictions(Liquidity(volume_N, torch.full((assets,), 0.02)))
    signals_PN = torch.randint(-1, 2, (portfolios, assets), generator=generator).float()
    weights_TPN = random_weights(sessions, portfolios, assets, torch.float32)
    returns_TN = torch.from_numpy(market(sessions, assets)).float()
    torch.set_num_threads(1)
    ours(weights_TPN[:3], returns_TN[:3], config, frictions, signals_PN)
    begin = time.perf_counter()
    ours(weights_TPN, returns_TN, config, frictions, signals_PN)
    return sessions * portfolios * assets / (time.perf_counter() - begin)


def random_weights(sessions: int, portfolios: int, assets: int, dtype: torch.dtype) -> torch.Tensor:
    noise = torch.randn(sessions, portfolios, assets, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return noise.softmax(-1)


def to_the_cent(vectorbt, sessions: int = 500, assets: int = 20) -> str:
    """The simulator's own orders in shares, booked by both."""
    returns_TN = market(sessions, assets)
    simulator, one = PortfolioSimulator(SIMPLE), torch.float64
    weights_T1N = random_weights(sessions, 1, assets, one)
    wealth_T1, _ = ours(weights_T1N, torch.from_numpy(returns_TN))
    state, positions = simulator.start((1, assets)), []
    for t in range(sessions):
        state, _ = simulator.drift(state, torch.from_numpy(returns_TN[t]), torch.zeros(1, dtype=one))
        ones_1N = torch.ones(1, assets, dtype=one)
        state, _ = simulator.trade(state, PortfolioAction(weights_T1N[t], ones_1N, torch.zeros(1, dtype=one)), ones_1N)
        positions.append(state.positions_XN[0].numpy())
    prices_TN = 50 * np.cumprod(1 + returns_TN, axis=0)
    orders_TN = np.diff(CAPITAL * np.stack(positions) / prices_TN, axis=0, prepend=0.0)
    book = vectorbt.Portfolio.from_orders(
        prices_TN, size=orders_TN, fees=0.001, init_cash=CAPITAL, cash_sharing=True, group_by=True, call_seq="auto"
    )
    gap_T = np.abs(np.asarray(book.value()).ravel() - CAPITAL * wealth_T1[:, 0].numpy())
    return (
        f"Of {CAPITAL:,.0f} dollars in {assets} assets, rebalanced at {sessions} closes with 10 bp, the two books differ by at "
        f"most {gap_T.max():.6f} dollars."
    )


def theirs(vectorbt, sessions: int, assets: int) -> tuple[float, float]:
    """Seconds for one portfolio: its orders alone, and with its value; the second of two runs, the first compiles."""
    prices_TN = 50 * np.cumprod(1 + market(sessions, assets), axis=0)
    size_TN = random_weights(sessions, 1, assets, torch.float64)[:, 0].numpy()

    def run() -> tuple[float, float]:
        begin = time.perf_counter()
        book = vectorbt.Portfolio.from_orders(
            prices_TN, size=size_TN, size_type="targetpercent", fees=0.001, cash_sharing=True, group_by=True,
            call_seq="auto",
        )  # fmt: skip
        ordered = time.perf_counter() - begin
        book.value()
        return ordered, time.perf_counter() - begin

    run()
    return run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--portfolios", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=2500)
    parser.add_argument("--block", type=int, default=125)
    chosen = parser.parse_args()
    sessions, portfolios, assets = chosen.sessions, chosen.portfolios, 500
    at_scale(20, chosen.block, assets, chosen.block)
    taken = at_scale(sessions, portfolios, assets, chosen.block)
    rate = sessions * portfolios * assets / taken
    print(f"{portfolios:,} portfolios x {sessions:,} sessions x {assets} assets, float32, blocks of {chosen.block}, "
          f"{os.cpu_count()} threads: {taken:.1f} s, {rate / 1e6:.0f} million asset-days a second.")  # fmt: skip
    print(
        f"With shorts, hedge, tiers and impact, one thread: {every_cost(60, chosen.block, assets) / 1e6:.0f} million."
    )
    if chosen.peer is None:
        return
    sys.path.append(str(chosen.peer))
    import vectorbt  # pyright: ignore[reportMissingImports]

    print(to_the_cent(vectorbt))
    ordered, valued = theirs(vectorbt, sessions, assets)
    print(f"vectorbt, one portfolio: {ordered:.3f} s for its orders, {valued:.3f} s with its value; of {portfolios:,} of them "
          f"ours takes {ordered * portfolios / taken:.0f} and {valued * portfolios / taken:.0f} times less.")  # fmt: skip


if __name__ == "__main__":
    main()
