"""One factor of the training recipe at a time, on markets with a known truth and on real prices.

    python benchmarks/ablation.py WORK [--sp500 FOLDER] [--steps 120] [--seeds 3] [--rows NAME ...] [--runs N]
        [--table]

Each run trains the `tiny` preset (batch of 32 dates) for so many steps and appends a line to WORK/runs.jsonl; a run that is
there is not made again, so an interrupted table goes on (`--runs` makes it in pieces), and a larger one can be made elsewhere.
Markets: synthetic `drift` and `risk` (20 assets, ten years), and sp500_2013_2018 without its last year, which nothing here
reads. `choice` is what recipes are compared by: mean R2 of the probes of next month's and the current volatility, beta and
drawdown on the VALIDATION block (ridge fitted and chosen inside the training block). The same probes on the test block are
reported beside it.

The default recipe is the one of the highest `choice` over all markets among those whose roll-outs, as a planner sees them, beat
no change on the validation block of every market (mean of k = 1 to 4 and of the seeds), if the gain over the present default
excludes zero.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu
from student import half_width

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.batches import BatchSource, Splits, split_dates
from finjepa_model.data.panel import Panel
from finjepa_model.training.evaluation import AHEAD, LinearProbe, probe, probe_rows
from finjepa_model.training.trainer import Trainer
from finjepa_model.world_model import FinJEPA

VARIANTS: dict[str, dict[str, str]] = {
    "sigreg (start)": {},
    "ema": {"loss.recipe": "ema"},
    "both": {"loss.recipe": "both"},
    "vicreg": {"loss.recipe": "vicreg"},
    "no inverse dynamics": {"loss.inverse_dynamics": "0"},
    "K = 1": {"loss.rollout_steps": "1"},
    "K = 4": {"loss.rollout_steps": "4"},
    "ema, teacher from 0.9": {"loss.recipe": "ema", "loss.ema_start": "0.9"},
    "both, teacher from 0.9": {"loss.recipe": "both", "loss.ema_start": "0.9"},
}
SYNTHETIC = ("drift", "risk")
CHOICE = ("r2_next_volatility", "r2_volatility", "r2_beta", "r2_drawdown")
STEPS_AHEAD = 4


def area_under_curve(score_D: np.ndarray, positive_D: np.ndarray) -> float:
    """Probability that a positive has a higher score than a negative (ROC AUC)."""
    positive_D = positive_D.astype(bool)
    positives, negatives = int(positive_D.sum()), int((~positive_D).sum())
    if not positives or not negatives:
        return float("nan")
    return float(mannwhitneyu(score_D[positive_D], score_D[~positive_D]).statistic / (positives * negatives))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sp500", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="which, all if not given"
    )
    parser.add_argument("--runs", type=int, default=10**6, help="make at most so many runs now")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    log = arguments.work / "runs.jsonl"
    if not arguments.table:
        arguments.work.mkdir(parents=True, exist_ok=True)
        panels = {name: make_panel(arguments.work / name, name, None) for name in SYNTHETIC}
        if arguments.sp500:
            panels["sp500"] = make_panel(arguments.work / "sp500", "files", arguments.sp500)
        for _ in range(arguments.runs):
            done = {(r["seed"], r["variant"], r["market"]) for r in read(log) if r["steps"] == arguments.steps}
            left = [key for key in itertools.product(range(arguments.seeds), arguments.rows, panels) if key not in done]
            if not left:
                break
            seed, variant, market = left[0]
            panel = panels[market]
            result = run(panel, market, config_of(panel, VARIANTS[variant], arguments.steps, seed))
            key = {"market": market, "variant": variant, "seed": seed, "steps": arguments.steps}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(key | result) + "\n")
    print(table([r for r in read(log) if r["steps"] == arguments.steps]))


def make_panel(home: Path, source: str, path: Path | None) -> Panel:
    """The panel of a market, made by the product's own pipeline."""
    from finjepa_pipeline.features import current_panel
    from finjepa_pipeline.features.panel import build_panel
    from finjepa_pipeline.settings import Settings
    from finjepa_pipeline.warehouse import Warehouse

    os.environ["FINJEPA_HOME"] = str(home.absolute())
    os.environ.pop("DAGSTER_HOME", None)
    settings = Settings.from_env()
    if not (home / "panels" / "current.json").exists():
        options = ["--data-source", "synthetic", "--synthetic-variant", source]
        if path:
            options = ["--data-source", "files", "--path", str(path), "--end", "2017-02-07"]
        subprocess.run([Path(sys.executable).with_name("finjepa"), "ingest", *options], check=True)
        with Warehouse.from_settings(settings).connect() as connection:
            build_panel(connection, settings)
    return Panel.open(current_panel(settings))


