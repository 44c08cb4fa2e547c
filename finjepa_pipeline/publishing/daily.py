"""Who decides on a date, from which book, and that a decision is made once.

A book decides when `model.stride` sessions have passed since its last decision, as a backtest does, and holds in between. What
it missed is decided first, in order, as of those closes: so the book is the backtest of the same sessions, whenever it ran.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb

from finjepa_model.checkpoint import read_config
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json, to_json, write_json, write_text
from finjepa_model.planner_strategies import planner_of, strategy_name
from finjepa_pipeline.backtest.results import most_assets
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.history import current_revision, require_shown
from finjepa_pipeline.publishing.book import BookName, Previous, holdings_at
from finjepa_pipeline.publishing.decision import BookDecision, decide, decision_session, hold
from finjepa_pipeline.publishing.gate import champion_folder, current_champion, why_unusable
from finjepa_pipeline.publishing.live_record import words
from finjepa_pipeline.report.decision import decision_page
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import NamedCheckpoint, named_checkpoint
from finjepa_pipeline.warehouse import Warehouse, insert, transaction

_STANDS = tuple(field.name for field in fields(Previous) if field.name != "session")
NIGHT_ENDS = time(13, 0)  # UTC, of the next day: before New York opens, in summer and in winter


@dataclass(frozen=True)
class MadeDecision:
    """A decision as it was written; `new` if this call made it."""

    decision: dict[str, Any]
    path: Path
    new: bool


@dataclass(frozen=True)
class _Decider:
    """Who decides for a book; `name` stands for the planner in tables and files."""

    checkpoint: NamedCheckpoint
    planner: str
    book: BookName
    n_assets: int
    name: str

    @property
    def config(self) -> FinJEPAConfig:
        return read_config(self.checkpoint.folder)


def make_decision(
    settings: Settings,
    warehouse: Warehouse,
    as_of: str | None = None,
    checkpoint: str | None = None,
    planner: str | None = None,
    utility: str | None = None,
    of_run: Path | None = None,
    prices: tuple[str, str] | None = None,
    n_assets: int | None = None,
) -> MadeDecision | None:
    """Decide at a close, find that it has been done, or hold. None where there is no champion and no checkpoint is named.

    The champion decides: for an earlier date the one that was champion in the night after that close, or the present one where
    there was none yet. For a date before the first decision of the champion's book, and for another checkpoint, planner,
    utility or number of assets, which makes a trial from what the champion's book holds, there is no schedule: it is decided on
    that date. Without `n_assets`, as many are traded as in the planner's backtest.

    Args:
        of_run: the panel of the run that asks; the home's where None.
        prices: feed and data version that the home must show, and that are decided on; where None those of the panel, or, for a
            checkpoint that is named, those that the home shows.
    """
    named = None if checkpoint is None else named_checkpoint(settings, checkpoint)
    alone = planner or (planner_of(settings.planner) if utility else settings.planner)
    with warehouse.connect() as con:
        panel = _panel_for(con, settings, named, of_run, prices)
        session = decision_session(panel, as_of)
        decider = (
            _champion_of(con, settings, panel, session)
            if named is None
            else _acting(con, named, strategy_name(alone, utility), "trial")
        )
    if decider is None:
        return None
    if named is None and (planner or utility):
        asked = strategy_name(planner or planner_of(decider.planner), utility)
        if asked != decider.planner:
            decider = replace(decider, planner=asked, book="trial", name=asked)
    if n_assets not in (None, decider.n_assets):
        decider = replace(decider, book="trial", n_assets=n_assets, name=f"{decider.planner}, {n_assets} assets")
    follow = _follow if decider.book == "champion" else _made
    return follow(settings, warehouse, panel, session, decider)


# Schedule


def _follow(settings: Settings, warehouse: Warehouse, panel: Panel, session: int, decider: _Decider) -> MadeDecision:
    """The champion's book at a close, after what it missed before."""
    with warehouse.connect() as con:
        decided = _decided(con, panel)
        due = _due(con, settings, panel, session, decider, decided)
    made = [_made(settings, warehouse, panel, day, by) for day, by in due]
    if due and due[-1][0] == session:
        return made[-1]
    path = settings.reports / "decisions" / f"{panel.dates[session]}.json"
    if session in decided and path.is_file():
        return MadeDecision(read_json(path), path, new=False)
    with warehouse.connect() as con:
        holdings = holdings_at(con, panel, session, decider.config.portfolio, included=True)
        standing = hold(panel, session, holdings, decider.book, decider.config.model.stride, _calendar(con))
    return MadeDecision(_written(settings, standing, path), path, new=False)


def _due(
    con: duckdb.DuckDBPyConnection,
    settings: Settings,
    panel: Panel,
    session: int,
    decider: _Decider,
    decided: Sequence[int],
) -> list[tuple[int, _Decider]]:
    """The decisions that a book lacks up to a close, in order, and who makes each."""
    due: list[tuple[int, _Decider]] = []
    start = max((one for one in decided if one <= session), default=session)
    for day in range(start, session + 1):
        by = decider if day == session else _champion_of(con, settings, panel, day) or decider
        newest = max((*decided, *(one for one, _ in due)), default=None)
        if newest is None or day >= newest + by.config.model.stride:
            due.append((day, replace(by, book=decider.book)))
    return due


