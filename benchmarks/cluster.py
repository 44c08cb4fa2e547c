"""What Ray costs over one machine for the same work on the same cores, what a second core brings, and how many bytes move.

    python benchmarks/cluster.py FOLDER [--repeats 3] [--works fixed,train,walks,folds] [--small]

needs the extra ray and two cores that nobody else uses; cluster_model.py says from it what larger clusters would take. Every case
runs in a process of its own, bound to its cores with all that it starts, one thread a process; on Ray every core is a node. Each
case is a line of FOLDER/results.jsonl as soon as it is known, and is not run again; it tells how much of its cores others took.
Bytes are those of the loopback device.
"""

import argparse
import hashlib
import json
import os
import pickle
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ray_nodes import MARK, Neighbours, cluster, cores_of, loopback, on_this_machine

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.batches import history_needed, split_dates
from finjepa_model.data.panel import Panel
from finjepa_model.training.state import read_metrics
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.backtest.docket import Docket
from finjepa_pipeline.backtest.engine import Court
from finjepa_pipeline.backtest.evaluate import Hearing, _judge_here
from finjepa_pipeline.backtest.folds import fold_blocks, make_plan
from finjepa_pipeline.backtest.proving import ProvingGround
from finjepa_pipeline.backtest.store import Case, Evidence
from finjepa_pipeline.publishing.package import sha256
from finjepa_pipeline.scale.walks import Sitting, judge_on
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.run import for_panel, train_checkpoint

