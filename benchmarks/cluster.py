"""What Ray costs over one machine for the same work on the same cores, what a second core brings, and how many bytes move.

    python benchmarks/cluster.py FOLDER                # measures; both cores should be free. Needs the extra ray
    python benchmarks/cluster.py FOLDER --model        # prices and times of larger clusters, from what was measured

Each case is one line of FOLDER/results.jsonl as soon as it is known, and is not run again. A cluster is one node of this machine
with as many CPUs as the case has; bytes are those of the loopback device, so nobody else may use it meanwhile.
"""

import argparse
import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.training.panel import Panel
from finjepa_model.training.records import read_metrics
from finjepa_model.training.splits import history_needed, split_dates
from finjepa_model.training.throughput import count_flops
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.backtest.docket import Docket
from finjepa_pipeline.backtest.engine import Court
from finjepa_pipeline.backtest.evaluate import Hearing, _judge_here
from finjepa_pipeline.backtest.proving import ProvingGround
from finjepa_pipeline.backtest.store import Case
from finjepa_pipeline.features.channels import CHANNELS
from finjepa_pipeline.features.market import MARKET_CHANNELS
from finjepa_pipeline.publishing.package import sha256
from finjepa_pipeline.scale.walks import Sitting, judge_on
from finjepa_pipeline.settings import LOCAL, Settings
from finjepa_pipeline.training.run import for_panel, train_checkpoint
from tests.model.markets import random_batch

