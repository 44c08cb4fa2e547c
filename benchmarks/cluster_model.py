"""Time and money of larger clusters: a model with its assumptions, from counted operations and what cluster.py has measured.

    python benchmarks/cluster_model.py [FOLDER]

Without cluster.py's FOLDER there is no table of walks.
"""

import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
from cluster import read
from flops import count_flops
from torch.testing._internal.distributed.fake_pg import FakeStore

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.features import CHANNELS, MARKET_CHANNELS
from finjepa_model.world_model import FinJEPA
from tests.model.markets import random_batch

# What is assumed and was not measured.
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
    flops, parameters, messages, others = counted(preset("base"))
    lines = [
        f"Preset base: {parameters:,} parameters, {flops:.3g} floating-point operations a sample, {messages} messages a step, of "
        f"{4 * (parameters + 1):,} bytes the one with the gradients and of {others:,} the others (counted); batch {BATCH}, "
        f"{RUN_STEPS:,} steps.",
        "",
        "| GPUs | compute a step | all-reduce a step | step | efficiency | bytes out of a GPU a step | hours | dollars |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    alone = None
    for gpus in (1, 8, 64, 512):
        compute = max(flops * BATCH / gpus / GPU_RATE, STEP_FLOOR_S)
        message = (4 * (parameters + 1) + others) * 2 * (gpus - 1) / gpus
        reduce_s = message / BANDWIDTH[gpus] + messages * 2 * LATENCY_S * math.log2(gpus) if gpus > 1 else 0.0
        step = compute + reduce_s  # the trainer computes nothing meanwhile
        alone = alone or step
        hours = step * RUN_STEPS / 3600
        lines.append(
            f"| {gpus} | {compute * 1e3:.1f} ms | {reduce_s * 1e3:.2f} ms | {step * 1e3:.1f} ms | {alone / step / gpus:.0%} "
            f"| {message:,.0f} | {hours:.1f} | {hours * gpus * GPU_HOUR:,.0f} |"
        )
    walks = {
        key: [r for r in rows if (r["work"], r["where"], r["cores"]) == ("walks", *key)]
        for key in (("ray", 1), ("ray", 2))
    }
    if not all(walks.values()):
        return "\n".join(lines)
    one, two = (statistics.median(row["seconds"] for row in same) for same in walks.values())
    kept, tasks = one / two / 2, walks["ray", 2][0]["tasks"]
    lines += [
        "",
        f"Walks of {MARKETS} markets like the one that was measured, {one:.0f} core seconds each, at the {kept:.0%} of its "
        "speed that a core kept beside a second one:",
        "",
        "| CPUs | hours | dollars |",
        "|--:|--:|--:|",
    ]
    for cpus in (8, 64, 512):
        hours = MARKETS * one / min(cpus, MARKETS * tasks) / kept / 3600
        lines.append(f"| {cpus} | {hours:.2f} | {hours * cpus * CPU_HOUR:.2f} |")
    return "\n".join(lines)


def counted(config: FinJEPAConfig) -> tuple[float, int, int, int]:
    """Of a training step, on random numbers: floating-point operations a sample, parameters, messages between two ranks (that of
    the gradients included), and the bytes of all messages but that one."""
    channels = tuple(channel.name for channel in CHANNELS)
    market = tuple(channel.name for channel in MARKET_CHANNELS)
    config = replace(config, model=replace(config.model, channels=channels, market_channels=market))
    network = FinJEPA(config)
    batch, path = random_batch(config, dates=2, assets=config.training.n_assets)
    flops = count_flops(lambda: network.loss(batch, path, 0)["loss"].backward())
    sent: list[int] = []
    with one_of_two_ranks(), patch.object(dist, "all_reduce", lambda value_X, *_, **__: sent.append(value_X.nbytes)):
        network.loss(batch, path, 0)["loss"].backward()
    return flops / 2, sum(p.numel() for p in network.parameters() if p.requires_grad), len(sent) + 1, sum(sent)


@contextmanager
def one_of_two_ranks() -> Iterator[None]:
    """A process group whose other process is not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    print(model(read(Path(sys.argv[1]) / "results.jsonl") if len(sys.argv) > 1 else []))
