"""Ingestion: a snapshot of a source becomes a revision of the append-only store, or nothing at all."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices import contract, store
from finjepa_pipeline.prices.calendar import (
    AUTO,
    assign_calendars,
    clock_of,
    detect_calendar,
    has_several,
    sessions,
)
from finjepa_pipeline.prices.rules import JUDGEMENT, Rule, hard_bits, load_rules
from finjepa_pipeline.prices.scan import plain, scan_sql
from finjepa_pipeline.prices.sources import (
    Feed,
    PriceSourceConfig,
    Snapshot,
    SourceFile,
    make_feed,
    remembered_feed,
)
from finjepa_pipeline.prices.sources.base import version_of
from finjepa_pipeline.prices.versions import Moved, VersionWriter
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

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

    revision: store.Revision
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
            accepted = contract.accepted_names(config.accept or (), load_rules(con))
            found = store.calendar_of_place(con, feed) if config.calendar is None and named else None
            feed = feed if found is None else replace(feed, calendar=found)
            needed = _needed(snapshot, _known(con, feed, config.whole))
        paths = feed.source.fetch(snapshot, needed)  # may take minutes: not while the warehouse is locked
    except FinJEPAError as error:
        if named is not None:
            raise
        with warehouse.connect() as con:
            shown = store.current_revision(con)
            if shown is None:
                raise
            older = store.judged_by(con, shown.number) < JUDGEMENT
            judged = (
                "; its rows are judged by the rules of an older version until the source can be read" if older else ""
            )
            return _report(con, note=f"carried on with what is here: {error}{judged}")
    with warehouse.connect() as con:
        rules = load_rules(con)
        store.create_store(con)
        try:
            if named and found is None and config.calendar in (None, AUTO):
                rows = scan_sql(con, paths, rules, feed.filter)
                feed = replace(feed, calendar=detect_calendar(con, rows, each=config.calendar == AUTO))
            con.execute("BEGIN")
            report = _bring_up(con, feed, snapshot, rules, Terms(accepted, config.whole))
            notes = [note for note in (report.note, _not_read(snapshot)) if note]
            report = replace(report, note="; ".join(notes) or None)
        except _UNREADABLE as error:
            raise FinJEPAError(f"{feed.name} cannot be ingested: {plain(error)}") from error
        except ContractError as refusal:
            con.execute("ROLLBACK")
            store.put_refusal(con, refusal.feed, [vars(outcome) for outcome in refusal.outcomes if not outcome.success])
            raise
        con.execute("COMMIT")
        return report


def _not_read(snapshot: Snapshot) -> str | None:
    if not snapshot.unread:
        return None
    more = len(snapshot.unread) - 3
    return f"not read: {', '.join(snapshot.unread[:3])}{f' and {more} more' if more > 0 else ''}"


def price_version(warehouse: Warehouse, settings: Settings) -> str:
    """What the source of the feed that the tables show (in an empty home: `sample`) calls its present state.

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
        shown = store.current_revision(con)
    if shown is None:
        return None
    version = price_version(warehouse, settings)
    return None if version == shown.version else version


def _show_as_of(warehouse: Warehouse, text: str, named: Feed | None) -> IngestReport:
    with warehouse.connect() as con:
        known = store.revisions(con, None if named is None else named.name) if store.has_store(con) else []
        found = [one for one in known if str(one.number) == text or (len(text) >= 7 and one.version.startswith(text))]
        if not found:
            newest = ", ".join(f"{one.number} ({one.version[:12]}, {one.created:%Y-%m-%d})" for one in known[:5])
            raise FinJEPAError(
                f"there is no revision {text} of {named.name if named else 'any feed'} here; "
                + (f"the newest are {newest}" if newest else "nothing was ingested yet")
            )
        if len({(one.feed_id, one.version) for one in found}) > 1:
            raise FinJEPAError(
                f"{text} is the start of several revisions: {', '.join(str(one.number) for one in found)}"
            )
        shown = found[0]
        con.execute("BEGIN")
        store.show(con, shown.feed_id, shown.number, load_rules(con))
        report = _report(con, note=f"showing {shown.feed} as it was at revision {shown.number}")
        con.execute("COMMIT")
        return report


