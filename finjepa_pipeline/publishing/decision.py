"""The decision for a date: what the champion would do at that close, and what it expects.

It is the strategy's own `decide`, as it is backtested, at the newest close, from a portfolio that is all in cash.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from finjepa_model.checkpoint import resolve_checkpoint
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import history_needed
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy, MarketImagination
from finjepa_pipeline.backtest.market_view import MarketView, universes
from finjepa_pipeline.backtest.store import insert, transaction
from finjepa_pipeline.warehouse import sql


@dataclass(frozen=True)
class Decision:
    """What to hold after the next close. Weights are budgets and sum to 1; positions are what is held of them.

    Attributes:
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

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"assets": list(self.assets)}


def decide(
    checkpoint: str | Path, panel: Panel, planner: str, as_of: str | None = None, n_assets: int = 20
) -> Decision:
    """Decide at the last close that is not after `as_of`, or at the newest one.

    Args:
        checkpoint: a checkpoint folder or a Hub repository.

    Raises:
        FinJEPAError: if the checkpoint does not fit the panel, or no asset has enough history by then.
    """
    folder = resolve_checkpoint(checkpoint)
    imagination = MarketImagination(folder)
    config = imagination.model.config
    if config.model.channels != panel.channels:
        raise FinJEPAError(
            f"checkpoint {checkpoint} reads the channels {', '.join(config.model.channels)}, but these prices give "
            f"{', '.join(panel.channels)}; ingest the prices it was trained on, or train again"
        )
    session = len(panel.dates) - 1 if as_of is None else panel.date_index(_checked_date(as_of))
    history = history_needed(config)
    [universe] = universes(panel, [session], n_assets, history, every=1)
    view = MarketView(panel, session, universe.assets_N, history)
    simulator = PortfolioSimulator(config.portfolio)
    action, expected = FinJEPAStrategy(planner, imagination).plan(view, simulator.start((1, len(view.assets))))
    steps_a_year = config.portfolio.sessions_per_year / config.model.stride
    positions_N = action.positions(config.portfolio.allow_short)[0].tolist()
    return Decision(
        date=str(view.date),
        assets=view.assets,
        weights=dict(zip(view.assets, action.weights_XN[0].tolist(), strict=True)),
        signals={name: round(s) for name, s in zip(view.assets, action.signals_XN[0].tolist(), strict=True)},
        hedge=bool(action.hedge_X[0] > 0.5),
        positions=dict(zip(view.assets, positions_N, strict=True)),
        cash=1 - sum(positions_N),
        expected_return=expected.growth * steps_a_year,
        expected_volatility=expected.volatility * steps_a_year**0.5,
        planner=planner,
        checkpoint=folder.name if Path(checkpoint).is_dir() else str(checkpoint),
        data_version=str(panel.manifest["data_version"]),
    )


def store_decision(con: duckdb.DuckDBPyConnection, decision: Decision, folder: Path) -> tuple[Path, bool]:
    """Write a decision to `decisions` and to a JSON file.

    Returns:
        The file, and whether the decision is new.
    """
    con.execute(sql("decisions"))
    key = {name: getattr(decision, name) for name in ("date", "checkpoint", "planner", "data_version")}
    [(known,)] = con.execute(sql("known_decision"), key).fetchall()
    if not known:
        with transaction(con):
            rows = {
                "asset": list(decision.assets),
                "weight": list(decision.weights.values()),
                "signal": list(decision.signals.values()),
                "position": list(decision.positions.values()),
            }
            more = {name: getattr(decision, name) for name in ("hedge", "expected_return", "expected_volatility")}
            insert(con, "decisions", key | more, rows)
    path = folder / f"{decision.date}.json"
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(decision.to_json(), indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path, not known


def _checked_date(text: str) -> str:
    from datetime import date

    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise FinJEPAError(f"{text!r} is not a date; write it as YYYY-MM-DD") from error
