"""The decision for a date: what the champion would do at that close, from what is held, and what it expects.

It is the strategy's own `decide`, as it is backtested. It starts from the portfolio that the decision before left.
"""

import json
import re
from dataclasses import asdict, dataclass
from datetime import date as day
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, write_text
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import history_needed
from finjepa_pipeline.backtest.finjepa_strategy import Expectation, FinJEPAStrategy, action_of
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.backtest.market_view import MarketView, universes
from finjepa_pipeline.backtest.store import insert, transaction
from finjepa_pipeline.publishing.book import BookName, Holdings, cash
from finjepa_pipeline.publishing.reasons import Reasons, reasons_for
from finjepa_pipeline.publishing.search import Search
from finjepa_pipeline.sql_files import sql
from finjepa_pipeline.training.named import NamedCheckpoint


@dataclass(frozen=True)
class Decision:
    """What to hold after the next close. Weights are budgets and sum to 1; positions are what is held of them.

    Attributes:
        held: signed shares of wealth at the close, before the decision; `held_cash` and `held_hedge` beside it.
        wealth, peak: of the book, which began at 1.
        previous_date: of the decision before; None where the book begins.
        changes: what differs from the decision before, in words.
        expected_return, expected_volatility: of the portfolio over the next decision step, annualised, by the model's own
            account.
    """

    date: str
    assets: tuple[str, ...]
    weights: dict[str, float]
    signals: dict[str, int]
    hedge: bool
    positions: dict[str, float]
    cash: float
    expected_return: float
    expected_volatility: float
    planner: str
    checkpoint: str
    data_version: str
    feed: str
    book: BookName
    held: dict[str, float]
    held_cash: float
    held_hedge: float
    wealth: float
    peak: float
    previous_date: str | None
    changes: tuple[str, ...]
    why: Reasons
    search: Search | None = None  # None of a decision that was made before searches were kept

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {
            "assets": list(self.assets),
            "changes": list(self.changes),
            "why": asdict(self.why),
            "search": self.search and asdict(self.search),
        }


def decision_session(panel: Panel, as_of: str | None) -> int:
    """The session of the last close that is not after `as_of`, or of the newest one; of a weekend it is Friday's.

    Raises:
        FinJEPAError: if `as_of` is no date, or outside of the panel's sessions.
    """
    if as_of is None:
        return len(panel.dates) - 1
    date = np.datetime64(_checked_date(as_of))
    if not panel.dates[0] <= date <= panel.dates[-1]:
        raise FinJEPAError(
            f"there are no prices on {as_of}: the sessions are {panel.dates[0]} to {panel.dates[-1]}; ingest newer prices, or "
            "leave --as-of out for the last one"
        )
    return panel.date_index(date)


def decide(
    checkpoint: NamedCheckpoint,
    panel: Panel,
    planner: str,
    session: int,
    holdings: Holdings | None = None,
    book: BookName = "trial",
    n_assets: int = 20,
) -> Decision:
    """Decide at a close.

    Args:
        session: as `decision_session` gives it.
        holdings: what is held at that close; cash where None.

    Raises:
        FinJEPAError: if the checkpoint does not fit the panel, or no asset has enough history by then.
    """
    imagination = MarketImagination(checkpoint.folder)
    config = imagination.model.config
    if config.model.channels != panel.channels:
        raise FinJEPAError(
            f"checkpoint {checkpoint.name} reads the channels {', '.join(config.model.channels)}, but these prices give "
            f"{', '.join(panel.channels)}; ingest the prices it was trained on, or train again"
        )
    history = history_needed(config)
    [universe] = universes(panel, [session], n_assets, history, every=1)
    view = MarketView(panel, session, universe.assets_N, history)
    simulator = PortfolioSimulator(config.portfolio)
    holdings = holdings or cash(simulator)
    strategy = FinJEPAStrategy(planner, imagination)
    plan = strategy.plan(view, holdings.over(view.assets, simulator))
    action, expected = action_of(plan), Expectation.of(plan)
    steps_a_year = config.portfolio.sessions_per_year / config.model.stride
    positions_N = action.positions(config.portfolio.allow_short, config.portfolio.max_gross)[0].tolist()
    positions = dict(zip(view.assets, positions_N, strict=True))
    signals = {name: round(s) for name, s in zip(view.assets, action.signals_XN[0].tolist(), strict=True)}
    hedge = bool(action.hedge_X[0] > 0.5)
    wealth = float(holdings.state.wealth_X[0])
    return Decision(
        date=str(view.date),
        assets=view.assets,
        weights=dict(zip(view.assets, action.weights_XN[0].tolist(), strict=True)),
        signals=signals,
        hedge=hedge,
        positions=positions,
        cash=1 - sum(positions.values()),
        expected_return=expected.growth * steps_a_year,
        expected_volatility=expected.volatility * steps_a_year**0.5,
        planner=planner,
        checkpoint=checkpoint.name,
        data_version=str(panel.manifest["data_version"]),
        feed=str(panel.manifest["feed"]),
        book=book,
        held=holdings.shares,
        held_cash=float(holdings.state.cash_X[0]) / wealth,
        held_hedge=float(holdings.state.hedge_X[0]) / wealth,
        wealth=wealth,
        peak=float(holdings.state.peak_X[0]),
        previous_date=holdings.previous.date if holdings.previous else None,
        changes=_changes(holdings, positions, signals, hedge),
        why=reasons_for(panel, session, universe.assets_N, imagination, expected),
        search=Search.of(plan, view.assets),
    )


