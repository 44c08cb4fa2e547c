"""The append-only store of prices: feeds, their revisions, and which of them the tables show."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.calendar import DEFAULT_CALENDAR, clock_of, has_several
from finjepa_pipeline.prices.rules import JUDGEMENT, Rule, hard_bits
from finjepa_pipeline.prices.sources import Feed, Snapshot
from finjepa_pipeline.warehouse import sql

CHANNELS = ("open", "high", "low", "close", "volume", "adj_close")


@dataclass(frozen=True)
class Revision:
    """A state of a feed, as the tables show it.

    Attributes:
        number: its place in the history of the warehouse.
        version: what the source calls it (a commit, a hash).
        data_version: short hash of the content; the same data have the same one in every home.
        rows: rows in `prices`; quarantined_rows: rows in `quarantined_prices`.
        columns: which of open, high, low, close, volume, adj_close hold data.
        accepted: rules and expectations that a person let pass, now or in an earlier revision of the feed.
    """

    number: int
    feed: str
    source: str
    version: str
    data_version: str
    rows: int
    quarantined_rows: int
    first_date: datetime.date | None
    last_date: datetime.date | None
    columns: tuple[str, ...]
    accepted: tuple[str, ...] = ()


def create_store(con: duckdb.DuckDBPyConnection) -> None:
    """Make the derived tables of an empty warehouse; leaves those that exist alone."""
    if not has_store(con):
        con.execute("BEGIN")
        con.execute(sql("derived_schema").format(temporary=""))
        con.execute("COMMIT")


def has_store(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether prices were ever ingested here."""
    return bool(con.execute("FROM duckdb_tables() WHERE table_name = 'universe'").fetchall())


def database_name(con: duckdb.DuckDBPyConnection) -> str:
    """What DuckDB calls the warehouse among the databases of a connection."""
    return _value(con, "SELECT current_database()")


_REVISION = """SELECT revision, feed, source, version, data_version, total_rows - quarantined_rows, quarantined_rows,
                      first_date, last_date, columns, accepted
               FROM revisions JOIN feeds USING (feed_id)"""


def current_revision(con: duckdb.DuckDBPyConnection) -> Revision | None:
    """The revision that `prices` shows, or None in an empty warehouse."""
    return _revision(con, f"{_REVISION} JOIN active_view USING (feed_id, revision)")


def find_revision(con: duckdb.DuckDBPyConnection, feed: str, data_version: str) -> Revision | None:
    """The newest revision of a feed that has this content, or None."""
    query = f"{_REVISION} WHERE feed = $feed AND data_version = $data_version ORDER BY revision DESC LIMIT 1"
    return _revision(con, query, feed=feed, data_version=data_version)


def _revision(con: duckdb.DuckDBPyConnection, query: str, **parameters: str) -> Revision | None:
    if not has_store(con):
        return None
    # all rows are fetched: a result that is left unfinished blocks the connection for relations
    rows = con.execute(query, parameters or None).fetchall()
    if not rows:
        return None
    *facts, columns, accepted = rows[0]
    return Revision(*facts, columns=tuple(columns), accepted=tuple(accepted or ()))


def feed_of_content(con: duckdb.DuckDBPyConnection, data_version: str) -> str | None:
    """The feed that had this content last, or None."""
    query = "SELECT feed FROM revisions JOIN feeds USING (feed_id) WHERE data_version = $data_version ORDER BY revision DESC"
    return _value(con, query, data_version=data_version) if has_store(con) else None


def require_shown(con: duckdb.DuckDBPyConnection, feed: str, data_version: str) -> None:
    """Go on only while the tables show these prices.

    Raises:
        FinJEPAError: if another command has made them show others, with the names of both.
    """
    shown = current_revision(con)
    if shown is None or (shown.feed, shown.data_version) != (feed, data_version):
        other = f"{shown.feed} ({shown.data_version})" if shown else "no prices"
        raise FinJEPAError(
            f"this run is about {feed} ({data_version}), but another command has made this home show {other}; run it again "
            "when that one is done, or give each its own FINJEPA_HOME"
        )


