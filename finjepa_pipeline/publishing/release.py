"""Releases the champion: a folder under FINJEPA_HOME/releases/ first, and from there to the Hub when a repository is named.

A content is released once. A checkpoint that was only trained or judged again is not released again under another card.
"""

from dataclasses import dataclass, replace

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_pipeline.backtest.leaderboard import traded_assets
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.publishing import hub
from finjepa_pipeline.publishing.card import Corrections, Standing, model_card
from finjepa_pipeline.publishing.gate import Champion, current_champion, known_findings
from finjepa_pipeline.publishing.package import Package, package_of, places_of, public, public_strategy, write_package
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import keep
from finjepa_pipeline.training.checkpoints import checkpoint_here
from finjepa_pipeline.warehouse import Warehouse

LOCAL = "local"


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
    new_locally = not package.folder.is_dir()
    with warehouse.connect() as con:
        if new_locally:
            card = card_of(con, settings, package, champion)
            write_package(package, settings.checkpoints / champion.checkpoint, card, settings.home)
        _note(con, package, LOCAL, None)
    keep(settings, package.folder)
    local = f"{'wrote' if new_locally else 'already released in'} {package.folder}"
    if repo_id is None:
        return Release(package, None, None, new_locally, f"{local}; no Hub repository is configured")
    url = hub.repo_url(repo_id)
    with warehouse.connect() as con:
        known = _released_to(con, package, url)
    if known:
        return Release(package, url, known[0][0], new_locally, f"{package.tag} is on {url} already")
    if hub.is_offline():
        note = f"{local}; HF_HUB_OFFLINE is set, and a later run publishes it to {repo_id}"
        return Release(package, None, None, new_locally, note)
    publication = hub.publish(package, repo_id)
    with warehouse.connect() as con:
        _note(con, package, url, publication.commit)
    done = "published" if publication.new else "found"
    return Release(package, url, publication.commit, publication.new, f"{done} {package.tag} on {url}")


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


def is_outstanding(con: duckdb.DuckDBPyConnection, settings: Settings) -> bool:
    """Whether the champion waits for the Hub repository of the settings."""
    champion = current_champion(con)
    if champion is None or settings.hub_repo_id is None or hub.is_offline():
        return False
    return not con.execute(
        "SELECT 1 FROM main.releases AS there JOIN main.releases AS here USING (content_hash) "
        "WHERE here.checkpoint = $checkpoint AND there.target = $target",
        {"checkpoint": champion.checkpoint, "target": hub.repo_url(settings.hub_repo_id)},
    ).fetchall()


def card_of(con: duckdb.DuckDBPyConnection, settings: Settings, package: Package, champion: Champion) -> str:
    """The model card of a package, from the checkpoint's files, its newest leaderboard and the gate's reasons."""
    folder, key = settings.checkpoints / champion.checkpoint, {"checkpoint": champion.checkpoint}
    names = ("config", "metrics", "lineage", "normalization")
    config, metrics, lineage, normalization = (read_json(folder / f"{name}.json") for name in names)
    places = places_of(lineage, settings.home)
    reasons = con.execute(
        "SELECT reasons FROM main.champions WHERE checkpoint = $checkpoint AND verdict = 'promoted' "
        "ORDER BY created_at DESC, rowid DESC LIMIT 1",
        key,
    ).fetchall()
    return model_card(
        tag=package.tag,
        config=config,
        metrics=metrics,
        lineage=public(lineage, places),
        normalization=normalization,
        standings=[replace(one, strategy=public_strategy(one.strategy)) for one in standings(con, champion.checkpoint)],
        planner=public_strategy(champion.strategy),
        verdict=public(reasons[0][0].split("\n") if reasons else [], places),
        checks=[replace(c, detail=public(c.detail, places)) for c in known_findings(con, champion.checkpoint)],
        corrections=corrections(con, champion.checkpoint),
        traded=traded_assets(con, champion.checkpoint),
        ended=_ended(con, lineage["data"]["data_version"]),
    )


def standings(con: duckdb.DuckDBPyConnection, checkpoint: str) -> list[Standing]:
    """A checkpoint's newest leaderboard."""
    columns = ", ".join(Standing.__dataclass_fields__)
    rows = con.execute(
        f"SELECT {columns} FROM main.leaderboard WHERE checkpoint = $checkpoint AND data_version = (SELECT data_version "
        "FROM main.leaderboard WHERE checkpoint = $checkpoint ORDER BY created_at DESC LIMIT 1) "
        "ORDER BY block, sharpe DESC NULLS LAST, strategy",
        {"checkpoint": checkpoint},
    ).fetchall()
    return [Standing(*row) for row in rows]


def corrections(con: duckdb.DuckDBPyConnection, checkpoint: str) -> Corrections | None:
    """What is said of the whole test block of a checkpoint's newest leaderboard."""
    rows = con.execute(
        "SELECT trials, effective_trials, pbo, spa_p FROM main.backtest_inference "
        "WHERE checkpoint = $checkpoint AND block = 'test' ORDER BY created_at DESC LIMIT 1",
        {"checkpoint": checkpoint},
    ).fetchall()
    return Corrections(*rows[0]) if rows else None


def _ended(con: duckdb.DuckDBPyConnection, data_version: str) -> tuple[int, int] | None:
    """How many companies ended, and how many there are, in the prices of a checkpoint; None where others have taken their
    place in the tables."""
    revision = current_revision(con)
    if revision is None or revision.data_version != data_version:
        return None
    [(ended, companies)] = con.execute("SELECT count(ended_because), count(*) FROM main.entities").fetchall()
    return ended, companies


def _package(settings: Settings, champion: Champion) -> Package:
    folder = checkpoint_here(settings, champion.checkpoint)
    if folder is None:
        raise FinJEPAError(f"the champion {champion.checkpoint} is gone from {settings.checkpoints}; train it again")
    return package_of(folder, settings.releases)


def _released_to(con: duckdb.DuckDBPyConnection, package: Package, target: str) -> list[tuple[str]]:
    query = "SELECT commit FROM main.releases WHERE content_hash = $content_hash AND target = $target"
    return con.execute(query, {"content_hash": package.content_hash, "target": target}).fetchall()


def _note(con: duckdb.DuckDBPyConnection, package: Package, target: str, commit: str | None) -> None:
    con.execute(
        "INSERT INTO main.releases (checkpoint, content_hash, target, commit, tag) "
        "VALUES ($checkpoint, $content_hash, $target, $commit, $tag) ON CONFLICT DO NOTHING",
        {
            "checkpoint": package.checkpoint,
            "content_hash": package.content_hash,
            "target": target,
            "commit": commit,
            "tag": package.tag,
        },
    )
