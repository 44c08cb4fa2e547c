"""What a GPU gives: training, planning, the gather of batches, and what a larger model is worth. PyTorch alone, no pipeline.

    python benchmarks/gpu.py [--toy] [--panel FOLDER] [--parts steps fp8 gather planning scorecard]

Runs unchanged on any CUDA machine; `--toy` makes everything small enough for a CPU. The panel of noise has 7,000 symbols and 30
years (6.5 GB on disk). The scorecard needs a panel of real prices, `panels/HASH` of any home (60 MB are 600,000 rows), and is
left out without one. Prints Markdown. Compilation is for a GPU here, because its graphs are.
"""

import argparse
import functools
import itertools
import queue
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from flops import matmul_rate
from random_panel import random_panel
from torch import Tensor, nn
from training import CHANNELS, DEVICE, MARKET_CHANNELS, Bare, config_of, timed

from finjepa_model.config import preset
from finjepa_model.data.batches import MarketBatch, observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import split_dates
from finjepa_model.nn.layers import Block
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import CUMULATIVE, Objective, PlanningWorld
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.risk_scorecard import LEAST, LEAST_LONG, PORTFOLIO_QLIKE, QLIKE, R2, scorecard
from finjepa_model.training.trainer import Trainer
from finjepa_model.world_model import WorldModel

PARTS = ("steps", "fp8", "gather", "planning", "scorecard")
DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 operations a second
HORIZON = 4
SHOWN = (QLIKE, R2, LEAST, LEAST_LONG, PORTFOLIO_QLIKE)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    presets: tuple[str, ...] = ("base", "large")
    symbols: int = 7000
    sessions: int = 7560  # 30 years
    matmul: int = 8192
    assets: int = 500  # that are planned for
    dates: tuple[int, ...] = (1, 16)  # that are planned at once
    repeats: int = 5
    batches: int = 50  # that are gathered
    compared: tuple[str, ...] = ("small", "base")  # by their scorecards
    settings: Mapping[str, str] = field(default_factory=dict)  # of all trainings


TOY = Scale(
    presets=("tiny",), symbols=40, sessions=900, matmul=256, assets=12, dates=(2,), repeats=1, batches=3,
    compared=("tiny",), settings={"training.epochs": "1", "training.steps_per_epoch": "3"},
)  # fmt: skip


def compiled(bare: Bare) -> Bare:
    for module in bare.model.modules():
        if isinstance(module, Block):
            module.compile()
    return bare


def steps(panel: Panel, folder: Path, scale: Scale) -> None:
    """Speed, share of what the device can do, memory, and how long a nightly training takes."""
    rate = matmul_rate(DEVICE, torch.bfloat16, scale.matmul, 1.0)
    name_of = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    sheet = next((value for key, value in DATASHEET.items() if key in name_of), None)
    print(f"{name_of}: bfloat16 matmul of {scale.matmul}^3 at {rate / 1e12:.2f} TFLOP/s.\n")
    print(
        "| preset | dates x assets | kind | s a step | samples a second | share of the measured matmul | MFU by the data "
        "sheet (goal .4) | memory, GB | whole training, min |"
    )
    print("|---" + "|--:" * 8 + "|")
    for name in scale.presets:
        config = config_of(name, panel, **scale.settings)
        training = preset(name).training
        for kind in ("float32", "bfloat16", *(["bfloat16, compiled"] if DEVICE.type == "cuda" else [])):
            bare = Bare(config, panel, folder / f"{name}-{kind}")
            flops = bare.flops()
            if "compiled" in kind:
                compiled(bare)
            precision = kind.partition(",")[0]
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            [seconds] = timed(lambda b=bare, p=precision: b.step(p), repeats=scale.repeats)
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if DEVICE.type == "cuda" else ""
            minutes = seconds * training.epochs * training.steps_per_epoch / 60
            mfu = f"{flops / seconds / sheet:.2f}" if sheet else ""
            print(
                f"| `{name}` | {training.batch_size} x {training.n_assets} | {kind} | {seconds:.4f} | "
                f"{training.batch_size / seconds:.0f} | {flops / seconds / rate:.2f} | {mfu} | {memory} | {minutes:.0f} |",
                flush=True,
            )
            del bare


