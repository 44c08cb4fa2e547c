"""Publishes the live record to the Hub: one commit for what is not there yet, with the times at which it was written."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.live_record.chain import FOLDER, TABLES
from finjepa_pipeline.publishing import hub
from finjepa_pipeline.report.live_record import PAGE, RecordSummary, record_section, with_section
from finjepa_pipeline.report.page import render
from finjepa_pipeline.warehouse import Warehouse

_CARD = "README.md"


@dataclass(frozen=True)
class PublishedRecord:
    """Where the record stands published; `url` and `commit` are None where the Hub client is offline."""

    url: str | None
    commit: str | None
    new: bool
    note: str


def publish_record(warehouse: Warehouse, summary: RecordSummary, repo_id: str, kind: hub.RepoKind) -> PublishedRecord:
    """Make the Hub hold the record until its newest night.

    Raises:
        FinJEPAError: if the Hub refuses, stays out of reach, or holds a record that this one does not continue. A later call
            publishes what this one could not.
    """
    record, url = summary.record, hub.repo_url(repo_id, kind)
    with warehouse.connect() as con:
        query = "SELECT commit FROM main.live_record_releases WHERE hash = ? AND target = ?"
        known = con.execute(query, [record.last_hash, url]).fetchone()
    until = f"the live record until {record.sessions[-1]}"
    if known:
        return PublishedRecord(url, known[0], False, f"{until} is on {url} already")
    if hub.is_offline():
        return PublishedRecord(
            None, None, False, f"HF_HUB_OFFLINE is set, and a later run publishes {until} to {repo_id}"
        )
    title = f"Live record until {record.sessions[-1]} ({record.last_hash[:8]})"
    made = hub.publish_files(
        repo_id,
        kind,
        title,
        lambda head: _missing(summary, head),
        f"the live record stays in {record.folder}, and the next nightly run publishes it",
    )
    with warehouse.connect() as con:
        con.execute(
            "INSERT INTO main.live_record_releases (hash, target, commit) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [record.last_hash, url, made.commit],
        )
    return PublishedRecord(url, made.commit, made.new, f"{'published' if made.new else 'found'} {until} on {url}")


def _missing(summary: RecordSummary, head: hub.Head) -> dict[str, Path | bytes]:
    """What the repository lacks, by path in it."""
    record, paths = summary.record, head.paths()
    index = f"{FOLDER}/nights.parquet"
    there = pl.read_parquet(head.file(index))["hash"].to_list() if index in paths else []
    if there != record.nights["hash"].to_list()[: len(there)]:
        raise FinJEPAError(
            f"the live record of {head.repo_id} has nights that the one in {record.folder} does not have; copy its folder "
            f"{FOLDER}/ there to go on from it, or name another repository"
        )
    files: dict[str, Path | bytes] = {
        f"{FOLDER}/{table}/{session}.parquet": record.path(table, session)
        for session in record.sessions[len(there) :]
        for table in TABLES
    }
    files |= {f"{FOLDER}/{name}": record.folder / name for name in ("nights.parquet", "scores.parquet")}
    card = head.file(_CARD).read_text(encoding="utf-8") if _CARD in paths else render("record_card.md", kind=head.kind)
    return files | {PAGE: record.folder / PAGE, _CARD: with_section(card, record_section(summary)).encode()}