WORKS = ("fixed", "train", "walks", "folds")
CASES = {  # on one machine strategies and folds come one after the other, on one core; only ranks take a second
    "fixed": (("ray", 1),),
    "train": (("local", 1), ("ray", 1), ("local", 2), ("ray", 2)),
    "walks": (("local", 1), ("ray", 1), ("ray", 2)),
    "folds": (("local", 1), ("ray", 1), ("ray", 2)),
}
TRAINING = {
    "training.epochs": "1", "training.batch_size": "64", "training.n_assets": "8", "training.evaluate_batches": "1",
    "training.log_every": "5",
}  # fmt: skip
EMPTY_TASKS = 200
PARTS = {
    "to_connect": "connection", "first_task": "first task", "a_task": "an empty task", "a_step": "a step",
    "in_training": "training",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Of the work: steps of a training and of a fold's, folds, sessions that are walked."""

    steps: int = 60
    fold_steps: int = 20
    folds: int = 4
    sessions: int = 500


SMALL = Size(steps=10, fold_steps=5, folds=2, sessions=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    size, results = SMALL if arguments.small else Size(), arguments.folder / "results.jsonl"
    if arguments.case:
        work, where, cores = arguments.case
        one_case(arguments.folder, size, work, where, int(cores))
        return
    ProvingGround.of(arguments.folder / "market", "drift", 0)
    a_checkpoint(arguments.folder, size)
    for repeat in range(arguments.repeats):
        for work in arguments.works.split(","):
            for where, cores in CASES[work]:
                key = {"work": work, "where": where, "cores": cores, "repeat": repeat}
                if any(key.items() <= row.items() for row in read(results)):
                    continue
                program = [sys.executable, *sys.argv, "--case", work, where, str(cores)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: "1"}
                with Neighbours(cores_of(cores)) as neighbours:
                    done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                others = neighbours.between(found.pop("began"), found.pop("ended"))
                row = key | found | {"of_others": others}
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(read(results)))


def one_case(folder: Path, size: Size, work: str, where: str, cores: int) -> None:
    """Print what one case takes, as JSON."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the nodes end with it
    os.sched_setaffinity(0, cores_of(cores))
    panel = ProvingGround.of(folder / "market", "drift", 0).panel
    home = folder / f"{work}-{where}-{cores}"
    shutil.rmtree(home, ignore_errors=True)
    with cluster(cores) if where == "ray" else on_this_machine() as address:
        settings, began = Settings(home=home, compute=address).ensure(), time.monotonic()
        if work == "fixed":
            found = fixed(settings)
        elif work == "train":
            found = train(settings, panel, cores, size)
        elif work == "walks":
            found = walks(settings, panel, a_checkpoint(folder, size), size)
        else:
            found = folds(settings, panel, size)
        ended = time.monotonic()
    print(json.dumps(found | {"began": began, "ended": ended}), flush=True)


def fixed(settings: Settings) -> dict:
    """Seconds to become a driver, for a first task and for one of many that do nothing."""
    from finjepa_pipeline.scale.cluster import as_task, connected

    assert settings.ray_address is not None
    started = time.monotonic()
    with connected(settings.ray_address) as ray:
        nothing, there = as_task(ray, do_nothing), time.monotonic()
        ray.get(nothing.remote())
        first, before = time.monotonic(), loopback()
        ray.get([nothing.remote() for _ in range(EMPTY_TASKS)])
        last, moved = time.monotonic(), loopback() - before
    return {
        "seconds": time.monotonic() - started,
        "to_connect": there - started,
        "first_task": first - there,
        "a_task": (last - first) / EMPTY_TASKS,
        "bytes_moved": moved,
        "tasks": EMPTY_TASKS,
        "digest": "",
    }


def do_nothing() -> None: ...


def train(settings: Settings, panel: Panel, ranks: int, size: Size) -> dict:
    """Seconds from the command to the checkpoint, and those of its steps."""
    before, started = loopback(), time.monotonic()
    checkpoint = trained(settings, panel, config_of(panel, size.steps), ranks)
    seconds, moved = time.monotonic() - started, loopback() - before
    run = checkpoint.with_name(f"{checkpoint.name}.run")
    last = [r for r in read_metrics(run) if r["kind"] == "train"][-1]
    parameters = sum(p.numel() for p in FinJEPA.from_pretrained(checkpoint).parameters() if p.requires_grad)
    return {
        "seconds": seconds,
        "steps": size.steps,
        "a_step": int(TRAINING["training.batch_size"]) / last["samples_per_second"],
        "bytes_moved": moved,
        "bytes_of_gradients": 4 * (parameters + 1),
        "digest": sha256(checkpoint / "model.safetensors")[:8],
    }


def walks(settings: Settings, panel: Panel, checkpoint: Path, size: Size) -> dict:
    """Seconds from the call to all evidence about four planners, two controls and the baselines on one block."""
    config = FinJEPAConfig.from_json((checkpoint / "config.json").read_text())
    first, last = split_dates(len(panel.dates), config).test
    docket = Docket(planners=("cem", "mppi", "gradient", "qp"), controls=("ewma", "ridge"), n_assets=8)
    hearing = hearing_of(checkpoint, config, panel, docket, "test", (first, min(last, first + size.sessions)))
    before, started = loopback(), time.monotonic()
    ((_, evidence),) = judged(settings, [hearing])
    seconds, moved = time.monotonic() - started, loopback() - before
    return {
        "seconds": seconds,
        "tasks": tasks_of(hearing),
        "bytes_moved": moved,
        "bytes_told_a_task": len(pickle.dumps((Sitting.of(hearing, None), hearing.names[0]))),
        "bytes_of_a_walk": len(pickle.dumps(evidence.walks[0])),
        "bytes_of_the_panel": sum(file.stat().st_size for file in panel.folder.iterdir()),
        "digest": digest_of([evidence]),
    }


def folds(settings: Settings, panel: Panel, size: Size) -> dict:
    """Seconds from the plan to the evidence of all folds: a model for each, then MPPI and the baselines on its blocks."""
    plan = make_plan(panel, config_of(panel, size.fold_steps), count=size.folds, scheme="rolling", held_back=0)
    before, started = loopback(), time.monotonic()
    if settings.ray_address is not None:
        from finjepa_pipeline.scale.trials import run_trials

        run_trials(settings, panel, {f.name: f.config for f in plan.folds}, "loss", False, 1, lambda line: None)
    pending = []
    for fold in plan.folds:
        checkpoint = trained(settings, panel, fold.config, 1)
        for block in fold_blocks(panel, fold):
            docket = Docket(planners=("mppi",), n_assets=8)
            span = (block.start, block.stop)
            pending.append(hearing_of(checkpoint, fold.config, panel, docket, block.name, span, block.allowed))
    in_training = time.monotonic() - started
    found = judged(settings, pending)
    return {
        "seconds": time.monotonic() - started,
        "in_training": in_training,
        "tasks": size.folds + sum(map(tasks_of, pending)),
        "bytes_moved": loopback() - before,
        "digest": digest_of([evidence for _, evidence in found]),
    }


def config_of(panel: Panel, steps: int) -> FinJEPAConfig:
    return for_panel(preset("tiny").override(TRAINING | {"training.steps_per_epoch": str(steps)}), panel)


def a_checkpoint(folder: Path, size: Size) -> Path:
    """Whose planners are walked; made before anything is measured."""
    settings = Settings(home=folder / "model").ensure()
    panel = ProvingGround.of(folder / "market", "drift", 0).panel
    return trained(settings, panel, config_of(panel, size.fold_steps), 1)


def trained(settings: Settings, panel: Panel, config: FinJEPAConfig, ranks: int) -> Path:
    def launch(command: list[str], environment: dict[str, str]) -> None:
        subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=sys.stderr)

    lineage = {"blocks": split_dates(len(panel.dates), config).dates(panel.dates)}
    return train_checkpoint(settings, config, panel, lineage, launch, ranks, make_current=False)[0]


def hearing_of(
    checkpoint: Path,
    config: FinJEPAConfig,
    panel: Panel,
    docket: Docket,
    block: str,
    span: tuple[int, int],
    allowed=None,
) -> Hearing:
    conditions = {"stride": config.model.stride, "n_assets": docket.n_assets, "window": history_needed(config)}
    court = Court.over(panel, span, config.portfolio, allowed=allowed, **conditions)
    mark = f"{checkpoint.name}-{block}"
    return Hearing(Case(checkpoint.name, "data", block, mark), checkpoint, docket, court, tuple(docket.names(block)))


def judged(settings: Settings, pending: Sequence[Hearing]) -> list[tuple[Hearing, Evidence]]:
    if settings.ray_address is None:
        return list(_judge_here(pending, lambda line: None))
    return list(judge_on(settings, pending, lambda line: None))


def tasks_of(hearing: Hearing) -> int:
    replays = 0 if hearing.case.block == "validation" else 2 + len(hearing.forecasters)
    return len(hearing.names) + replays


def table(rows: list[dict]) -> str:
    """Medians, with the least and the most."""
    head = ("work", "where", "cores", "seconds", "of which", "bytes", "result", "core seconds of others")
    lines = [f"| {' | '.join(head)} |", "|---|---|--:|--:|---|---|---|--:|"]
    for work in WORKS:
        for where, cores in CASES[work]:
            same = [row for row in rows if (row["work"], row["where"], row["cores"]) == (work, where, cores)]
            if not same:
                continue
            seconds = sorted(row["seconds"] for row in same)
            took = f"{statistics.median(seconds):.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f}, n={len(seconds)})"
            middle = {k: statistics.median(row[k] for row in same) for k in same[0] if k in PARTS or k == "bytes_moved"}
            parts = ", ".join(f"{PARTS[k]} {middle[k]:.4f}" for k in PARTS if k in middle)
            each = "steps" if work == "train" else "tasks"
            moved = f"{middle['bytes_moved']:,.0f} in {same[0][each]} {each}"
            results = ", ".join(sorted({row["digest"] for row in same}))
            others = statistics.median(row["of_others"] for row in same)
            lines.append(f"| {work} | {where} | {cores} | {took} | {parts} | {moved} | {results} | {others:.1f} |")
    return "\n".join(lines)


def digest_of(found: Sequence[Evidence]) -> str:
    digest = hashlib.sha256()
    for evidence in found:
        for walk in evidence.walks:
            digest.update(walk.strategy.encode() + walk.net_T.tobytes())
        for name, array in evidence.replays.items():
            digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:8]


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
