"""Who decides on a date, from which book, and that a decision is made once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from finjepa_model.checkpoint import read_config
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.panel import Panel
from finjepa_pipeline.backtest.finjepa_strategy import planner_of, strategy_name
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.store import current_revision, require_shown
from finjepa_pipeline.publishing.book import BookName, holdings_at
from finjepa_pipeline.publishing.decision import decide, decision_session, file_of, store_decision, stored
from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.sql_files import sql
from finjepa_pipeline.training.named import NamedCheckpoint, named_checkpoint
from finjepa_pipeline.training.run import checkpoint_here
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
    checkpoint: NamedCheckpoint
    planner: str
    book: BookName


def make_decision(
    settings: Settings,
    warehouse: Warehouse,
    as_of: str | None = None,
    checkpoint: str | None = None,
    planner: str | None = None,
    utility: str | None = None,
    of_run: Path | None = None,
    prices: tuple[str, str] | None = None,
) -> MadeDecision | None:
    """Decide at a close, or find that it has been done.

    The champion decides: for an earlier date the one that was champion in the night after that close, or the present one where
    there was none yet. Another checkpoint, planner or utility makes a trial, from what the champion's book holds.

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
    decider = _decider(settings, warehouse, panel, session, named, planner, utility)
    return None if decider is None else _made(settings, warehouse, panel, session, decider)


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
    """Decide for each session from `first` to `last` (ISO dates, both included), in order; a date on which the champion's book
    has a decision keeps it.

    Raises:
        FinJEPAError: if there is no champion.
    """
    panel = Panel.open(current_panel(settings))
    key = {"feed": str(panel.manifest["feed"]), "first": first, "last": last}
    with warehouse.connect() as con:
        con.execute(sql("decisions"))
        decided = {row[0].isoformat() for row in con.execute(sql("decided_dates"), key).fetchall()}
    wanted = (panel.dates >= np.datetime64(first)) & (panel.dates <= np.datetime64(last))
    made = []
    for session in np.nonzero(wanted)[0].tolist():
        date = str(panel.dates[session])
        if date in decided:
            log(f"{date} was decided in its night")
            continue
        decider = _decider(settings, warehouse, panel, session)
        if decider is None:
            raise FinJEPAError("there is no champion yet; run `finjepa demo`, or train and publish one")
        made.append(_made(settings, warehouse, panel, session, decider))
        log(f"{date}: {decider.book} book, checkpoint {made[-1].decision['checkpoint']}")
    return made


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


def _made(settings: Settings, warehouse: Warehouse, panel: Panel, session: int, decider: _Decider) -> MadeDecision:
    key = {
        "date": str(panel.dates[session]),
        "checkpoint": decider.checkpoint.name,
        "planner": decider.planner,
        "data_version": str(panel.manifest["data_version"]),
    }
    path = settings.reports / "decisions"
    simulator = PortfolioSimulator(read_config(decider.checkpoint.folder).portfolio)
    with warehouse.connect() as con:
        known = stored(path, con, key, decider.book)
        if known is not None:
            return MadeDecision(known, file_of(path, key, decider.book), new=False)
        holdings = holdings_at(con, panel, session, decider.book, simulator)
    decision = decide(decider.checkpoint, panel, decider.planner, session, holdings, decider.book)
    with warehouse.connect() as con:
        file, new = store_decision(con, decision, path)
    return MadeDecision(json.loads(file.read_text(encoding="utf-8")), file, new)


def _decider(
    settings: Settings,
    warehouse: Warehouse,
    panel: Panel,
    session: int,
    checkpoint: NamedCheckpoint | None = None,
    planner: str | None = None,
    utility: str | None = None,
) -> _Decider | None:
    if checkpoint is not None:
        return _Decider(checkpoint, strategy_name(planner or "mppi", utility), "trial")
    night = datetime.combine(panel.dates[session].item() + timedelta(days=1), NIGHT_ENDS)
    with warehouse.connect() as con:
        present = current_champion(con)
        then = present if session == len(panel.dates) - 1 else current_champion(con, until=night)
    chosen = then or present
    if chosen is None:
        return None
    book: BookName = "champion" if then is not None else "hindsight"
    folder = checkpoint_here(settings, chosen.checkpoint)
    if folder is None:
        raise FinJEPAError(f"the champion {chosen.checkpoint} is gone from {settings.checkpoints}; train it again")
    acting = named_checkpoint(settings, folder)
    asked = chosen.strategy
    if planner is not None or utility is not None:
        asked = strategy_name(planner or planner_of(chosen.strategy), utility)
    if asked != chosen.strategy:
        return _Decider(acting, asked, "trial")
    return _Decider(acting, chosen.strategy, book)
