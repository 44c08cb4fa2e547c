"""What a home may lose when its disk fills: what nobody needs any more.

Never removed: the warehouse (prices in every revision, results of every configuration tried), releases, decisions, the champion
of now and of every earlier day, and the lineage and curves of every training, from which a removed checkpoint can be made again.
"""

import re
import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from huggingface_hub import scan_cache_dir

from finjepa_model.checkpoint import read_config
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_pipeline.runs import end_lost_runs, holder, is_held, lock_of, lost_process
from finjepa_pipeline.settings import Settings

KEEP = 14
_RESERVE_BYTES = 2 << 20
_HALF_WRITTEN_S = 86_400.0
_RUNS_A_NIGHT = 4  # the schedule starts one a night; commands and the UI add some
_ID = re.compile(r"\b[0-9a-f]{16}\b")
_USING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_IN_TABLES = {  # checkpoints that tables of the warehouse name; a planner may name others
    "champions": "SELECT checkpoint, strategy FROM main.champions WHERE verdict = 'promoted'",
    "decision_portfolios": "SELECT checkpoint, planner FROM main.decision_portfolios WHERE book <> 'trial'",
    "walk_forward_folds": "SELECT checkpoint, '' FROM main.walk_forward_folds",
}


@dataclass(frozen=True)
class Removal:
    """Something that may go: its kind in the plural, a file or folder (of a run of Dagster its id), and the bytes that are
    gained."""

    kind: str
    place: Path | str
    bytes: int


@dataclass
class CleaningPlan:
    """What goes, and how many are kept, by kind."""

    removals: list[Removal] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)

    def keep(self, kind: str, places: Iterable[Path], needed: Collection[str], newest: int) -> set[str]:
        """Keep what is needed, by name, and the newest of the rest; returns the names of what stays."""
        found = sorted(places, key=lambda path: path.lstat().st_mtime, reverse=True)
        gone = [place for place in found if place.name not in needed][newest:]
        self.remove(kind, *gone)
        self.kept[kind] = len(found) - len(gone)
        return {place.name for place in found} - {place.name for place in gone}

    def remove(self, kind: str, *places: Path) -> None:
        self.removals += [Removal(kind, place, _bytes(place)) for place in places]


def hold_reserve(settings: Settings) -> None:
    """Keep room on the disk that `release_reserve` gives back: on a full one SQLite cannot even read, nor clean."""
    reserve = settings.home / ".reserve"
    if not reserve.exists():
        try:
            reserve.write_bytes(bytes(_RESERVE_BYTES))
        except OSError:
            release_reserve(settings)


def release_reserve(settings: Settings) -> None:
    (settings.home / ".reserve").unlink(missing_ok=True)


def clean(
    settings: Settings,
    con: duckdb.DuckDBPyConnection,
    instance: dg.DagsterInstance,
    keep: int = KEEP,
    dry_run: bool = False,
    own_run: str | None = None,
) -> CleaningPlan:
    """Remove what is not needed any more.

    Args:
        keep: how many of each kind stay beside those that are needed, the newest.
        dry_run: only return what would go.
        own_run: the run that calls this; it is not in its own way.

    Raises:
        FinJEPAError: if a run of this home is alive: it may use anything.
    """
    if keep < 1:
        raise FinJEPAError(f"--keep {keep}: keep at least 1")
    found = _plan(settings, con, instance, keep)
    if dry_run:
        return found
    alive = living(settings, instance, own_run)
    if alive is not None:
        raise FinJEPAError(f"{alive} uses this home: nothing was removed; run `finjepa clean` again when it has ended")
    for half_written in (path for depth in ("", "*/", "*/*/") for path in settings.home.glob(f"{depth}.tmp-*")):
        if time.time() - half_written.lstat().st_mtime > _HALF_WRITTEN_S:  # so old that no living process uses it
            _delete(half_written)
    for one in found.removals:  # runs come last: their removal writes to tables, and the disk may be full
        if isinstance(one.place, str):
            instance.compute_log_manager.delete_logs(prefix=[one.place])
            instance.delete_run(one.place)
            for left in _of_run(settings, one.place):
                _delete(left)
        else:
            _remove(settings, one.place)
    end_lost_runs(instance)
    return found


def living(settings: Settings, instance: dg.DagsterInstance, own_run: str | None = None) -> str | None:
    """A command or run, other than the own one, that may use what is in this home."""
    for run in instance.get_runs(dg.RunsFilter(statuses=_USING)):
        if run.run_id != own_run and lost_process(instance, run) is None:
            return holder(lock_of(instance, run.run_id)) or f"the run {run.run_id[:8]} of {run.job_name}"
    for lock in (settings.dagster / "commands").glob("*.lock"):
        if lock.stem != own_run and is_held(lock):
            return holder(lock) or f"the process that holds {lock}"
    return None


