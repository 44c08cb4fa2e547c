"""The history of prices: feeds, their revisions, and which of them the views show.

The table `price_history` has every row of every feed with the revisions in which it was valid (`valid_from`, `valid_to`). The
views `prices` (sound rows) and `quarantined_prices` show one feed as it was at one revision.
"""

import datetime
import json
from dataclasses import dataclass
from typing import Any

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources import Feed

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
        options_json: of the source, to make it again. outcomes_json: what the contract found.
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
    feed_id: int = 0
    options_json: str = "{}"
    outcomes_json: str = "[]"

    @property
    def calendar(self) -> str:
        """The exchange of the feed."""
        return json.loads(self.options_json)["calendar"]


def current_revision(con: duckdb.DuckDBPyConnection) -> Revision | None:
    """The revision that `prices` shows, or None in an empty warehouse."""
    return next(iter(_revisions(con, "JOIN active_view USING (feed_id, revision)")), None)


def find_revision(con: duckdb.DuckDBPyConnection, feed: str | None, data_version: str) -> Revision | None:
    """The newest revision of a feed, or of any, that has this content, or None."""
    where = "WHERE ($feed IS NULL OR feed = $feed) AND data_version = $version"
    return next(iter(_revisions(con, where, feed=feed, version=data_version)), None)


def revisions(con: duckdb.DuckDBPyConnection, feed: str | None = None) -> list[Revision]:
    """The revisions of a feed, or of all feeds, the newest first."""
    return _revisions(con, "WHERE $feed IS NULL OR feed = $feed", feed=feed)


def newest_revision(con: duckdb.DuckDBPyConnection, feed: str) -> Revision | None:
    """The newest revision of a feed, or None if it was never ingested."""
    return next(iter(revisions(con, feed)), None)


def _revisions(con: duckdb.DuckDBPyConnection, where: str, **parameters: str | None) -> list[Revision]:
    query = f"""
        SELECT revision, feed, source, version, data_version, total_rows - quarantined_rows, quarantined_rows, first_date,
            last_date, columns, accepted, kept_rows, judgement, created_at, files, feed_id, options_json, outcomes_json
        FROM revisions JOIN feeds USING (feed_id) {where} ORDER BY revision DESC"""
    # all rows are fetched: a result that is left unfinished blocks the connection for relations
    rows = con.execute(query, parameters or None).fetchall()
    found: list[list[Any]] = [[tuple(x) if isinstance(x, list) else x for x in row] for row in rows]
    return [Revision(*row) for row in found]


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


def derived_options(con: duckdb.DuckDBPyConnection) -> str:
    """The options (JSON) that the derived tables were made with; none in an empty warehouse.

    Raises:
        FinJEPAError: if they are of other prices than the views show.
    """
    if current_revision(con) is None:
        return "{}"
    rows = con.execute("SELECT options_json FROM derived_state JOIN active_view USING (feed_id, revision)").fetchall()
    if not rows:
        raise FinJEPAError("the derived tables are not of the prices that this home shows; run `finjepa ingest` again")
    return rows[0][0]


def calendar_of_place(con: duckdb.DuckDBPyConnection, feed: Feed) -> str | None:
    """The calendar that an earlier ingestion of the same rows was given, or found."""
    asked = {**json.loads(feed.options_json), "calendar": None}
    same = (one for one in revisions(con) if {**json.loads(one.options_json), "calendar": None} == asked)
    return next((one.calendar for one in same), None)


def place_of(con: duckdb.DuckDBPyConnection, feed: Feed) -> tuple[int, int]:
    """The number of a feed, given to it now if it is new, and that of the next revision of any feed."""
    found = con.execute("SELECT feed_id FROM feeds WHERE feed = ?", [feed.name]).fetchall()
    if not found:
        query = "INSERT INTO feeds VALUES (nextval('feed_ids'), ?, ?, ?) RETURNING feed_id"
        found = con.execute(query, [feed.name, feed.options["data_source"], feed.options_json]).fetchall()
    [(revision,)] = con.execute("SELECT coalesce(max(revision), 0) + 1 FROM revisions").fetchall()
    return found[0][0], revision


def show(con: duckdb.DuckDBPyConnection, revision: Revision) -> None:
    """Make the views show a feed as of a revision."""
    con.execute("DELETE FROM active_view")
    con.execute("INSERT INTO active_view VALUES (?, ?)", [revision.feed_id, revision.number])
