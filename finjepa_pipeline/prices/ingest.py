"""Ingestion: the present state of a source becomes a revision of the history of its feed, or nothing changes at all."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices import contract, history
from finjepa_pipeline.prices.calendar import AUTO, assign_calendars, clock_of, detect_calendar, has_several, sessions
from finjepa_pipeline.prices.delivery import Delivery, Moved, content_digest
from finjepa_pipeline.prices.rules import BY_NAME, HARD_BITS, JUDGEMENT, ROW_RULES, UNPLACED_BITS, bits
from finjepa_pipeline.prices.scan import plain, scan_sql
from finjepa_pipeline.prices.sources import Feed, PriceSourceConfig, Snapshot, make_feed, remembered_feed
from finjepa_pipeline.prices.sources.base import version_of
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse, sql

# What DuckDB says of damaged data; anything else that it raises is a mistake of ours.
_UNREADABLE = (
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.IOException,
    duckdb.OutOfMemoryException,
    duckdb.OutOfRangeException,
)


@dataclass(frozen=True)
class IngestReport:
    """What an ingestion did.

    Attributes:
        revision: what the tables show now.
        new_rows: row versions added; ended_rows: row versions that ended, restated or withdrawn.
        moved: the same in detail.
        stored_rows: row versions of all feeds and revisions; calendar: the exchange of this feed.
        outcomes: what the contract said of the rows of this revision (when nothing was new, what it said then).
        note: a remark for a person, such as a source that could not be reached.
    """

    revision: history.Revision
    new_rows: int
    ended_rows: int
    stored_rows: int
    moved: Moved
    calendar: str
    outcomes: tuple[contract.Outcome, ...]
    note: str | None = None


@dataclass(frozen=True)
class Terms:
    """What a person says of a delivery: which findings do not refuse it, and whether it is all there is."""

    accepted: frozenset[str] = frozenset()
    whole: bool = False


class ContractError(FinJEPAError):
    """A batch of prices that was refused; `outcomes` says what the contract found, rows as examples included."""

    def __init__(self, message: str, feed: str, outcomes: tuple[contract.Outcome, ...]) -> None:
        super().__init__(message)
        self.feed = feed
        self.outcomes = outcomes


def ingest(warehouse: Warehouse, settings: Settings, config: PriceSourceConfig) -> IngestReport:
    """Bring the warehouse up to the present state of a source and make the tables show it.

    Without a data source in `config` the feed that the tables show is refreshed; if its source is out of reach, the home
    carries on with what it holds and says so. All that is written is written in one transaction.

    Raises:
        ContractError: if the rows break the contract; the warehouse is then as it was.
        FinJEPAError: if the source cannot be read; likewise.
    """
    named = make_feed(config, settings)
    if config.as_of is not None:
        return _show_as_of(warehouse, config.as_of, named)
    feed, note = (named, None) if named else _held_feed(warehouse, settings)
    if note:
        with warehouse.connect() as con:
            return _report(con, note=note)
    try:
        snapshot = feed.source.snapshot()
        with warehouse.connect() as con:
            accepted = contract.accepted_names(config.accept or ())
            found = history.calendar_of_place(con, feed) if config.calendar is None and named else None
            feed = feed if found is None else replace(feed, calendar=found)
            is_known = _is_known(con, feed, snapshot, config.whole)
        # may take minutes: not while the warehouse is locked
        paths = [] if is_known else feed.source.fetch(snapshot, snapshot.files)
    except FinJEPAError as error:
        if named is not None:
            raise
        with warehouse.connect() as con:
            shown = history.current_revision(con)
            if shown is None:
                raise
            older = "; its rows are judged by the rules of an older version until the source can be read"
            return _report(
                con, note=f"carried on with what is here: {error}{older if shown.judgement < JUDGEMENT else ''}"
            )
    with warehouse.connect() as con:
        try:
            if named and found is None and config.calendar in (None, AUTO):
                rows = scan_sql(con, paths, feed.filter) if paths else None
                feed = (
                    feed
                    if rows is None
                    else replace(feed, calendar=detect_calendar(con, rows, each=config.calendar == AUTO))
                )
            con.execute("BEGIN")
            report = _bring_up(con, feed, snapshot, paths, Terms(accepted, config.whole))
            notes = [note for note in (report.note, _not_read(snapshot)) if note]
            report = replace(report, note="; ".join(notes) or None)
        except _UNREADABLE as error:
            raise FinJEPAError(f"{feed.name} cannot be ingested: {plain(error)}") from error
        except ContractError as refusal:
            con.execute("ROLLBACK")
            failed = [vars(outcome) for outcome in refusal.outcomes if not outcome.success]
            history.put_refusal(con, refusal.feed, failed)
            raise
        con.execute("COMMIT")
        return report


def _not_read(snapshot: Snapshot) -> str | None:
    if not snapshot.unread:
        return None
    more = len(snapshot.unread) - 3
    return f"not read: {', '.join(snapshot.unread[:3])}{f' and {more} more' if more > 0 else ''}"


def price_version(warehouse: Warehouse, settings: Settings) -> str:
    """What the source of the feed that the views show (in an empty home: `sample`) calls its present state.

    Raises:
        FinJEPAError: if the source cannot be read.
    """
    return _held_feed(warehouse, settings)[0].source.snapshot().version


def source_moved(warehouse: Warehouse, settings: Settings) -> str | None:
    """The version to which the source of the shown feed has moved since it was ingested; None if it has not.

    Raises:
        FinJEPAError: if the source cannot be read.
    """
    with warehouse.connect() as con:
        shown = history.current_revision(con)
    if shown is None:
        return None
    version = price_version(warehouse, settings)
    return None if version == shown.version else version


def _show_as_of(warehouse: Warehouse, text: str, named: Feed | None) -> IngestReport:
    with warehouse.connect() as con:
        known = history.revisions(con, None if named is None else named.name)
        found = [one for one in known if str(one.number) == text or (len(text) >= 7 and one.version.startswith(text))]
        if not found:
            newest = ", ".join(f"{one.number} ({one.version[:12]}, {one.created:%Y-%m-%d})" for one in known[:5])
            raise FinJEPAError(
                f"there is no revision {text} of {named.name if named else 'any feed'} here; "
                + (f"the newest are {newest}" if newest else "nothing was ingested yet")
            )
        if len({(one.feed, one.version) for one in found}) > 1:
            raise FinJEPAError(
                f"{text} is the start of several revisions: {', '.join(str(one.number) for one in found)}"
            )
        shown = found[0]
        con.execute("BEGIN")
        history.show(con, shown.feed, shown.number)
        report = _report(con, note=f"showing {shown.feed} as it was at revision {shown.number}")
        con.execute("COMMIT")
        return report


def _held_feed(warehouse: Warehouse, settings: Settings) -> tuple[Feed, str | None]:
    """The feed that the views show (`sample` in an empty home), and why it is not to be refreshed, if so."""
    with warehouse.connect() as con:
        options = history.active_options(con)
        feed = remembered_feed(options or '{"data_source": "sample"}', settings)
        shown, newest = history.current_revision(con), history.newest_revision(con, feed.name)
    if shown is not None and newest is not None and shown.number != newest.number:
        return feed, f"still showing {feed.name} as of revision {shown.number}; name the data source to move on"
    return feed, None


def _is_known(con: duckdb.DuckDBPyConnection, feed: Feed, snapshot: Snapshot, whole: bool) -> bool:
    """Whether a feed's newest revision was made of the same files by the same rules, and of nothing else that a `whole` delivery
    ends."""
    newest = history.newest_revision(con, feed.name)
    if newest is None or newest.judgement < JUDGEMENT or (whole and newest.kept_rows):
        return False
    return Counter(newest.files) == Counter(file.sha256 for file in snapshot.files)


def _put_calendars(con: duckdb.DuckDBPyConnection, feed: Feed, feed_id: int, rows: str) -> None:
    """The sessions of the feed's calendar, or of those of its symbols, as the temporary table calendar_sessions."""
    con.execute("CREATE OR REPLACE TEMPORARY TABLE calendar_sessions (calendar VARCHAR, date DATE)")
    clock = clock_of(feed.calendar)
    if has_several(feed.calendar):
        assign_calendars(con, feed_id, rows, clock)
        con.execute(
            f"INSERT INTO calendar_sessions SELECT calendar, date FROM clock_sessions WHERE feed_id = {feed_id}"
        )
    else:
        con.execute(
            "INSERT INTO calendar_sessions SELECT $clock, unnest($days::DATE[])",
            {"clock": clock, "days": sessions(clock)},
        )


