"""Row versions: what a snapshot adds to, and ends in, the append-only store. Everything runs in the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from finjepa_pipeline.prices.calendar import DEFAULT_CALENDAR, clock_of, has_several
from finjepa_pipeline.prices.rules import Rule, bit_of, hard_bits
from finjepa_pipeline.prices.scan import scan_sql
from finjepa_pipeline.prices.sources import PriceFilter
from finjepa_pipeline.warehouse import sql

_BY_YEAR = "symbol, year(date)::SMALLINT AS year"
_BY_KEY = "symbol, date"
_NOTHING = "FROM raw_price_versions WHERE false"
_UNPLACED = (
    "unreadable_date",
    "date_out_of_range",
    "bad_symbol",
    "duplicate",
    "stray_session",
)  # rows of no symbol or session
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
        added, ended: row versions. withdrawn: of the keys that ended, those without a row now; kept: rows of earlier deliveries
            that this one does not cover.
        held_back, released: rows of earlier revisions that the rows after them put into quarantine, or let out of it.
        restated_symbols, moved_symbols: symbols of which a close of the last 30 rows changed by more than 1 bp, and by more
            than 1 %, dividends and splits aside.
        examples: up to three rows or symbols of each, by name.
    """

    added: int = 0
    ended: int = 0
    withdrawn: int = 0
    kept: int = 0
    held_back: int = 0
    released: int = 0
    restated_symbols: int = 0
    moved_symbols: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def anything(self) -> bool:
        """Whether a row version came or went."""
        return bool(self.added or self.ended)


