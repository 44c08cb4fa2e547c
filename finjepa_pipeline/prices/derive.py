"""What follows from sound prices: sessions, corporate actions, entities, adjusted prices and the universe.

All of it is derived whole, from the rows that the views show. `adjusted_prices` is a view, the others are tables.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
import duckdb
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices import history
from finjepa_pipeline.warehouse import Warehouse, literal, sql

TABLES = ("corporate_actions", "entities", "adjusted_prices", "universe")
STORED = (
    "price_sessions",
    "price_events",
    "stale_prices",
    "corporate_actions",
    "entities",
    "universe",
    "price_histograms",
)
BLOCK_ROWS = 2_500_000  # about a gigabyte of windows over them; memory does not grow with the market
# Thresholds of reference tables, on sessions, logarithms of ratios, and ratios.
THRESHOLDS = {
    "schema": 5,  # raise it when what is derived changes: it is made again
    "long_gap": 60,  # sessions without a row after which a ticker may have been given to somebody else
    "patience": 10,  # sessions before the end of the data after which a history counts as ended
    "quarter": 63,  # sessions before its end by which a share is judged to have been falling apart
    "factor_step": 0.0005,  # 5 bp: less is rounding of adj_close
    "jump": 0.405,  # log(1.5): +50 % or -33 % in a day is listed
    "collapse": 0.1,  # a day's ratio of adjusted closes below, or
    "explosion": 4.0,  # above: a step of the price, or an extreme move
    "heavy": 5,  # times the usual volume, which a gain beyond `explosion` needs to be believed
    "year": 365,  # days without a row after which a ticker has been given to somebody else
}


class UniverseConfig(dg.Config):
    """Who is eligible for a decision, judged from trailing data only."""

    size: int = Field(default=500, ge=1, description="the first so many by dollar volume")
    min_dollar_volume: float = Field(default=5e6, ge=0, description="median over the window, dollars a day")
    min_history: int = Field(default=252, ge=1, description="sessions")
    window: int = Field(default=63, ge=1, description="sessions")


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
        fragments = {**THRESHOLDS, **config.model_dump()}
        (feed_id,) = con.execute("SELECT feed_id FROM active_view").fetchall()[0]
        state = (feed_id, revision.number, to_json(fragments, sort_keys=True))
        reused = con.execute("FROM derived_state").fetchall() == [state]
        if not reused:
            _put_on_clock(con, feed_id)
            _derive_blocks(con, {**fragments, "has_volume": "volume" in revision.columns})
            _store(con, state)
        options = hashlib.sha256(state[-1].encode()).hexdigest()[:8]
        return DeriveReport(
            {table: _rows(con, table) for table in TABLES}, f"{revision.data_version}-{options}", reused
        )


def _put_on_clock(con: duckdb.DuckDBPyConnection, feed_id: int) -> None:
    """Make the view clocked_prices that of the active feed. Where symbols have calendars of their own, a row stands at the first
    session of the clock whose close is not before its own: a decision there knows it, and none before does. Of several rows, the
    last one stands."""
    rows = "FROM prices"
    if history.has_own_calendars(con, feed_id):
        rows = f"""
            SELECT symbol, clock_date AS date, open, high, low, close, volume, adj_close FROM prices
            JOIN (SELECT symbol, calendar FROM symbol_calendars WHERE feed_id = {feed_id}) USING (symbol)
            JOIN (SELECT calendar, date, clock_date FROM clock_sessions WHERE feed_id = {feed_id}) USING (calendar, date)
            QUALIFY row_number() OVER (PARTITION BY symbol, clock_date ORDER BY date DESC) = 1"""
    con.execute(f"CREATE OR REPLACE VIEW clocked_prices AS {rows}")


def _derive_blocks(con: duckdb.DuckDBPyConnection, fragments: dict[str, object]) -> None:
    """Every derived table, a run of symbols at a time, as temporary tables: they go before those of the same names."""
    for table in STORED:
        con.execute(f"CREATE TEMPORARY TABLE {table} AS FROM main.{table} LIMIT 0")
    con.execute(
        "INSERT INTO price_sessions SELECT date, row_number() OVER (ORDER BY date), count(*) FROM clocked_prices "
        "GROUP BY date ORDER BY date"
    )
    con.execute(
        "CREATE TEMPORARY TABLE best_contenders (date DATE, entity VARCHAR, traded HUGEINT, age BIGINT, tie_break UBIGINT)"
    )
    block = {**fragments, "adjusted": sql("prices/adjusted").format(prices="block_prices")}
    for symbols in _blocks(con):
        con.execute(
            "CREATE OR REPLACE TEMPORARY TABLE block_prices AS "
            "SELECT symbol, date, session, open, high, low, close, volume, adj_close "
            f"FROM clocked_prices JOIN price_sessions USING (date) WHERE {symbols}"
        )
        for step in ("events", "corporate_actions", "entities", "universe"):
            con.execute(sql(f"prices/{step}").format(**block))
    con.execute("INSERT INTO universe SELECT date, entity FROM best_contenders ORDER BY date, entity")


def _store(con: duckdb.DuckDBPyConnection, state: tuple[int, int, str]) -> None:
    con.execute("BEGIN")
    for table in STORED:
        con.execute(f"CREATE OR REPLACE TABLE main.{table} AS FROM temp.{table}")
        con.execute(f"DROP TABLE temp.{table}")
    con.execute(f"CREATE OR REPLACE VIEW adjusted_prices AS {sql('prices/adjusted').format(prices='clocked_prices')}")
    con.execute("DELETE FROM derived_state")
    con.execute("INSERT INTO derived_state VALUES (?, ?, ?)", state)
    con.execute("COMMIT")


def _blocks(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Conditions that cut the symbols into runs of about BLOCK_ROWS rows."""
    rows, first = 0, None
    for symbol, n in con.execute("SELECT symbol, count(*) FROM prices GROUP BY symbol ORDER BY symbol").fetchall():
        if rows >= BLOCK_ROWS:
            yield _run(first, symbol)
            rows, first = 0, symbol
        rows += n
    yield _run(first, None)


def _run(first: str | None, beyond: str | None) -> str:
    bounds = [f"symbol >= {literal(first)}"] if first is not None else []
    bounds += [f"symbol < {literal(beyond)}"] if beyond is not None else []
    return " AND ".join(bounds) or "true"


def _rows(con: duckdb.DuckDBPyConnection, table: str) -> int:
    count = "sum(observations) FROM main.entities" if table == "adjusted_prices" else f"count(*) FROM main.{table}"
    return int(con.execute(f"SELECT {count}").fetchall()[0][0] or 0)
