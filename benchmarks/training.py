"""How fast training is, every figure beside what it is compared to, in one run.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--repeats 5] [--parts steps precision attention growth]

Seconds are the best of so many runs, on one thread those of the processor, and what is compared runs in turns. Bare is forward,
backward and step of the optimiser on a batch in memory. Prints Markdown.
With a GPU the presets have their own batches, memory is shown, and `large` as well.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from flops import clock, count_flops, matmul_rate
from random_panel import random_panel
from torch import Tensor, nn

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.batches import MarketBatch
from finjepa_model.data.panel import Panel
from finjepa_model.nn.encoder import ContextEncoder
from finjepa_model.nn.layers import Block
from finjepa_model.training.behaviour import sample_path
from finjepa_model.training.trainer import Trainer, pick_device
from finjepa_model.world_model import PortfolioPath

CHANNELS, MARKET_CHANNELS = 23, 8
ON_CPU = {"small": 16, "base": 8}  # dates in a batch, of `small` those of the preset; on a GPU those of all presets
GROWN = {"model.window": (64, 128, 256), "training.n_assets": (5, 20, 100, 500)}
PARTS = ("steps", "precision", "attention", "growth")
DEVICE = pick_device()


def timed(*works: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of the quickest of some runs of each, one after the other in turns, after one that warms up."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for seconds, work in zip(found, works, strict=True):
            started = clock(DEVICE)
            work()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock(DEVICE) - started)
    return [min(seconds[1:]) for seconds in found]


def config_of(name: str, panel: Panel, **settings: str) -> FinJEPAConfig:
    config = preset(name).override({"training.precision": "float32"} | settings)
    return replace(config, model=replace(config.model, channels=panel.channels, market_channels=panel.market_channels))


class Bare:
    """Forward, backward and step on a batch in memory, without any loop."""

    def __init__(self, config: FinJEPAConfig, panel: Panel, folder: Path):
        self.trainer = Trainer(config, panel, folder)
        self.model, self.optimizer = self.trainer.model, self.trainer.optimizer
        self.optimizer.param_groups[0]["lr"] = self.optimizer.param_groups[1]["lr"] = config.training.learning_rate
        self.batch: MarketBatch = self.trainer.source.draw(0).to(DEVICE)
        self.path: PortfolioPath = sample_path(self.batch, config.portfolio)

    def loss(self, precision: str = "float32") -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return self.model.loss(self.batch, self.path, 0)["loss"]

    def step(self, precision: str = "float32") -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(precision).backward()
        self.optimizer.step()

    def loop(self) -> None:
        """What the product does in the place of `step`: draws, trades, clips, looks for what is no number, follows."""
        self.trainer.train_step()
        self.trainer.step += 1

    def flops(self) -> int:
        return count_flops(lambda: self.loss().backward())


def machine() -> float:
    """Prints what the machine is; returns its float32 matmul rate."""
    wide, narrow = (matmul_rate(DEVICE, dtype, 2048, 2) for dtype in (torch.float32, torch.bfloat16))
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    amx, avx = ("yes" if flag in flags else "no" for flag in ("amx_bf16", "avx512_bf16"))
    print(f"{DEVICE}, torch {torch.__version__}, {torch.get_num_threads()} thread(s); AMX: {amx}, AVX-512 bf16: {avx}.")
    print(f"Matmul of 2048^3: float32 {wide / 1e9:.0f} GFLOP/s, bfloat16 {narrow / 1e9:.0f}.\n")
    return wide


def sizes() -> dict[str, int]:
    """Presets and the dates of a batch."""
    if DEVICE.type == "cpu":
        return ON_CPU
    return {name: preset(name).training.batch_size for name in ("small", "base", "large")}


def bare_of(name: str, panel: Panel, folder: Path) -> Bare:
    return Bare(config_of(name, panel, **{"training.batch_size": str(sizes()[name])}), panel, folder / name)


def steps(panel: Panel, folder: Path, rate: float, repeats: int) -> None:
    """Share of the matmul rate, loop against bare, precision."""
    print(
        "| | dates x assets | bare, s | GFLOP | share of float32 matmul | loop / bare | bf16, s | float32 / bf16 | "
        "GPU memory, GB | whole preset, h |"
    )
    print("|---" + "|--:" * 9 + "|")
    for name, dates in sizes().items():
        bare = bare_of(name, panel, folder)
        flops = bare.flops()
        step, loop, half = timed(bare.step, bare.loop, lambda bare=bare: bare.step("bfloat16"), repeats=repeats)
        memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if DEVICE.type == "cuda" else ""
        training = preset(name).training
        best = half if training.precision == "bfloat16" else step
        hours = best * training.batch_size / dates * training.epochs * training.steps_per_epoch / 3600
        print(
            f"| {name} | {dates} x {training.n_assets} | {step:.3f} | {flops / 1e9:.1f} | {flops / step / rate:.2f} | "
            f"{loop / step:.3f} | {half:.3f} | {step / half:.2f} | {memory} | {hours:.1f} |",
            flush=True,
        )


def curves(panel: Panel, folder: Path, steps: int = 40) -> None:
    """The loss of `tiny` in bfloat16 beside that in float32, and beside what another seed changes."""
    ends = {}
    for precision, seed in (("float32", 0), ("bfloat16", 0), ("float32", 1)):
        settings = {"training.precision": precision, "training.seed": str(seed), "training.batch_size": "32"}
        trainer = Trainer(config_of("tiny", panel, **settings), panel, folder / f"curve-{precision}-{seed}")
        losses = []
        for _ in range(steps):
            losses.append(float(trainer.train_step()["loss"]))
            trainer.step += 1
        ends[precision, seed] = sum(losses[-10:]) / 10
    wide, narrow, other = ends.values()
    print(
        f"\nMean loss of steps {steps - 9} to {steps} of `tiny`: float32 {wide:.3f}, bfloat16 {narrow:.3f}, float32 of another "
        f"seed {other:.3f}.",
        flush=True,
    )


class Joint(nn.Module):
    """Attention over all patches of all assets and of the market at once, in as many blocks as it is given."""

    def __init__(self, encoder: ContextEncoder, config: FinJEPAConfig, layers: int):
        super().__init__()
        model = config.model
        self.encoder = encoder
        self.blocks = nn.ModuleList(Block(model.dim, model.heads, model.mlp_ratio) for _ in range(layers))

    def forward(self, features_XNTF: Tensor, observed_XNT: Tensor, market_XTQ: Tensor, present_XN: Tensor) -> Tensor:
        encoder = self.encoder
        assets_XNPD = encoder.tokenizer(features_XNTF, observed_XNT)
        market_XPD = encoder.market_tokenizer(market_XTQ, torch.ones_like(market_XTQ[..., 0], dtype=torch.bool))
        tokens_XLD = torch.cat([assets_XNPD, market_XPD.unsqueeze(1)], dim=1).flatten(1, 2)
        for block in self.blocks:
            tokens_XLD = block(tokens_XLD)
        tokens_XNPD = encoder.time_norm(tokens_XLD).unflatten(1, (-1, market_XPD.shape[1]))
        return torch.cat(
            [encoder.pool(tokens_XNPD[:, :-1].flatten(-2)), encoder.market_pool(tokens_XNPD[:, -1:].flatten(-2))], dim=1
        )


def attention(panel: Panel, repeats: int) -> None:
    """The encoder of `base`, forward and backward, against joint attention over the same patches."""
    config = config_of("base", panel)
    model, (dates, assets) = config.model, (8 if DEVICE.type == "cpu" else 128, config.training.n_assets)
    torch.manual_seed(0)
    encoder = ContextEncoder(model).to(DEVICE)
    features = torch.randn(dates, assets, model.window, CHANNELS, device=DEVICE)
    market = torch.randn(dates, model.window, MARKET_CHANNELS, device=DEVICE)
    present = torch.ones(dates, assets, dtype=torch.bool, device=DEVICE)
    seen = (features, torch.ones_like(features[..., 0], dtype=torch.bool), market, present)
    layers = {"as many layers": model.time_layers + model.asset_layers, "the layers over time only": model.time_layers}
    joint = [Joint(encoder, config, count).to(DEVICE) for count in layers.values()]
    works = [lambda: encoder(*seen)[0].square().sum().backward()]
    works += [lambda module=module: module(*seen).square().sum().backward() for module in joint]
    ours, *theirs = timed(*works, repeats=repeats)
    shape = f"{dates} x {assets} x {model.patches} patches"
    print(f"\nAttention factored over time and assets, encoder of `base`, {shape}: {ours:.3f} s.")
    for name, seconds in zip(layers, theirs, strict=True):
        print(f"Joint, {name}: {seconds:.3f} s, {seconds / ours:.2f} times as long.")


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that the forward pass keeps for the backward one."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()  # kept until here, so that no storage has the address of another
        del result
    return sum(kept.values())


def growth(panel: Panel, folder: Path, repeats: int) -> None:
    """Time and memory of a step of `small` as one of its sizes grows; 4 dates a batch."""
    for key, values in GROWN.items():
        seconds, memory, flops = [], [], []
        for value in values:
            settings = {"training.batch_size": "4", "training.n_assets": "12", key: str(value)}
            bare = Bare(config_of("small", panel, **settings), panel, folder / f"{key}-{value}")
            seconds += timed(bare.step, repeats=repeats)
            memory.append(saved_bytes(bare.loss) / 1e6)
            flops.append(bare.flops() / 1e9)
        print(f"\n| {key} | {' | '.join(map(str, values))} |\n|---{'|--:' * len(values)}|")
        print(f"| s a step | {' | '.join(f'{s:.3f}' for s in seconds)} |")
        print(f"| ms a unit | {' | '.join(f'{1e3 * s / v:.2f}' for s, v in zip(seconds, values, strict=True))} |")
        print(f"| GFLOP a step | {' | '.join(f'{f:.1f}' for f in flops)} |")
        print(f"| MB kept for the backward pass | {' | '.join(f'{m:.0f}' for m in memory)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    folder, repeats = Path(tempfile.mkdtemp(prefix="finjepa-training-")), arguments.repeats
    try:
        panel = random_panel(folder, 2000, 500, CHANNELS, MARKET_CHANNELS)
        rate = machine()
        parts: dict[str, Callable[[], None]] = {
            "steps": lambda: steps(panel, folder, rate, repeats),
            "precision": lambda: curves(panel, folder),
            "attention": lambda: attention(panel, repeats),
            "growth": lambda: growth(panel, folder, min(repeats, 3)),
        }
        for part in arguments.parts:
            parts[part]()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
