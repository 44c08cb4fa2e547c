"""Who decides on a date, from which book, and that a decision is made once.

A book decides when `model.stride` sessions have passed since its last decision, as a backtest does, and holds in between. What
it missed is decided first, in order, as of those closes: so the book is the backtest of the same sessions, whenever it ran.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from finjepa_model.checkpoint import read_config
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, write_text
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline.backtest.planner_strategies import planner_of, strategy_name
from finjepa_pipeline.backtest.results import insert, most_assets, transaction
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.history import active_options, current_revision, require_shown
from finjepa_pipeline.publishing.book import BookName, holdings_at
from finjepa_pipeline.publishing.decision import Decision, decide, decision_session, hold
from finjepa_pipeline.publishing.gate import current_champion, why_unusable
from finjepa_pipeline.report.decision import decision_page
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import NamedCheckpoint, checkpoint_here, named_checkpoint
from finjepa_pipeline.warehouse import Warehouse

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
    def stride(self) -> int:
        return read_config(self.checkpoint.folder).model.stride

    @property
    def simulator(self) -> PortfolioSimulator:
        return PortfolioSimulator(read_config(self.checkpoint.folder).portfolio)


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
    """Decide at a close, find that it has been done, or hold.

    The champion decides: for an earlier date the one that was champion in the night after that close, or the present one where
    there was none yet. For a date before the first decision of the champion's book, and for another checkpoint, planner,
    utility or number of assets, which makes a trial from what the champion's book holds, there is no schedule: it is decided on
    that date. Without `n_assets`, as many are traded as in the planner's backtest.

    Args:
        of_run: the panel of the run that asks; the home's where None.
        prices: feed and data version that the home must show, and that are decided on; where None those of the panel, or, for a
            checkpoint that is named, those that the home shows.

    Returns:
        None where there is no champion and no checkpoint is named.
    """
    named = None if checkpoint is None else named_checkpoint(settings, checkpoint)
    panel = _panel_for(settings, warehouse, named, of_run, prices)
    session = decision_session(panel, as_of)
    with warehouse.connect() as con:
        decider = _decider(con, settings, panel, session, named, planner, utility)
    if decider is None:
        return None
    if n_assets not in (None, decider.n_assets):
        decider = replace(decider, book="trial", n_assets=n_assets, name=f"{decider.planner}, {n_assets} assets")
    follow = _follow if decider.book == "champion" else _made
    return follow(settings, warehouse, panel, session, decider)


def act(checkpoint: str, planner: str = "mppi") -> dict[str, Any]:
    """The decision of a checkpoint (a folder or a Hub repository) at the newest close of this home's prices.

    Raises:
        FinJEPAError: if there are no prices, or the checkpoint does not fit them.
    """
    settings = Settings.from_env().ensure()
    made = make_decision(settings, Warehouse.from_settings(settings), checkpoint=checkpoint, planner=planner)
    assert made is not None  # a checkpoint was named
    return made.decision


def backfill_decisions(
    settings: Settings, warehouse: Warehouse, first: str, last: str, log: Callable[[str], object] = lambda line: None
) -> list[MadeDecision]:
    """Decide where a decision is due from `first` to `last` (ISO dates, both included), in order; a date on which a book has a
    decision keeps it.

    Raises:
        FinJEPAError: if there is no champion.
    """
    panel = Panel.open(current_panel(settings))
    wanted = (panel.dates >= np.datetime64(first)) & (panel.dates <= np.datetime64(last))
    made = []
    for session in np.nonzero(wanted)[0].tolist():
        with warehouse.connect() as con:
            decider = _champion_of(con, settings, panel, session)
            if decider is None:
                raise FinJEPAError("there is no champion yet; run `finjepa demo`, or train and publish one")
            decided = _decided(con, panel, decider.book)
        if session in decided:
            log(f"{panel.dates[session]} was decided before")
        elif _is_due(decider, decided, session):
            made.append(_made(settings, warehouse, panel, session, decider))
            log(f"{panel.dates[session]}: {decider.book} book, checkpoint {made[-1].decision['checkpoint']}")
    return made


# Schedule


def _follow(settings: Settings, warehouse: Warehouse, panel: Panel, session: int, decider: _Decider) -> MadeDecision:
    """The champion's book at a close, after what it missed before."""
    with warehouse.connect() as con:
        decided = _decided(con, panel, decider.book)
        due = _due(con, settings, panel, session, decider, decided)
    made = [_made(settings, warehouse, panel, day, by) for day, by in due]
    if due and due[-1][0] == session:
        return made[-1]
    path = _folder(settings) / f"{panel.dates[session]}.json"
    if session in decided and path.is_file():
        return MadeDecision(json.loads(path.read_text(encoding="utf-8")), path, new=False)
    with warehouse.connect() as con:
        holdings = holdings_at(con, panel, session, decider.book, decider.simulator, included=True)
        standing = hold(panel, session, holdings, decider.book, decider.stride, _calendar(con))
    _write(standing, path)
    return MadeDecision(standing.to_json(), path, new=False)


