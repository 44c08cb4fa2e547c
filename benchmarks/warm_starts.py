"""Training that goes on from the model of the night before, at a tenth of the steps, beside training from scratch.

    OMP_NUM_THREADS=1 python benchmarks/warm_starts.py --home HOME --keep FOLDER [--nights 20] [--every 4]

Night k has a training block that ends k sessions later than that of night 0. Each night a model begins with the weights of the
one before (night 1: those of a training from scratch). Every few nights one is trained from scratch, with the same seed; other
seeds at night 0 say what noise is. All are scored on the validation block of their night. Preset `tiny`; HOME holds a panel.

Rule, written before the run: warm starts become the default if, over the nights with both, the mean difference in QLIKE and in
R2 within a date (volatility over 21 sessions) is no worse than one standard deviation between seeds, and the difference does not
grow worse from night to night beyond chance (t of its slope below 2). Otherwise training begins from random weights.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import seen_assets, split_dates
from finjepa_model.nn.risk import HORIZONS
from finjepa_model.training.risk_fit import RiskBlock
from finjepa_model.training.risk_scorecard import score_volatility, volatility_of
from finjepa_model.training.trainer import Trainer
from finjepa_model.world_model import WorldModel
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import for_panel

TRAIN, VALIDATION = 0.7, 0.15  # shares of the sessions at night 0
TENTH = {
    "training.epochs": "1",
    "training.steps_per_epoch": "12",
    "training.warmup_steps": "2",
    "training.learning_rate": "1e-3",
}
Scores = tuple[float, float]


def config_of(panel: Panel, night: int, **settings: str) -> FinJEPAConfig:
    sessions = len(panel.dates)
    share = {
        "training.train_share": f"{TRAIN + (night + 0.5) / sessions:.9f}",
        "training.validation_share": str(VALIDATION),
    }
    return for_panel(preset("tiny").override(share | settings), panel)


def trained(
    panel: Panel, config: FinJEPAConfig, folder: Path, before: WorldModel | None = None
) -> tuple[WorldModel, Scores]:
    """A model, and QLIKE and R2 within a date of its volatilities over 21 sessions on its validation block."""
    kept = folder / "scores.json"
    if kept.is_file():
        return WorldModel.from_pretrained(folder), tuple(json.loads(kept.read_text()))
    trainer = Trainer(config, panel, folder)
    if before is not None:
        trainer.model.load_state_dict(before.state_dict())
    trainer.train()
    model = trainer.model.eval()
    block = RiskBlock(panel, *split_dates(len(panel.dates), config).validation, seen_assets(panel, config))
    found = score_volatility(block, config, {"model": volatility_of(model)})["model"][HORIZONS.index(21)]
    scores = float(found.qlike_D.mean()), float(found.r2)
    model.save_pretrained(folder)
    kept.write_text(json.dumps(scores))
    return model, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument(
        "--keep", type=Path, required=True, help="folder of trainings, from which an interrupted run goes on"
    )
    parser.add_argument("--nights", type=int, default=20)
    parser.add_argument("--every", type=int, default=4, help="nights between two trainings from scratch")
    chosen = parser.parse_args()
    panel = Panel.open(current_panel(Settings(home=chosen.home.absolute())))
    model, scores = trained(panel, config_of(panel, 0), chosen.keep / "scratch-0")
    seeds = [scores] + [
        trained(panel, config_of(panel, 0, **{"training.seed": str(seed)}), chosen.keep / f"seed-{seed}")[1]
        for seed in (1, 2)
    ]
    noise = np.std(seeds, axis=0, ddof=1)
    print(f"Seeds at night 0: QLIKE and R2 {seeds}; standard deviations {noise}\n")
    print("| night | warm: QLIKE | R2 | scratch: QLIKE | R2 |\n|--:|--:|--:|--:|--:|", flush=True)
    differences = []
    for night in range(1, chosen.nights + 1):
        model, warm = trained(panel, config_of(panel, night, **TENTH), chosen.keep / f"warm-{night}", model)
        line = f"| {night} | {warm[0]:.4f} | {warm[1]:.4f} |"
        if night % chosen.every == 0:
            _, scratch = trained(panel, config_of(panel, night), chosen.keep / f"scratch-{night}")
            differences.append((night, warm[0] - scratch[0], scratch[1] - warm[1]))
            line += f" {scratch[0]:.4f} | {scratch[1]:.4f} |"
        else:
            line += " | |"
        print(line, flush=True)
    nights, *by_score = np.array(differences).T
    for name, worse, sd in zip(("QLIKE", "R2"), by_score, noise, strict=True):
        slope, error = slope_of(nights, worse)
        print(
            f"\n{name}: warm is worse by {worse.mean():+.4f} (standard deviation between seeds {sd:.4f}), by {slope:+.5f} more "
            f"a night (t {slope / error:.1f})"
        )


def slope_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares: the slope, and its standard error."""
    about = x - x.mean()
    slope = (about * y).sum() / (about**2).sum()
    left = y - y.mean() - slope * about
    return float(slope), float(((left**2).sum() / (len(x) - 2) / (about**2).sum()) ** 0.5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
