"""Ingestion: a snapshot of a source becomes a revision of the append-only store, or nothing at all."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices import contract, store, versions
from finjepa_pipeline.prices.rules import Rule, load_rules
from finjepa_pipeline.prices.scan import plain
from finjepa_pipeline.prices.sources import (
    PriceSource,
    PriceSourceConfig,
    Snapshot,
    SourceFile,
    make_source,
    remembered_source,
)
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
        new_rows: row versions added; ended_rows: row versions that the source no longer has.
        stored_rows: row versions of all feeds and revisions.
        outcomes: what the contract said of the rows of this revision (when nothing was new, what it said then).
        note: a remark for a person, such as a source that could not be reached.
    """

    revision: store.Revision
    new_rows: int
    ended_rows: int
    stored_rows: int
    outcomes: tuple[contract.Outcome, ...]
    note: str | None = None


class ContractError(FinJEPAError):
    """A batch of prices that was refused; `outcomes` says what the contract found."""

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
    named = make_source(config, settings)
    source = named or _held_source(warehouse, settings)
    try:
        snapshot = source.snapshot()
        with warehouse.connect() as con:
            needed = _needed(snapshot, _known(con, source))
        source.fetch(needed)  # may take minutes: not while the warehouse is locked
    except FinJEPAError as error:
        if named is not None:
            raise
        with warehouse.connect() as con:
            if store.current_revision(con) is None:
                raise
            return _report(con, note=f"carried on with what is here: {error}")
    with warehouse.connect() as con:
        rules = load_rules(con)
        store.create_store(con)
        con.execute("BEGIN")
        try:
            report = _bring_up(con, source, snapshot, rules)
        except _UNREADABLE as error:
            raise FinJEPAError(f"{source.feed} cannot be ingested: {plain(error)}") from error
        con.execute("COMMIT")
        return report


def price_version(warehouse: Warehouse, settings: Settings) -> str:
    """What the source of the active feed calls its present state.

    Raises:
        FinJEPAError: if the source cannot be read.
    """
    return _held_source(warehouse, settings).snapshot().version


def _held_source(warehouse: Warehouse, settings: Settings) -> PriceSource:
    """The source of the feed that the tables show; `sample` in an empty home."""
    with warehouse.connect() as con:
        options = store.active_options(con)
    return remembered_source(options or json.dumps({"data_source": "sample"}), settings)


def _known(con: duckdb.DuckDBPyConnection, source: PriceSource) -> Counter[str] | None:
    """The hashes of the files of the source's newest revision; None if it has none."""
    newest = store.newest_revision(con, source.feed)
    return None if newest is None else Counter(store.known_files(con, newest))


def _needed(snapshot: Snapshot, known: Counter[str] | None) -> list[SourceFile]:
    """The files to read: none, those that were added, or all."""
    present = Counter(file.sha256 for file in snapshot.files)
    if known is None or known - present:
        return list(snapshot.files)
    added = present - known
    return [file for file in snapshot.files if file.sha256 in added]


def _bring_up(
    con: duckdb.DuckDBPyConnection, source: PriceSource, snapshot: Snapshot, rules: list[Rule]
) -> IngestReport:
    known = _known(con, source)
    needed = _needed(snapshot, known)
    feed_id = store.feed_id(con, source)
    before = store.newest_revision(con, source.feed)
    added = ended = 0
    if needed:
        paths = source.fetch(needed)
        revision = store.next_revision(con)
        if before is None:
            added, ended = versions.append_first(con, feed_id, revision, paths, rules)
        else:
            added, ended = versions.append_changes(
                con, feed_id, revision, before, paths, rules, whole=len(needed) == len(snapshot.files)
            )
        if added or ended:
            _accept(con, source, snapshot, feed_id, revision, before, (added, ended), rules)
    newest = store.newest_revision(con, source.feed)
    if newest is None:
        raise FinJEPAError(f"{source.feed} holds no rows; is it the right place?")
    store.show(con, feed_id, newest, rules)
    return _report(con, added, ended)


def _accept(
    con: duckdb.DuckDBPyConnection,
    source: PriceSource,
    snapshot: Snapshot,
    feed_id: int,
    revision: int,
    before: int | None,
    moved: tuple[int, int],
    rules: list[Rule],
) -> None:
    """Record the revision if the contract lets its rows pass."""
    aggregates = store.revision_aggregates(con, revision, rules)
    if before is not None:
        rows_before = store.rows_of(con, before)
        aggregates["rows_to_rows_before"] = (rows_before + moved[0] - moved[1]) / rows_before
    outcomes = contract.judge(aggregates, contract.expectations(aggregates, rules))
    failed = [outcome for outcome in outcomes if outcome.severity == "critical" and not outcome.success]
    if failed:
        raise ContractError(f"{source.feed} is refused: {'; '.join(map(str, failed))}", outcomes)
    digest = hashlib.sha256("\n".join(sorted(file.sha256 for file in snapshot.files)).encode()).hexdigest()
    store.add_revision(
        con,
        feed_id=feed_id,
        revision=revision,
        snapshot=snapshot,
        data_version=digest[:12],
        moved=moved,
        outcomes_json=json.dumps([asdict(outcome) for outcome in outcomes]),
        rules=rules,
    )


def _report(
    con: duckdb.DuckDBPyConnection, new_rows: int = 0, ended_rows: int = 0, note: str | None = None
) -> IngestReport:
    revision = store.current_revision(con)
    assert revision is not None  # the callers have just made or found one
    outcomes = tuple(contract.Outcome(**found) for found in json.loads(store.outcomes_json(con, revision.number)))
    return IngestReport(revision, new_rows, ended_rows, store.stored_rows(con), outcomes, note)