def fp8(panel: Panel, folder: Path, scale: Scale) -> None:
    """An upper bound of what float8 gains: the matrix products of the linear layers alone, without casts, at their shapes."""
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        print("\nfloat8: this device has none.")
        return
    for name in scale.presets:
        shapes = linear_shapes(Bare(config_of(name, panel, **scale.settings), panel, folder / f"fp8-{name}"))
        kept = {
            shape: count for shape, count in shapes.items() if not any(size % 16 for size in shape)
        }  # of the kernel
        seconds = {shape: product_seconds(*shape, scale.repeats) for shape in kept}
        half, eighth = (sum(count * seconds[shape][kind] for shape, count in kept.items()) for kind in (0, 1))
        print(
            f"\nfloat8, `{name}`: products of linear layers at most {half / eighth:.2f} times as fast as in bfloat16 "
            f"({shapes.total() - sum(kept.values())} of {shapes.total()} cannot be in float8)."
        )


def linear_shapes(bare: Bare) -> Counter[tuple[int, int, int]]:
    """Rows, inner and outer width of the products of all linear layers of a forward pass."""
    shapes: Counter[tuple[int, int, int]] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        shapes[inputs[0].numel() // module.in_features, module.in_features, module.out_features] += 1

    hooks = [module.register_forward_hook(note) for module in bare.model.modules() if isinstance(module, nn.Linear)]
    bare.loss()
    for hook in hooks:
        hook.remove()
    return shapes


def product_seconds(rows: int, inner: int, outer: int, repeats: int) -> list[float]:
    """Of one product in bfloat16, and in float8."""
    a, b, one = (
        torch.randn(rows, inner, device=DEVICE),
        torch.randn(outer, inner, device=DEVICE),
        torch.ones((), device=DEVICE),
    )
    a16, b16, a8, b8 = (x.to(kind) for kind in (torch.bfloat16, torch.float8_e4m3fn) for x in (a, b))
    return timed(
        lambda: a16 @ b16.t(),
        lambda: torch._scaled_mm(a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16),
        repeats=repeats,
    )


def drawn_ahead(trainer: Trainer, count: int) -> Iterator[MarketBatch]:
    """Batches; another thread gathers the next ones while one is used."""
    ready: queue.Queue[MarketBatch] = queue.Queue(maxsize=2)

    def draw() -> None:
        for step in range(count):
            ready.put(trainer.source.draw(step))

    threading.Thread(target=draw, daemon=True).start()
    for _ in range(count):
        yield ready.get()


def gather(panel: Panel, folder: Path, scale: Scale) -> None:
    """What waiting for batches costs: the loop of the product, and one whose batches are gathered ahead."""
    print(
        "\n| preset | gather and copy, s a batch | step, s | loop / step | gathered ahead / step |\n|---|--:|--:|--:|--:|"
    )
    for name in scale.presets:
        bare = Bare(config_of(name, panel, **scale.settings), panel, folder / f"gather-{name}")
        seconds = [one / scale.batches for one in gather_seconds(bare, preset(name).training.precision, scale.batches)]
        drawn, alone, inline, ahead = seconds
        print(f"| `{name}` | {drawn:.4f} | {alone:.4f} | {inline / alone:.2f} | {ahead / alone:.2f} |", flush=True)


def gather_seconds(bare: Bare, precision: str, count: int) -> list[float]:
    """Of batches alone, of steps alone, of both in turn, and of both at once."""
    draw, held = bare.trainer.source.draw, bare.batch

    def loop(batches: Iterable[MarketBatch]) -> None:
        for batch in batches:
            bare.batch = batch.to(DEVICE)
            bare.step(precision)

    return timed(
        lambda: [draw(step).to(DEVICE) for step in range(count)],
        lambda: loop([held] * count),
        lambda: loop(draw(step) for step in range(count)),
        lambda: loop(drawn_ahead(bare.trainer, count)),
        repeats=1,
    )


class Graphed(Objective):
    """The same cost, compiled into CUDA graphs."""

    __call__ = torch.compile(Objective.__call__, mode="reduce-overhead")


def planning(panel: Panel, scale: Scale) -> None:
    """Decisions a second, from an observation to a plan."""
    print(f"\n| planner, {scale.assets} assets | dates at once | s | decisions a second | with CUDA graphs |")
    print("|---|--:|--:|--:|--:|")
    kinds = (Objective, Graphed) if DEVICE.type == "cuda" else (Objective,)
    for name in scale.presets:
        model = WorldModel(config_of(name, panel)).to(DEVICE).eval().requires_grad_(False)
        for dates, planner in itertools.product(scale.dates, ("qp", "cem", "mppi")):
            works = [functools.partial(decide, model, panel, scale.assets, planner, dates, kind) for kind in kinds]
            found = timed(*works, repeats=scale.repeats)
            rates = " | ".join(f"{dates / seconds:.1f}" for seconds in found) + " |" * (2 - len(found))
            print(f"| {planner}, `{name}` | {dates} | {found[0]:.3f} | {rates} |", flush=True)


def decide(model: WorldModel, panel: Panel, count: int, planner: str, dates: int, kind: type[Objective]) -> None:
    """Plans of so many assets on the newest dates, from cash."""
    config, days = model.config, len(panel.dates) - 1 - np.arange(dates)
    seen = observe(panel, days, np.tile(np.arange(count), (dates, 1)), config.model.context_steps, config)
    seen = replace(seen, **{name: x.to(DEVICE) for name, x in vars(seen).items() if isinstance(x, Tensor)})
    imagination = model.imagine(seen, HORIZON)
    simulator = PortfolioSimulator(config.portfolio)
    state = simulator.start((dates, count), dtype=torch.float32).map(lambda x: x.to(DEVICE))
    world = PlanningWorld.of(imagination, simulator, state, config.model.stride)
    space = ActionSpace.from_config(config.portfolio, imagination.present_BN, HORIZON)
    make_planner(planner).plan(kind(world, CUMULATIVE), space, None, torch.Generator(DEVICE).manual_seed(0))


def scorecards(panel: Panel, folder: Path, scale: Scale) -> None:
    """Trains the presets on a panel of prices, and scores their forecasts on its validation block."""
    print("\n| preset | training, s | score, 21 sessions | forecast | value | t of the model's advantage |")
    print("|---|--:|---|---|--:|--:|")
    for name in scale.compared:
        precision = {"training.precision": preset(name).training.precision}
        config = config_of(name, panel, **precision | scale.settings)
        began = time.perf_counter()
        trainer = Trainer(config, panel, folder / f"scored-{name}")
        trainer.train()
        start = f"| `{name}` | {time.perf_counter() - began:.0f} |"
        found = scorecard(trainer.model.cpu().eval(), panel, split_dates(len(panel.dates), config))
        for row in found.scores:
            if row.block == "validation" and row.score in SHOWN and row.horizon == 21:
                print(f"{start} {row.score} | {row.forecast} | {row.value:.4f} | {row.t_value:.1f} |")
        for why in found.left_out:
            print(f"{start} left out: {why} | | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--panel", type=Path, help="of real prices, for the scorecard")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    chosen = parser.parse_args()
    if DEVICE.type != "cuda" and not chosen.toy:
        raise SystemExit("no GPU here: nothing to measure; --toy runs every part at a size for a CPU")
    scale = TOY if chosen.toy else Scale()
    folder = Path(tempfile.mkdtemp(prefix="finjepa-gpu-"))
    try:
        panel = random_panel(folder, scale.sessions, scale.symbols, CHANNELS, MARKET_CHANNELS)
        prices = Panel.open(chosen.panel) if chosen.panel else panel if chosen.toy else None
        parts: dict[str, Callable[[], None]] = {
            "steps": lambda: steps(panel, folder, scale),
            "fp8": lambda: fp8(panel, folder, scale),
            "gather": lambda: gather(panel, folder, scale),
            "planning": lambda: planning(panel, scale),
            "scorecard": lambda: (
                scorecards(prices, folder, scale) if prices else print("\nNo scorecard without --panel.")
            ),
        }
        for part in chosen.parts:
            parts[part]()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
