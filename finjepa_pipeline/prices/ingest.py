"""Ingestion: the present state of a source becomes a revision of the history of its feed, or nothing changes at all."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import duckdb
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.frame import date_formats
from finjepa_model.files import to_json
from finjepa_pipeline.prices import contract, history
from finjepa_pipeline.prices.calendar import AUTO, detect_calendar, put_calendars
from finjepa_pipeline.prices.contract import JUDGEMENT, ROW_RULES
from finjepa_pipeline.prices.delivery import Delivery, Moved, content_digest
from finjepa_pipeline.prices.scan import plain, scan_sql
from finjepa_pipeline.prices.sources import Feed, PriceSourceConfig, Snapshot, make_feed
from finjepa_pipeline.prices.sources.base import version_of
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse, now, transaction

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
    """What an ingestion did: the revision that the tables show now, and what it changed (nothing, if it was there before).

    `note` is a remark for a person, such as a source that could not be reached.
    """

    revision: history.Revision
    moved: Moved = field(default_factory=Moved)
    note: str | None = None

    @property
    def outcomes(self) -> tuple[contract.Outcome, ...]:
        """What the contract said of the rows of the revision."""
        found = json.loads(self.revision.outcomes_json)
        return tuple(contract.Outcome(**{**one, "examples": tuple(one["examples"])}) for one in found)


class ContractError(FinJEPAError):
    """A batch of prices that was refused; `outcomes` says what the contract found, rows as examples included."""

    def __init__(self, message: str, outcomes: tuple[contract.Outcome, ...]) -> None:
        super().__init__(message)
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
    accepted = contract.accepted_names(config.accept or ())
    feed, stays = (named, None) if named else _held_feed(warehouse, settings)
    if stays is not None:
        return IngestReport(
            stays, note=f"still showing {feed.name} as of revision {stays.number}; name the data source to move on"
        )
    try:
        snapshot = feed.source.snapshot()
        with warehouse.connect() as con:
            found = history.calendar_of_place(con, feed) if config.calendar is None and named else None
            feed = feed if found is None else replace(feed, calendar=found)
            is_known = _is_known(history.newest_revision(con, feed.name), snapshot, config.whole)
        # may take minutes: not while the warehouse is locked
        paths = [] if is_known else feed.source.fetch(snapshot)
    except FinJEPAError as error:
        shown = None if named else _shown(warehouse)
        if shown is None:
            raise
        return IngestReport(shown, note=f"carried on with what is here: {error}")
    with warehouse.connect() as con, transaction(con):
        try:
            if paths and named and found is None and config.calendar in (None, AUTO):
                rows = scan_sql(con, paths, feed.where(), feed.source.date_format)
                feed = replace(feed, calendar=detect_calendar(con, rows, each=config.calendar == AUTO))
            report = _bring_up(con, feed, snapshot, paths, accepted, config.whole)
        except _UNREADABLE as error:
            raise FinJEPAError(f"{feed.name} cannot be ingested: {plain(error)}") from error
    if snapshot.unread:
        more = len(snapshot.unread) - 3
        unread = f"not read: {', '.join(snapshot.unread[:3])}{f' and {more} more' if more > 0 else ''}"
        report = replace(report, note="; ".join(filter(None, (report.note, unread))))
    return report


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
    shown = _shown(warehouse)
    if shown is None:
        return None
    version = price_version(warehouse, settings)
    return None if version == shown.version else version


def _shown(warehouse: Warehouse) -> history.Revision | None:
    with warehouse.connect() as con:
        return history.current_revision(con)


def _show_as_of(warehouse: Warehouse, text: str, named: Feed | None) -> IngestReport:
    with warehouse.connect() as con:
        known = history.revisions(con, None if named is None else named.name)
        found = [one for one in known if str(one.number) == text or (len(text) >= 7 and one.version.startswith(text))]
        if len({(one.feed, one.version) for one in found}) != 1:
            of = named.name if named else "any feed"
            why = f"{text} is the start of several revisions" if found else f"there is no revision {text} of {of} here"
            newest = (f"{one.number} ({one.version[:12]}, {one.created:%Y-%m-%d})" for one in (found or known)[:5])
            raise FinJEPAError(f"{why}; the newest are {', '.join(newest) or 'none'}")
        history.show(con, found[0])
        return IngestReport(found[0], note=f"showing {found[0].feed} as it was at revision {found[0].number}")


def _held_feed(warehouse: Warehouse, settings: Settings) -> tuple[Feed, history.Revision | None]:
    """The feed that the views show (`sample` in an empty home), and the earlier revision that they stay at, if so."""
    with warehouse.connect() as con:
        shown = history.current_revision(con)
        newest = history.newest_revision(con, shown.feed) if shown else None
    options = shown.options_json if shown else '{"data_source": "sample"}'
    feed = make_feed(PriceSourceConfig(**json.loads(options)), settings)
    assert feed is not None  # stored options always name their source
    return feed, shown if shown != newest else None


def _is_known(newest: history.Revision | None, snapshot: Snapshot, whole: bool) -> bool:
    """Whether a feed's newest revision was made of the same files by the same rules, and of nothing else that a `whole` delivery
    ends."""
    if newest is None or newest.judgement < JUDGEMENT or (whole and newest.kept_rows):
        return False
    return Counter(newest.files) == Counter(file.sha256 for file in snapshot.files)


def _bring_up(
    con: duckdb.DuckDBPyConnection,
    feed: Feed,
    snapshot: Snapshot,
    paths: Sequence[Path],
    accepted: frozenset[str],
    whole: bool,
) -> IngestReport:
    before = history.newest_revision(con, feed.name)
    moved, note = Moved(), None
    if not _is_known(before, snapshot, whole):
        # another command may have moved the home on meanwhile, so that the files are needed after all
        paths = paths or feed.source.fetch(snapshot)
        place, rows = history.place_of(con, feed), scan_sql(con, paths, feed.where(), feed.source.date_format)
        put_calendars(con, feed.calendar, place[0], rows)
        delivery = Delivery(con, rows, place, feed.calendar)
        if before is None:
            moved = delivery.write_first()
        else:
            again = before.judgement < JUDGEMENT
            moved = delivery.write_changes(whole=whole, again=again)
            note = "all rows were judged again, by newer rules" if again else None
        if moved.added or moved.ended:
            _accept(con, feed, snapshot, delivery, before, moved, accepted)
    newest = history.newest_revision(con, feed.name)
    if newest is None:
        raise FinJEPAError(f"{feed.name} holds no rows; is it the right place?")
    history.show(con, newest)
    return IngestReport(newest, moved, note)


def _accept(
    con: duckdb.DuckDBPyConnection,
    feed: Feed,
    snapshot: Snapshot,
    delivery: Delivery,
    before: history.Revision | None,
    moved: Moved,
    accepted: frozenset[str],
) -> None:
    """Record the revision if the contract lets its rows pass."""
    found = delivery.aggregates(accepted)
    facts = {name: found.pop(name) for name in ("first_date", "last_date", "columns")}
    if "adj_close" not in facts["columns"]:  # a column of nulls is a column that the source lacks
        found["missing_adj_close"] = 0
    rows_before = before.rows + before.quarantined_rows if before else 0
    judged = {
        **{name: float(value or 0) for name, value in found.items()},
        "rows_before": rows_before,
        "withdrawn_rows": moved.withdrawn,
        "kept_rows": moved.kept,
        "rejudged_rows": moved.rejudged,
        "moved_symbols": moved.moved_symbols,
    }
    outcomes = tuple(
        one if one.success else replace(one, examples=tuple(delivery.examples(one.column, moved)))
        for one in contract.judge(contract.expectations(judged, accepted))
    )
    if any(one.severity == "critical" and not one.success for one in outcomes):
        raise ContractError(_refusal(feed, outcomes), outcomes)
    if not feed.source.still_is(snapshot):
        raise FinJEPAError(f"{feed.name} changed while it was read; run it again when nobody writes there")
    content = f"{version_of(snapshot.files)} {feed.label} {feed.calendar} {JUDGEMENT}"
    if moved.kept:  # what is here is not only what the files hold
        content += f" {content_digest(con, delivery.feed_id)}"
    total = rows_before + moved.added - moved.ended
    facts |= {
        "revision": delivery.revision,
        "feed_id": delivery.feed_id,
        "version": snapshot.version,
        "data_version": hashlib.sha256(content.encode()).hexdigest()[:12],
        "created_at": now(),
        "total_rows": total,
        "new_rows": moved.added,
        "ended_rows": moved.ended,
        "kept_rows": moved.kept,
        "quarantined_rows": total - int(judged["sound_rows"]),
        "files": [file.sha256 for file in snapshot.files],
        "accepted": sorted({*(before.accepted if before else ()), *accepted}),
        "judgement": JUDGEMENT,
        "outcomes_json": to_json([asdict(outcome) for outcome in outcomes]),
    }
    con.execute(f"INSERT INTO revisions BY NAME SELECT {', '.join(f'${name} AS {name}' for name in facts)}", facts)


def _refusal(feed: Feed, outcomes: tuple[contract.Outcome, ...]) -> str:
    """Why a delivery is refused, and which option lets it pass, in one line."""
    failed = [one for one in outcomes if one.severity == "critical" and not one.success]
    refusing = [one.column for one in failed]
    hard = [rule.name for rule in ROW_RULES if rule.severity == "hard"]
    broken = [one for one in outcomes if one.column in hard and one.observed]
    worst = sorted(broken, key=lambda one: -(one.observed or 0))[:3] if "refused_rows" in refusing else []
    says = "; ".join([*map(str, failed), ", ".join(f"{one.column} {one.observed:,.0f} rows" for one in worst)])
    options = [name for name in refusing if name in hard or name in contract.ACCEPTABLE] + [one.column for one in worst]
    calendar = f"name the calendar that is not {feed.calendar}, as --calendar 24/7 (--calendar auto looks for it)"
    accept = f"--accept {','.join(dict.fromkeys(options))} takes it nevertheless (bad rows stay in quarantine)"
    ways = (
        ("withdrawn_rows" in refusing, "deliver the whole history again"),
        ("stray_session" in refusing, calendar),
        (any(one.column == "unreadable_date" for one in broken), _dates_way_out(outcomes)),
        (bool(options), accept),
    )
    ways_out = "; or ".join(way for helps, way in ways if helps)
    return f"{feed.name} is refused: {says.removesuffix('; ')}" + (f". Way out: {ways_out}" if ways_out else "")


def _dates_way_out(outcomes: tuple[contract.Outcome, ...]) -> str:
    """How to declare the dates that cannot be read, from examples of them."""
    shown = [text.split(" ", 1)[-1] for one in outcomes if one.column == "unreadable_date" for text in one.examples]
    formats = date_formats(pl.Series(shown, dtype=pl.String)) if shown else []
    declared = " or ".join(f"--date-format {form}" for form in formats[:2])
    return (
        f"declare the dates, as {declared}" if formats else "write days as YYYY-MM-DD, or declare them by --date-format"
    )
