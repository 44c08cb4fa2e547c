"""Releases the champion: a folder under FINJEPA_HOME/releases/ first, and from there to the Hub when a repository is named.

A content is released once. A checkpoint that was only trained or judged again is not released again under another card.
"""

from dataclasses import dataclass

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_pipeline.publishing import hub
from finjepa_pipeline.publishing.card import card_of
from finjepa_pipeline.publishing.gate import Champion
from finjepa_pipeline.publishing.live_record import card_section
from finjepa_pipeline.publishing.package import Package, package_of, places_of, public, write_package
from finjepa_pipeline.report.live_record import with_section
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import keep
from finjepa_pipeline.training.checkpoints import checkpoint_here
from finjepa_pipeline.warehouse import Warehouse

LOCAL = "local"
_NOTE = """
    INSERT INTO main.releases (checkpoint, content_hash, target, commit, tag)
    VALUES ($checkpoint, $content_hash, $target, $commit, $tag) ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class Release:
    """Where the champion stands released.

    Attributes:
        url, commit: of the Hub repository; None when none is configured, or the Hub client is offline.
        new: whether this call released anything, here or on the Hub.
        note: one line that says what happened.
    """

    package: Package
    url: str | None
    commit: str | None
    new: bool
    note: str


def release(settings: Settings, warehouse: Warehouse, champion: Champion, repo_id: str | None) -> Release:
    """Release the champion into `releases/`, and to the Hub if `repo_id` is given; what stands there already is left alone.

    The warehouse is open only to look and to note, never while anything is uploaded.

    Raises:
        FinJEPAError: if the checkpoint is gone, or the Hub refuses or stays out of reach. The local folder stays either way,
            and the next call goes on from it.
    """
    package = _package(settings, champion)
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
        return Release(package, None, None, new, f"{local}; no Hub repository is configured")
    url = hub.repo_url(repo_id)
    with warehouse.connect() as con:
        query = "SELECT commit FROM main.releases WHERE content_hash = ? AND target = ?"
        known = con.execute(query, [package.content_hash, url]).fetchall()
    if known:
        return Release(package, url, known[0][0], new, f"{package.tag} is on {url} already")
    if hub.is_offline():
        note = f"{local}; HF_HUB_OFFLINE is set, and a later run publishes it to {repo_id}"
        return Release(package, None, None, new, note)
    made = hub.publish(package, repo_id)
    with warehouse.connect() as con:
        _note(con, package, url, made.commit)
    done = "published" if made.new else "found"
    return Release(package, url, made.commit, made.new, f"{done} {package.tag} on {url}")


def plan_release(settings: Settings, champion: Champion, repo_id: str | None) -> str:
    """What `release` would do, in one line; nothing is changed here or on the Hub."""
    package = _package(settings, champion)
    local = "is in" if package.folder.is_dir() else "would be written to"
    plan = f"{package.tag} (checkpoint {champion.checkpoint}) {local} {package.folder}"
    if repo_id is None:
        return f"{plan}; no Hub repository is configured"
    if hub.is_offline():
        return f"{plan}; HF_HUB_OFFLINE is set, so nothing would be sent to {repo_id}"
    commit = hub.published(package, repo_id)
    if commit is not None:
        return f"{plan}; {hub.repo_url(repo_id)} has it already, commit {commit[:8]}"
    return f"{plan}; {hub.repo_url(repo_id)} would get one commit and the tag {package.tag}"


def _package(settings: Settings, champion: Champion) -> Package:
    folder = checkpoint_here(settings, champion.checkpoint)
    if folder is None:
        raise FinJEPAError(f"the champion {champion.checkpoint} is gone from {settings.checkpoints}; train it again")
    return package_of(folder, settings.releases)


def _note(con: duckdb.DuckDBPyConnection, package: Package, target: str, commit: str | None) -> None:
    known = {name: getattr(package, name) for name in ("checkpoint", "content_hash", "tag")}
    con.execute(_NOTE, known | {"target": target, "commit": commit})