def _plan(settings: Settings, con: duckdb.DuckDBPyConnection, instance: dg.DagsterInstance, keep: int) -> CleaningPlan:
    """What can go and what stays; nothing is changed."""
    made, home = CleaningPlan(), settings.home
    finished = [path for path in _folders(settings.checkpoints) if path.suffix != ".run"]
    checkpoints = made.keep("checkpoints", finished, _needed(settings, con, instance), keep)
    # the run folder with the curves stays: every configuration that was tried counts
    states = [run for run in settings.checkpoints.glob("*.run") if any(run.rglob("*.pt"))]
    states.sort(key=lambda run: run.stat().st_mtime, reverse=True)
    of_interrupted = [run for run in states if not run.with_suffix("").is_dir()][:keep]
    for run in states:
        if run not in of_interrupted:
            made.remove("states of trainings", *sorted(run.rglob("*.pt")))
    made.kept["states of trainings"] = len(of_interrupted)
    # of panels and of what a cluster or Ray keeps, the newest other one may still be open in a reader
    panels = {name for path in finished if path.name in checkpoints for name in _learned_from(path)}
    panels.add(_pointed(settings.panels / "current.json", "panel"))
    made.keep("panels", _folders(settings.panels), panels, 1)
    reports = _folders(settings.reports)
    of_kept = {path.name for path in reports if path.name.partition("-")[0] in checkpoints}
    made.keep("reports", reports, of_kept | {"decisions"}, keep)
    made.keep("reproductions", _folders(home / "reproductions"), (), 1)
    made.keep("states of a cluster", _folders(home / "ray"), (), 1)  # of trainings whose driver was killed
    hub = home / "sources" / "hub"
    made.keep("converted data sets", (hub / "converted").glob("*.parquet"), (), 1)
    for repo in scan_cache_dir(hub).repos if any(hub.glob("datasets--*")) else ():  # their rows are in the warehouse
        for old in sorted(repo.revisions, key=lambda revision: revision.last_modified)[:-1]:
            made.removals.append(Removal("downloaded revisions", old.snapshot_path, old.size_on_disk))
    # runs but the newest, and but those that made what an asset shows now: lineages refer to them
    events = [instance.get_latest_materialization_event(key) for key in instance.all_asset_keys()]
    shown = {event.run_id for event in events if event is not None}
    runs = list(instance.get_runs(dg.RunsFilter(statuses=FINISHED_STATUSES)))  # the newest first
    old_runs = [run.run_id for run in runs[keep * _RUNS_A_NIGHT :] if run.run_id not in shown]
    made.removals += [Removal("runs of Dagster", run, sum(map(_bytes, _of_run(settings, run)))) for run in old_runs]
    made.kept |= {"runs of Dagster": len(runs) - len(old_runs), "releases": len(_folders(settings.releases))}
    return made


def _learned_from(checkpoint: Path) -> tuple[str, ...]:
    """Panels that a checkpoint learned from beside its own."""
    try:
        return read_config(checkpoint).training.panels
    except FinJEPAError:  # damaged
        return ()


def _needed(settings: Settings, con: duckdb.DuckDBPyConnection, instance: dg.DagsterInstance) -> set[str]:
    """Checkpoints that somebody needs: nightly.yaml, the newest sweep, tables, or whoever asks for the newest."""
    config = settings.nightly_config
    needed = set(_ID.findall(config.read_text(encoding="utf-8"))) if config.is_file() else set()
    swept = instance.get_latest_materialization_event(dg.AssetKey("model_sweep"))
    if swept is not None and swept.asset_materialization is not None:
        found = swept.asset_materialization.metadata.get("checkpoints")
        names: Any = found.value if found is not None else {}
        needed |= set(names.values())
    tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for table in tables & _IN_TABLES.keys():
        texts = [text or "" for row in con.execute(_IN_TABLES[table]).fetchall() for text in row]
        needed.update(*map(_ID.findall, texts))
    return needed | {_pointed(settings.checkpoints / "current.json", "checkpoint")}


def _pointed(pointer: Path, name: str) -> str:
    return read_json(pointer)[name] if pointer.is_file() else ""


def _folders(parent: Path) -> list[Path]:
    found = parent.iterdir() if parent.is_dir() else ()
    return [path for path in found if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]


def _of_run(settings: Settings, run_id: str) -> list[Path]:
    """Files that Dagster keeps of a run beside its tables: the database of its events, and what it printed."""
    return [*(settings.dagster / "history" / "runs").glob(f"{run_id}.db*"), *settings.dagster.glob(f"storage/{run_id}")]


def _remove(settings: Settings, place: Path) -> None:
    """A folder goes at once, so that nobody finds half of it; a killed process leaves a `.tmp-` that is removed later."""
    if place.parent == settings.checkpoints:
        run = place.with_name(f"{place.name}.run")
        if run.is_dir() and (place / "lineage.json").is_file():  # the recipe, to make it again
            shutil.copyfile(place / "lineage.json", run / "lineage.json")
    if place.parent.name == "snapshots":  # of the Hub client, which shares files between revisions
        scan_cache_dir(place.parent.parent.parent).delete_revisions(place.name).execute()
        return
    gone = place.with_name(f".tmp-clean-{place.name}")
    _delete(gone)
    place.rename(gone)
    _delete(gone)


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _bytes(place: Path) -> int:
    """That the disk gains: a file with a second name elsewhere stays there."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(found.st_blocks * 512 for file in files if (found := file.lstat()).st_nlink == 1)
