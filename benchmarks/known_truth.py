"""Does it find what is there, and nothing where nothing is: FinJEPA trained and backtested on markets whose truth is known.

    python benchmarks/known_truth.py FOLDER --variant drift --seeds 0-4
    python benchmarks/known_truth.py FOLDER --variant null --seeds 0-19

For each seed: a market, its panel, a training, the test block walked by the planners, by their shuffled twin and by controls.
The oracle pays no costs, sells no hedge and holds no cash, so by default no planner does (`--costs` for the product's own
costs, `--utility` for another one; the share of the oracle's gain is on expected utility before costs either way).
Every result is one line of FOLDER/results.jsonl as soon as it is known; a seed that is there is not run again. The table at the
end is of all lines of the variant and config in that file.

`--assets` and `--sessions` are the size of the market; `--trade` is how many assets of it are traded, by the planners and by
the oracle alike. The others are there to learn from, as the rest of an exchange is.

`--untrained` leaves the encoder as it was initialised and fits the read-out of expected returns alone: seconds a seed, for many
null markets. What is then tested is that read-out, the planner and the statistics, on paths without drift.

`--block validation` backtests on the validation block instead: for choosing a config, so that the test block is never tuned on.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from student import half_width

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed, split_dates
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination, strategy_name
from finjepa_model.training.readout_fit import fit_readout
from finjepa_pipeline import compute
from finjepa_pipeline.backtest.controls import Controls, ShuffledActions, untrained
from finjepa_pipeline.backtest.engine import BacktestSetup, simulate
from finjepa_pipeline.backtest.inference import block_length, bootstrap, forecast_quality
from finjepa_pipeline.backtest.known_truth import USUAL_SIZE, KnownTruthMarket, fraction
from finjepa_pipeline.backtest.strategies import Strategy, baselines
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import for_panel, train_checkpoint

FRICTIONLESS = {
    "portfolio.cost_bps": "0",
    "portfolio.tier_spread_bps": "[0, 0, 0]",
    "portfolio.impact": "0",
    "portfolio.borrow_rate": "0",
    "portfolio.allow_hedge": "false",
}
# what the oracle maximises, with its risk aversion of 5, and fully invested as it is
UTILITY = "log_growth - 2.5*variance, gross >= 0.99"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", default="drift")
    parser.add_argument("--seeds", default="0-4", help="one number, or first-last")
    parser.add_argument("--assets", type=int, default=USUAL_SIZE[0], help="of the market")
    parser.add_argument("--sessions", type=int, default=USUAL_SIZE[1], help="of the market")
    parser.add_argument(
        "--trade", type=int, default=20, help="assets in the universe of the planners and of the oracle"
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--planner", default="mppi,qp", help="the first one has the shuffled twin")
    parser.add_argument("--utility", default=UTILITY)
    parser.add_argument("--controls", default="ewma")
    parser.add_argument("--baselines", default="equal_weight,min_variance,momentum_60", help="1/N must be the first")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--block", default="test", choices=("validation", "test"))
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "results.jsonl"
    label = _label(arguments)
    for seed in range(int(first), int(last or first) + 1):
        done = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
        if not any(row["label"] == label and row["seed"] == seed for row in done):
            rows = run_seed(arguments, seed)
            with results.open("a") as file:
                file.writelines(json.dumps({"label": label, "seed": seed, **row}) + "\n" for row in rows)
    print(table([json.loads(line) for line in results.read_text().splitlines()], label))


def one_sided_p(returns_T: np.ndarray, benchmark_T: np.ndarray) -> float:
    """p-value that the mean return is not above the benchmark's: bootstrap of the centred difference."""
    difference_T = returns_T - benchmark_T
    if difference_T.std() <= 1e-12:
        return 1.0
    centred_T, block = difference_T - difference_T.mean(), block_length(difference_T)
    return float((bootstrap(centred_T, np.mean, block=block, samples=2000) >= difference_T.mean()).mean())