def config_of(panel: Panel, overrides: dict[str, str], steps: int, seed: int) -> FinJEPAConfig:
    size = {"training.batch_size": "32", "training.epochs": "1", "training.steps_per_epoch": str(steps)}
    more = {"training.seed": str(seed), "training.evaluate_batches": "2", "training.checkpoint_every": "100000"}
    # a year of history comes before the first row, and four years leave little: validation and test are a fifth each
    more |= {"loss.recipe": "sigreg", "loss.ema_start": "0.98", "training.learning_rate": "3e-3"}
    more |= {"training.train_share": "0.6", "training.validation_share": "0.2"}
    config = preset("tiny").override(size | more | overrides)
    return replace(config, model=replace(config.model, channels=panel.channels, market_channels=panel.market_channels))


def run(panel: Panel, market: str, config: FinJEPAConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, panel, Path(folder))
        metrics = trainer.train()
    model = trainer.model.eval()
    result = {name: value for name, value in metrics["diagnostics"].items() if isinstance(value, float)}
    result |= {"collapsed": float(metrics["diagnostics"]["collapsed"]), "seconds": metrics["training"]["seconds"]}
    result |= rollouts(model, panel, config)
    splits = split_dates(len(panel.dates), config)
    inner = int(0.75 * splits.train[1])
    choosing = Splits((0, inner), (inner + AHEAD + 1, splits.train[1]), splits.validation)
    for block, blocks in (("validation", choosing), ("test", splits)):
        known = probe(model, panel, blocks, dates=120, assets=20)
        result |= {f"{block}_{name}": value for name, value in known.items()}
    result["choice"] = float(np.mean([result[f"validation_{name}"] for name in CHOICE]))
    if market in SYNTHETIC:
        result |= regime(model, panel, splits, market)
    return result


def rollouts(model: FinJEPA, panel: Panel, config: FinJEPAConfig) -> dict[str, float]:
    """Skill over no change at each of four steps, on the validation block, whatever K was trained; in the space that a planner
    sees the market in, and (`teacher_`) in the space that was learned to be predicted."""
    from finjepa_model.training.evaluation import rollout_skill

    far = replace(config, loss=replace(config.loss, rollout_steps=STEPS_AHEAD))
    source = BatchSource(panel, far, split_dates(len(panel.dates), far).validation)
    spaces = {"": model.encoder, "teacher_": model.target_encoder if model.has_teacher else model.encoder}
    result = {}
    for space, encoder in spaces.items():
        skills = [rollout_skill(model, source.draw(i).observation, STEPS_AHEAD, encoder).numpy() for i in range(3)]
        result |= {f"{space}skill_{k}": float(skill) for k, skill in enumerate(np.mean(skills, axis=0), start=1)}
    return result


