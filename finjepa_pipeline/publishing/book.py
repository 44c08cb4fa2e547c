"""The portfolio that goes from one decision to the next, by the steps of the backtest engine.

The book is a chain of decisions of champions on one feed. A trial (another checkpoint, planner or utility, asked for by a
person, or a date before the book) starts from what the book holds and is nobody's past.

Shapes: R assets of the roster, which is what is held, ordered or traded; N assets of the universe, H decision steps of a plan;
a leading 1 is the batch of one portfolio.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import duckdb
import numpy as np
import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.panel import Panel
from finjepa_model.files import from_json
from finjepa_model.market_view import Universe
from finjepa_model.portfolio import Ledger, PortfolioSimulator, PortfolioState
from finjepa_pipeline.backtest.engine import MarketStep

BookName = Literal["champion", "trial"]


@dataclass(frozen=True)
class Previous:
    """The decision before, as it was stored; `session` is that of its close, the other fields are those of `Decision`."""

    session: int
    date: str
    checkpoint: str
    planner: str
    weights: dict[str, float]
    signals: dict[str, int]
    positions: dict[str, float]
    hedge: bool
    expected_return: float
    expected_volatility: float
    made_afterwards: bool
    same_return: bool


@dataclass(frozen=True)
class Holdings:
    """What is held at a close.

    Attributes:
        roster_R: int64, the panel's numbers of the assets, ascending; `assets`: their names.
        state: over the roster.
        universe: of the decision before; None where the next decision chooses one.
        plan: path_1H over that universe, which the decision before left for the next one to start from.
        session: the ledger of the session that ended at this close; None where the book begins.
        note: why the book begins anew, if it does.
    """

    roster_R: np.ndarray
    assets: tuple[str, ...]
    state: PortfolioState
    universe: Universe | None = None
    plan: PortfolioAction | None = None
    previous: Previous | None = None
    session: Ledger | None = None
    note: str | None = None

    def over(self, panel: Panel, assets_N: np.ndarray) -> "Holdings":
        """The same on a roster of these assets and those that are held or wait to be traded."""
        state = self.state
        busy_R = ((state.positions_XN != 0) | ~state.waiting_XN.isnan())[0].numpy()
        roster_R = np.union1d(self.roster_R[busy_R], assets_N)
        kept_R = np.isin(self.roster_R, roster_R)
        places = torch.from_numpy(np.searchsorted(roster_R, self.roster_R[kept_R]))

        def moved(value_1R: Tensor, missing: float = 0.0) -> Tensor:
            empty_1R = value_1R.new_full((1, len(roster_R)), missing)
            return empty_1R.index_copy(1, places, value_1R[:, torch.from_numpy(kept_R)])

        orders_1R = None if state.orders_XN is None else moved(state.orders_XN, torch.nan)
        held = {"positions_XN": moved(state.positions_XN), "signals_XN": moved(state.signals_XN)}
        state = replace(state, **held, orders_XN=orders_1R)
        names = tuple(panel.assets[asset] for asset in roster_R)
        return replace(self, roster_R=roster_R, assets=names, state=state)

    @property
    def shares(self) -> dict[str, float]:
        """Signed shares of wealth, of what is held at all."""
        return self._where(self.state.holdings_XN, lambda share: abs(share) > 1e-12)

    @property
    def waiting(self) -> dict[str, float]:
        """The orders that could not be filled yet: positions as shares of wealth."""
        return self._where(self.state.waiting_XN, lambda share: not math.isnan(share))

    def _where(self, values_1R: Tensor, wanted) -> dict[str, float]:
        values = dict(zip(self.assets, values_1R[0].tolist(), strict=True))
        return {name: value for name, value in values.items() if wanted(value)}


def cash(simulator: PortfolioSimulator, note: str | None = None) -> Holdings:
    """Wealth 1 and nothing held."""
    return Holdings(np.zeros(0, np.int64), (), simulator.start((1, 0)), note=note)


def holdings_at(
    con: duckdb.DuckDBPyConnection, panel: Panel, session: int, rules: PortfolioConfig, included: bool = False
) -> Holdings:
    """What the newest decision of the book before `session` has led to by that close, by the mechanics of the backtest.

    Args:
        included: whether that may be the decision of `session` itself, before its orders are filled.
    """
    simulator = PortfolioSimulator(rules)
    until = panel.dates[session] - (0 if included else 1)
    found = con.execute(
        "SELECT state FROM main.decision_portfolios WHERE feed = ? AND book = 'champion' AND date <= ?::DATE "
        "ORDER BY date DESC, created_at DESC, rowid DESC LIMIT 1",
        [str(panel.manifest["feed"]), str(until)],
    ).fetchall()
    if not found:
        return cash(simulator, "First decision: the portfolio starts in cash.")
    record = from_json(found[0][0])
    held = [name for name, money in zip(record["assets"], record["positions"], strict=True) if money]
    missing = [name for name in held if name not in panel.assets]
    if missing:
        return cash(simulator, f"{', '.join(missing[:3])} is no longer among the prices: the book begins anew, in cash")
    previous = Previous(session=panel.date_index(record["decision"]["date"]), **record["decision"])
    return _advance(panel, simulator, record, previous, session)


def record_of(
    holdings: Holdings, panel: Panel, universe: Universe, plan: PortfolioAction | None, ordered: bool
) -> dict[str, Any]:
    """What later closes need of a decision besides itself: the exact portfolio at its close, the universe, the plan (path_1H over
    the universe), and whether anything was ordered."""
    state = holdings.state
    return {
        "assets": holdings.assets,
        "positions": state.positions_XN[0].tolist(),
        "signals": state.signals_XN[0].tolist(),
        "orders": state.waiting_XN[0].tolist(),  # NaN, where nothing waits, is null
        "cash": float(state.cash_X),
        "hedge": float(state.hedge_X),
        "hedged": float(state.hedged_X),
        "peak": float(state.peak_X),
        "ordered": ordered,
        "universe": [panel.assets[asset] for asset in universe.assets_N],
        "universe_since": str(panel.dates[universe.start]),
        "plan": plan and [part.tolist() for part in (plan.weights_XN, plan.signals_XN, plan.hedge_X)],
    }


def _advance(
    panel: Panel, simulator: PortfolioSimulator, record: dict[str, Any], previous: Previous, session: int
) -> Holdings:
    """From the close of a decision to a later one: its orders are filled at the close after it, and what is held drifts."""
    known = sorted((panel.assets.index(name), i) for i, name in enumerate(record["assets"]) if name in panel.assets)
    names = [panel.assets[asset] for asset, _ in known]

    def row(values: list[float | None]) -> Tensor:
        kept = [values[i] for _, i in known]
        return torch.tensor([[math.nan if value is None else value for value in kept]], dtype=torch.float64)

    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    orders_1R = row(record["orders"])
    state = replace(
        simulator.start((1, len(known))),
        positions_XN=row(record["positions"]),
        signals_XN=row(record["signals"]),
        orders_XN=None if bool(orders_1R.isnan().all()) else orders_1R,
        cash_X=one(record["cash"]),
        hedge_X=one(record["hedge"]),
        hedged_X=one(record["hedged"]),
        peak_X=one(record["peak"]),
    )
    action = None
    if record["ordered"]:
        weights, signals = (
            torch.tensor([[of.get(name, 0.0) for name in names]], dtype=torch.float64)
            for of in (previous.weights, previous.signals)
        )
        action = PortfolioAction(weights, signals, one(float(previous.hedge)))
    roster_R = np.array([asset for asset, _ in known], np.int64)
    step = MarketStep.of(panel, roster_R, previous.session, session)
    state, ledgers = step.advance(simulator, state, action)
    universe, plan = None, None
    if record["universe"] and all(name in panel.assets for name in record["universe"]):
        assets_N = np.array([panel.assets.index(name) for name in record["universe"]], np.int64)
        universe = Universe(panel.date_index(record["universe_since"]), assets_N)
        plan = record["plan"] and PortfolioAction(*(torch.tensor(part) for part in record["plan"]))
    return Holdings(roster_R, tuple(names), state, universe, plan, previous, ledgers[-1] if ledgers else None)