def _bring_up(
    con: duckdb.DuckDBPyConnection, feed: Feed, snapshot: Snapshot, paths: Sequence[Path], terms: Terms
) -> IngestReport:
    before = history.newest_revision(con, feed.name)
    moved, note = Moved(), None
    if not _is_known(con, feed, snapshot, terms.whole):
        # another command may have moved the home on meanwhile, so that the files are needed after all
        paths = paths or feed.source.fetch(snapshot, snapshot.files)
        feed_id, revision = history.feed_id(con, feed), history.next_revision(con)
        _put_calendars(con, feed, feed_id, scan_sql(con, paths, feed.filter))
        delivery = Delivery(con, feed, feed_id, revision, paths)
        if before is None:
            moved = delivery.write_first()
        else:
            again = before.judgement < JUDGEMENT
            moved = delivery.write_changes(whole=terms.whole, again=again)
            note = "all rows were judged again, by newer rules" if again else None
        if moved.added or moved.ended:
            _accept(con, feed, snapshot, (feed_id, revision), before, moved, terms)
    newest = history.newest_revision(con, feed.name)
    if newest is None:
        raise FinJEPAError(f"{feed.name} holds no rows; is it the right place?")
    history.show(con, feed.name, newest.number)
    return _report(con, moved, note)


def _accept(
    con: duckdb.DuckDBPyConnection,
    feed: Feed,
    snapshot: Snapshot,
    place: tuple[int, int],
    before: history.Revision | None,
    moved: Moved,
    terms: Terms,
) -> None:
    """Record the revision (`place`: feed and revision) if the contract lets its rows pass."""
    feed_id, revision = place
    aggregates = _aggregates(con, feed, place, terms.accepted)
    first_date, last_date = aggregates.pop("first_date"), aggregates.pop("last_date")
    columns: list[str] = aggregates.pop("columns")
    rows_before = before.rows + before.quarantined_rows if before else 0
    if before and moved.ended < rows_before:  # rows of before are left, and with them their columns
        columns = [name for name in history.CHANNELS if name in {*columns, *before.columns}]
    judged = {
        **{name: float(value or 0) for name, value in aggregates.items()},
        "rows_before": rows_before,
        "withdrawn_rows": moved.withdrawn,
        "kept_rows": moved.kept,
        "rejudged_rows": moved.held_back + moved.released,
        "restated_symbols": moved.restated_symbols,
        "moved_symbols": moved.moved_symbols,
    }
    outcomes = tuple(
        outcome
        if outcome.success
        else replace(outcome, examples=tuple(_examples(con, revision, outcome.column, moved)))
        for outcome in contract.judge(judged, contract.expectations(judged, terms.accepted))
    )
    if any(outcome.severity == "critical" and not outcome.success for outcome in outcomes):
        raise ContractError(_refusal(feed, outcomes), feed.name, outcomes)
    if not feed.source.still_is(snapshot):
        raise FinJEPAError(f"{feed.name} changed while it was read; run it again when nobody writes there")
    content = f"{version_of(snapshot.files)} {feed.filter.label} {feed.calendar} {JUDGEMENT}"
    if moved.kept:  # what is here is not only what the files hold
        content += f" {content_digest(con, feed_id)}"
    total = rows_before + moved.added - moved.ended
    facts = {
        "data_version": hashlib.sha256(content.encode()).hexdigest()[:12],
        "total_rows": total,
        "new_rows": moved.added,
        "ended_rows": moved.ended,
        "kept_rows": moved.kept,
        "quarantined_rows": total - int(judged["sound_rows"]),
        "first_date": first_date,
        "last_date": last_date,
        "columns": columns,
        "accepted": sorted({*(before.accepted if before else ()), *terms.accepted}),
        "outcomes_json": to_json([asdict(outcome) for outcome in outcomes]),
    }
    history.add_revision(con, feed_id, revision, snapshot, facts)


