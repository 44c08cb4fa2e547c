"""What follows from sound prices: sessions, corporate actions, entities, adjusted prices and the universe.

All of it is derived whole, from the rows that the views show. `adjusted_prices` is a view, the others are tables.
"""

import hashlib
from dataclasses import dataclass

import dagster as dg
import duckdb
import polars as pl
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.adjust import UniverseRule, corporate_actions, entities, price_events, runs_of
from finjepa_model.files import to_json
from finjepa_pipeline.prices import history
from finjepa_pipeline.warehouse import Warehouse, sql

TABLES = ("corporate_actions", "entities", "adjusted_prices", "universe")
SCHEMA = 8  # raise it when what is derived changes: it is made again
RUN_ROWS = 1_000_000  # of a query: few queries, and some 100 MB of them at a time
# Where symbols have calendars of their own, a row stands at the first session of the clock whose close is not before its own: a
# decision there knows it, and none before does. Of several rows, the last one stands.
_ON_ONE_CLOCK = """
    SELECT symbol, clock_date AS date, open, high, low, close, volume, adj_close FROM prices
    JOIN (SELECT symbol, calendar FROM symbol_calendars WHERE feed_id = {feed_id}) USING (symbol)
    JOIN (SELECT calendar, date, clock_date FROM clock_sessions WHERE feed_id = {feed_id}) USING (calendar, date)
    QUALIFY row_number() OVER (PARTITION BY symbol, clock_date ORDER BY date DESC) = 1"""


class UniverseConfig(dg.Config):
    """Who is eligible for a decision, judged from trailing data only."""

    size: int = Field(default=UniverseRule.size, ge=1, description="the first so many by dollar volume, e.g. 500")
    min_dollar_volume: float = Field(
        default=UniverseRule.min_dollar_volume, ge=0, description="median over the window, dollars a day, e.g. 1000000"
    )
    min_history: int = Field(
        default=UniverseRule.min_history, ge=1, description="sessions that an asset must have, e.g. 252"
    )
    window: int = Field(default=UniverseRule.window, ge=1, description="sessions of that median, e.g. 63")


@dataclass(frozen=True)
class DeriveReport:
    """Rows of each derived table, and the version of what they follow from; `reused` if the tables were those already."""

    rows: dict[str, int]
    data_version: str
    reused: bool


def derive(warehouse: Warehouse, config: UniverseConfig, prices: tuple[str, str] | None = None) -> DeriveReport:
    """Make the derived tables those of the active view, in one transaction.

    Args:
        prices: feed and data version that the views must show; whatever they show where None.

    Raises:
        FinJEPAError: if there are no prices, or others.
    """
    with warehouse.connect() as con:
        revision = history.current_revision(con)
        if revision is None:
            raise FinJEPAError("there are no prices to derive from; run `finjepa ingest` first")
        if prices is not None:
            history.require_shown(con, *prices)
        options = {"schema": SCHEMA, **config.model_dump()}
        state = (revision.feed_id, revision.number, to_json(options, sort_keys=True))
        reused = con.execute("FROM derived_state").fetchall() == [state]
        if not reused:
            several = con.execute("FROM symbol_calendars WHERE feed_id = ? LIMIT 1", [revision.feed_id]).fetchall()
            clocked = _ON_ONE_CLOCK.format(feed_id=revision.feed_id) if several else "FROM prices"
            con.begin()
            con.execute(sql("prices/sessions").format(clocked=clocked))
            for name, frame in _histories(con).items():
                con.register("frame", frame.to_arrow())
                con.execute(f"CREATE OR REPLACE TABLE {name} AS FROM frame")
                con.unregister("frame")
            con.execute(sql("prices/derived").format(**options))
            con.execute("DELETE FROM derived_state")
            con.execute("INSERT INTO derived_state VALUES (?, ?, ?)", state)
            con.commit()
        counts = {name: f"count(*) FROM {name}" for name in TABLES}
        counts["adjusted_prices"] = (
            "coalesce(sum(observations), 0)::BIGINT FROM entities"  # the same, without making them
        )
        rows = {name: con.execute(f"SELECT {count}").fetchall()[0][0] for name, count in counts.items()}
        version = hashlib.sha256(state[-1].encode()).hexdigest()[:8]
        return DeriveReport(rows, f"{revision.data_version}-{version}", reused)


def _histories(con: duckdb.DuckDBPyConnection) -> dict[str, pl.DataFrame]:
    """price_events, corporate_actions and entities, from runs of whole symbols."""
    symbols = con.sql("SELECT symbol, count(*) AS n FROM clocked_prices GROUP BY ALL ORDER BY symbol").pl()
    [(sessions,)] = con.sql("SELECT count(*) FROM price_sessions").fetchall()
    found: dict[str, list[pl.DataFrame]] = {}
    for run in runs_of(symbols["n"].to_numpy(), RUN_ROWS):
        bounds = {"first": symbols["symbol"][run.start], "last": symbols["symbol"][run.stop - 1]}
        rows = con.sql(
            """SELECT symbol, date, session::BIGINT - 1 AS session, close, volume, adj_close
            FROM clocked_prices JOIN price_sessions USING (date)
            WHERE symbol BETWEEN $first AND $last ORDER BY symbol, date""",
            params=bounds,
        ).pl()
        events = price_events(rows)
        actions = corporate_actions(events)
        lives = entities(rows, events, actions, sessions)
        for name, frame in (("price_events", events.drop("days")), ("corporate_actions", actions), ("entities", lives)):
            found.setdefault(name, []).append(frame)
    return {name: pl.concat(frames) for name, frames in found.items()}
