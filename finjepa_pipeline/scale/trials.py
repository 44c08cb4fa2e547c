"""Trainings of a sweep side by side on a Ray cluster, as trials of Ray Tune; its scheduler ASHA ends those that fall behind.

A trial is one training process in its own run folder, the one that a training alone would have: what a trial has trained to the
end becomes a checkpoint without training, and what was lost with its node goes on from its last saved state.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import read_metrics
from finjepa_pipeline.scale.cluster import connected
from finjepa_pipeline.scale.rank_host import Outcome, RankHost
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import keep, store_of
from finjepa_pipeline.training.exchange import FAILURE_FILE, RESULT_FOLDER
from finjepa_pipeline.training.mirror import send
from finjepa_pipeline.training.run import begin, checkpoint_id
from finjepa_pipeline.training.sweep import Ended, number

Record = Mapping[str, Any]
_KEPT_AT_A_RUNG = 2  # one of so many goes on
_LOSSES = 3  # of its node or process that a trial survives
_PATIENCE_S = 0.5


def run_trials(
    settings: Settings,
    panel: Panel,
    wanted: Mapping[str, FinJEPAConfig],
    metric: str,
    stop_early: bool,
    threads: int,
    log: Callable[[str], object],
) -> dict[str, Ended]:
    """Train all configs that have no checkpoint, as many at once as the cluster has GPUs, or CPUs where it has none.

    Args:
        metric: of the validation records; lower is better.
        stop_early: end a trial whose metric is in the worse half of those that came as far.
        threads: of a trial on a CPU.

    Returns:
        How each trial ended, by the name of its config.

    Raises:
        FinJEPAError: if there is no cluster, or every trial failed.
    """
    assert settings.ray_address is not None
    runs = {name: settings.checkpoints / f"{checkpoint_id(config, panel)}.run" for name, config in wanted.items()}
    runs = {name: run for name, run in runs.items() if not run.with_suffix("").is_dir()}
    if not runs:
        return {}
    store = store_of(settings)
    keep(settings, panel.folder)
    for name, run in runs.items():
        begin(wanted[name], run)
        if store is not None:
            send(store, run)
    steps = {name: wanted[name].training.epochs * wanted[name].training.steps_per_epoch for name in runs}
    first = min(wanted[name].training.steps_per_epoch for name in runs)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # how a run is cancelled is Dagster's affair
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with connected(settings.ray_address) as ray:
        from ray import tune  # pyright: ignore[reportMissingImports]
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler  # pyright: ignore[reportMissingImports]

        asha = ASHAScheduler(
            time_attr="step", max_t=max(steps.values()), grace_period=first, reduction_factor=_KEPT_AT_A_RUNG
        )
        need = {"cpu": 1, "gpu": 1} if ray.cluster_resources().get("GPU") else {"cpu": 1}
        log(f"{len(runs)} trainings, as trials on {settings.ray_address}")
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    trial,
                    panel=panel.folder,
                    runs=runs,
                    steps=steps,
                    metric=metric,
                    threads=threads,
                    artifacts=settings.artifacts,
                ),
                need,
            ),
            param_space={"name": tune.grid_search(list(runs))},
            tune_config=tune.TuneConfig(
                metric="value", mode="min", scheduler=asha if stop_early else FIFOScheduler(), reuse_actors=False
            ),
            run_config=tune.RunConfig(
                storage_path=str(settings.home / "sweeps"),
                failure_config=tune.FailureConfig(max_failures=_LOSSES),
                verbose=0,
            ),
        ).fit()
    for result in results:
        run = runs[result.config["name"]]
        if store is not None and (result.metrics or {}).get("far"):
            store.get(run.parent.name, run.name, run)
    ended = {result.config["name"]: _ended(result, runs[result.config["name"]]) for result in results}
    for name, end in ended.items():
        log(f"{name}: {end.why or 'trained to its end'}, {end.steps} steps")
    if not any(end.whole or end.steps for end in ended.values()):
        raise FinJEPAError(f"every training of the sweep failed; the first: {next(iter(ended.values())).why}")
    return ended


def trial(
    config: dict[str, Any],
    *,
    panel: Path,
    runs: Mapping[str, Path],
    steps: Mapping[str, int],
    metric: str,
    threads: int,
    artifacts: str | None,
) -> None:
    """One training, on a node of the cluster; Tune is told every evaluation, and may end it there.

    The last one is told when the training is over: who has come to the end has a checkpoint to write, and is not ended before.
    """
    from ray import tune  # pyright: ignore[reportMissingImports]

    host = RankHost(panel, runs[config["name"]], artifacts)
    place = host.place()
    if place.trouble:
        raise FinJEPAError(f"the node {place.address} {place.trouble}")
    found: list[Outcome] = []
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": str(threads)}
    training = threading.Thread(target=lambda: found.append(host.train(environment, place.address, "rank-0.log")))
    training.start()
    told = 0
    try:
        while True:
            over = not training.is_alive()
            for record in evaluations(read_metrics(host.run_folder), told, steps[config["name"]], over):
                told = record["step"]
                # raises SystemExit where Tune has seen enough
                tune.report({"step": told, "value": number(record, metric), "far": not place.sees})
            if over:
                break
            time.sleep(_PATIENCE_S)
    finally:
        host.kill()
        training.join()
    if not found or found[0].status != 0:
        raise RuntimeError(f"the training process failed: {found[0].last_line if found else 'no message'}")


def evaluations(records: Iterable[Record], told: int, steps: int, over: bool) -> list[Record]:
    """Those of a training of so many steps that are to be told next, after the one at step `told`."""
    return [r for r in records if r["kind"] == "validation" and told < r["step"] and (over or r["step"] < steps)]


def _ended(result: Any, run_folder: Path) -> Ended:
    told = result.metrics or {}
    value, steps = float(told.get("value", float("inf"))), int(told.get("step", 0))
    if (run_folder / RESULT_FOLDER / "metrics.json").is_file():
        return Ended(value, steps, True)
    if (run_folder / FAILURE_FILE).is_file():
        return Ended(value, steps, False, (run_folder / FAILURE_FILE).read_text(encoding="utf-8").strip())
    if result.error is not None:
        return Ended(value, steps, False, (str(result.error).strip().splitlines() or ["failed"])[-1])
    return Ended(value, steps, False, "stopped early")