def _aggregates(
    con: duckdb.DuckDBPyConnection, feed: Feed, place: tuple[int, int], accepted: frozenset[str]
) -> dict[str, Any]:
    """A revision that was written, in numbers: new rows by rule, sessions, and which columns hold anything."""
    counts = (f"count(*) FILTER (WHERE broken & {rule.bit} <> 0)::DOUBLE AS {rule.name}" for rule in ROW_RULES)
    columns = (f"CASE WHEN count({name}) > 0 THEN '{name}' END" for name in history.CHANNELS)
    query = sql("prices/aggregates").format(
        feed_id=place[0],
        revision=place[1],
        rule_counts=", ".join(counts),
        columns=", ".join(columns),
        hard=HARD_BITS,
        refusing=HARD_BITS & ~bits(*(accepted & BY_NAME.keys())),
        unplaced=UNPLACED_BITS,
        calendar=clock_of(feed.calendar),
        several=has_several(feed.calendar),
    )
    (found,) = con.execute(query).fetchall()
    aggregates = dict(zip((column[0] for column in con.description or ()), found, strict=True))
    if "adj_close" not in aggregates["columns"]:  # a column of nulls is a column that the source lacks
        aggregates["missing_adj_close"] = 0.0
    return aggregates


def _refusal(feed: Feed, outcomes: tuple[contract.Outcome, ...]) -> str:
    """Why a delivery is refused, and which option lets it pass, in one line."""
    failed = [outcome for outcome in outcomes if outcome.severity == "critical" and not outcome.success]
    refusing = {outcome.column for outcome in failed}
    names = {rule.name for rule in ROW_RULES if rule.severity == "hard"}
    bad = sorted(
        (outcome for outcome in outcomes if outcome.column in names and outcome.observed),
        key=lambda outcome: -(outcome.observed or 0),
    )
    options: list[str] = []
    for outcome in failed:
        options += [one.column for one in bad[:3]] if outcome.column == "refused_rows" else [outcome.column]
    options = [name for name in dict.fromkeys(options) if name in names or name in contract.ACCEPTABLE]
    says = "; ".join(map(str, failed))
    if "refused_rows" in refusing and bad:
        says += "; " + ", ".join(f"{one.column} {one.observed:,.0f} rows" for one in bad[:3])
    ways = []
    if "withdrawn_rows" in refusing:
        ways.append("deliver the whole history again")
    if "stray_session" in refusing:
        ways.append(f"name the calendar that is not {feed.calendar}, as --calendar 24/7 (--calendar auto looks for it)")
    if any(outcome.column == "unreadable_date" and outcome.observed for outcome in outcomes):
        ways.append("write days as YYYY-MM-DD")
    if options:
        ways.append(f"--accept {','.join(options)} takes it nevertheless (bad rows stay in quarantine)")
    return f"{feed.name} is refused: {says}" + (f". Way out: {'; or '.join(ways)}" if ways else "")


