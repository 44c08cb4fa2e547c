"""A panel of noise, for what only needs its shape."""

import json
from pathlib import Path

import numpy as np

from finjepa_model.data.panel import FORMAT, Panel


def random_panel(folder: Path, sessions: int, assets: int, channels: int, market_channels: int) -> Panel:
    """Every asset has a row at every session; returns have 1 % volatility, channels are normal."""
    rows, random = sessions * assets, np.random.default_rng(0)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (rows, channels))
    for asset in range(assets):
        features[asset * sessions : (asset + 1) * sessions] = random.standard_normal((sessions, channels), np.float32)
    for name in ("observed", "tradable", "eligible"):
        np.save(folder / f"{name}.npy", np.ones(rows, bool))
    np.save(folder / "beta.npy", np.ones(rows, np.float32))
    np.save(folder / "returns.npy", 0.01 * random.standard_normal(rows, np.float32))
    np.save(folder / "market_returns.npy", 0.01 * random.standard_normal(sessions, np.float32))
    np.save(folder / "market_features.npy", random.standard_normal((sessions, market_channels), np.float32))
    manifest = {
        "format": FORMAT,
        "content_hash": "benchmark",
        "channels": [{"name": f"channel_{channel}"} for channel in range(channels)],
        "market_channels": [{"name": f"market_{channel}"} for channel in range(market_channels)],
        "assets": [f"{asset:05d}" for asset in range(assets)],
        "dates": [str(np.datetime64("1980-01-01") + day) for day in range(sessions)],
        "offsets": (np.arange(assets + 1) * sessions).tolist(),
        "first": [0] * assets,
        "lengths": [sessions] * assets,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Panel.open(folder)
