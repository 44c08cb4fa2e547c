"""Mechanics: the simulator beside vectorbt on the same weights: to the cent, and how fast.

    python benchmarks/mechanics.py [--peer FOLDER]

`--peer` is a site-packages folder with vectorbt (no dependency of this project: its licence forbids bundling). It gets the
simulator's own orders, in shares, so that its bookkeeping of cash, fees and value is an independent check of ours. Prints
Markdown.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import PortfolioSimulator

CAPITAL = 100_000.0  # dollars


def market(sessions: int, assets: int) -> np.ndarray:
    """Daily returns of 1 % volatility, [T, N]."""
    return 0.0003 + 0.01 * np.random.default_rng(0).standard_normal((sessions, assets))


@torch.no_grad()
def ours(weights_TPN: torch.Tensor, returns_TN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rebalance to the weights at every close: wealth_TP and positions_TPN after each trade."""
    sessions, portfolios, assets = weights_TPN.shape
    simulator = PortfolioSimulator(PortfolioConfig(cost_bps=10.0))
    state = simulator.start((portfolios, assets), dtype=weights_TPN.dtype)
    ones_PN, zero_P = torch.ones_like(weights_TPN[0]), torch.zeros_like(weights_TPN[0, :, 0])
    everyone_PN, wealth, positions = ones_PN > 0, [], []
    for t in range(sessions):
        state, _ = simulator.drift(state, returns_TN[t], zero_P)
        state, _ = simulator.trade(state, PortfolioAction(weights_TPN[t], ones_PN, zero_P), ones_PN, everyone_PN)
        wealth.append(state.wealth_X)
        positions.append(state.positions_XN)
    return torch.stack(wealth), torch.stack(positions)


def random_weights(sessions: int, portfolios: int, assets: int, dtype: torch.dtype) -> torch.Tensor:
    noise = torch.randn(sessions, portfolios, assets, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return noise.softmax(-1)


def to_the_cent(vectorbt, sessions: int = 500, assets: int = 20) -> str:
    returns_TN = market(sessions, assets)
    weights_T1N = random_weights(sessions, 1, assets, torch.float64)
    wealth_T1, positions_T1N = ours(weights_T1N, torch.from_numpy(returns_TN))
    prices_TN = 50 * np.cumprod(1 + returns_TN, axis=0)
    shares_TN = CAPITAL * positions_T1N[:, 0].numpy() / prices_TN
    orders_TN = np.diff(shares_TN, axis=0, prepend=0.0)
    book = vectorbt.Portfolio.from_orders(
        prices_TN, size=orders_TN, fees=0.001, init_cash=CAPITAL, cash_sharing=True, group_by=True, call_seq="auto"
    )
    gap_T = np.abs(np.asarray(book.value()).ravel() - CAPITAL * wealth_T1[:, 0].numpy())
    return (
        f"Of {CAPITAL:,.0f} dollars in {assets} assets, rebalanced at {sessions} closes with 10 bp, the two books differ by at "
        f"most {gap_T.max():.6f} dollars."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--portfolios", type=int, default=100)
    chosen = parser.parse_args()
    sessions, assets = 60, 500
    weights_TPN = random_weights(sessions, chosen.portfolios, assets, torch.float32)
    returns_TN = torch.from_numpy(market(sessions, assets)).float()
    ours(weights_TPN[:5], returns_TN)
    begin = time.perf_counter()
    ours(weights_TPN, returns_TN)
    rate = sessions * chosen.portfolios * assets / (time.perf_counter() - begin)
    print(f"{torch.get_num_threads()} threads. Ours: {rate / 1e6:.1f} million asset-days a second, float32, all checks on; "
          f"1,000 x 2,500 x 500 would take {1.25e9 / rate:.0f} s.")  # fmt: skip
    if chosen.peer is None:
        return
    sys.path.append(str(chosen.peer))
    import vectorbt

    print(to_the_cent(vectorbt))
    prices_TN = 50 * np.cumprod(1 + market(sessions, assets), axis=0)
    size_TN = weights_TPN[:, 0].numpy().astype(float)

    def theirs() -> None:
        vectorbt.Portfolio.from_orders(
            prices_TN,
            size=size_TN,
            size_type="targetpercent",
            fees=0.001,
            cash_sharing=True,
            group_by=True,
            call_seq="auto",
        ).value()

    theirs()
    begin = time.perf_counter()
    theirs()
    their_rate = sessions * assets / (time.perf_counter() - begin)
    print(f"vectorbt, value included, one portfolio: {their_rate / 1e6:.2f} million asset-days a second; ours is "
          f"{rate / their_rate:.0f} times faster.")  # fmt: skip


if __name__ == "__main__":
    main()
