"""Appends a night to the live record: what is forecast at the newest close, and the returns that have become known since.

The record of a feed lies in `FINJEPA_HOME/live_record/<hash of the feed>/` as `finjepa_model.live_record.chain` has it. A session
has one night, the first that was written; a session without a run stays without one.
"""

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import torch
from torch import Tensor

from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits, history_needed, seen_assets
from finjepa_model.errors import FinJEPAError
from finjepa_model.features.adjust import PATIENCE
from finjepa_model.files import read_json, to_json, write_text
from finjepa_model.live_record.chain import FOLDER, OUTCOMES, PORTFOLIOS, LiveRecord, Night
from finjepa_model.live_record.forecasts import Forecaster
from finjepa_model.live_record.scores import update_scores
from finjepa_model.market_view import MarketView, next_universe
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_model.training.risk_fit import RiskBlock
from finjepa_model.training.textbook import fit_har
from finjepa_model.world_model import WorldModel
from finjepa_pipeline.backtest.engine import decide_at
from finjepa_pipeline.backtest.results import most_assets
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.prices.calendar import next_close
from finjepa_pipeline.prices.history import current_revision
from finjepa_pipeline.publishing.book import Holdings, holdings_at
from finjepa_pipeline.publishing.gate import Champion, champion_folder, current_champion
from finjepa_pipeline.publishing.package import places_of, public, public_strategy
from finjepa_pipeline.report.live_record import RecordSummary, record_section
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.lineage import made_with
from finjepa_pipeline.warehouse import Warehouse, now

LOOK_BACK = 63  # nights whose sessions are compared with what the source says now
RESTATED = 1e-6  # difference of a return from which it counts as restated
_COMMIT = (
    "SELECT commit FROM main.releases WHERE checkpoint = ? AND commit IS NOT NULL ORDER BY created_at DESC LIMIT 1"
)


def record_of(settings: Settings, feed: str) -> LiveRecord:
    """The live record of a feed, which may not have begun."""
    return LiveRecord(settings.home / FOLDER / hashlib.sha256(feed.encode()).hexdigest()[:12])


def words(settings: Settings, feed: str) -> str:
    """How the forecasts of a feed came out, and whether they drift; empty where there is no record."""
    record = record_of(settings, feed)
    if not record.sessions:
        return ""
    summary = RecordSummary.of(record)
    return f"Live record: {summary.words}." + (f" {summary.drift}" if summary.drifted[0] else "")


def card_section(settings: Settings, feed: str) -> str:
    """The section of a model card about the live record of a feed; empty where there is none."""
    record = record_of(settings, feed)
    return record_section(RecordSummary.of(record)) if record.sessions else ""


def record_night(
    settings: Settings, warehouse: Warehouse, of_run: Path | None = None, at: datetime.datetime | None = None
) -> tuple[RecordSummary, bool] | None:
    """Write the night of the newest session, unless it stands, and score what has become known.

    Args:
        of_run: the panel of the run that asks; the home's where None.
        at: the time of writing, UTC; now where None.

    Returns:
        The record, and whether this call wrote the night of the newest session. None where there is no champion, or where
        fewer than two assets are eligible at that close.

    Raises:
        FinJEPAError: if the champion is gone, or the record is damaged.
    """
    panel = Panel.open(of_run or current_panel(settings))
    session = len(panel.dates) - 1
    record = record_of(settings, panel.manifest["feed"])
    date = panel.dates[session].item()
    new = not record.sessions or record.sessions[-1] < date
    if new:
        with warehouse.connect() as con:
            champion = current_champion(con)
            night = champion and _night(con, settings, panel, session, champion, record, at or now())
        if night is None:
            return None
        record = record.append(night)
    return RecordSummary(record, update_scores(record)), new


