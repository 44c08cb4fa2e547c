"""The history of prices: feeds, their revisions, and which of them the views show.

The table `price_history` has every row of every feed with the revisions in which it was valid (`valid_from`, `valid_to`). The
views `prices` (sound rows) and `quarantined_prices` show one feed as it was at one revision.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.rules import JUDGEMENT
from finjepa_pipeline.prices.sources import Feed, Snapshot

CHANNELS = ("open", "high", "low", "close", "volume", "adj_close")


@dataclass(frozen=True)
class Revision:
    """A state of a feed, as the views show it.

    Attributes:
        number: its place in the history of the warehouse; revisions of all feeds are numbered together.
        version: what the source calls it (a commit, a hash).
        data_version: short hash of the content; the same data have the same one in every home.
        rows: rows in `prices`; quarantined_rows: rows in `quarantined_prices`; kept_rows: those of earlier deliveries that the
            files of this one do not cover.
        columns: which of open, high, low, close, volume, adj_close hold data.
        accepted: rules and expectations that a person let pass, now or in an earlier revision of the feed.
        judgement: version of the rules that judged it. created: UTC. files: hashes of the files.
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
    kept_rows: int = 0
    judgement: int = 1
    created: datetime.datetime | None = None
    files: tuple[str, ...] = ()


_REVISION = """SELECT revision, feed, source, version, data_version, total_rows - quarantined_rows, quarantined_rows,
        first_date, last_date, columns, coalesce(accepted, []), coalesce(kept_rows, 0), coalesce(judgement, 1), created_at,
        list_transform(files, lambda file: file.sha256)
    FROM revisions JOIN feeds USING (feed_id)"""


def current_revision(con: duckdb.DuckDBPyConnection) -> Revision | None:
    """The revision that `prices` shows, or None in an empty warehouse."""
    found = _revisions(con, "JOIN active_view USING (feed_id, revision)")
    return found[0] if found else None


def find_revision(con: duckdb.DuckDBPyConnection, feed: str, data_version: str) -> Revision | None:
    """The newest revision of a feed that has this content, or None."""
    found = _revisions(con, "WHERE feed = $feed AND data_version = $version", feed=feed, version=data_version)
    return found[0] if found else None


def revisions(con: duckdb.DuckDBPyConnection, feed: str | None = None) -> list[Revision]:
    """The revisions of a feed, or of all feeds, the newest first."""
    return _revisions(con, "WHERE $feed IS NULL OR feed = $feed", feed=feed)


def newest_revision(con: duckdb.DuckDBPyConnection, feed: str) -> Revision | None:
    """The newest revision of a feed, or None if it was never ingested."""
    return next(iter(revisions(con, feed)), None)


def _revisions(con: duckdb.DuckDBPyConnection, where: str, **parameters: str | None) -> list[Revision]:
    # all rows are fetched: a result that is left unfinished blocks the connection for relations
    rows = con.execute(f"{_REVISION} {where} ORDER BY revision DESC", parameters or None).fetchall()
    return [_frozen(row) for row in rows]


def _frozen(row: tuple[Any, ...]) -> Revision:
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
    return Revision(*values)


def feed_of_content(con: duckdb.DuckDBPyConnection, data_version: str) -> str | None:
    """The feed that had this content last, or None."""
    return next((known.feed for known in revisions(con) if known.data_version == data_version), None)