def options_of(con: duckdb.DuckDBPyConnection, feed: str) -> str | None:
    """The options (JSON) that make the source of a feed again, or None where it was never ingested."""
    return _value(con, "SELECT options_json FROM feeds WHERE feed = $feed", feed=feed) if has_store(con) else None


def accepted_of(con: duckdb.DuckDBPyConnection, feed: str, data_version: str) -> list[str]:
    """What a person let pass up to the revision of a feed with this content."""
    if not has_store(con):
        return []
    query = (
        "SELECT arg_max(accepted, revision) FROM revisions JOIN feeds USING (feed_id) "
        "WHERE feed = $feed AND data_version = $data_version"
    )
    return _value(con, query, feed=feed, data_version=data_version) or []


def derived_options(con: duckdb.DuckDBPyConnection) -> str:
    """The options (JSON) that the derived tables were made with.

    Raises:
        FinJEPAError: if they are of other prices than the active view shows.
    """
    if not has_store(con):
        return "{}"
    query = "SELECT options_json FROM derived_state JOIN active_view USING (feed_id, revision)"
    found = con.execute(query).fetchall()  # all rows, as in `_revision`
    if not found:
        raise FinJEPAError("the derived tables are not of the prices that this home shows; run `finjepa ingest` again")
    return found[0][0]


def active_options(con: duckdb.DuckDBPyConnection) -> str | None:
    """The options (JSON) that make the source of the active feed again, or None in an empty warehouse."""
    if not has_store(con):
        return None
    return _value(con, "SELECT options_json FROM active_view JOIN feeds USING (feed_id)")


def feed_id(con: duckdb.DuckDBPyConnection, feed: Feed) -> int:
    """The number of a feed, given to it now if it is new."""
    found = _value(con, "SELECT feed_id FROM feeds WHERE feed = $feed", feed=feed.name)
    if found is None:
        found = _value(
            con,
            "INSERT INTO feeds VALUES (nextval('feed_ids'), $feed, $source, $options) RETURNING feed_id",
            feed=feed.name,
            source=feed.source.source,
            options=feed.options_json,
        )
    return found


def newest_revision(con: duckdb.DuckDBPyConnection, feed: str) -> int | None:
    """The newest revision of a feed, or None if it was never ingested."""
    if not has_store(con):
        return None
    return _value(con, "SELECT max(revision) FROM revisions JOIN feeds USING (feed_id) WHERE feed = $feed", feed=feed)


def is_newest(con: duckdb.DuckDBPyConnection, feed_id: int, revision: int) -> bool:
    """Whether a feed has no later revision."""
    return _value(con, "SELECT max(revision) FROM revisions WHERE feed_id = $feed_id", feed_id=feed_id) == revision


def next_revision(con: duckdb.DuckDBPyConnection) -> int:
    """The number for a new revision of any feed."""
    return _value(con, "SELECT coalesce(max(revision), 0) + 1 FROM revisions")


def known_files(con: duckdb.DuckDBPyConnection, revision: int) -> list[str]:
    """The hashes of the files of a revision."""
    files = _value(con, "SELECT files FROM revisions WHERE revision = $revision", revision=revision)
    return [file["sha256"] for file in files]


@dataclass(frozen=True)
class Before:
    """What a revision follows on: its rows, good and bad, the columns that hold anything, what was accepted, and how many rows
    of it the files do not cover."""

    rows: int = 0
    columns: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    kept_rows: int = 0


def facts_of(con: duckdb.DuckDBPyConnection, revision: int | None) -> Before:
    """Those of a revision; of none, nothing."""
    if revision is None:
        return Before()
    query = (
        "SELECT total_rows, columns, coalesce(accepted, []), coalesce(kept_rows, 0) FROM revisions WHERE revision = ?"
    )
    rows, columns, accepted, kept = con.execute(query, [revision]).fetchall()[0]
    return Before(rows, tuple(columns), tuple(accepted), kept)