def _night(
    con: duckdb.DuckDBPyConnection,
    settings: Settings,
    panel: Panel,
    session: int,
    champion: Champion,
    record: LiveRecord,
    at: datetime.datetime,
) -> Night | None:
    folder = champion_folder(settings, champion)
    imagination = MarketImagination(folder)
    model, config, date = imagination.model, imagination.config, panel.dates[session].item()
    holdings = holdings_at(con, panel, session, config.portfolio, included=True)
    eligible_N = panel.eligible_assets(session, history_needed(config))
    if len(eligible_N) < 2:
        return None
    universe = holdings.universe or next_universe(
        None, panel, session, most_assets(con, champion.checkpoint, champion.strategy), history_needed(config)
    )
    universe_N = np.intersect1d(universe.assets_N, eligible_N)
    if len(universe_N) < 2:
        return None
    har_JV, left_out = _har(settings, folder, model, panel)
    forecaster = Forecaster(model, panel, session, universe_N, har_JV)
    portfolios = {
        **_portfolios(panel, session, universe_N, holdings, imagination),
        **forecaster.textbook_portfolios(),
    }
    names = [panel.assets[asset] for asset in universe_N]
    weights = [
        {"portfolio": name, "asset": asset, "weight": weight}
        for name, weights_N in portfolios.items()
        for asset, weight in zip(names, weights_N.tolist(), strict=True)
        if weight
    ]
    forecasts = forecaster.table(portfolios, np.setdiff1d(eligible_N, universe_N))
    revision, places = current_revision(con), places_of(read_json(folder / "lineage.json"), settings.home)
    close = next_close(revision.calendar if revision else "XNYS", date)
    commit, previous = con.execute(_COMMIT, [champion.checkpoint]).fetchone(), holdings.previous
    code = made_with()["code"]
    row = {
        "session": date,
        "written_at": at.replace(microsecond=0),
        "next_close": close,
        "hindsight": at > close,
        "checkpoint": champion.checkpoint,
        "commit": commit and commit[0],
        "planner": public_strategy(champion.strategy),
        "feed": public(panel.manifest["feed"], places),
        "data_version": panel.manifest["data_version"],
        "code": " ".join(str(part)[:12] for part in (code["finjepa"], code["revision"]) if part),
        "decided": previous and datetime.date.fromisoformat(previous.date),
        "hedge": bool(previous and previous.hedge),
        "wealth": float(holdings.state.wealth_X),
        "left_out": left_out,
    }
    tables = {
        "forecasts": forecasts,
        "portfolios": pl.DataFrame(weights, schema=PORTFOLIOS),
        "outcomes": outcomes_of_night(record, panel, session),
    }
    return Night(row, tables)


def _portfolios(
    panel: Panel, session: int, universe_N: np.ndarray, holdings: Holdings, imagination: MarketImagination
) -> dict[str, np.ndarray]:
    """weights_N over the universe of what is held (`book`), of what the decision that stands wants (`decision`: the same as the
    book between two decisions), and of what the planner qp would decide at this close (`QP`)."""
    names = [panel.assets[asset] for asset in universe_N]
    config = imagination.config

    def weights(shares: Mapping[str, float]) -> np.ndarray:
        return np.array([shares.get(name, 0.0) for name in names])

    previous = holdings.previous
    decided = previous is not None and previous.session == session
    found = {
        "book": weights(holdings.shares),
        "decision": weights(previous.positions if decided and previous else holdings.shares),
    }
    held = holdings.over(panel, universe_N)
    view = MarketView(panel, session, universe_N, history_needed(config))
    places_N = np.searchsorted(held.roster_R, universe_N)
    action = decide_at(FinJEPAStrategy("qp", imagination), view, held.state, places_N)
    if action is not None:
        positions_1R = action.positions(config.portfolio.allow_short, config.portfolio.max_gross)
        found["QP"] = positions_1R[0, torch.from_numpy(places_N)].double().numpy()
    return found