def _held_feed(warehouse: Warehouse, settings: Settings) -> tuple[Feed, str | None]:
    """The feed that the tables show (`sample` in an empty home), and why it is not to be refreshed, if so."""
    with warehouse.connect() as con:
        options = store.active_options(con)
        if options is None:
            return remembered_feed('{"data_source": "sample"}', settings), None
        feed = remembered_feed(options, settings)
        shown = store.current_revision(con)
        if shown is not None and shown.number != store.newest_revision(con, feed.name):
            return feed, f"still showing {feed.name} as of revision {shown.number}; name the data source to move on"
        return feed, None


def _known(con: duckdb.DuckDBPyConnection, feed: Feed, whole: bool) -> Counter[str] | None:
    """The hashes of the files of a feed's newest revision; None if all files are to be read: it has none, older rules have
    judged it, or it keeps rows that a `whole` delivery ends."""
    newest = store.newest_revision(con, feed.name)
    if newest is None or store.judged_by(con, newest) < JUDGEMENT:
        return None
    if whole and store.facts_of(con, newest).kept_rows:
        return None
    return Counter(store.known_files(con, newest))


def _needed(snapshot: Snapshot, known: Counter[str] | None) -> list[SourceFile]:
    """The files to read: none, those that were added, or all."""
    present = Counter(file.sha256 for file in snapshot.files)
    if known is None or known - present:
        return list(snapshot.files)
    added = present - known
    if any(added[sha256] < present[sha256] for sha256 in added):  # a copy of a known file: which one is new?
        return list(snapshot.files)
    return [file for file in snapshot.files if file.sha256 in added]


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
    con: duckdb.DuckDBPyConnection, feed: Feed, snapshot: Snapshot, rules: list[Rule], terms: Terms
) -> IngestReport:
    needed = _needed(snapshot, _known(con, feed, terms.whole))
    feed_id = store.feed_id(con, feed)
    before = store.newest_revision(con, feed.name)
    moved, note = Moved(), None
    if needed:
        paths = feed.source.fetch(snapshot, needed)
        _put_calendars(con, feed, feed_id, scan_sql(con, paths, rules, feed.filter))
        revision = store.next_revision(con)
        writer = VersionWriter(con, feed_id, revision, rules, feed.filter, feed.calendar)
        whole = len(needed) == len(snapshot.files)
        if before is None:
            moved = writer.append_first(paths)
        else:
            again = store.judged_by(con, before) < JUDGEMENT
            moved = writer.append_changes(before, paths, whole=whole, all_there_is=terms.whole, again=again)
            if again:
                note = "all rows were judged again, by newer rules"
        if moved.anything:
            _accept(con, feed, snapshot, (feed_id, revision, before), moved, rules, terms, whole)
    newest = store.newest_revision(con, feed.name)
    if newest is None:
        raise FinJEPAError(f"{feed.name} holds no rows; is it the right place?")
    store.show(con, feed_id, newest, rules)
    return _report(con, moved, note)


def _accept(
    con: duckdb.DuckDBPyConnection,
    feed: Feed,
    snapshot: Snapshot,
    place: tuple[int, int, int | None],
    moved: Moved,
    rules: list[Rule],
    terms: Terms,
    whole: bool,
) -> None:
    """Record the revision if the contract lets its rows pass. `place`: feed, revision, and the revision before."""
    feed_id, revision, before = place
    aggregates = store.revision_aggregates(con, feed_id, revision, rules, feed.calendar, terms.accepted)
    columns: list[str] = aggregates.pop("columns")
    facts = store.facts_of(con, before)
    if moved.ended < facts.rows:  # rows of before are left, and with them their columns
        columns = [name for name in store.CHANNELS if name in {*columns, *facts.columns}]
    rows = facts.rows + moved.added - moved.ended
    kept = moved.kept if whole else facts.kept_rows
    judged: dict[str, float] = {
        **{name: float(value or 0) for name, value in aggregates.items() if name not in ("first_date", "last_date")},
        "rows_before": facts.rows,
        "withdrawn_rows": moved.withdrawn,
        "kept_rows": moved.kept,
        "rejudged_rows": moved.held_back + moved.released,
        "restated_symbols": moved.restated_symbols,
        "moved_symbols": moved.moved_symbols,
    }
    outcomes = contract.judge(judged, contract.expectations(judged, rules, terms.accepted))
    outcomes = tuple(
        outcome
        if outcome.success
        else replace(outcome, examples=tuple(_examples(con, feed_id, revision, outcome.column, rules, moved)))
        for outcome in outcomes
    )
    failed = [outcome for outcome in outcomes if outcome.severity == "critical" and not outcome.success]
    if failed:
        raise ContractError(_refusal(con, feed, failed, outcomes, rules), feed.name, outcomes)
    if not feed.source.still_is(snapshot):
        raise FinJEPAError(f"{feed.name} changed while it was read; run it again when nobody writes there")
    content = f"{version_of(snapshot.files)} {feed.filter.label} {feed.calendar} {JUDGEMENT}"
    if kept:  # what is here is not only what the files hold
        content += f" {store.content_digest(con, feed_id)}"
    store.add_revision(
        con,
        feed_id=feed_id,
        revision=revision,
        snapshot=snapshot,
        data_version=hashlib.sha256(content.encode()).hexdigest()[:12],
        total_rows=rows,
        columns=columns,
        moved=(moved.added, moved.ended, kept),
        accepted=sorted({*facts.accepted, *terms.accepted}),
        aggregates=aggregates,
        outcomes_json=to_json([asdict(outcome) for outcome in outcomes]),
    )


