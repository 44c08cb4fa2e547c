"""Releases the champion: a folder under FINJEPA_HOME/releases/ first, and from there to the Hub when a repository is named; and
the live record: one commit for what is not on the Hub yet, with the times at which it was written.

A content is released once. A checkpoint that was only trained or judged again is not released again under another card.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_model.hub import RepoKind, repo_url
from finjepa_model.live_record.chain import FOLDER, TABLES
from finjepa_pipeline.publishing import hub
from finjepa_pipeline.publishing.card import card_of
from finjepa_pipeline.publishing.gate import Champion, champion_folder
from finjepa_pipeline.publishing.live_record import card_section
from finjepa_pipeline.publishing.package import Package, package_of, places_of, public, write_package
from finjepa_pipeline.report.live_record import PAGE, RecordSummary, record_section, with_section
from finjepa_pipeline.report.page import render
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import keep
from finjepa_pipeline.warehouse import Warehouse

LOCAL = "local"
_CARD = "README.md"
_NOTE = """
    INSERT INTO main.releases (checkpoint, content_hash, target, commit, tag)
    VALUES ($checkpoint, $content_hash, $target, $commit, $tag) ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class Release:
    """Where the champion, or the live record, stands released.

    Attributes:
        url, commit: of the Hub repository; None when none is configured, or the Hub client is offline.
        new: whether this call released anything, here or on the Hub.
        note: one line that says what happened.
        package: of the champion.
    """

    url: str | None
    commit: str | None
    new: bool
    note: str
    package: Package | None = None


def release(settings: Settings, warehouse: Warehouse, champion: Champion, repo_id: str | None) -> Release:
    """Release the champion into `releases/`, and to the Hub if `repo_id` is given; what stands there already is left alone.

    The warehouse is open only to look and to note, never while anything is uploaded.

    Raises:
        FinJEPAError: if the checkpoint is gone, or the Hub refuses or stays out of reach. The local folder stays either way,
            and the next call goes on from it.
    """
    package = package_of(champion_folder(settings, champion), settings.releases)
    new = not package.folder.is_dir()
    with warehouse.connect() as con:
        if new:
            folder = settings.checkpoints / champion.checkpoint
            lineage = read_json(folder / "lineage.json")
            places = places_of(lineage, settings.home)
            card = card_of(con, settings, package.tag, champion, places, repo_id)
            section = card_section(settings, lineage["data"].get("feed", ""))
            card = with_section(card, section) if section else card
            write_package(package, folder, card, public(lineage, places))
        _note(con, package, LOCAL, None)
    keep(settings, package.folder)
    local = f"{'wrote' if new else 'already released in'} {package.folder}"
    if repo_id is None:
        return Release(None, None, new, f"{local}; no Hub repository is configured", package)
    url = repo_url(repo_id)
    with warehouse.connect() as con:
        query = "SELECT commit FROM main.releases WHERE content_hash = ? AND target = ?"
        known = con.execute(query, [package.content_hash, url]).fetchall()
    if known:
        return Release(url, known[0][0], new, f"{package.tag} is on {url} already", package)
    if hub.is_offline():
        note = f"{local}; HF_HUB_OFFLINE is set, and a later run publishes it to {repo_id}"
        return Release(None, None, new, note, package)
    commit, new_there = hub.publish(
        repo_id,
        "model",
        package.title,
        lambda head: {name: package.folder / name for name in CHECKPOINT_FILES},
        _stays(package),
        package.tag,
        f"content {package.content_hash}",
    )
    with warehouse.connect() as con:
        _note(con, package, url, commit)
    done = "published" if new_there else "found"
    return Release(url, commit, new_there, f"{done} {package.tag} on {url}", package)


def plan_release(settings: Settings, champion: Champion, repo_id: str | None) -> str:
    """What `release` would do, in one line; nothing is changed here or on the Hub."""
    package = package_of(champion_folder(settings, champion), settings.releases)
    local = "is in" if package.folder.is_dir() else "would be written to"
    plan = f"{package.tag} (checkpoint {champion.checkpoint}) {local} {package.folder}"
    if repo_id is None:
        return f"{plan}; no Hub repository is configured"
    if hub.is_offline():
        return f"{plan}; HF_HUB_OFFLINE is set, so nothing would be sent to {repo_id}"
    commit = hub.published(repo_id, package.title, _stays(package))
    if commit is not None:
        return f"{plan}; {repo_url(repo_id)} has it already, commit {commit[:8]}"
    return f"{plan}; {repo_url(repo_id)} would get one commit and the tag {package.tag}"


def _stays(package: Package) -> str:
    return f"the release stays in {package.folder}; run `finjepa publish` again when that is mended"


def _note(con: duckdb.DuckDBPyConnection, package: Package, target: str, commit: str | None) -> None:
    known = {name: getattr(package, name) for name in ("checkpoint", "content_hash", "tag")}
    con.execute(_NOTE, known | {"target": target, "commit": commit})


# The live record


def publish_record(warehouse: Warehouse, summary: RecordSummary, repo_id: str, kind: RepoKind) -> Release:
    """Make the Hub hold the record until its newest night.

    Raises:
        FinJEPAError: if the Hub refuses, stays out of reach, or holds a record that this one does not continue. A later call
            publishes what this one could not.
    """
    record, url = summary.record, repo_url(repo_id, kind)
    with warehouse.connect() as con:
        query = "SELECT commit FROM main.live_record_releases WHERE hash = ? AND target = ?"
        known = con.execute(query, [record.last_hash, url]).fetchone()
    until = f"the live record until {record.sessions[-1]}"
    if known:
        return Release(url, known[0], False, f"{until} is on {url} already")
    if hub.is_offline():
        return Release(None, None, False, f"HF_HUB_OFFLINE is set, and a later run publishes {until} to {repo_id}")
    title = f"Live record until {record.sessions[-1]} ({record.last_hash[:8]})"
    commit, new = hub.publish(
        repo_id,
        kind,
        title,
        lambda head: _missing(summary, head),
        f"the live record stays in {record.folder}, and the next nightly run publishes it",
    )
    with warehouse.connect() as con:
        con.execute(
            "INSERT INTO main.live_record_releases (hash, target, commit) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [record.last_hash, url, commit],
        )
    return Release(url, commit, new, f"{'published' if new else 'found'} {until} on {url}")


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
    known = head.file(_CARD).read_text(encoding="utf-8") if _CARD in paths else render("record_card.md", kind=head.kind)
    return files | {PAGE: record.folder / PAGE, _CARD: with_section(known, record_section(summary)).encode()}