def require_shown(con: duckdb.DuckDBPyConnection, feed: str, data_version: str) -> None:
    """Go on only while the views show these prices.

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
    return _value(con, "SELECT options_json FROM feeds WHERE feed = $feed", feed=feed)


def active_options(con: duckdb.DuckDBPyConnection) -> str | None:
    """The options (JSON) that make the source of the active feed again, or None in an empty warehouse."""
    return _value(con, "SELECT options_json FROM active_view JOIN feeds USING (feed_id)")


def derived_options(con: duckdb.DuckDBPyConnection) -> str:
    """The options (JSON) that the derived tables were made with; none in an empty warehouse.

    Raises:
        FinJEPAError: if they are of other prices than the views show.
    """
    if current_revision(con) is None:
        return "{}"
    options = _value(con, "SELECT options_json FROM derived_state JOIN active_view USING (feed_id, revision)")
    if options is None:
        raise FinJEPAError("the derived tables are not of the prices that this home shows; run `finjepa ingest` again")
    return options


def outcomes_json(con: duckdb.DuckDBPyConnection, revision: int) -> str:
    """What the contract said of a revision, as JSON."""
    return _value(con, "SELECT outcomes_json FROM revisions WHERE revision = $revision", revision=revision)


def stored_rows(con: duckdb.DuckDBPyConnection) -> int:
    """Rows of all feeds and revisions."""
    return _value(con, "SELECT count(*) FROM price_history")


def calendar_of_place(con: duckdb.DuckDBPyConnection, feed: Feed) -> str | None:
    """The calendar that an earlier ingestion of the same rows was given, or found."""
    asked = {**json.loads(feed.options_json), "calendar": None}
    for known in revisions(con):
        options = json.loads(options_of(con, known.feed) or "{}")
        if {**options, "calendar": None} == asked:
            return options["calendar"]
    return None


def has_own_calendars(con: duckdb.DuckDBPyConnection, feed_id: int) -> bool:
    """Whether the symbols of a feed have calendars of their own."""
    return bool(con.execute("FROM symbol_calendars WHERE feed_id = ? LIMIT 1", [feed_id]).fetchall())


def feed_id(con: duckdb.DuckDBPyConnection, feed: Feed) -> int:
    """The number of a feed, given to it now if it is new."""
    found = _value(con, "SELECT feed_id FROM feeds WHERE feed = $feed", feed=feed.name)
    if found is None:
        query = "INSERT INTO feeds VALUES (nextval('feed_ids'), $feed, $source, $options) RETURNING feed_id"
        found = _value(con, query, feed=feed.name, source=feed.source.source, options=feed.options_json)
    return found


def next_revision(con: duckdb.DuckDBPyConnection) -> int:
    """The number for a new revision of any feed."""
    return _value(con, "SELECT coalesce(max(revision), 0) + 1 FROM revisions")


def add_revision(
    con: duckdb.DuckDBPyConnection, feed_id: int, revision: int, snapshot: Snapshot, facts: dict[str, Any]
) -> None:
    """Record a revision whose rows were written. `facts` has the other columns of `revisions`."""
    values = {
        **facts,
        "revision": revision,
        "feed_id": feed_id,
        "version": snapshot.version,
        "created_at": datetime.datetime.now(datetime.UTC).replace(tzinfo=None),
        "files": [{"name": file.name, "sha256": file.sha256} for file in snapshot.files],
        "judgement": JUDGEMENT,
    }
    columns = ", ".join(f"${name} AS {name}" for name in values)
    con.execute(f"INSERT INTO revisions BY NAME SELECT {columns}", values)


def put_refusal(con: duckdb.DuckDBPyConnection, feed: str, outcomes: Sequence[dict[str, Any]]) -> None:
    """Store why a delivery of a feed was refused, in place of the refusal before."""
    con.execute("BEGIN")
    con.execute("DELETE FROM price_refusals WHERE feed = $feed", {"feed": feed})
    for found in outcomes:
        values = [found[name] for name in ("column", "severity", "observed", "bounds")]
        con.execute(
            "INSERT INTO price_refusals VALUES (?, now()::TIMESTAMP, ?, ?, ?, ?, ?, ?)",
            [feed, *values, list(found["examples"]), found["reason"]],
        )
    con.execute("COMMIT")


def show(con: duckdb.DuckDBPyConnection, feed: str, revision: int) -> None:
    """Make the views show a feed as of a revision."""
    shown = con.execute("SELECT feed, revision FROM active_view JOIN feeds USING (feed_id)").fetchall()
    if shown != [(feed, revision)]:
        con.execute("DELETE FROM active_view")
        con.execute("INSERT INTO active_view SELECT feed_id, ? FROM feeds WHERE feed = ?", [revision, feed])


def _value(con: duckdb.DuckDBPyConnection, query: str, **parameters: object) -> Any:
    """The first value of a query, or None where it has no rows."""
    rows = con.execute(query, parameters or None).fetchall()  # all of them, as in `_revisions`
    return rows[0][0] if rows else None
