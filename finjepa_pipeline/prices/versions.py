"""Row versions: what a snapshot adds to, and ends in, the append-only store. Everything runs in the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from finjepa_pipeline.prices.rules import Rule, bit_of, hard_bits
from finjepa_pipeline.prices.scan import scan_sql
from finjepa_pipeline.prices.sources import PriceFilter
from finjepa_pipeline.warehouse import sql

_BY_YEAR = "symbol, year(date)::SMALLINT AS year"
_BY_KEY = "symbol, date"
_NOTHING = "FROM raw_price_versions WHERE false"


@dataclass(frozen=True)
class Moved:
    """Row versions that a revision added and ended, and the symbols whose recent past it restated.

    restated_symbols: by more than 1 bp of a close, dividends and splits aside; moved_symbols: by more than 1 %.
    """

    added: int = 0
    ended: int = 0
    restated_symbols: int = 0
    moved_symbols: int = 0


class VersionWriter:
    """Appends one revision of one feed. `sessions` of its exchange are in the temporary table calendar_sessions."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, feed_id: int, revision: int, rules: list[Rule], wanted: PriceFilter
    ) -> None:
        self._con = con
        self._feed_id = feed_id
        self._revision = revision
        self._rules = rules
        self._wanted = wanted
        self._hard = hard_bits(rules)

    def append_first(self, paths: Sequence[Path]) -> Moved:
        """Append all rows of a feed's first snapshot, sorted by symbol and date."""
        rows = scan_sql(self._con, paths, self._rules, self._wanted)
        # Whole-market files usually lie in order, and proving it is several times cheaper than sorting them.
        in_order = self._value(sql("price_order").format(rows=rows)) == 0
        added = self._load(rows, "" if in_order else "ORDER BY symbol, date")
        mine = f"FROM raw_price_versions WHERE first_revision = {self._revision}"
        self._mark_sets(mine)
        self._con.execute(f"INSERT INTO price_digests SELECT {self._feed_id}, * FROM ({_digest(_BY_YEAR, mine)})")
        self._count_sessions(_NOTHING)
        return Moved(added)

    def append_changes(self, before: int, paths: Sequence[Path], *, whole: bool) -> Moved:
        """Append what differs from the revision `before`, and end what it replaces or withdraws.

        Args:
            paths: the whole snapshot if `whole`, otherwise files that came in addition to those that are known.

        Returns:
            Nothing moved if the content is the same, and then nothing was written.
        """
        held = sql("open_price_versions").format(feed_id=self._feed_id)
        rows = scan_sql(self._con, paths, self._rules, self._wanted)
        if whole:
            self._stage_changed_years(rows, held)
        else:
            self._stage_added_keys(rows, held)
        self._con.execute(
            sql("changed_price_keys").format(
                incoming=_digest(_BY_KEY, "FROM incoming_prices"), outgoing=_digest(_BY_KEY, "FROM outgoing_prices")
            )
        )
        incoming, outgoing = (
            f"FROM {name} AS row WHERE EXISTS (FROM changed_keys AS key WHERE {_same_key('row')})"
            for name in ("incoming_prices", "outgoing_prices")
        )
        moved = Moved()
        if self._value("SELECT count(*) FROM changed_keys"):
            moved = self._write_changes(before, incoming, outgoing, held)
        for table in ("incoming_prices", "outgoing_prices", "changed_keys"):
            self._con.execute(f"DROP TABLE {table}")
        return moved

    def _stage_changed_years(self, rows: str, held: str) -> None:
        """Both sides of every (symbol, year) whose digest moved."""
        self._con.execute(sql("changed_price_years").format(feed_id=self._feed_id, digest=_digest(_BY_YEAR, rows)))
        same_year = "key.symbol IS NOT DISTINCT FROM row.symbol AND key.year IS NOT DISTINCT FROM year(row.date)"
        touched = f"EXISTS (FROM changed_years AS key WHERE {same_year})"
        if not self._value("SELECT count(*) FROM changed_years"):
            touched = "false"  # spares another scan of everything
        self._con.execute(f"CREATE TEMPORARY TABLE incoming_prices AS FROM ({rows}) AS row WHERE {touched}")
        self._con.execute(f"CREATE TEMPORARY TABLE outgoing_prices AS FROM ({held}) AS row WHERE {touched}")

    def _stage_added_keys(self, rows: str, held: str) -> None:
        """The added rows, and those that are held under the same keys: they stay, beside their new twins."""
        row_bits = sum(rule.bit for rule in self._rules if rule.scope == "row")
        self._con.execute(f"CREATE TEMPORARY TABLE incoming_prices AS {rows}")
        touched = f"EXISTS (FROM incoming_prices AS key WHERE {_same_key('row')})"
        self._con.execute(f"CREATE TEMPORARY TABLE outgoing_prices AS FROM ({held}) AS row WHERE {touched}")
        self._con.execute(
            "INSERT INTO incoming_prices SELECT * EXCLUDE (first_revision) "
            f"REPLACE ((broken & {row_bits})::UINTEGER AS broken) FROM outgoing_prices"
        )

    def _write_changes(self, before: int, incoming: str, outgoing: str, held: str) -> Moved:
        added = self._load(incoming, "ORDER BY symbol, date")
        ended = self._value(f"SELECT count(*) {outgoing}")
        if ended:
            self._con.execute(
                "INSERT INTO raw_price_ends "
                f"SELECT DISTINCT {self._feed_id}, first_revision, symbol, date, {before} FROM ({outgoing}) ORDER BY ALL"
            )
        self._con.execute(sql("earlier_price_versions").format(held=held, revision=self._revision, since=self._since()))
        self._mark_sets(sql("recent_price_versions").format(revision=self._revision))
        self._con.execute("DROP TABLE earlier_price_versions")
        self._con.execute(
            sql("move_price_digests").format(
                feed_id=self._feed_id,
                incoming=_digest(_BY_YEAR, incoming),
                outgoing=_digest(_BY_YEAR, outgoing),
                same_year="key.symbol IS NOT DISTINCT FROM old.symbol AND year(key.date) IS NOT DISTINCT FROM old.year",
            )
        )
        self._count_sessions(outgoing)
        restated = self._con.execute(
            sql("restatements").format(
                feed_id=self._feed_id, outgoing=outgoing, revision=self._revision, hard=self._hard
            )
        ).fetchone()
        assert restated is not None  # counts always answer
        return Moved(added, ended, *map(int, restated))

    def _load(self, rows: str, order: str) -> int:
        return self._value(
            sql("load_raw_prices").format(feed_id=self._feed_id, revision=self._revision, rows=rows, order=order)
        )

    def _mark_sets(self, history: str) -> None:
        """The bits of the rules that look at more than one row. `history` has the new rows and what they follow on."""
        fragments = {"revision": self._revision, "hard": self._hard}
        self._con.execute(sql("duplicate_keys").format(**fragments))
        if self._value("SELECT count(*) FROM duplicate_keys"):
            self._con.execute(sql("mark_duplicates").format(**fragments, bit=bit_of(self._rules, "duplicate")))
        self._con.execute(sql("mark_bad_symbols").format(**fragments, bit=bit_of(self._rules, "bad_symbol")))
        for rule, marks in (("factor_step", "mark_factor_steps"), ("impossible_move", "mark_impossible_moves")):
            self._con.execute(sql(marks).format(**fragments, bit=bit_of(self._rules, rule), rows=history))

    def _since(self) -> str:
        """A month before the first new day; as a constant, it spares the scan of the other columns of what is older."""
        first = f"SELECT min(date) FROM raw_price_versions WHERE first_revision = {self._revision}"
        ((since,),) = self._con.execute(f"SELECT coalesce(({first}) - 45, 'infinity')::VARCHAR").fetchall()
        return since

    def _count_sessions(self, outgoing: str) -> None:
        fragments = {"feed_id": self._feed_id, "revision": self._revision, "hard": self._hard}
        self._con.execute(sql("move_session_counts").format(**fragments, outgoing=outgoing))
        self._con.execute(sql("dropped_sessions").format(**fragments))

    def _value(self, query: str) -> int:
        row = self._con.execute(query).fetchone()
        assert row is not None  # counts and inserts always answer
        return int(row[0])


def _digest(keys: str, rows: str) -> str:
    return sql("price_digest").format(keys=keys, rows=rows)


def _same_key(row: str) -> str:
    return f"key.symbol IS NOT DISTINCT FROM {row}.symbol AND key.date IS NOT DISTINCT FROM {row}.date"
