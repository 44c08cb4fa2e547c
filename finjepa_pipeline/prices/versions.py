"""Row versions: what a snapshot adds to, and ends in, the append-only store. Everything here runs in the caller's transaction."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from finjepa_pipeline.prices.rules import Rule, bit_of, hard_bits
from finjepa_pipeline.prices.scan import scan_sql
from finjepa_pipeline.warehouse import sql

_BY_YEAR = "symbol, year(date)::SMALLINT AS year"
_BY_KEY = "symbol, date"


def append_first(
    con: duckdb.DuckDBPyConnection, feed_id: int, revision: int, paths: Sequence[Path], rules: list[Rule]
) -> tuple[int, int]:
    """Append all rows of a feed's first snapshot, sorted by symbol and date. Returns rows (added, ended)."""
    rows = scan_sql(con, paths, rules)
    # Whole-market files usually lie in order, and proving it is several times cheaper than sorting them.
    in_order = con.execute(sql("price_order").format(rows=rows)).fetchone() == (0,)
    added = _load(con, feed_id, revision, rows, "" if in_order else "ORDER BY symbol, date")
    _mark_sets(con, revision, rules)
    mine = f"FROM raw_price_versions WHERE first_revision = {revision}"
    con.execute(f"INSERT INTO price_digests SELECT {feed_id}, * FROM ({_digest(_BY_YEAR, mine)})")
    return added, 0


def append_changes(
    con: duckdb.DuckDBPyConnection,
    feed_id: int,
    revision: int,
    before: int,
    paths: Sequence[Path],
    rules: list[Rule],
    *,
    whole: bool,
) -> tuple[int, int]:
    """Append what differs from the revision `before`, and end what it replaces or withdraws.

    Args:
        paths: the whole snapshot if `whole`, otherwise files that came in addition to those that are known.

    Returns:
        Rows (added, ended); (0, 0) if the content is the same, and then nothing was written.
    """
    rows = scan_sql(con, paths, rules)
    row_bits = sum(rule.bit for rule in rules if rule.scope == "row")
    held = sql("open_price_versions").format(feed_id=feed_id, row_bits=row_bits)
    if whole:
        con.execute(sql("changed_price_years").format(feed_id=feed_id, digest=_digest(_BY_YEAR, rows)))
        touched = "FROM changed_years AS key WHERE {same_year}".format(same_year=_same_year("row"))
        con.execute(f"CREATE TEMPORARY TABLE incoming_prices AS FROM ({rows}) AS row WHERE EXISTS ({touched})")
        con.execute(f"CREATE TEMPORARY TABLE outgoing_prices AS FROM ({held}) AS row WHERE EXISTS ({touched})")
    else:
        con.execute(f"CREATE TEMPORARY TABLE incoming_prices AS {rows}")
        touched = f"FROM incoming_prices AS key WHERE {_same_key('row')}"
        con.execute(f"CREATE TEMPORARY TABLE outgoing_prices AS FROM ({held}) AS row WHERE EXISTS ({touched})")
        con.execute("INSERT INTO incoming_prices SELECT * EXCLUDE (first_revision) FROM outgoing_prices")
    incoming = f"FROM incoming_prices AS row WHERE EXISTS (FROM changed_keys AS key WHERE {_same_key('row')})"
    outgoing = f"FROM outgoing_prices AS row WHERE EXISTS (FROM changed_keys AS key WHERE {_same_key('row')})"
    con.execute(
        sql("changed_price_keys").format(
            incoming=_digest(_BY_KEY, "FROM incoming_prices"), outgoing=_digest(_BY_KEY, "FROM outgoing_prices")
        )
    )
    added = _load(con, feed_id, revision, incoming, "ORDER BY symbol, date")
    ended = _count(con, f"SELECT count(*) {outgoing}")
    if added or ended:
        con.execute(
            "INSERT INTO raw_price_ends "
            f"SELECT DISTINCT {feed_id}, first_revision, symbol, date, {before} FROM ({outgoing})"
        )
        _mark_sets(con, revision, rules)
        con.execute(
            sql("move_price_digests").format(
                feed_id=feed_id,
                incoming=_digest(_BY_YEAR, incoming),
                outgoing=_digest(_BY_YEAR, outgoing),
                same_year="key.symbol IS NOT DISTINCT FROM old.symbol AND year(key.date) IS NOT DISTINCT FROM old.year",
            )
        )
    for table in ("incoming_prices", "outgoing_prices", "changed_keys"):
        con.execute(f"DROP TABLE {table}")
    return added, ended


def _load(con: duckdb.DuckDBPyConnection, feed_id: int, revision: int, rows: str, order: str) -> int:
    return _count(con, sql("load_raw_prices").format(feed_id=feed_id, revision=revision, rows=rows, order=order))


def _mark_sets(con: duckdb.DuckDBPyConnection, revision: int, rules: list[Rule]) -> None:
    """The bits of the rules that look at more than one row."""
    con.execute(sql("duplicate_keys").format(revision=revision))
    if _count(con, "SELECT count(*) FROM duplicate_keys"):
        con.execute(
            sql("mark_duplicates").format(revision=revision, bit=bit_of(rules, "duplicate"), hard=hard_bits(rules))
        )
    con.execute(sql("mark_bad_symbols").format(revision=revision, bit=bit_of(rules, "bad_symbol")))


def _digest(keys: str, rows: str) -> str:
    return sql("price_digest").format(keys=keys, rows=rows)


def _same_key(row: str) -> str:
    return f"key.symbol IS NOT DISTINCT FROM {row}.symbol AND key.date IS NOT DISTINCT FROM {row}.date"


def _same_year(row: str) -> str:
    return f"key.symbol IS NOT DISTINCT FROM {row}.symbol AND key.year IS NOT DISTINCT FROM year({row}.date)"


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    assert row is not None  # counts and inserts always answer
    return int(row[0])