def regime(model: FinJEPA, panel: Panel, splits: Splits, variant: str) -> dict[str, float]:
    """ROC AUC of a probe of the market latent for the stormy regime on the test block, and of the Bayes filter there."""
    from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate
    from finjepa_pipeline.prices.synthetic.filter import stormy_probability

    market = generate(SyntheticConfig(variant=variant))
    place_D = np.searchsorted(market.dates, panel.dates)
    stormy_D, believed_D = market.regime_D[place_D], stormy_probability(market)[place_D]
    fit, choose, judge = (
        probe_rows(model, panel, block, dates=400, assets=6) for block in (splits.train, splits.validation, splits.test)
    )
    assert fit is not None
    assert choose is not None
    assert judge is not None
    line = LinearProbe.fit((fit.market_BD, stormy_D[fit.dates_B]), (choose.market_BD, stormy_D[choose.dates_B]))
    truth = stormy_D[judge.dates_B]
    return {
        "regime_auc": area_under_curve(line(judge.market_BD), truth),
        "regime_auc_bayes": area_under_curve(believed_D[judge.dates_B], truth),
    }


def read(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


COLUMNS = {
    "choice": "choice (validation)",
    "test_r2_next_volatility": "R2 next volatility",
    "gap": "minus HAR",
    "test_r2_volatility": "R2 volatility",
    "test_r2_beta": "R2 beta",
    "test_r2_drawdown": "R2 drawdown",
    "test_rank_ic_next_return": "RankIC 21 d",
    "skill_1": "skill k=1",
    "skill_2": "k=2",
    "skill_3": "k=3",
    "skill_4": "k=4",
    "action_gap": "action gap",
    "effective_rank_assets": "rank",
    "regime_auc": "regime AUC",
    "regime_auc_bayes": "Bayes AUC",
    "collapsed": "collapsed",
}


def table(records: list[dict]) -> str:
    """Mean ± standard deviation over seeds, a table a market; and what recipes are compared by, over all markets."""
    grouped = defaultdict(list)
    for record in records:
        record["gap"] = record["test_r2_next_volatility"] - record["test_r2_next_volatility_har"]
        grouped[record["market"], record["variant"]].append(record)
    lines = []
    for market in dict.fromkeys(r["market"] for r in records):
        columns = {k: v for k, v in COLUMNS.items() if any(k in r for r in records if r["market"] == market)}
        lines += [
            f"\n{market}\n",
            f"| | {' | '.join(columns.values())} | seeds |",
            "|---" + "|--:" * (len(columns) + 1) + "|",
        ]
        for variant in VARIANTS:
            found = grouped.get((market, variant), [])
            if found:
                cells = [_cell([r[k] for r in found]) for k in columns]
                lines.append(f"| {variant} | {' | '.join(cells)} | {len(found)} |")
    lines += [
        "\nOver all markets, and how much better than the start, in pairs of the same market and seed (95 % interval)\n",
        "| | choice | better by | roll-out skill, mean of k = 1 to 4 | better by | of the target | runs |",
        "|---" + "|--:" * 6 + "|",
    ]
    start = {(r["market"], r["seed"]): r for r in records if r["variant"] == next(iter(VARIANTS))}
    for variant in VARIANTS:
        found = [r for r in records if r["variant"] == variant and (r["market"], r["seed"]) in start]
        if found:
            measures = [
                ([measure(r) for r in found], [measure(r) - measure(start[r["market"], r["seed"]]) for r in found])
                for measure in (lambda r: r["choice"], mean_skill, lambda r: mean_skill(r, "teacher_"))
            ]
            cells = [cell for values, gains in measures for cell in (_cell(values), _interval(gains))][:5]
            lines.append(f"| {variant} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines)


def mean_skill(record: dict, space: str = "") -> float:
    return float(np.mean([record[f"{space}skill_{k}"] for k in range(1, STEPS_AHEAD + 1)]))


def _interval(gains: list[float]) -> str:
    """Mean, and Student's interval of it; empty for the start, which is not better than itself."""
    if len(gains) < 2 or not np.any(gains):
        return ""
    return f"{np.mean(gains):+.2f} ± {half_width(gains):.2f}"


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
