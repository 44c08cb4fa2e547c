"""A delivery of a feed becomes a revision of its history: which rows change, and how rows are judged together.

Everything runs in the caller's transaction. The sessions of the feed's exchanges are in the temporary table calendar_sessions.
"""

from dataclasses import dataclass, field
from typing import Any

import duckdb

from finjepa_pipeline.prices.calendar import clock_of, has_several
from finjepa_pipeline.prices.contract import BITS, ROW_RULES
from finjepa_pipeline.prices.history import CHANNELS
from finjepa_pipeline.warehouse import sql

_BY_YEAR = "symbol, year(date)::SMALLINT AS year"
_BY_KEY = "symbol, date"
_COLUMNS = "symbol, date, open, high, low, close, volume, adj_close, broken, unreadable"
# Rules of one quantity that leaps and comes back: the quantity, its least and largest ratio in a day, and by how much the
# volume may exceed the usual one before a rise is believed.
_TICKS = (
    ("factor_step", "(adj_close / close)", 0.01, 100, "'infinity'"),
    ("impossible_move", "coalesce(adj_close, close)", 0.1, 4, 10),
)


@dataclass(frozen=True)
class Moved:
    """What a revision changed.

    Attributes:
        added, ended: rows. withdrawn: of the keys that ended, those without a row now; kept: rows of earlier deliveries
            that this one does not cover.
        rejudged: rows of earlier revisions that the rows around them put into quarantine, or let out of it.
        moved_symbols: symbols of which a close of the last 30 rows changed by more than 1 %, dividends and splits aside.
        examples: up to three rows or symbols of each, by name.
    """

    added: int = 0
    ended: int = 0
    withdrawn: int = 0
    kept: int = 0
    rejudged: int = 0
    moved_symbols: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)