def stored(folder: Path, con: duckdb.DuckDBPyConnection, key: dict[str, str], book: BookName) -> dict[str, Any] | None:
    """The JSON of a decision that stands in the tables and in its file already; None where either is missing."""
    con.execute(sql("decisions"))
    [(known,)] = con.execute(sql("known_decision"), key).fetchall()
    path = file_of(folder, key, book)
    if not known or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if all(found.get(name) == value for name, value in key.items()) else None


def file_of(folder: Path, key: dict[str, str], book: BookName) -> Path:
    """Decisions of the champion's book are named by their date; others never take their place."""
    planner = re.sub(r"[^A-Za-z0-9.]+", "-", key["planner"])  # a utility has signs that no file name may have
    more = "" if book == "champion" else f"-{book}-{planner}-{key['checkpoint'].replace('/', '--')}"
    return folder / f"{key['date']}{more}.json"


def store_decision(con: duckdb.DuckDBPyConnection, decision: Decision, folder: Path) -> tuple[Path, bool]:
    """Write a decision to `decisions` and `decision_portfolios`, to a JSON file and to a page beside it.

    Returns:
        The JSON file, and whether the decision is new.
    """
    from finjepa_pipeline.publishing.decision_page import decision_page

    con.execute(sql("decisions"))
    key = {name: getattr(decision, name) for name in ("date", "checkpoint", "planner", "data_version")}
    [(known,)] = con.execute(sql("known_decision"), key).fetchall()
    if not known:
        names = list(dict.fromkeys((*decision.assets, *decision.held)))
        rows = {
            "asset": names,
            "weight": [decision.weights.get(name, 0.0) for name in names],
            "signal": [decision.signals.get(name, 0) for name in names],
            "position": [decision.positions.get(name, 0.0) for name in names],
            "held": [decision.held.get(name, 0.0) for name in names],
        }
        more = {name: getattr(decision, name) for name in ("hedge", "expected_return", "expected_volatility")}
        portfolio = {name: getattr(decision, name) for name in ("feed", "book", "previous_date", "wealth", "peak")}
        with transaction(con):
            insert(con, "decisions", key | more, rows)
            con.execute(
                sql("add_decision_portfolio"),
                key | portfolio | {"cash": decision.held_cash, "hedge_held": decision.held_hedge},
            )
    path = file_of(folder, key, decision.book)
    write_text(path.with_suffix(".html"), decision_page(decision))
    write_text(path, to_json(decision.to_json(), indent=2) + "\n")
    return path, not known


_SIGNALS = {1: "long", 0: "flat", -1: "short"}


def _changes(holdings: Holdings, positions: dict[str, float], signals: dict[str, int], hedge: bool) -> tuple[str, ...]:
    previous = holdings.previous
    if previous is None:
        return (holdings.note or "it begins in cash",)
    lines = []
    if hedge != previous.hedge:
        lines.append(f"the hedge goes {'on' if hedge else 'off'}")
    for name in sorted({*signals, *previous.signals}):
        before, after = previous.signals.get(name, 0), signals.get(name, 0)
        if before != after:
            lines.append(f"{name}: signal {_SIGNALS[before]} to {_SIGNALS[after]}")
    shares = holdings.shares
    trades = {name: positions.get(name, 0.0) - shares.get(name, 0.0) for name in {*positions, *shares}}
    for name, trade in sorted(trades.items(), key=lambda item: (-abs(item[1]), item[0]))[:10]:
        if abs(trade) >= 0.001:
            lines.append(
                f"{name}: {shares.get(name, 0.0):.1%} held, {positions.get(name, 0.0):.1%} wanted ({trade:+.1%})"
            )
    return tuple(lines) or (f"nothing since {previous.date}",)


def _checked_date(text: str) -> str:
    try:
        return day.fromisoformat(text).isoformat()
    except ValueError as error:
        raise FinJEPAError(f"{text!r} is not a date; write it as YYYY-MM-DD") from error