def _due(
    con: duckdb.DuckDBPyConnection,
    settings: Settings,
    panel: Panel,
    session: int,
    decider: _Decider,
    decided: Sequence[int],
) -> list[tuple[int, _Decider]]:
    """The decisions that a book lacks up to a close, in order, and who makes each: the champion of its night."""
    due: list[tuple[int, _Decider]] = []
    start = max((one for one in decided if one <= session), default=session)
    for day in range(start, session + 1):
        by = decider if day == session else _champion_of(con, settings, panel, day) or decider
        if day not in decided and _is_due(by, [*decided, *(one for one, _ in due)], day):
            due.append((day, replace(by, book=decider.book)))
    return due


def _is_due(decider: _Decider, decided: Sequence[int], session: int) -> bool:
    """Whether a book that has decided at these sessions decides at another one: never before its newest decision."""
    return not decided or session >= max(decided) + decider.stride


def _decided(con: duckdb.DuckDBPyConnection, panel: Panel, book: BookName) -> list[int]:
    """The sessions at whose close a book has a decision, ascending."""
    rows = con.execute(
        "SELECT DISTINCT date FROM main.decision_portfolios WHERE feed = $feed AND book = $book ORDER BY date",
        {"feed": str(panel.manifest["feed"]), "book": book},
    ).fetchall()
    dates = [row[0].isoformat() for row in rows]
    return [panel.date_index(date) for date in dates if date >= str(panel.dates[0])]


def _calendar(con: duckdb.DuckDBPyConnection) -> str:
    """The exchange of this home's prices."""
    return json.loads(active_options(con) or "{}").get("calendar") or "XNYS"


# Who decides, on which panel


def _panel_for(
    settings: Settings,
    warehouse: Warehouse,
    checkpoint: NamedCheckpoint | None,
    of_run: Path | None,
    prices: tuple[str, str] | None,
) -> Panel:
    """The panel of the run or of the home. Where a checkpoint or prices are named: one of the prices that the home shows, in the
    channels that the checkpoint reads, beside the home's own where that is another."""
    with warehouse.connect() as con:
        if prices is not None:
            require_shown(con, *prices)
            champion = current_champion(con)
            folder = checkpoint_here(settings, champion.checkpoint) if champion is not None else None
            checkpoint = checkpoint or (NamedCheckpoint(folder, folder.name) if folder is not None else None)
        if checkpoint is None:
            return Panel.open(of_run or current_panel(settings))
        model, revision = read_config(checkpoint.folder).model, current_revision(con)
        try:
            panel = Panel.open(of_run or current_panel(settings))
            fits = panel.channels == model.channels and panel.market_channels == model.market_channels
            newest = revision is not None and panel.manifest["data_version"] == revision.data_version
            if revision is None or (fits and (newest or of_run is not None)):
                return panel
            if of_run is not None:
                prices = panel.manifest["feed"], panel.manifest["data_version"]
        except FinJEPAError:  # a home that has prices only
            pass
        return Panel.open(build_panel(con, settings, model.channels, make_current=False, of=prices))


def _decider(
    con: duckdb.DuckDBPyConnection,
    settings: Settings,
    panel: Panel,
    session: int,
    checkpoint: NamedCheckpoint | None,
    planner: str | None,
    utility: str | None,
) -> _Decider | None:
    if checkpoint is not None:
        return _acting(con, checkpoint, strategy_name(planner or "mppi", utility), "trial")
    chosen = _champion_of(con, settings, panel, session)
    if chosen is None or (planner is None and utility is None):
        return chosen
    asked = strategy_name(planner or planner_of(chosen.planner), utility)
    return chosen if asked == chosen.planner else replace(chosen, planner=asked, book="trial", name=asked)


def _acting(con: duckdb.DuckDBPyConnection, checkpoint: NamedCheckpoint, planner: str, book: BookName) -> _Decider:
    return _Decider(checkpoint, planner, book, most_assets(con, checkpoint.name, planner), planner)


