"""Hand-made markets in the panel's format, for the tests of the setup."""

import json
from pathlib import Path

import numpy as np

from finjepa_model.data.panel import FORMAT, Panel


def write_panel(
    folder: Path,
    returns_DA: np.ndarray,
    *,
    alive_DA: np.ndarray | None = None,
    tradable_DA: np.ndarray | None = None,
    eligible_DA: np.ndarray | None = None,
    features_DAF: np.ndarray | None = None,
    market_returns_D: np.ndarray | None = None,
    liquidity_DA: np.ndarray | None = None,
    delisting_return_A: np.ndarray | None = None,
    dates_D: np.ndarray | None = None,
    data_version: str = "hand-made",
) -> Panel:
    """A panel of given daily returns; an asset has rows from its first to its last `alive` session, and is eligible and
    tradable while it has them unless told otherwise.

    The default channel is the day's return itself.
    """
    n_days, n_assets = returns_DA.shape
    dates_D = np.datetime64("2020-01-01") + np.arange(n_days) if dates_D is None else dates_D
    alive_DA = np.ones((n_days, n_assets), bool) if alive_DA is None else alive_DA
    tradable_DA = alive_DA if tradable_DA is None else tradable_DA & alive_DA
    eligible_DA = alive_DA if eligible_DA is None else eligible_DA & alive_DA
    features_DAF = returns_DA[..., None] if features_DAF is None else features_DAF
    market_D = returns_DA.mean(1) if market_returns_D is None else market_returns_D
    first_A = alive_DA.argmax(0)
    lengths_A = n_days - alive_DA[::-1].argmax(0) - first_A
    rows = [(a, slice(first_A[a], first_A[a] + lengths_A[a])) for a in range(n_assets)]
    arrays = {
        "features": np.concatenate([features_DAF[days, a] for a, days in rows]).astype(np.float32),
        "returns": np.concatenate([returns_DA[days, a] for a, days in rows]).astype(np.float32),
        "observed": np.concatenate([alive_DA[days, a] for a, days in rows]),
        "tradable": np.concatenate([tradable_DA[days, a] for a, days in rows]),
        "eligible": np.concatenate([eligible_DA[days, a] for a, days in rows]),
        "beta": np.ones(int(lengths_A.sum()), np.float32),
        "market_returns": market_D.astype(np.float32),
        "market_features": market_D[:, None].astype(np.float32),
    }
    if liquidity_DA is not None:
        arrays["liquidity"] = np.concatenate([liquidity_DA[days, a] for a, days in rows]).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    manifest = {
        "format": FORMAT,
        "content_hash": f"hand-made-{n_days}x{n_assets}",
        "channels": [{"name": f"channel_{f}"} for f in range(features_DAF.shape[-1])],
        "market_channels": [{"name": "market"}],
        "assets": [f"A{a:03d}" for a in range(n_assets)],
        "dates": [str(day) for day in dates_D],
        "offsets": [0, *np.cumsum(lengths_A).tolist()],
        "first": first_A.tolist(),
        "lengths": lengths_A.tolist(),
        "columns": ["close"] if liquidity_DA is None else ["close", "dollar_volume"],
        "delisting_return": [0.0] * n_assets if delisting_return_A is None else delisting_return_A.tolist(),
        "data_version": data_version,
        "feed": "test",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Panel.open(folder)


def noise(n_days: int, n_assets: int, seed: int = 0, drift: float = 0.0004) -> np.ndarray:
    """Independent daily returns of 1 % volatility, [D, A]."""
    return drift + 0.01 * np.random.default_rng(seed).standard_normal((n_days, n_assets))