def judged_by(con: duckdb.DuckDBPyConnection, revision: int) -> int:
    """The version of the rules that a revision was judged by."""
    return _value(con, "SELECT coalesce(judgement, 1) FROM revisions WHERE revision = $revision", revision=revision)


def calendar_of_place(con: duckdb.DuckDBPyConnection, feed: Feed) -> str | None:
    """The calendar that an earlier ingestion of the same rows was given, or found."""
    if not has_store(con):
        return None
    asked = {**json.loads(feed.options_json), "calendar": None}
    rows = con.execute(
        "SELECT options_json FROM feeds JOIN revisions USING (feed_id) ORDER BY revision DESC"
    ).fetchall()
    known = (json.loads(options) for (options,) in rows)
    return next((options["calendar"] for options in known if {**options, "calendar": None} == asked), None)


def has_own_calendars(con: duckdb.DuckDBPyConnection, feed_id: int) -> bool:
    """Whether the symbols of a feed have calendars of their own."""
    return bool(con.execute("FROM symbol_calendars WHERE feed_id = ? LIMIT 1", [feed_id]).fetchall())


def content_digest(con: duckdb.DuckDBPyConnection, feed_id: int) -> str:
    """What the rows of a feed's newest revision hash to, in any order."""
    return _value(
        con,
        "SELECT to_hex(bit_xor(hash(symbol, year, n, folded, total))) FROM price_digests WHERE feed_id = $feed_id",
        feed_id=feed_id,
    )


@dataclass(frozen=True)
class Known:
    """A revision that was ingested: its number, its feed, what the source called it, and when (UTC)."""

    number: int
    feed_id: int
    feed: str
    version: str
    created: datetime.datetime


def revisions(con: duckdb.DuckDBPyConnection, feed: str | None = None) -> list[Known]:
    """The revisions of a feed, or of all feeds, the newest first."""
    rows = con.execute(
        "SELECT revision, feed_id, feed, version, created_at FROM revisions JOIN feeds USING (feed_id) "
        "WHERE $feed IS NULL OR feed = $feed ORDER BY revision DESC",
        {"feed": feed},
    ).fetchall()
    return [Known(*row) for row in rows]


def stored_rows(con: duckdb.DuckDBPyConnection) -> int:
    """Row versions of all feeds and revisions."""
    return _value(con, "SELECT count(*) FROM raw_price_versions")


def outcomes_json(con: duckdb.DuckDBPyConnection, revision: int) -> str:
    """What the contract said of a revision, as JSON."""
    return _value(con, "SELECT outcomes_json FROM revisions WHERE revision = $revision", revision=revision)


