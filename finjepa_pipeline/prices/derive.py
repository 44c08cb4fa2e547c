"""What follows from sound prices: sessions, corporate actions, entities, adjusted prices and the universe."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices import store
from finjepa_pipeline.prices.snapshots import publish_snapshot
from finjepa_pipeline.warehouse import Warehouse, sql

TABLES = ("corporate_actions", "entities", "adjusted_prices", "universe")
_STEPS = ("price_sessions", "price_events", "corporate_actions", "entities", "adjusted_prices", "universe")
# Thresholds of reference tables, on sessions, logarithms of ratios, and ratios.
_FRAGMENTS = {
    "long_gap": 60,  # sessions without a row after which a ticker may have been given to somebody else
    "patience": 10,  # sessions before the end of the data after which a history counts as ended
    "factor_step": 0.0005,  # 5 bp: less is rounding of adj_close
    "jump": 0.405,  # log(1.5): +50 % or -33 % in a day is listed
    "collapse": 0.1,  # a day's ratio of adjusted closes below, or
    "explosion": 4.0,  # above: not the same share
}


class UniverseConfig(dg.Config):
    """Who is eligible for a decision, judged from trailing data only."""

    size: int = Field(default=500, ge=1, description="the first so many by dollar volume")
    min_price: float = Field(default=5.0, ge=0, description="dollars, as reported")
    min_dollar_volume: float = Field(default=5e6, ge=0, description="median over the window, dollars a day")
    min_history: int = Field(default=252, ge=1, description="sessions")
    window: int = Field(default=63, ge=1, description="sessions")


@dataclass(frozen=True)
class DeriveReport:
    """Rows of each derived table, and the version of what they follow from.

    `reused` if the tables were those of the active view already.
    """

    rows: dict[str, int]
    data_version: str
    reused: bool


def derive(warehouse: Warehouse, config: UniverseConfig, snapshots: Path | None = None) -> DeriveReport:
    """Make the derived tables those of the active view, in one transaction, and publish them for readers to `snapshots`.

    Raises:
        FinJEPAError: if there are no prices.
    """
    with warehouse.connect() as con:
        revision = store.current_revision(con)
        if revision is None:
            raise FinJEPAError("there are no prices to derive from; run `finjepa ingest` first")
        state = (*_active(con), json.dumps({**_FRAGMENTS, **config.model_dump()}, sort_keys=True))
        reused = con.execute("FROM derived_state").fetchall() == [state]
        if not reused:
            con.execute("BEGIN")
            for step in _STEPS:
                con.execute(sql(step).format(**_FRAGMENTS, **config.model_dump()))
            con.execute("DELETE FROM derived_state")
            con.execute("INSERT INTO derived_state VALUES (?, ?, ?)", state)
            con.execute("COMMIT")
        options = hashlib.sha256(state[-1].encode()).hexdigest()[:8]
        report = DeriveReport(
            rows={table: _rows(con, table) for table in TABLES},
            data_version=f"{revision.data_version}-{options}",
            reused=reused,
        )
        if snapshots is not None:
            publish_snapshot(con, snapshots, report.data_version)
        return report


def _active(con: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    row = con.execute("SELECT feed_id, revision FROM active_view").fetchone()
    assert row is not None  # a current revision was found
    return row


def _rows(con: duckdb.DuckDBPyConnection, table: str) -> int:
    row = con.execute(f"SELECT count(*) FROM main.{table}").fetchone()
    assert row is not None
    return int(row[0])
