"""Releases the champion: a folder under FINJEPA_HOME/releases/ first, and from there to the Hub where a repository is named; and
the live record: one commit for what is not on the Hub yet, with the times at which it was written.

A content is released once: a checkpoint that was only trained or judged again is not released again under another card. Every
attempt first looks at what stands on the Hub and then does only what is missing. So a lost answer, a faster publisher, a crash
between commit and tag, and a second run are one case: the next look finds the commit by its title and goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download, set_client_factory
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import GitRefs
from huggingface_hub.utils import httpx

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_model.hub import RepoKind, answer_of, patiently, repo_url, without_token
from finjepa_model.live_record.chain import FOLDER, TABLES
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
ATTEMPTS = 8
LONGEST_WAIT_S = 300.0  # a Hub that asks for more is left for the next run
REQUEST_TIMEOUT_S = 60.0  # the client's own default is to wait for ever
_CARD = "README.md"
_TROUBLE = (httpx.HTTPError, OSError, RuntimeError, ValueError)  # RuntimeError: how the client wraps a failed upload
_NOTE = """
    INSERT INTO main.releases (checkpoint, content_hash, target, commit, tag)
    VALUES ($checkpoint, $content_hash, $target, $commit, $tag) ON CONFLICT DO NOTHING
"""

set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=REQUEST_TIMEOUT_S))


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
    """Release the champion into `releases/`, and to the Hub if `repo_id` is given; what stands there already is left alone. The
    warehouse is open only to look and to note, never while anything is uploaded.

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
        known = con.execute(query, [package.content_hash, url]).fetchone()
    if known:
        return Release(url, known[0], new, f"{package.tag} is on {url} already", package)
    if constants.is_offline_mode():
        note = f"{local}; HF_HUB_OFFLINE is set, and a later run publishes it to {repo_id}"
        return Release(None, None, new, note, package)
    files = {name: package.folder / name for name in CHECKPOINT_FILES}
    content = f"content {package.content_hash}"
    commit, new_there = _publish(
        repo_id, "model", package.title, lambda _: files, _stays(package), package.tag, content
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
    if constants.is_offline_mode():
        return f"{plan}; HF_HUB_OFFLINE is set, so nothing would be sent to {repo_id}"
    try:
        commit = _find_commit(HfApi(), repo_id, "model", package.title)
    except RepositoryNotFoundError:
        commit = None
    except _TROUBLE as error:
        raise _refused(error, repo_id, _stays(package)) from None
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
    if constants.is_offline_mode():
        return Release(None, None, False, f"HF_HUB_OFFLINE is set, and a later run publishes {until} to {repo_id}")
    title = f"Live record until {record.sessions[-1]} ({record.last_hash[:8]})"
    stays = f"the live record stays in {record.folder}, and the next nightly run publishes it"
    commit, new = _publish(repo_id, kind, title, lambda head: _missing(summary, head), stays)
    with warehouse.connect() as con:
        con.execute(
            "INSERT INTO main.live_record_releases (hash, target, commit) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [record.last_hash, url, commit],
        )
    return Release(url, commit, new, f"{'published' if new else 'found'} {until} on {url}")


def _missing(summary: RecordSummary, head: "_Head") -> dict[str, Path | bytes]:
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


# The Hub


@dataclass(frozen=True)
class _Head:
    """What stands on the main branch of a repository at one commit."""

    api: HfApi
    repo_id: str
    kind: RepoKind
    commit: str | None

    def paths(self) -> set[str]:
        return set(self.api.list_repo_files(self.repo_id, repo_type=self.kind, revision=self.commit))

    def file(self, path: str) -> Path:
        return Path(hf_hub_download(self.repo_id, path, repo_type=self.kind, revision=self.commit))


def _publish(
    repo_id: str,
    kind: RepoKind,
    title: str,
    files: Callable[[_Head], Mapping[str, Path | bytes]],
    stays: str,
    tag: str | None = None,
    description: str = "",
) -> tuple[str, bool]:
    """Make the Hub hold one commit with this title, and the tag on it, whatever was there and whatever goes wrong on the way; the
    commit, and whether this call made it.

    Args:
        files: what to commit, by path in the repository, from what stands there; it may refuse with a FinJEPAError.
        stays: the end of the message where the Hub refuses.
    """

    def attempt() -> tuple[str, bool]:
        api = HfApi()
        refs = _refs(api, repo_id, kind)
        commit = _find_commit(api, repo_id, kind, title)
        new = commit is None
        if commit is None:
            # named as the parent of a commit, the Hub refuses where somebody committed since
            parent = next((branch.target_commit for branch in refs.branches if branch.name == "main"), None)
            wanted = files(_Head(api, repo_id, kind, parent)).items()
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(path, content) for path, content in wanted],
                commit_message=title,
                commit_description=description,
                repo_type=kind,
                parent_commit=parent,
            ).oid
        tagged = next((one.target_commit for one in refs.tags if one.name == tag), None)
        if tag is not None and tagged != commit:
            if tagged is not None:
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=commit)
        return commit, new

    return patiently(attempt, lambda error: _refused(error, repo_id, stays), ATTEMPTS, LONGEST_WAIT_S, _TROUBLE)


def _refs(api: HfApi, repo_id: str, kind: RepoKind) -> GitRefs:
    """Branches and tags of a repository, which is made where there is none."""
    try:
        return api.list_repo_refs(repo_id, repo_type=kind)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type=kind, exist_ok=True)
        return api.list_repo_refs(repo_id, repo_type=kind)


def _find_commit(api: HfApi, repo_id: str, kind: RepoKind, title: str) -> str | None:
    """The first commit that has this title."""
    titled = [commit.commit_id for commit in api.list_repo_commits(repo_id, repo_type=kind) if commit.title == title]
    return titled[-1] if titled else None


def _refused(error: Exception, repo_id: str, stays: str) -> FinJEPAError:
    status, asked = answer_of(error)
    token = get_token()
    said = (str(error).strip().splitlines() or [""])[0]
    said = without_token(said.replace(token, "***") if token else said)
    if status == 401:
        found = "the Hub does not accept the token (401): run `hf auth login`, or put a valid one into HF_TOKEN"
    elif isinstance(error, GatedRepoError):
        found = f"the Hub repository {repo_id} is gated for this token: ask its owner for access"
    elif status == 403:
        found = f"the token may not write to {repo_id} (403): use one with write access, or another --hub-repo-id"
    elif status == 429:
        found = f"the Hub asks to wait {asked or 'a few'} seconds (429)"
    elif status is not None:
        found = f"the Hub answers {status} for {repo_id} ({said})"
    elif isinstance(error, ValueError):
        found = f"the Hub client refuses {repo_id}: {said}"
    else:
        found = f"the Hub cannot be reached ({type(error).__name__}: {said})"
    return FinJEPAError(f"{found}; {stays}")
