"""A made-up market as `yfinance.download(..., auto_adjust=False)` gives it, and models that read it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from finjepa_model import FinJEPA
from finjepa_model.config import preset
from finjepa_model.features import CHANNELS, MARKET_CHANNELS


def download(assets: int = 6, days: int = 320, seed: int = 0) -> pd.DataFrame:
    """Fields above symbols; the first symbol splits 4:1 and pays a dividend, so that its closes are raw."""
    random = np.random.default_rng(seed)
    index = pd.bdate_range("2019-01-01", periods=days, name="Date")
    market_D1 = random.normal(0.0005, 0.01, (days, 1))
    scale_A = np.linspace(0.005, 0.02, assets)
    value_DA = 50 * np.exp((market_D1 + random.normal(0, 1, (days, assets)) * scale_A).cumsum(0))
    names = [f"S{number:02d}" for number in range(assets)]
    adjusted = pd.DataFrame(value_DA, index=index, columns=names)
    close = adjusted.copy()
    close.iloc[: days // 2, 0] *= 4
    close.iloc[: days // 3, 0] /= 0.98
    volume = pd.DataFrame(random.uniform(1e6, 9e6, close.shape).round(), index=index, columns=names)
    fields = {"Adj Close": adjusted, "Close": close, "High": close * 1.01, "Low": close * 0.99, "Open": close * 1.002}
    return pd.concat(fields | {"Volume": volume}, axis=1, names=["Price", "Ticker"])


def reader(columns: frozenset[str] = frozenset({"close", "open", "high", "low", "volume", "dollar_volume"})) -> FinJEPA:
    """A small model, not trained, that reads all channels of these columns and expects different returns."""
    tiny = preset("tiny")
    channels = tuple(channel.name for channel in CHANNELS if columns.issuperset(channel.needs))
    market = tuple(channel.name for channel in MARKET_CHANNELS)
    torch.manual_seed(0)
    model = FinJEPA(replace(tiny, model=replace(tiny.model, channels=channels, market_channels=market))).eval()
    model.readout.set(0.02 * torch.randn_like(model.readout.weights_Z), 0.05, 0.9)
    model.risk.share_V.fill_(0.5)
    torch.nn.init.normal_(model.risk.head.mlp[-1].weight, std=0.05)
    return model
