"""A small panel and short trainings on it, for the tests of the trainer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finjepa_model.config import FinJEPAConfig, TrainingConfig
from finjepa_model.data.panel import Panel
from finjepa_model.training.run_folder import read_metrics
from tests.model.markets import small_config
from tests.pipeline.backtest.handmade_panel import write_panel

SPEED = ("samples_per_second",)


def run_panel(folder: Path, sessions: int = 400, assets: int = 5) -> Panel:
    returns = 0.01 * np.random.default_rng(0).standard_normal((sessions, assets))
    return write_panel(folder, returns, features_DAF=np.stack([returns * 100] * 3, -1))


def run_config(loss: dict[str, Any] | None = None, **training: Any) -> FinJEPAConfig:
    """Ten steps on batches of 8 dates and 3 assets, evaluated twice."""
    settings: dict[str, Any] = {"epochs": 2, "steps_per_epoch": 5, "batch_size": 8, "n_assets": 3, "warmup_steps": 2}
    settings |= {"evaluate_batches": 1, "checkpoint_every": 3, "log_every": 1} | training
    config = small_config(**(loss or {}))
    config = replace(config, model=replace(config.model, market_channels=("market",)))
    return replace(config, training=TrainingConfig(**settings))


def records(run_folder: Path) -> list[dict[str, Any]]:
    """What a run logged, but for what depends on the clock."""
    return [{k: v for k, v in record.items() if k not in SPEED} for record in read_metrics(run_folder)]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit by bit; NaN equals NaN."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)