def _har(settings: Settings, folder: Path, model: WorldModel, panel: Panel) -> tuple[Tensor | None, str]:
    """Weights of HAR, fitted once for a checkpoint on its training block; why there are none."""
    file = settings.reports / f"{folder.name}-risk" / "har.json"
    if not file.is_file():
        learned = RiskBlock(panel, *checkpoint_splits(folder, panel).train, seen_assets(panel, model.config))
        try:
            weights_JV = fit_har(learned, model.config)
        except FinJEPAError as error:
            return None, f"HAR: {error}"
        write_text(file, to_json(weights_JV.tolist()))
    return torch.tensor(read_json(file)), ""


def outcomes_of_night(record: LiveRecord, panel: Panel, session: int) -> pl.DataFrame:
    """What a panel says of the sessions before its newest one, for the assets that were forecast or held: see OUTCOMES.

    A return is recorded if it is later than the last one of its asset: what comes late, or is changed, after a later one has been
    recorded is listed as restated. So recorded returns always compound to what a holder got.
    """
    nights = record.sessions[-LOOK_BACK:]
    known = record.outcomes(nights[0] if nights else None)
    begun = _first_forecasts(record, nights)
    known = known.filter(pl.col("asset").is_in(list(begun)))
    recorded = {(asset, day): value for asset, day, value in _rows(known, "return")}
    restated = {(asset, day): value for asset, day, value in _rows(known, "restated")}
    ended = set(known.filter(pl.col("kind") == "ended")["asset"])
    last = dict(known.filter(pl.col("kind") == "return").group_by("asset").agg(pl.col("session").max()).iter_rows())
    number = {name: a for a, name in enumerate(panel.assets)}
    first_day = int(np.searchsorted(panel.dates, np.datetime64(nights[0]), side="right")) if nights else session
    days_D = np.arange(first_day, session)
    assets = [name for name in begun if name in number]
    numbers_A = np.array([number[name] for name in assets], np.int64)
    rows_DA = panel.rows(days_D[:, None], numbers_A[None])
    seen_DA = (rows_DA >= 0) & panel.observed[rows_DA] & (days_D[:, None] > panel.first[numbers_A])
    returns_DA = np.where(seen_DA, panel.returns[rows_DA], np.nan).astype(np.float64)
    found: list[dict[str, Any]] = []
    dates = panel.dates.tolist()
    for a, name in enumerate(assets):
        until = max(begun[name], last.get(name, begun[name]))
        for d, day in enumerate(days_D):
            date, value = dates[day], returns_DA[d, a].item() if seen_DA[d, a] else None
            if date > until:
                if value is not None:
                    found.append({"kind": "return", "asset": name, "session": date, "value": value})
            elif date > begun[name]:
                now_known = restated.get((name, date), recorded.get((name, date)))
                if not _same(value, now_known):
                    before = recorded.get((name, date))
                    found.append(
                        {"kind": "restated", "asset": name, "session": date, "value": value, "recorded": before}
                    )
        end = int(panel.first[numbers_A[a]] + panel.lengths[numbers_A[a]])
        if name not in ended and end < session - PATIENCE and dates[end] > begun[name]:
            paid = float(panel.delisting_return[numbers_A[a]])
            found.append({"kind": "ended", "asset": name, "session": dates[end], "value": paid})
    return pl.DataFrame([{name: row.get(name) for name in OUTCOMES} for row in found], schema=OUTCOMES)


def _same(value: float | None, other: float | None) -> bool:
    if value is None or other is None:
        return value is other
    return abs(value - other) <= RESTATED


def _first_forecasts(record: LiveRecord, nights: list[datetime.date]) -> dict[str, datetime.date]:
    """The first of some nights in which each asset was forecast."""
    found: dict[str, datetime.date] = {}
    for night in nights:
        rows = record.table("forecasts", night).filter(pl.col("kind").is_in(["asset", "market"]))
        found |= {name: night for name in rows["name"].unique() if name not in found}
    return dict(sorted(found.items()))


def _rows(outcomes: pl.DataFrame, kind: str) -> list[tuple[str, datetime.date, float | None]]:
    return outcomes.filter(pl.col("kind") == kind).select("asset", "session", "value").rows()
