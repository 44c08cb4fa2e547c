"""Derived tables after a later revision of the same feed: only what it changes is made again.

A night adds a session to thousands of symbols, and restates the adjusted closes of those that paid a dividend. So the last
month is made again from a tail that is long enough to look back in, and of the symbols whose past moved all is. Where
a revision changes more than that, such as closes or volumes of long ago, which decide who was in the universe, the tables are
made again as a whole.
"""

import datetime
from dataclasses import dataclass

import duckdb

from finjepa_pipeline.prices.blocks import crown, derive_block, open_contest
from finjepa_pipeline.prices.rules import hard_bits, load_rules
from finjepa_pipeline.warehouse import sql

RECENT = 21  # sessions within which a change is of the tail


@dataclass(frozen=True)
class Tail:
    """What the tables follow from (`before`) and what they shall follow from (`after`, the newest revision of the feed)."""

    feed_id: int
    before: int
    after: int


def bring_tail_up(con: duckdb.DuckDBPyConnection, tail: Tail, fragments: dict[str, object]) -> bool:
    """Bring the derived tables up to `tail.after`; False if they must be made again as a whole (they are half made then)."""
    con.execute(
        sql("changed_prices").format(
            feed_id=tail.feed_id,
            before=tail.before,
            after=tail.after,
            hard=hard_bits(load_rules(con)),
        )
    )
    days = [day for (day,) in con.execute("SELECT date FROM price_sessions ORDER BY date").fetchall()]
    con.execute(
        sql("price_sessions").format(days=sql("session_ledger").format(feed_id=tail.feed_id, revision=tail.after))
    )
    if [day for (day,) in con.execute("SELECT date FROM price_sessions ORDER BY date").fetchall()][: len(days)] != days:
        return False  # a session of the past came or went, and with it the length of every gap across it
    if not _count(con, "SELECT count(*) FROM changed_prices"):
        return True
    recent = days[max(0, len(days) - RECENT)]
    if _old_universe_moves(con, recent):
        return False
    look_back = max(int(str(fragments["window"])), int(str(fragments["quarter"])) + 1)
    first = days[max(0, len(days) - RECENT - int(str(fragments["patience"])) - 3 * look_back // 2)]
    since = _first_recent(con, recent)
    con.execute(sql("tail_symbols").format(since=since, tail=first, context_rows=look_back))
    deep = "SELECT symbol FROM deep_symbols"
    con.execute(
        sql("block_prices").format(
            rows=f"(date >= DATE '{first}' AND symbol IN (SELECT symbol FROM block_symbols)) OR symbol IN ({deep})"
        )
    )
    marks = _marks(con, since)
    open_contest(con, fragments)
    for table in ("universe", "price_histograms"):
        con.execute(f"DELETE FROM {table} WHERE date >= DATE '{since}'")
    derive_block(con, {**fragments, "since": since, "fresh": f"(date >= DATE '{since}' OR symbol IN ({deep}))"})
    crown(con)
    return marks == _marks(con, since)


def _old_universe_moves(con: duckdb.DuckDBPyConnection, recent: datetime.date) -> bool:
    """Whether anything moves before `recent` but the adjusted closes and the prices within a day."""
    return bool(_count(con, sql("old_universe_changes").format(recent=recent)))


def _first_recent(con: duckdb.DuckDBPyConnection, recent: datetime.date) -> datetime.date:
    (first,) = con.execute("SELECT min(date) FROM changed_prices WHERE date >= ?", [recent]).fetchone() or (None,)
    return first or datetime.date.max


def _marks(con: duckdb.DuckDBPyConnection, since: datetime.date) -> list[tuple[object, ...]]:
    """What the universe before `since` sees of symbols whose past moved, other than closes and volumes."""
    return con.execute(sql("deep_marks").format(since=since)).fetchall()


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    assert row is not None  # counts always answer
    return int(row[0])
