"""What follows from sound prices: sessions, corporate actions, entities, adjusted prices and the universe."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices import store
from finjepa_pipeline.prices.blocks import crown, derive_block, open_contest
from finjepa_pipeline.prices.snapshots import publish_snapshot
from finjepa_pipeline.prices.tail import Tail, bring_tail_up
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
    """Rows of each derived table, and the version of what they follow from.

    `reused` if the tables were those of the active view already; `rebuilt` if all of them were made again, and not only
    what a later revision of the same feed changes.
    """

    rows: dict[str, int]
    data_version: str
    reused: bool
    rebuilt: bool


def derive(
    warehouse: Warehouse,
    config: UniverseConfig,
    snapshots: Path | None = None,
    prices: tuple[str, str] | None = None,
) -> DeriveReport:
    """Make the derived tables those of the active view, in one transaction, and publish them for readers to `snapshots`.

    Args:
        prices: feed and data version that the tables must show; whatever they show where None.

    Raises:
        FinJEPAError: if there are no prices, or others.
    """
    with warehouse.connect() as con:
        revision = store.current_revision(con)
        if revision is None:
            raise FinJEPAError("there are no prices to derive from; run `finjepa ingest` first")
        if prices is not None:
            store.require_shown(con, *prices)
        fragments = {**THRESHOLDS, **config.model_dump()}
        state = (*_active(con), to_json(fragments, sort_keys=True))
        held = con.execute("FROM derived_state").fetchone()
        reused, rebuilt = held == state, False
        if not reused:
            several = _put_on_clock(con, state[0])
            tail = None if several else _tail(con, held, state)
            con.execute("BEGIN")
            rebuilt = tail is None or not bring_tail_up(con, tail, fragments)
            if rebuilt:
                con.execute("ROLLBACK")
                _rebuild(con, fragments, state)  # begins when it has something to write
            con.execute("DELETE FROM derived_state")
            con.execute("INSERT INTO derived_state VALUES (?, ?, ?)", state)
            con.execute("COMMIT")
        options = hashlib.sha256(state[-1].encode()).hexdigest()[:8]
        report = DeriveReport(
            rows={table: _rows(con, table) for table in TABLES},
            data_version=f"{revision.data_version}-{options}",
            reused=reused,
            rebuilt=rebuilt,
        )
        if snapshots is not None:
            publish_snapshot(con, snapshots, report.data_version)
        return report


def _put_on_clock(con: duckdb.DuckDBPyConnection, feed_id: int) -> bool:
    """Make the view clocked_prices that of the active feed; whether its symbols have calendars of their own."""
    several = store.has_own_calendars(con, feed_id)
    rows = sql("on_the_clock").format(feed_id=feed_id) if several else "FROM prices"
    con.execute(sql("clocked_prices").format(rows=rows))
    return several


def _tail(
    con: duckdb.DuckDBPyConnection, held: tuple[int, int, str] | None, state: tuple[int, int, str]
) -> Tail | None:
    """What lies between the tables and the active view, if that is the newest of later revisions of the same feed."""
    if held is None or (held[0], held[2]) != (state[0], state[2]) or held[1] > state[1]:
        return None
    return Tail(state[0], held[1], state[1]) if store.is_newest(con, *state[:2]) else None


def _rebuild(con: duckdb.DuckDBPyConnection, fragments: dict[str, object], state: tuple[int, int, str]) -> None:
    """Every derived table from nothing, a run of symbols at a time."""
    if store.has_own_calendars(con, state[0]):
        days = "SELECT date, count(*) AS n FROM clocked_prices GROUP BY date"
    elif store.is_newest(con, *state[:2]):
        days = sql("session_ledger").format(feed_id=state[0], revision=state[1])
    else:
        days = "SELECT date, count(*) AS n FROM prices GROUP BY date"
    # In temporary tables of the same names, which go before those of the warehouse: what a transaction drops stays in memory
    # until it ends, so that the blocks are worked through before it begins.
    con.execute(sql("derived_schema").format(temporary="TEMPORARY"))
    con.execute(sql("price_sessions").format(days=days))
    open_contest(con, fragments)
    for rows in _blocks(con, state[0]):
        con.execute(sql("block_prices").format(rows=rows))
        con.execute(
            "CREATE OR REPLACE TEMPORARY TABLE block_symbols AS "
            "SELECT DISTINCT symbol, 0 AS rows_before, false AS was_adjusted FROM block_prices"
        )
        derive_block(con, {**fragments, "fresh": "true", "since": "0001-01-01"})
    crown(con)
    con.execute("BEGIN")
    con.execute(sql("derived_schema").format(temporary=""))
    database = store.database_name(con)  # `main` alone would be the schema of the temporary tables
    for table in STORED:
        con.execute(f'INSERT INTO "{database}".main.{table} FROM temp.{table}')
        con.execute(f"DROP TABLE temp.{table}")
    con.execute(sql("adjusted_prices").format(adjusted=sql("adjusted_rows").format(prices="clocked_prices")))


def _blocks(con: duckdb.DuckDBPyConnection, feed_id: int) -> Iterator[str]:
    """Conditions that cut the symbols into runs of about BLOCK_ROWS rows, by the ledger of the feed's newest revision."""
    rows, first = 0, None
    for symbol, n in con.execute(sql("symbol_rows").format(feed_id=feed_id)).fetchall():
        if rows >= BLOCK_ROWS:
            yield _run(first, symbol)
            rows, first = 0, symbol
        rows += n
    yield _run(first, None)


def _run(first: str | None, beyond: str | None) -> str:
    bounds = [f"symbol >= {literal(first)}"] if first is not None else []
    bounds += [f"symbol < {literal(beyond)}"] if beyond is not None else []
    return " AND ".join(bounds) or "true"


def _active(con: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    row = con.execute("SELECT feed_id, revision FROM active_view").fetchone()
    assert row is not None  # a current revision was found
    return row


def _rows(con: duckdb.DuckDBPyConnection, table: str) -> int:
    count = "sum(observations) FROM main.entities" if table == "adjusted_prices" else f"count(*) FROM main.{table}"
    row = con.execute(f"SELECT {count}").fetchone()
    assert row is not None
    return int(row[0] or 0)
