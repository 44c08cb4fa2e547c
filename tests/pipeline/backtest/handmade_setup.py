"""The smallest config that reads a hand-made panel, the lineage of a checkpoint of it, and setups."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from finjepa_model.config import FinJEPAConfig, PortfolioConfig, preset
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed, split_dates
from finjepa_pipeline.backtest.engine import BacktestSetup


def config_for(n_assets: int) -> FinJEPAConfig:
    """`tiny`, with the default channel of `write_panel`; no symbol is kept from training."""
    config = preset("tiny")
    return replace(
        config,
        model=replace(config.model, channels=("channel_0",), market_channels=("market",)),
        training=replace(config.training, n_assets=n_assets, unseen_symbols=0.0),
    )


def write_lineage(folder: Path, config: FinJEPAConfig, panel: Panel) -> None:
    """As if a checkpoint with this config had been trained on the panel."""
    blocks = {"blocks": split_dates(len(panel.dates), config).dates(panel.dates)}
    data = {"data_version": panel.manifest["data_version"]}
    made = {"config": config.to_dict(), "panel_hash": panel.content_hash, "data": data} | blocks
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "lineage.json").write_text(json.dumps(made))
    (folder / "model.safetensors").touch()


def setup_over(panel: Panel, config: FinJEPAConfig, block: tuple[int, int], n_assets: int = 20) -> BacktestSetup:
    """As a checkpoint with this config is backtested over a block."""
    steps = {"stride": config.model.stride, "n_assets": n_assets, "window": history_needed(config)}
    return BacktestSetup.over(panel, block, config.portfolio, **steps)


def setup_over_test_block(panel: Panel, config: FinJEPAConfig, sessions: int) -> BacktestSetup:
    """Over the first so many sessions of the test block."""
    first = split_dates(len(panel.dates), config).test[0]
    return setup_over(panel, config, (first, first + sessions), config.training.n_assets)


def setup_of(
    panel: Panel, costs: PortfolioConfig | None = None, block: tuple[int, int] | None = None, **more: Any
) -> BacktestSetup:
    """From session 30 to the end, a decision every five sessions, unless told otherwise."""
    usual = {"stride": 5, "n_assets": 20, "window": 20}
    return BacktestSetup.over(panel, block or (30, len(panel.dates)), costs or PortfolioConfig(), **usual | more)