class Delivery:
    """The rows of one delivery, a query as of `scan_sql`, and the revision that they make."""

    def __init__(self, con: duckdb.DuckDBPyConnection, rows: str, place: tuple[int, int], calendar: str) -> None:
        self._con, self._rows = con, rows
        self.feed_id, self.revision = place
        self._held = f"FROM price_history WHERE feed_id = {self.feed_id} AND valid_to IS NULL"
        self._new = f"FROM price_history WHERE valid_from = {self.revision}"
        self._clock = {"calendar": clock_of(calendar), "several": has_several(calendar)}

    def write_first(self) -> Moved:
        """Write all rows of a feed's first delivery, sorted by symbol and date."""
        # Whole-market files usually lie in order, and proving it is several times cheaper than sorting them.
        before = "lag(symbol) OVER () AS symbol_before, lag(date) OVER () AS date_before"
        out_of_order = self._value(f"""
            SELECT count(*) FILTER (WHERE symbol < symbol_before OR (symbol = symbol_before AND date < date_before))
            FROM (SELECT symbol, date, {before} FROM ({self._rows}))""")
        self._insert(f"FROM ({self._rows}) {'ORDER BY symbol, date' if out_of_order else ''}")
        self._judge(f"SELECT symbol, date, close, adj_close, volume, broken {self._new}")
        return Moved(added=self._value(f"SELECT count(*) {self._new}"))

    def write_changes(self, *, whole: bool, again: bool) -> Moved:
        """End the rows that the delivery replaces or withdraws, and write those that it brings.

        Args:
            whole: the delivery is all there is: what it does not cover ends; it is kept otherwise.
            again: every row is judged again, also where nothing else has changed.

        Returns:
            Nothing added and nothing ended if the content is the same, and then nothing was written.
        """
        self._run(
            "changes",
            delivered=self._rows,
            held=f"SELECT rowid AS row_id, {_COLUMNS} {self._held}",
            again=again,
            delivered_years=_digest(_BY_YEAR, f"FROM ({self._rows})"),
            held_years=_digest(_BY_YEAR, self._held),
            delivered_keys=_digest(_BY_KEY, "FROM delivered_rows"),
            held_keys=_digest(_BY_KEY, "FROM held_rows"),
        )
        gone = "FROM changed_keys WHERE withdrawn"
        uncovered = self._value(f"SELECT count(*) {gone}")
        if uncovered and not whole:
            self._run("keep_uncovered", delivered=self._rows)
        withdrawn = self._value(f"SELECT count(*) {gone}")
        kept = uncovered - withdrawn
        if not self._value("SELECT count(*) FROM changed_keys"):
            return Moved(kept=kept)

        of_changed = (
            "FROM {} AS row WHERE EXISTS (FROM changed_keys AS key "
            "WHERE key.symbol IS NOT DISTINCT FROM row.symbol AND key.date IS NOT DISTINCT FROM row.date)"
        )
        ended = of_changed.format("held_rows")
        self._con.execute(f"UPDATE price_history SET valid_to = {self.revision} WHERE rowid IN (SELECT row_id {ended})")
        self._insert(f"{of_changed.format('delivered_rows')} ORDER BY symbol, date")
        [(moved, some_moved)] = self._run("restatements")
        # Of the symbols with new rows, from two months before the first of them on; the day is a constant, so that what is
        # older is not read at all.
        [(first,)] = self._con.execute(f"SELECT coalesce(min(date) - 60, '9999-12-31') {self._new}").fetchall()
        rejudged = self._judge(f"""
            SELECT history.symbol, date, close, adj_close, volume, broken FROM ({self._held}) AS history
            JOIN touched_symbols AS touched ON touched.symbol = history.symbol AND date >= first_new - 60
            WHERE date >= DATE '{first}' ORDER BY history.symbol, date""")
        return Moved(
            added=self._value(f"SELECT count(*) {self._new}"),
            ended=self._value(f"SELECT count(*) {self._held.replace('IS NULL', f'= {self.revision}')}"),
            withdrawn=withdrawn,
            kept=kept,
            rejudged=rejudged,
            moved_symbols=moved,
            examples={
                "withdrawn_rows": self._examples(gone),
                "rejudged_rows": self._examples(f"FROM rejudged WHERE valid_from < {self.revision}"),
                "moved_symbols": some_moved,
            },
        )

    def aggregates(self, accepted: frozenset[str]) -> dict[str, Any]:
        """The revision, when it was written, in numbers: new rows by rule, sessions, and which columns hold anything."""
        counts = (f"count(*) FILTER (WHERE broken & {rule.bit} <> 0)::DOUBLE AS {rule.name}" for rule in ROW_RULES)
        query = self._sql(
            "aggregates",
            rule_counts=", ".join(counts),
            columns=", ".join(f"CASE WHEN count({name}) > 0 THEN '{name}' END" for name in CHANNELS),
            refusing=BITS["hard"] & ~sum(BITS.get(name, 0) for name in accepted),
        )
        return self._con.sql(query).to_arrow_table().to_pylist()[0]

    def examples(self, name: str, moved: Moved) -> list[str]:
        """Up to three rows (or symbols) of the revision that broke a rule or an expectation."""
        if name in moved.examples:
            return moved.examples[name]
        mask = BITS.get("hard" if name == "refused_rows" else name, 0)
        return self._examples(f"{self._new} AND broken & {mask} <> 0", "coalesce(date::VARCHAR, unreadable)")

    def _insert(self, rows: str) -> None:
        self._con.execute(f"INSERT INTO price_history SELECT {self.feed_id}, {self.revision}, {_COLUMNS}, NULL {rows}")

    def _judge(self, rows: str) -> int:
        """Judge by the rules that look at more than one row; how many rows of earlier revisions went into quarantine or left it.

        Args:
            rows: in which ticks are looked for, by symbol and date: new ones, and what they follow on.
        """
        self._run("mark_sets")
        self._con.execute(
            "CREATE OR REPLACE TEMPORARY TABLE touched_symbols AS "
            f"SELECT symbol, min(date) AS first_new {self._new} GROUP BY symbol"
        )
        self._con.execute("CREATE OR REPLACE TEMPORARY TABLE tick_rows (symbol VARCHAR, date DATE, bit UINTEGER)")
        for name, quantity, low, high, heavy in _TICKS:
            tick = {"quantity": quantity, "low": low, "high": high, "heavy": heavy, "bit": BITS[name]}
            self._run("find_ticks", rows=rows, **tick)
        self._run("judge")
        changed = f"(broken_before & {BITS['hard']} = 0) <> (broken_now & {BITS['hard']} = 0)"
        return self._value(f"SELECT count(*) FROM rejudged WHERE valid_from < {self.revision} AND {changed}")

    def _sql(self, name: str, **fragments: object) -> str:
        place = {"feed_id": self.feed_id, "revision": self.revision, **self._clock}
        return sql(f"prices/{name}").format(**BITS, **place, **fragments)

    def _run(self, name: str, **fragments: object) -> list[tuple[Any, ...]]:
        return self._con.execute(self._sql(name, **fragments)).fetchall()

    def _examples(self, rows: str, day: str = "date::VARCHAR") -> list[str]:
        query = f"SELECT coalesce(symbol, '?') || ' ' || coalesce({day}, '?') {rows} ORDER BY ALL LIMIT 3"
        return [text for (text,) in self._con.execute(query).fetchall()]

    def _value(self, query: str) -> int:
        return int(self._con.execute(query).fetchall()[0][0])


def content_digest(con: duckdb.DuckDBPyConnection, feed_id: int) -> str:
    """What the valid rows of a feed hash to, in any order."""
    rows = f"FROM price_history WHERE feed_id = {feed_id} AND valid_to IS NULL"
    query = f"SELECT to_hex(bit_xor(hash(symbol, year, n, folded, total))) FROM ({_digest(_BY_YEAR, rows)})"
    return con.execute(query).fetchall()[0][0]


def _digest(keys: str, rows: str) -> str:
    """n, folded and total of groups of rows: equal for equal multisets of rows, whatever their order. The XOR alone would not
    see a row that comes twice."""
    hashed = "hash(date, open, high, low, close, volume, adj_close, unreadable)"
    return (
        "SELECT * EXCLUDE (row_hash), count(*) AS n, bit_xor(row_hash) AS folded, sum(row_hash::HUGEINT) AS total "
        f"FROM (SELECT {keys}, {hashed} AS row_hash {rows}) GROUP BY ALL"
    )
