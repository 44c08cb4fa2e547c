"""The portfolio that goes from one decision to the next: what the decision before left, drifted to today's close.

A book is a chain of decisions on one feed. `champion` is the real one, a decision a night; `hindsight` has the decisions for
dates on which no champion existed yet; a `trial` (another checkpoint or planner, asked for by a person) starts from the
champion's book and is nobody's past.

Shapes: R assets that are held or may be, T sessions since the decision before; a leading 1 is the batch of one portfolio.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import duckdb
import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.training.panel import Panel
from finjepa_pipeline.backtest.market_view import panel_liquidity
from finjepa_pipeline.sql_files import sql

BookName = Literal["champion", "hindsight", "trial"]


@dataclass(frozen=True)
class Previous:
    """The decision before, as it was stored: budgets, signals and targets by asset."""

    date: str
    checkpoint: str
    planner: str
    weights: dict[str, float]
    signals: dict[str, int]
    positions: dict[str, float]
    hedge: bool


@dataclass(frozen=True)
class Holdings:
    """What is held at a close, over `assets`; `note` says why the book begins anew, if it does."""

    assets: tuple[str, ...]
    state: PortfolioState
    previous: Previous | None
    note: str | None = None

    def over(self, names: tuple[str, ...], simulator: PortfolioSimulator) -> PortfolioState:
        """The portfolio as a strategy on these assets sees it; what is held of others is about to be sold, and counts as
        cash."""
        empty = simulator.start((1, len(names)))
        if not self.assets:
            return replace(self.state, **{key: value for key, value in vars(empty).items() if key.endswith("_XN")})
        place = {name: i for i, name in enumerate(self.assets)}
        known_N = torch.tensor([name in place for name in names])
        at_N = torch.tensor([place.get(name, 0) for name in names])

        def seen(value_1A: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
            return torch.where(known_N, value_1A[:, at_N], missing)

        positions_1N = seen(self.state.positions_XN)
        leaving_1 = self.state.positions_XN.sum(-1) - positions_1N.sum(-1)
        return replace(
            self.state,
            positions_XN=positions_1N,
            signals_XN=seen(self.state.signals_XN),
            orders_XN=seen(self.state.waiting_XN, torch.nan),
            cash_X=self.state.cash_X + leaving_1,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Signed shares of wealth, of what is held at all."""
        shares = dict(zip(self.assets, self.state.holdings_XN[0].tolist(), strict=True))
        return {name: share for name, share in shares.items() if abs(share) > 1e-12}


def cash(simulator: PortfolioSimulator, note: str | None = None) -> Holdings:
    """Wealth 1 and nothing held."""
    return Holdings((), simulator.start((1, 0)), None, note)


def holdings_at(
    con: duckdb.DuckDBPyConnection, panel: Panel, session: int, book: BookName, simulator: PortfolioSimulator
) -> Holdings:
    """What the newest decision of a book before `session` has led to by that close.

    The order of that decision was filled at the close after it, by the mechanics of the backtest.
    """
    con.execute(sql("decisions"))
    date, feed = str(panel.dates[session]), str(panel.manifest["feed"])
    followed = "champion" if book == "trial" else book
    found = con.execute(sql("previous_decision"), {"feed": feed, "book": followed, "date": date}).fetchone()
    if found is None:
        return cash(simulator, "it is the first decision of its book, and begins in cash")
    key = dict(zip(("date", "checkpoint", "planner", "data_version"), map(str, found[:4]), strict=True))
    rows = con.execute(sql("decision_rows"), key).fetchall()
    names, weights, signals, positions, held, hedges = (list(column) for column in zip(*rows, strict=True))
    missing = [name for name, share in zip(names, held, strict=True) if share and name not in panel.assets]
    if missing:
        return cash(simulator, f"{', '.join(missing[:3])} is no longer among the prices: the book begins anew, in cash")
    previous = Previous(
        date=key["date"],
        checkpoint=key["checkpoint"],
        planner=key["planner"],
        weights=dict(zip(names, weights, strict=True)),
        signals=dict(zip(names, signals, strict=True)),
        positions=dict(zip(names, positions, strict=True)),
        hedge=bool(hedges[0]),
    )
    known = [name in panel.assets for name in names]
    roster = tuple(name for name, is_known in zip(names, known, strict=True) if is_known)

    def row(values: list[Any]) -> torch.Tensor:
        kept = [value for value, is_known in zip(values, known, strict=True) if is_known]
        return torch.tensor([kept], dtype=torch.float64)

    state = _stored_state(simulator, row(held), *found[4:])
    action = PortfolioAction(row(weights), row(signals), torch.tensor([float(previous.hedge)], dtype=torch.float64))
    return Holdings(roster, _advance(panel, simulator, state, action, roster, key["date"], session), previous)


def _stored_state(
    simulator: PortfolioSimulator, held_1R: torch.Tensor, wealth: float, peak: float, cash: float, hedge_held: float
) -> PortfolioState:
    """What was held at the close of a decision; its own order takes the place of all others at its fill."""
    return replace(
        simulator.start((1, held_1R.shape[1])),
        positions_XN=held_1R * wealth,
        cash_X=torch.tensor([cash * wealth], dtype=torch.float64),
        hedge_X=torch.tensor([hedge_held * wealth], dtype=torch.float64),
        peak_X=torch.tensor([peak], dtype=torch.float64),
    )


def _advance(
    panel: Panel,
    simulator: PortfolioSimulator,
    state: PortfolioState,
    action: PortfolioAction,
    roster: tuple[str, ...],
    decided: str,
    session: int,
) -> PortfolioState:
    before = panel.date_index(decided)
    roster_R = np.array([panel.assets.index(name) for name in roster])
    returns_1RT, tradable_1RT = panel.returns_after(np.array([before]), roster_R[None], session - before)
    rows_R = panel.rows(before, roster_R)
    beta_R = np.where(rows_R >= 0, panel.beta[rows_R], 1.0).astype(np.float64)
    last_R = panel.first[roster_R] + panel.lengths[roster_R] - 1
    ended_TR = np.arange(before + 1, session + 1)[:, None] > last_R[None, :]
    after, _ = simulator.step(
        state,
        action,
        torch.from_numpy(returns_1RT).transpose(1, 2).double(),
        torch.from_numpy(panel.market_returns[before + 1 : session + 1].astype(np.float64))[None],
        torch.from_numpy(beta_R)[None],
        torch.from_numpy(tradable_1RT).transpose(1, 2),
        torch.from_numpy(ended_TR)[None],
        torch.from_numpy(panel.delisting_return[roster_R]),
        simulator.frictions(panel_liquidity(panel, before, roster_R)),
    )
    return after