PORT = 6391
STEPS = 60
CHANGES = {
    "training.epochs": "1", "training.steps_per_epoch": str(STEPS), "training.batch_size": "16", "training.n_assets": "8",
    "training.evaluate_batches": "1", "training.log_every": "5",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "results.jsonl"
    if not arguments.model:
        measure(arguments.folder, results)
    if results.is_file():
        print(table(read(results)))
    if arguments.model:
        print(model(read(results)))


def measure(folder: Path, results: Path) -> None:
    panel = ProvingGround.of(folder / "market", "drift", 0).panel
    checkpoint: Path | None = None
    for where, cores in (("local", 1), ("local", 2), ("ray", 1), ("ray", 2)):
        with cluster(cores) if where == "ray" else nothing() as address:
            for work in ("train", "walks"):
                if work == "walks" and (where, cores) == ("local", 2):
                    continue  # on one machine strategies walk one after the other
                key = {"work": work, "where": where, "cores": cores}
                if any(key.items() <= row.items() for row in read(results)) and work != "train":
                    continue
                settings = Settings(home=folder / f"{where}-{cores}", compute=address).ensure()
                if work == "train":
                    found, checkpoint = train(settings, panel, cores, key, read(results))
                else:
                    assert checkpoint is not None
                    found = walks(settings, panel, checkpoint)
                if found:
                    with results.open("a") as file:
                        file.write(json.dumps(key | found) + "\n")
                    print(json.dumps(key | found), flush=True)


def train(settings: Settings, panel: Panel, ranks: int, key: dict, known: list[dict]) -> tuple[dict, Path]:
    """A training of the same config; its seconds from the command to the checkpoint, and those of a step."""
    config = for_panel(preset("tiny").override(CHANGES), panel)

    def launch(command: list[str], environment: dict[str, str]) -> None:
        subprocess.run(command, env={**os.environ, **environment}, check=True, stderr=subprocess.DEVNULL)

    before, started = loopback(), time.monotonic()
    checkpoint, reused = train_checkpoint(settings, config, panel, {}, launch, ranks)
    if reused or any(key.items() <= row.items() for row in known):
        return {}, checkpoint
    seconds, moved = time.monotonic() - started, loopback() - before
    last = [r for r in read_metrics(checkpoint.with_name(f"{checkpoint.name}.run")) if r["kind"] == "train"][-1]
    parameters = sum(p.numel() for p in FinJEPA.from_pretrained(checkpoint).parameters() if p.requires_grad)
    return {
        "seconds": seconds,
        "seconds_a_step": config.training.batch_size / last["samples_per_second"],
        "flops_a_sample": last["flops_per_second"] / last["samples_per_second"],
        "bytes_a_step": moved / STEPS,
        "bytes_of_gradients": 4 * (parameters + 1),
        "digest": checkpoint_digest(checkpoint),
    }, checkpoint


def walks(settings: Settings, panel: Panel, checkpoint: Path) -> dict:
    """The same strategies on the test block; seconds from the call to all evidence."""
    config = FinJEPAConfig.from_json((checkpoint / "config.json").read_text())
    first, last = split_dates(len(panel.dates), config).test
    conditions = {"stride": config.model.stride, "n_assets": 8, "window": history_needed(config)}
    court = Court.over(panel, (first, min(last, first + 250)), config.portfolio, **conditions)
    docket = Docket(planners=("cem", "mppi", "gradient", "qp"), controls=("ewma", "ridge"), n_assets=8)
    names = tuple(docket.names("test"))
    hearing = Hearing(Case(checkpoint.name, "data", "test", "mark"), checkpoint, docket, court, names)
    before, started = loopback(), time.monotonic()
    if settings.ray_address is None:
        ((_, evidence),) = _judge_here([hearing], lambda line: None)
    else:
        ((_, evidence),) = judge_on(settings, [hearing], lambda line: None)
    seconds, moved = time.monotonic() - started, loopback() - before
    return {
        "seconds": seconds,
        "tasks": len(names) + 2 + len(hearing.forecasters),
        "bytes_moved": moved,
        "bytes_told_a_task": len(pickle.dumps((Sitting.of(hearing, None), names[0]))),
        "bytes_of_a_walk": len(pickle.dumps(evidence.walks[0])),
        "bytes_of_the_panel": sum(file.stat().st_size for file in panel.folder.iterdir()),
        "digest": digest_of(evidence),
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| work | where | cores | seconds | of which steps | seconds a step | bytes moved | result |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        steps = row.get("seconds_a_step")
        moved = f"{row['bytes_a_step']:,.0f} a step" if steps else f"{row['bytes_moved']:,.0f} in {row['tasks']} tasks"
        lines.append(
            f"| {row['work']} | {row['where']} | {row['cores']} | {row['seconds']:.1f} "
            f"| {f'{steps * STEPS:.1f}' if steps else ''} | {f'{steps:.3f}' if steps else ''} | {moved} | {row['digest']} |"
        )
    return "\n".join(lines)


# What the model assumes and nobody measured here.
GPU_RATE = 989e12 * 0.15  # an H100's dense bfloat16 rate, and the share that a small model is taken to reach
STEP_FLOOR_S = 0.02  # launches of kernels and the host's work, however small a rank's share
BANDWIDTH = {
    8: 300e9,
    64: 40e9,
    512: 40e9,
}  # bytes a second of an all-reduce: NVLink in a node, 400 Gbit/s between nodes
LATENCY_S = 30e-6  # of one hop between nodes
GPU_HOUR, CPU_HOUR = 3.0, 0.05  # dollars
BATCH, RUN_STEPS = 4096, 50_000
MARKETS = 100


def model(rows: list[dict]) -> str:
    """Time and money of one long training, and of the walks of a hundred markets."""
    flops, parameters = flops_of(preset("base"))
    lines = [
        f"Preset base: {parameters:,} parameters, {flops:.3g} floating-point operations a sample (counted); batch {BATCH}, "
        f"{RUN_STEPS:,} steps.",
        "",
        "| GPUs | compute a step | all-reduce a step | step | efficiency | bytes out of a GPU a step | hours | dollars |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    alone = None
    for gpus in (1, 8, 64, 512):
        compute = max(flops * BATCH / gpus / GPU_RATE, STEP_FLOOR_S)
        message = 4 * (parameters + 1) * 2 * (gpus - 1) / gpus
        reduce_s = message / BANDWIDTH[gpus] + 2 * LATENCY_S * math.log2(gpus) if gpus > 1 else 0.0
        step = compute + reduce_s  # the trainer reduces after the backward pass, not beside it
        alone = alone or step
        hours = step * RUN_STEPS / 3600
        lines.append(
            f"| {gpus} | {compute * 1e3:.1f} ms | {reduce_s * 1e3:.2f} ms | {step * 1e3:.1f} ms | {alone / step / gpus:.0%} "
            f"| {message:,.0f} | {hours:.1f} | {hours * gpus * GPU_HOUR:,.0f} |"
        )
    if not rows:
        return "\n".join(lines)
    here = {(row["work"], row["where"], row["cores"]): row for row in rows}
    walked, two = here[("walks", "local", 1)]["seconds"], here[("walks", "ray", 2)]["seconds"]
    kept = walked / two / 2
    lines += [
        "",
        f"Walks of {MARKETS} markets like the one above, {walked:.0f} core seconds each, at the {kept:.0%} of its speed that a "
        "core kept here beside a second one:",
        "",
        "| CPUs | hours | dollars |",
        "|--:|--:|--:|",
    ]
    for cpus in (8, 64, 512):
        hours = MARKETS * walked / min(cpus, MARKETS * here[("walks", "ray", 2)]["tasks"]) / kept / 3600
        lines.append(f"| {cpus} | {hours:.2f} | {hours * cpus * CPU_HOUR:.2f} |")
    return "\n".join(lines)


def flops_of(config: FinJEPAConfig) -> tuple[float, int]:
    """Floating-point operations of a training step for a sample, and the parameters that are trained; on random numbers."""
    channels = tuple(channel.name for channel in CHANNELS)
    market = tuple(channel.name for channel in MARKET_CHANNELS)
    config = replace(config, model=replace(config.model, channels=channels, market_channels=market))
    network = FinJEPA(config)
    batch, path = random_batch(config, dates=2, assets=config.training.n_assets)
    flops = count_flops(lambda: network.loss(batch, path, 0)["loss"].backward())
    return flops / 2, sum(p.numel() for p in network.parameters() if p.requires_grad)


@contextmanager
def cluster(cpus: int) -> Iterator[str]:
    """A node with so many CPUs; the block gets its address."""
    ray = Path(sys.executable).with_name("ray")
    folder = Path("/tmp") / f"finjepa-bench-{os.getpid()}-{cpus}"
    command = [ray, "start", "--head", f"--port={PORT}", f"--num-cpus={cpus}", "--include-dashboard=false", "--block"]
    command += ["--disable-usage-stats", "--object-store-memory=300000000", f"--temp-dir={folder}"]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        time.sleep(15)
        yield f"127.0.0.1:{PORT}"
    finally:
        node.terminate()
        node.wait(timeout=30)


@contextmanager
def nothing() -> Iterator[str]:
    yield LOCAL


def loopback() -> int:
    """Bytes that the loopback device has taken so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("no loopback device")


def checkpoint_digest(checkpoint: Path) -> str:
    return sha256(checkpoint / "model.safetensors")[:8]


def digest_of(evidence) -> str:
    digest = hashlib.sha256()
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
