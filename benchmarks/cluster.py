"""What a Ray cluster of two nodes costs, and ten homes at once on it. Needs the extras `ray` and `s3`, and nanio.

    OMP_NUM_THREADS=1 python -m benchmarks.cluster overhead
    OMP_NUM_THREADS=1 python -m benchmarks.cluster homes [--homes 10]

Both nodes are on this machine, with one CPU each.

`overhead`: the same commands in two homes, by two processes of this machine and on the cluster, which sees the homes.

`homes`: markets with a warehouse each train at once, which takes 1.2 GB each. When one has finished and another has a state, all
commands are killed by SIGKILL, and launched again. The second node does not see the homes. A home that went on from a state must
have the checkpoint that one machine gives for the same prices, bit for bit.

Tables are printed as Markdown. Processor seconds are those of the command, of what it started and of the nodes, looked at four
times a second.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import polars as pl

from benchmarks.night import Watch
from finjepa_model.training.run_folder import read_metrics
from tests.pipeline.object_store import object_store
from tests.system.product import COMMANDS, ROOT, environment, quick_training, works, write_prices
from tests.system.ray_cluster import Cluster, has_saved

TRAINING = quick_training(
    **{"training.steps_per_epoch": "60", "training.checkpoint_every": "10", "training.log_every": "5"}
)
EVERY_S = 0.25


@contextlib.contextmanager
def two_nodes(store: dict[str, str], hidden: Path) -> Iterator[Cluster]:
    cluster = Cluster(Path("/tmp") / f"finjepa-ray-{os.getpid()}", store, hidden)  # short, for Ray's sockets
    try:
        cluster.add()
        cluster.add()
        yield cluster
    finally:
        cluster.end()


def started(home: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    with home.with_name(f"{home.name}.log").open("a") as log:
        return subprocess.Popen(
            [COMMANDS / "finjepa", *arguments],
            env=environment(home, **more),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def watched(
    commands: Sequence[subprocess.Popen[bytes]], enough: Callable[[], bool] = bool
) -> tuple[float, float, float]:
    """Wall seconds until all commands have ended or it is enough, processor seconds, and peak memory in GB, nodes included."""
    watch, began = Watch(), time.monotonic()
    watch.look()
    before = sum(row["cpu_s"] for row in watch.seen.values())
    while not enough() and any(command.poll() is None for command in commands):
        time.sleep(EVERY_S)
        watch.look()
    cpu_s = sum(row["cpu_s"] for row in watch.seen.values()) - before
    return time.monotonic() - began, cpu_s, watch.peak_gb


def well_ended(homes: Sequence[Path], commands: Sequence[subprocess.Popen[bytes]]) -> None:
    for home, command in zip(homes, commands, strict=True):
        if command.wait():
            raise SystemExit(f"{home.name} failed:\n{home.with_name(f'{home.name}.log').read_text()[-3000:]}")


def overhead(folder: Path) -> None:
    (folder / "nothing").mkdir()
    prices = write_prices(folder / "prices")
    work = {
        "`train`, 120 steps": ["train", "--data-source", "files", "--path", str(prices), *TRAINING],
        "`backtest` of qp and mppi": ["backtest", "--planner", "qp,mppi"],
    }
    print("| work | where | wall, s | processors, s |")
    print("|---|---|--:|--:|")

    def measure(home: Path, where: str, named: str) -> None:
        for name, command in work.items():
            run = started(home, *command, FINJEPA_COMPUTE=where)
            wall_s, cpu_s, _ = watched([run])
            well_ended([home], [run])
            print(f"| {name} | {named} | {wall_s:.0f} | {cpu_s:.1f} |", flush=True)

    measure(folder / "here", "local:2", "one machine")
    with two_nodes({}, folder / "nothing") as cluster:
        measure(folder / "there", cluster.address, "Ray")


def own_prices(home: Path, prices: Path) -> bool:
    """Whether a home has the closes of its market and no others."""
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        rows, total = con.execute("SELECT count(*), sum(close) FROM prices").fetchall()[0]
    closes = pl.read_parquet(prices)["close"]
    return rows == len(closes) and abs(total / closes.sum() - 1) < 1e-12


def first_records(home: Path) -> list[dict[str, object]]:
    """Of the first ten steps of its training, with the seconds that they took."""
    (run,) = home.glob("checkpoints/*.run")
    return [record for record in read_metrics(run) if record["step"] <= 10]


def homes(folder: Path, count: int) -> None:
    markets = {folder / "homes" / f"{k}": write_prices(folder / f"prices-{k}", seed=k) for k in range(count)}
    trains = [["train", "--data-source", "files", "--path", str(prices), *TRAINING] for prices in markets.values()]
    own = list(markets)
    (folder / "homes").mkdir()

    def finished() -> list[Path]:
        return [home for home in own if any(home.glob("checkpoints/*/model.safetensors"))]

    def halfway() -> list[Path]:
        return [home for home in own if home not in finished() and has_saved(home, 10)()]

    with object_store(folder / "s3") as store, two_nodes(store, folder / "homes") as cluster:
        on_ray = cluster.environment | {"FINJEPA_COMPUTE": cluster.address}
        print("| ten homes at once | wall, s | processors, s | peak memory, GB |".replace("ten", str(count)))
        print("|---|--:|--:|--:|")

        def row(name: str, wall_s: float, cpu_s: float, peak_gb: float) -> None:
            print(f"| {name} | {wall_s:.0f} | {cpu_s:.0f} | {peak_gb:.1f} |", flush=True)

        runs = [started(home, *train, **on_ray) for home, train in zip(own, trains, strict=True)]
        figures = watched(runs, lambda: len(finished()) >= 1 and len(halfway()) >= 1)
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        done, middle = finished(), halfway()
        row(f"`train`, killed when {len(done)} had finished and {len(middle)} had a state", *figures)
        began = time.monotonic()
        cluster.wait_until_idle()
        print(f"nothing was left on the nodes after {time.monotonic() - began:.0f} s", flush=True)
        records = {home: first_records(home) for home in middle}

        runs = [started(home, *train, **on_ray) for home, train in zip(own, trains, strict=True)]
        row("`train` again, to the end", *watched(runs))
        well_ended(own, runs)
        cluster.wait_until_idle()

    ids = {checkpoint.parent.name for home in own for checkpoint in home.glob("checkpoints/*/model.safetensors")}
    assert len(ids) == count, ids
    assert all(own_prices(home, prices) for home, prices in markets.items())
    assert records == {home: first_records(home) for home in middle}  # what was trained was not trained again
    works(folder / "alone", *trains[own.index(middle[0])], timeout=900)
    mine, theirs = (next(place.glob("checkpoints/*/model.safetensors")) for place in (middle[0], folder / "alone"))
    assert mine.parent.name == theirs.parent.name
    assert mine.read_bytes() == theirs.read_bytes()
    print(
        f"{count} checkpoints, each of its own prices; one that went on from a state is that of one machine, bit for bit"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overhead", "homes"])
    parser.add_argument("--homes", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finjepa-cluster-") as work:
        if arguments.part == "overhead":
            overhead(Path(work))
        else:
            homes(Path(work), arguments.homes)
        print(
            "load of the machine at the end, averages of 1, 5 and 15 minutes:", *(f"{x:.1f}" for x in os.getloadavg())
        )