def _decided(con: duckdb.DuckDBPyConnection, panel: Panel) -> list[int]:
    """The sessions at whose close the champion's book has a decision, ascending."""
    query = "SELECT DISTINCT date FROM main.decision_portfolios WHERE feed = ? AND book = 'champion' ORDER BY date"
    dates = [row[0].isoformat() for row in con.execute(query, [panel.manifest["feed"]]).fetchall()]
    return [panel.date_index(date) for date in dates if date >= str(panel.dates[0])]


def _calendar(con: duckdb.DuckDBPyConnection) -> str:
    """The exchange of this home's prices."""
    shown = current_revision(con)
    return shown.calendar if shown else "XNYS"


# Who decides, on which panel


def _panel_for(
    con: duckdb.DuckDBPyConnection,
    settings: Settings,
    checkpoint: NamedCheckpoint | None,
    of_run: Path | None,
    prices: tuple[str, str] | None,
) -> Panel:
    """The panel of the run or of the home; where a checkpoint is named, one of the home's newest prices."""
    if prices is not None:
        require_shown(con, *prices)
    revision = current_revision(con)
    try:
        panel = Panel.open(of_run or current_panel(settings))
        newest = revision is None or panel.manifest["data_version"] == revision.data_version
        if checkpoint is None or of_run is not None or newest:
            return panel
    except FinJEPAError:
        if checkpoint is None:
            raise
    return Panel.open(build_panel(con, settings, make_current=False, of=prices))


def _acting(con: duckdb.DuckDBPyConnection, checkpoint: NamedCheckpoint, planner: str, book: BookName) -> _Decider:
    return _Decider(checkpoint, planner, book, most_assets(con, checkpoint.name, planner), planner)


def _champion_of(con: duckdb.DuckDBPyConnection, settings: Settings, panel: Panel, session: int) -> _Decider | None:
    """Who was champion in the night after a close; the present one where there was none yet, or where that one can no longer
    act. It is a trial before the first decision of the champion's book, or where there was no champion."""
    night = datetime.combine(panel.dates[session].item() + timedelta(days=1), NIGHT_ENDS)
    decided, present = _decided(con, panel), current_champion(con)
    then = present if session == len(panel.dates) - 1 else current_champion(con, until=night)
    if present is None:
        return None
    own = session >= decided[0] if decided else then is not None
    chosen = then or present
    if chosen.checkpoint != present.checkpoint and why_unusable(settings.checkpoints / chosen.checkpoint):
        chosen = present
    folder = champion_folder(settings, chosen)
    return _acting(con, named_checkpoint(settings, folder), chosen.strategy, "champion" if own else "trial")


# Tables and files


def _made(settings: Settings, warehouse: Warehouse, panel: Panel, session: int, decider: _Decider) -> MadeDecision:
    """The decision of a session, written; that of the champion's book also into the tables, unless another process was faster."""
    with warehouse.connect() as con:
        holdings, calendar = holdings_at(con, panel, session, decider.config.portfolio), _calendar(con)
    decision = decide(
        decider.checkpoint, panel, decider.planner, session, holdings, decider.book, decider.n_assets, calendar
    )
    decision, name = replace(decision, planner=decider.name), decision.date
    new = True
    if decider.book == "champion":
        with warehouse.connect() as con:
            new = session not in _decided(con, panel)
            if new:
                _store(con, decision)
    else:  # its file never takes the place of the book's; a utility has signs that no file name may have
        planner = re.sub(r"[^A-Za-z0-9.]+", "-", decider.name)
        name += f"-trial-{planner}-{decision.checkpoint.replace('/', '--')}"
    path = settings.reports / "decisions" / f"{name}.json"
    return MadeDecision(_written(settings, decision, path), path, new)


def _store(con: duckdb.DuckDBPyConnection, decision: BookDecision) -> None:
    """Add a decision to `decisions`, a row an asset, and what it started from to `decision_portfolios`."""

    def of(*names: str) -> dict[str, Any]:
        return {name: getattr(decision, name) for name in names}

    names = list(dict.fromkeys((*decision.assets, *decision.weights, *decision.held)))
    rows = {
        "asset": names,
        "weight": [decision.weights.get(name, 0.0) for name in names],
        "signal": [decision.signals.get(name, 0) for name in names],
        "position": [decision.positions.get(name, 0.0) for name in names],
        "held": [decision.held.get(name, 0.0) for name in names],
    }
    key = of("date", "checkpoint", "planner", "data_version", "book")
    portfolio = of("wealth", "peak", "made_afterwards")
    portfolio |= {"cash": decision.held_cash, "hedge_held": decision.held_hedge}
    portfolio |= {"state": to_json({**(decision.record or {}), "decision": of(*_STANDS)})}
    with transaction(con):
        insert(con, "decisions", key | of("hedge", "expected_return", "expected_volatility"), rows)
        insert(con, "decision_portfolios", key | of("feed") | portfolio, {"previous_date": [decision.previous_date]})


def _written(settings: Settings, decision: BookDecision, path: Path) -> dict[str, Any]:
    """The content of the JSON file of a decision or of a hold, which is written, and the page beside it."""
    content = decision.to_json()
    write_text(path.with_suffix(".html"), decision_page(content, words(settings, decision.feed)))
    write_json(path, content, sort_keys=False)
    return read_json(path)
