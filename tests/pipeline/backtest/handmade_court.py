"""The smallest config that reads a hand-made panel, and a court over its test block."""

from dataclasses import replace

import numpy as np

from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import history_needed, split_dates
from finjepa_pipeline.backtest.engine import Court


def config_for(n_assets: int) -> FinJEPAConfig:
    """`tiny`, with the default channel of `write_panel`; no symbol is kept from training."""
    config = preset("tiny")
    return replace(
        config,
        model=replace(config.model, channels=("channel_0",), market_channels=("market",)),
        training=replace(config.training, n_assets=n_assets, unseen_symbols=0.0),
    )


def court_over_test_block(
    panel: Panel, config: FinJEPAConfig, sessions: int, overnight: np.ndarray | None = None
) -> Court:
    """Over the first so many sessions of the test block."""
    first = split_dates(len(panel.dates), config).test[0]
    return Court.over(
        panel,
        (first, first + sessions),
        config.portfolio,
        stride=config.model.stride,
        n_assets=config.training.n_assets,
        window=history_needed(config),
        overnight=overnight,
    )