def _examples(con: duckdb.DuckDBPyConnection, revision: int, name: str, moved: Moved) -> list[str]:
    """Up to three rows (or symbols) of a new revision that broke a rule or an expectation."""
    if name in moved.examples:
        return moved.examples[name]
    mask = HARD_BITS if name == "refused_rows" else BY_NAME[name].bit if name in BY_NAME else 0
    query = (
        "SELECT coalesce(symbol, '?') || ' ' || coalesce(date::VARCHAR, unreadable, '?') FROM price_history "
        f"WHERE valid_from = {revision} AND broken & {mask} <> 0 ORDER BY symbol, date LIMIT 3"
    )
    return [text for (text,) in con.execute(query).fetchall()]


def _report(con: duckdb.DuckDBPyConnection, moved: Moved | None = None, note: str | None = None) -> IngestReport:
    revision = history.current_revision(con)
    assert revision is not None  # the callers have just made or found one
    outcomes = tuple(
        contract.Outcome(**{**found, "examples": tuple(found.get("examples", ()))})
        for found in json.loads(history.outcomes_json(con, revision.number))
    )
    moved = moved or Moved()
    calendar = json.loads(history.active_options(con) or "{}")["calendar"]
    return IngestReport(revision, moved.added, moved.ended, history.stored_rows(con), moved, calendar, outcomes, note)