def _champion_of(con: duckdb.DuckDBPyConnection, settings: Settings, panel: Panel, session: int) -> _Decider | None:
    """Who was champion in the night after a close; the present one where there was none yet, or where that one can no longer
    act. The book is `hindsight` before the first decision of the champion's, or where there was no champion."""
    night = datetime.combine(panel.dates[session].item() + timedelta(days=1), NIGHT_ENDS)
    decided = _decided(con, panel, "champion")
    present = current_champion(con)
    then = present if session == len(panel.dates) - 1 else current_champion(con, until=night)
    if present is None:
        return None
    own = session >= decided[0] if decided else then is not None
    chosen = then or present
    if chosen.checkpoint != present.checkpoint and why_unusable(settings.checkpoints / chosen.checkpoint):
        chosen = present
    folder = checkpoint_here(settings, chosen.checkpoint)
    if folder is None:
        raise FinJEPAError(f"the champion {chosen.checkpoint} is gone from {settings.checkpoints}; train it again")
    return _acting(con, named_checkpoint(settings, folder), chosen.strategy, "champion" if own else "hindsight")


# Tables and files


def _made(settings: Settings, warehouse: Warehouse, panel: Panel, session: int, decider: _Decider) -> MadeDecision:
    """The decision of a session: found where it stands in the tables and in its file, otherwise made and stored."""
    key = {
        "date": str(panel.dates[session]),
        "checkpoint": decider.checkpoint.name,
        "planner": decider.name,
        "data_version": str(panel.manifest["data_version"]),
        "feed": str(panel.manifest["feed"]),
        "book": decider.book,
    }
    path = _folder(settings) / _file_name(key)
    with warehouse.connect() as con:
        if _is_stored(con, key) and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if all(found.get(name) == value for name, value in key.items()):
                return MadeDecision(found, path, new=False)
        holdings = holdings_at(con, panel, session, decider.book, decider.simulator)
        calendar = _calendar(con)
    decision = decide(
        decider.checkpoint, panel, decider.planner, session, holdings, decider.book, decider.n_assets, calendar
    )
    decision = replace(decision, planner=decider.name)
    with warehouse.connect() as con:
        new = not _is_stored(con, key)
        if new:
            _store(con, decision, key)
    _write(decision, path)
    return MadeDecision(json.loads(path.read_text(encoding="utf-8")), path, new)


def _folder(settings: Settings) -> Path:
    return settings.reports / "decisions"


def _file_name(key: dict[str, str]) -> str:
    """Decisions of the champion's book are named by their date; others never take their place."""
    if key["book"] == "champion":
        return f"{key['date']}.json"
    planner = re.sub(r"[^A-Za-z0-9.]+", "-", key["planner"])  # a utility has signs that no file name may have
    return f"{key['date']}-{key['book']}-{planner}-{key['checkpoint'].replace('/', '--')}.json"


def _is_stored(con: duckdb.DuckDBPyConnection, key: dict[str, str]) -> bool:
    """Whether this very decision is in the tables; the champion's book has one a date."""
    [(known,)] = con.execute(
        "SELECT count(*) > 0 FROM main.decision_portfolios WHERE date = $date::DATE AND feed = $feed AND book = $book "
        "AND (book = 'champion' OR (checkpoint = $checkpoint AND planner = $planner AND data_version = $data_version))",
        key,
    ).fetchall()
    return bool(known)


def _store(con: duckdb.DuckDBPyConnection, decision: Decision, key: dict[str, str]) -> None:
    """Add a decision to `decisions`, a row an asset, and what it started from to `decision_portfolios`."""
    names = list(dict.fromkeys((*decision.assets, *decision.weights, *decision.held)))
    rows = {
        "asset": names,
        "weight": [decision.weights.get(name, 0.0) for name in names],
        "signal": [decision.signals.get(name, 0) for name in names],
        "position": [decision.positions.get(name, 0.0) for name in names],
        "held": [decision.held.get(name, 0.0) for name in names],
    }
    of_all = {name: getattr(decision, name) for name in ("hedge", "expected_return", "expected_volatility")}
    portfolio = {name: getattr(decision, name) for name in ("previous_date", "wealth", "peak", "made_afterwards")}
    portfolio |= {"cash": decision.held_cash, "hedge_held": decision.held_hedge, "state": decision.record}
    with transaction(con):
        insert(con, "decisions", {name: key[name] for name in key if name != "feed"} | of_all, rows)
        insert(con, "decision_portfolios", key, {name: [value] for name, value in portfolio.items()})


def _write(decision: Decision, path: Path) -> None:
    """Write the JSON file of a decision or of a hold, and the page beside it."""
    content = decision.to_json()
    write_text(path.with_suffix(".html"), decision_page(content))
    write_text(path, to_json(content, indent=2) + "\n")