def run_seed(arguments: argparse.Namespace, seed: int) -> list[dict]:
    """One market: train, walk, score."""
    started = time.monotonic()
    size = arguments.assets, arguments.sessions
    home = arguments.folder / "-".join(map(str, (arguments.variant, *size, seed)))
    ground = KnownTruthMarket.of(home, arguments.variant, seed, size=size)
    panel, settings = ground.panel, Settings(home=home).ensure()
    chosen = dict(assignment.split("=", 1) for assignment in arguments.set)
    overrides = ({} if arguments.costs else FRICTIONLESS) | chosen | {"training.seed": str(seed)}
    config = for_panel(preset(arguments.preset).override(overrides), panel)
    checkpoint = (born if arguments.untrained else train)(settings, config, panel)
    trained = time.monotonic() - started
    imagination = MarketImagination(checkpoint)
    controls = Controls(imagination)
    block = getattr(split_dates(len(panel.dates), config), arguments.block)
    setup = BacktestSetup.over(
        panel,
        block,
        config.portfolio,
        stride=config.model.stride,
        n_assets=arguments.trade,
        window=history_needed(config),
    )
    views = setup.views()
    rivals = {strategy.name: strategy for strategy in baselines()}
    strategies: list[Strategy] = [rivals[name] for name in arguments.baselines.split(",")]
    planners = arguments.planner.split(",")
    strategies += [FinJEPAStrategy(strategy_name(name, arguments.utility), imagination, name) for name in planners]
    strategies.append(ShuffledActions(imagination, strategy_name(planners[0], arguments.utility)))
    strategies += [controls.make(f"mppi with {name}") for name in arguments.controls.split(",") if name]
    walks = [simulate(strategy, setup, views) for strategy in strategies]
    rank_ic = forecast_quality(imagination.forecast, setup, views)["rank_ic"]["mean"]
    rows = []
    for result in walks:
        scored = fraction(ground, setup, result) if arguments.variant != "null" else None
        rows.append(
            {
                "strategy": result.strategy,
                "of_oracle": scored.of_oracle if scored else None,
                "of_clock": scored.of_clock if scored else None,
                "p": one_sided_p(result.gross_T, walks[0].gross_T) if result.strategy != "equal_weight" else None,
                "net_minus_equal": float((result.net_T - walks[0].net_T).mean() * 252),
                "rank_ic": rank_ic if result.strategy in planners else None,
                "training_seconds": round(trained, 1),
            }
        )
    return rows


def train(settings: Settings, config: FinJEPAConfig, panel: Panel) -> Path:
    """As `finjepa train` does; a checkpoint that is there is not made again."""
    return train_checkpoint(settings, config, panel, {"seed": config.training.seed}, compute.ranks(settings, 1))[0]


def born(settings: Settings, config: FinJEPAConfig, panel: Panel) -> Path:
    """An encoder of random weights and its fitted read-out."""
    model = untrained(config)
    fit_readout(model, panel)
    model.save_pretrained(settings.checkpoints / "untrained")
    return settings.checkpoints / "untrained"


def table(rows: list[dict], label: str) -> str:
    """Markdown: one line a strategy, over seeds."""
    lines = [
        "| strategy | seeds | of the oracle's gain (sd) | of the clocked oracle's | p < 0.05 against 1/N, gross | RankIC |"
        " net of 1/N a year |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    mine = [row for row in rows if row["label"] == label]
    for name in dict.fromkeys(row["strategy"] for row in mine):
        of = [row for row in mine if row["strategy"] == name]

        def column(key: str, of: list[dict] = of) -> np.ndarray:
            return np.array([row[key] for row in of if row[key] is not None], float)

        oracle, clock, p, ic = (column(key) for key in ("of_oracle", "of_clock", "p", "rank_ic"))
        lines.append(
            f"| {name} | {len(of)} | {_mean(oracle)} ({_mean(oracle, np.std)}) | {_mean(clock)} "
            f"| {f'{int((p < 0.05).sum())} of {len(p)}' if len(p) else '–'} | {_mean(ic, form='.3f')} "
            f"| {column('net_minus_equal').mean():+.1%} |"
        )
    return "\n".join([*lines, "", *by_seed(mine)])


def by_seed(rows: list[dict]) -> list[str]:
    """The share of the oracle's gain of each strategy, seed by seed, with the interval of Student's t about the mean."""
    lines = []
    for name in dict.fromkeys(row["strategy"] for row in rows):
        shares = [
            (row["seed"], row["of_oracle"]) for row in rows if row["strategy"] == name and row["of_oracle"] is not None
        ]
        values = np.array([share for _, share in shares])
        if len(values) < 2:
            continue
        reach = half_width(values)
        each = " / ".join(f"{share:.2f}" for _, share in sorted(shares))
        lines.append(
            f"{name}: {each}, mean {values.mean():.2f} ({values.mean() - reach:.2f} to {values.mean() + reach:.2f})"
        )
    return lines


def _mean(values: np.ndarray, of=np.mean, form: str = ".2f") -> str:
    return format(of(values), form) if len(values) else "–"


def _label(arguments: argparse.Namespace) -> str:
    chosen = [
        arguments.variant,
        (arguments.assets, arguments.sessions, arguments.trade),
        arguments.preset,
        *sorted(arguments.set),
        arguments.planner,
        arguments.block,
        arguments.costs,
        arguments.untrained,
        arguments.utility,
        FRICTIONLESS,
    ]
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