class VersionWriter:
    """Appends one revision of one feed. The sessions of its exchanges are in the temporary table calendar_sessions."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        feed_id: int,
        revision: int,
        rules: list[Rule],
        wanted: PriceFilter,
        calendar: str = DEFAULT_CALENDAR,
    ) -> None:
        self._con = con
        self._feed_id = feed_id
        self._revision = revision
        self._rules = rules
        self._wanted = wanted
        self._calendar, self._several = clock_of(calendar), has_several(calendar)
        self._hard = hard_bits(rules)
        self._ticks = sum(bit_of(rules, rule) for rule, *_ in _TICKS)

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

    def append_changes(
        self, before: int, paths: Sequence[Path], *, whole: bool, all_there_is: bool = False, again: bool = False
    ) -> Moved:
        """Append what differs from the revision `before`, and end what it replaces or withdraws.

        Args:
            paths: the whole snapshot if `whole`, otherwise files that came in addition to those that are known.
            all_there_is: what a whole snapshot does not cover ends; it is kept otherwise.
            again: every row is judged again, also where nothing else has changed.

        Returns:
            Nothing added and nothing ended if the content is the same, and then nothing was written.
        """
        held = sql("open_price_versions").format(feed_id=self._feed_id)
        rows = scan_sql(self._con, paths, self._rules, self._wanted)
        if whole:
            self._stage_changed_years(rows, held, again)
        else:
            self._stage_added_keys(rows, held)
        self._con.execute(
            sql("changed_price_keys").format(
                incoming=_digest(_BY_KEY, "FROM incoming_prices"),
                outgoing=_digest(_BY_KEY, "FROM outgoing_prices"),
                again=again,
            )
        )
        withdrawn = self._value("SELECT count(*) FROM changed_keys WHERE withdrawn")
        kept = 0
        if withdrawn and not all_there_is:
            self._con.execute(sql("delivered_spans").format(rows=rows, hard=self._hard))
            self._con.execute(sql("keep_uncovered"))
            kept = withdrawn - self._value("SELECT count(*) FROM changed_keys WHERE withdrawn")
        incoming, outgoing = (
            f"FROM {name} AS row WHERE EXISTS (FROM changed_keys AS key WHERE {_same_key('row')})"
            for name in ("incoming_prices", "outgoing_prices")
        )
        moved = Moved()
        if self._value("SELECT count(*) FROM changed_keys"):
            moved = self._write_changes(before, incoming, outgoing, held)
        for table in ("incoming_prices", "outgoing_prices", "changed_keys"):
            self._con.execute(f"DROP TABLE {table}")
        return replace(moved, kept=kept)

    def _stage_changed_years(self, rows: str, held: str, again: bool) -> None:
        """Both sides of every (symbol, year) whose digest moved, or of all."""
        self._con.execute(sql("changed_price_years").format(feed_id=self._feed_id, digest=_digest(_BY_YEAR, rows)))
        same_year = "key.symbol IS NOT DISTINCT FROM row.symbol AND key.year IS NOT DISTINCT FROM year(row.date)"
        touched = f"EXISTS (FROM changed_years AS key WHERE {same_year})"
        if again:
            touched = "true"
        elif not self._value("SELECT count(*) FROM changed_years"):
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
        self._end(outgoing, before)
        self._con.execute(sql("earlier_price_versions").format(held=held, revision=self._revision, since=self._since()))
        self._mark_sets(sql("recent_price_versions").format(revision=self._revision))
        self._con.execute(
            sql("move_price_digests").format(
                feed_id=self._feed_id,
                incoming=_digest(_BY_YEAR, incoming),
                outgoing=_digest(_BY_YEAR, outgoing),
                same_year="key.symbol IS NOT DISTINCT FROM old.symbol AND year(key.date) IS NOT DISTINCT FROM old.year",
            )
        )
        restated = self._con.execute(
            sql("restatements").format(
                feed_id=self._feed_id, outgoing=outgoing, revision=self._revision, hard=self._hard
            )
        ).fetchall()[0]
        held_back, released = self._judge_earlier_rows(before, held)
        self._count_sessions(
            f"SELECT date, broken FROM ({outgoing}) UNION ALL SELECT date, broken_before FROM rejudged_prices"
        )
        rejudged = held_back + released
        moved = Moved(
            added=added + self._value("SELECT count(*) FROM rejudged_prices"),
            ended=self._value(f"SELECT count(*) {outgoing}") + self._value("SELECT count(*) FROM rejudged_prices"),
            withdrawn=self._value("SELECT count(*) FROM changed_keys WHERE withdrawn"),
            held_back=held_back,
            released=released,
            restated_symbols=int(restated[0]),
            moved_symbols=int(restated[1]),
            examples={
                "withdrawn_rows": self._examples("FROM changed_keys WHERE withdrawn"),
                "rejudged_rows": self._examples("FROM rejudged_prices") if rejudged else [],
                "restated_symbols": restated[2],
                "moved_symbols": restated[3],
            },
        )
        for table in ("earlier_price_versions", "rejudged_prices"):
            self._con.execute(f"DROP TABLE {table}")
        return moved

    def _end(self, outgoing: str, before: int) -> None:
        self._con.execute(
            "INSERT INTO raw_price_ends "
            f"SELECT DISTINCT {self._feed_id}, first_revision, symbol, date, {before} FROM ({outgoing}) ORDER BY ALL"
        )

    def _judge_earlier_rows(self, before: int, held: str) -> tuple[int, int]:
        """Give the earlier rows whose judgement has changed a new version; how many were held back, and released."""
        fragments = {"revision": self._revision, "ticks": self._ticks, "other_hard": self._hard & ~self._ticks}
        self._con.execute(sql("rejudged_prices").format(**fragments, held=held))
        if not self._value("SELECT count(*) FROM rejudged_prices"):
            return 0, 0
        self._end("FROM rejudged_prices", before)
        columns = "symbol, date, open, high, low, close, volume, adj_close, broken, unreadable"
        self._con.execute(
            f"INSERT INTO raw_price_versions SELECT {self._feed_id}, {self._revision}, {columns} FROM rejudged_prices"
        )
        counts = "count(*) FILTER (WHERE {0} & {2} = 0 AND {1} & {2} <> 0)"
        back, out = (
            counts.format(*pair, self._hard) for pair in (("broken_before", "broken"), ("broken", "broken_before"))
        )
        return self._con.execute(f"SELECT {back}, {out} FROM rejudged_prices").fetchall()[0]

    def _examples(self, rows: str) -> list[str]:
        query = f"SELECT coalesce(symbol, '?') || ' ' || coalesce(date::VARCHAR, '?') {rows} ORDER BY ALL LIMIT 3"
        return [text for (text,) in self._con.execute(query).fetchall()]

    def _load(self, rows: str, order: str) -> int:
        return self._value(
            sql("load_raw_prices").format(feed_id=self._feed_id, revision=self._revision, rows=rows, order=order)
        )

    def _mark_sets(self, history: str) -> None:
        """The bits of the rules that look at more than one row. `history` has the new rows and what they follow on."""
        fragments = {"revision": self._revision, "hard": self._hard, "calendar": self._calendar}
        self._con.execute(sql("duplicate_keys").format(**fragments))
        if self._value("SELECT count(*) FROM duplicate_keys"):
            self._con.execute(sql("mark_duplicates").format(**fragments, bit=bit_of(self._rules, "duplicate")))
        self._con.execute(sql("mark_bad_symbols").format(**fragments, bit=bit_of(self._rules, "bad_symbol")))
        self._con.execute(sql("mark_strays").format(**fragments, bit=bit_of(self._rules, "stray_session")))
        other_hard = self._hard & ~self._ticks
        self._con.execute("CREATE OR REPLACE TEMPORARY TABLE tick_rows (symbol VARCHAR, date DATE, bit UINTEGER)")
        for rule, quantity, low, high, heavy in _TICKS:
            if self._value("SELECT count(*) FROM tick_rows"):
                history = f"FROM ({history}) ANTI JOIN tick_rows USING (symbol, date) ORDER BY symbol, date"
            query = sql("find_ticks").format(
                rows=history,
                hard=other_hard,
                quantity=quantity,
                low=low,
                high=high,
                heavy=heavy,
            )
            self._con.execute(f"INSERT INTO tick_rows SELECT symbol, date, {bit_of(self._rules, rule)} FROM ({query})")
        self._con.execute(sql("mark_ticks").format(**fragments, other_hard=other_hard))

    def _since(self) -> str:
        """Two months before the first new day; as a constant, it spares the scan of the other columns of what is older."""
        first = f"SELECT min(date) FROM raw_price_versions WHERE first_revision = {self._revision}"
        ((since,),) = self._con.execute(f"SELECT coalesce(({first}) - 60, 'infinity')::VARCHAR").fetchall()
        return since

    def _count_sessions(self, outgoing: str) -> None:
        fragments = {
            "feed_id": self._feed_id,
            "revision": self._revision,
            "hard": self._hard,
            "several": self._several,
            "unplaced": sum(bit_of(self._rules, rule) for rule in _UNPLACED),
        }
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