def revision_aggregates(
    con: duckdb.DuckDBPyConnection,
    feed_id: int,
    revision: int,
    rules: list[Rule],
    calendar: str = DEFAULT_CALENDAR,
    accepted: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """A revision that was appended, in numbers: new rows by rule, sessions, and which columns hold anything."""
    fragments = {
        "feed_id": feed_id,
        "revision": revision,
        "refusing": hard_bits([rule for rule in rules if rule.rule not in accepted]),
        "accepted": ", ".join(f"'{name}'" for name in ("", *sorted(accepted))),
        "calendar": clock_of(calendar),
        "several": has_several(calendar),
    }
    counts = ", ".join(
        f"count(*) FILTER (WHERE dropped.rule = '{rule.rule}')::DOUBLE AS {rule.rule}"
        if rule.scope == "session"
        else f"count(*) FILTER (WHERE broken & {rule.bit} <> 0)::DOUBLE AS {rule.rule}"
        for rule in rules
        if rule.scope != "history"
    )
    columns = ", ".join(f"CASE WHEN count({name}) > 0 THEN '{name}' END" for name in CHANNELS)
    found = _record(con, sql("revision_aggregates").format(**fragments, rule_counts=counts, columns=columns))
    if "adj_close" not in found["columns"]:  # a column of nulls is a column that the source lacks
        found["missing_adj_close"] = 0.0
    return {**found, **_record(con, sql("session_aggregates").format(**fragments))}


def add_revision(
    con: duckdb.DuckDBPyConnection,
    *,
    feed_id: int,
    revision: int,
    snapshot: Snapshot,
    data_version: str,
    total_rows: int,
    columns: list[str],
    moved: tuple[int, int, int],
    accepted: Sequence[str],
    aggregates: dict[str, Any],
    outcomes_json: str,
) -> None:
    """Record a revision whose rows were appended. `aggregates` are those of `revision_aggregates`."""
    con.execute(
        """INSERT INTO revisions BY NAME SELECT $revision AS revision, $feed_id AS feed_id, $version AS version,
           $data_version AS data_version, now()::TIMESTAMP AS created_at, $total_rows AS total_rows,
           $new_rows AS new_rows, $ended_rows AS ended_rows, $quarantined_rows AS quarantined_rows,
           $first_date::DATE AS first_date, $last_date::DATE AS last_date, $columns AS columns, $files AS files,
           $outcomes_json AS outcomes_json, $accepted::VARCHAR[] AS accepted, $judgement AS judgement,
           $kept_rows AS kept_rows""",
        {
            "revision": revision,
            "feed_id": feed_id,
            "version": snapshot.version,
            "data_version": data_version,
            "total_rows": total_rows,
            "new_rows": moved[0],
            "ended_rows": moved[1],
            "kept_rows": moved[2],
            "accepted": sorted(accepted),
            "judgement": JUDGEMENT,
            "quarantined_rows": total_rows - int(aggregates["sound_rows"]),
            "first_date": aggregates["first_date"],
            "last_date": aggregates["last_date"],
            "columns": columns,
            "files": [{"name": file.name, "sha256": file.sha256} for file in snapshot.files],
            "outcomes_json": outcomes_json,
        },
    )


def put_refusal(con: duckdb.DuckDBPyConnection, feed: str, outcomes: list[dict[str, Any]]) -> None:
    """Store why a batch of a feed was refused, in place of the refusal before."""
    con.execute("BEGIN")
    con.execute("DELETE FROM price_refusals WHERE feed = $feed", {"feed": feed})
    con.executemany(
        "INSERT INTO price_refusals VALUES (?, now()::TIMESTAMP, ?, ?, ?, ?, ?, ?)",
        [
            [
                feed,
                *(outcome[name] for name in ("column", "severity", "observed", "bounds")),
                list(outcome["examples"]),
                outcome["reason"],
            ]
            for outcome in outcomes
        ],
    )
    con.execute("COMMIT")


def show(con: duckdb.DuckDBPyConnection, feed_id: int, revision: int, rules: list[Rule]) -> bool:
    """Make the views show a feed as of a revision; False if they do already."""
    if con.execute("FROM active_view").fetchall() == [(feed_id, revision)]:
        return False
    con.execute("DELETE FROM active_view")
    con.execute("INSERT INTO active_view VALUES ($feed_id, $revision)", {"feed_id": feed_id, "revision": revision})
    hard = [rule for rule in rules if rule.severity == "hard" and rule.scope != "session"]
    fragments = {
        "feed_id": feed_id,
        "revision": revision,
        "hard": hard_bits(rules),
        "names": ", ".join(f"CASE WHEN broken & {rule.bit} <> 0 THEN '{rule.rule}' END" for rule in hard),
    }
    for view in ("raw_prices", "seen_prices", "prices", "quarantined_prices"):
        con.execute(sql(view).format(**fragments))
    return True


def _value(con: duckdb.DuckDBPyConnection, query: str, **parameters: object) -> Any:
    rows = con.execute(
        query, parameters or None
    ).fetchall()  # all: an unfinished result blocks the connection for relations
    return rows[0][0] if rows else None


def _record(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    """The one row of a query by column name."""
    cursor = con.execute(query)
    [row] = cursor.fetchall()  # aggregates always answer
    assert cursor.description is not None
    return dict(zip((column[0] for column in cursor.description), row, strict=True))