def _refusal(
    con: duckdb.DuckDBPyConnection,
    feed: Feed,
    failed: list[contract.Outcome],
    outcomes: tuple[contract.Outcome, ...],
    rules: list[Rule],
) -> str:
    """Why a batch is refused, and which option lets it pass, in one line."""
    names = {rule.rule for rule in rules if rule.severity == "hard"}
    bad = sorted(
        (outcome for outcome in outcomes if outcome.column in names and outcome.observed),
        key=lambda outcome: -(outcome.observed or 0),
    )
    options: list[str] = []
    for outcome in failed:
        options += [one.column for one in bad[:3]] if outcome.column == "refused_rows" else [outcome.column]
    options = [name for name in dict.fromkeys(options) if name in names or name in contract.ACCEPTABLE]
    says = "; ".join(map(str, failed))
    if any(outcome.column == "refused_rows" for outcome in failed) and bad:
        says += "; " + ", ".join(f"{one.column} {one.observed:,.0f} rows" for one in bad[:3])
    ways = [f"--accept {','.join(options)} takes it nevertheless (bad rows stay in quarantine)"] if options else []
    if any(outcome.column == "unreadable_date" and outcome.observed for outcome in outcomes):
        ways.insert(0, "write days as YYYY-MM-DD")
    if any(outcome.column == "stray_session" for outcome in failed):
        ways.insert(
            0, f"name the calendar that is not {feed.calendar}, as --calendar 24/7 (--calendar auto looks for it)"
        )
    if any(outcome.column == "withdrawn_rows" for outcome in failed):
        ways.insert(0, "deliver the whole history again")
    return f"{feed.name} is refused: {says}" + (f". Way out: {'; or '.join(ways)}" if ways else "")


def _examples(
    con: duckdb.DuckDBPyConnection, feed_id: int, revision: int, name: str, rules: list[Rule], moved: Moved
) -> list[str]:
    """Up to three rows (or symbols) of a new revision that broke a rule or an expectation."""
    if name in moved.examples:
        return moved.examples[name]
    hard = {rule.rule: rule for rule in rules if rule.scope != "history"}
    if name == "refused_rows":
        condition = f"broken & {hard_bits(rules)} <> 0"
    elif name in hard and hard[name].scope == "session":
        dropped = f"feed_id = {feed_id} AND revision = {revision} AND rule = '{name}'"
        condition = f"date IN (SELECT date FROM dropped_sessions WHERE {dropped})"
    elif name in hard:
        condition = f"broken & {hard[name].bit} <> 0"
    else:
        return []
    query = (
        "SELECT coalesce(symbol, '?') || ' ' || coalesce(date::VARCHAR, unreadable, '?') FROM raw_price_versions "
        f"WHERE first_revision = {revision} AND {condition} ORDER BY symbol, date LIMIT 3"
    )
    return [text for (text,) in con.execute(query).fetchall()]


def _report(con: duckdb.DuckDBPyConnection, moved: Moved | None = None, note: str | None = None) -> IngestReport:
    revision = store.current_revision(con)
    assert revision is not None  # the callers have just made or found one
    outcomes = tuple(
        contract.Outcome(**{**found, "examples": tuple(found.get("examples", ()))})
        for found in json.loads(store.outcomes_json(con, revision.number))
    )
    moved = moved or Moved()
    calendar = json.loads(store.active_options(con) or "{}")["calendar"]
    return IngestReport(revision, moved.added, moved.ended, store.stored_rows(con), moved, calendar, outcomes, note)
