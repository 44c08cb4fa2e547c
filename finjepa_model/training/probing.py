"""What the latents of a world model know of a panel: probes of volatility, returns, beta, drawdown (finance.md, section 4).

Shapes: B dates, N assets, R rows (date, asset), D width, T sessions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from finjepa_model.probes import LinearProbe, r_squared, rank_ic
from finjepa_model.training.batches import observe
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import Splits
from finjepa_model.world_model import FinJEPA

AHEAD = 21  # sessions that a forecast looks ahead
_PAST = 252
_HAR = (5, 21, 63, 252)  # sessions of the heterogeneous autoregression's volatilities
_MIN_VOLATILITY = 1e-4
_CHUNK = 64  # dates encoded at once


@dataclass(frozen=True)
class ProbeRows:
    """The rows of one block of sessions, all known at the close of their date but for what is ahead."""

    date_R: np.ndarray
    latents_RD: np.ndarray  # the asset's, then the market's
    har_RH: np.ndarray  # log realised volatility over 5, 21, 63, 252 sessions, and the market's over 21
    targets: dict[str, np.ndarray]
    dates_B: np.ndarray
    market_BD: np.ndarray


@torch.no_grad()
def probe_rows(
    model: FinJEPA, panel: Panel, block: tuple[int, int], dates: int = 150, assets: int = 40
) -> ProbeRows | None:
    """Rows of up to `dates` evenly spaced sessions of a block, and up to `assets` eligible assets on each; None if a block
    has no asset with a year of history and a month ahead."""
    first, last = max(block[0], _PAST + model.config.model.window), block[1] - AHEAD - 1
    dates_B = np.unique(np.linspace(first, last, dates).astype(int)) if last > first else np.zeros(0, int)
    chosen_BN = np.full((len(dates_B), assets), -1, np.int64)
    for b, date in enumerate(dates_B):
        ready = panel.eligible_assets(int(date), max(_PAST, model.config.model.window))
        ready = ready[panel.rows(date + AHEAD, ready) >= 0]
        picked = ready[np.unique(np.linspace(0, len(ready) - 1, assets).astype(int))] if len(ready) else ready
        chosen_BN[b, : len(picked)] = picked
    if not (chosen_BN >= 0).any():
        return None
    device, latents, market = next(model.parameters()).device, [], []
    for start in range(0, len(dates_B), _CHUNK):
        part = slice(start, start + _CHUNK)
        seen = observe(panel, dates_B[part], chosen_BN[part], 1, model.config).to(device)
        assets_BSND, market_BSD = model.encode(seen)
        latents.append(assets_BSND[:, 0].float().cpu().numpy())
        market.append(market_BSD[:, 0].float().cpu().numpy())
    place_R, column_R = np.nonzero(chosen_BN >= 0)
    date_R, asset_R = dates_B[place_R], chosen_BN[place_R, column_R]
    market_BD = np.concatenate(market)
    latents_RD = np.concatenate([np.concatenate(latents)[place_R, column_R], market_BD[place_R]], axis=1)
    return ProbeRows(date_R, latents_RD, *_truth(panel, date_R, asset_R), dates_B, market_BD)


def probe(model: FinJEPA, panel: Panel, blocks: Splits, dates: int = 150, assets: int = 40) -> dict[str, float]:
    """Every probe, with HAR beside the one of next month's volatility: fitted on the first block, chosen on the second,
    reported on the third.

    Args:
        blocks: those of the model's training, as sessions of the panel.
        dates, assets: at most so many of each in a block.

    Returns:
        r2_*: of the probe; r2_next_volatility_har: of HAR on the same rows; rank_ic_next_return; rows: of the third block.
        Empty where the panel is too short for it.
    """
    train, validation, test = (
        probe_rows(model, panel, block, dates, assets) for block in (blocks.train, blocks.validation, blocks.test)
    )
    if train is None or validation is None or test is None:
        return {}
    result = {"rows": float(len(test.date_R))}
    for name in train.targets:
        target = [rows.targets[name] for rows in (train, validation, test)]
        inputs = {"": [rows.latents_RD for rows in (train, validation, test)]}
        if name == "next_volatility":
            inputs["_har"] = [rows.har_RH for rows in (train, validation, test)]
        for suffix, (fit, choose, judge) in inputs.items():
            predicted_R = LinearProbe.fit((fit, target[0]), (choose, target[1]))(judge)
            if name == "next_return":
                result[f"rank_ic_{name}{suffix}"] = rank_ic(predicted_R, target[2], test.date_R)
            else:
                result[f"r2_{name}{suffix}"] = r_squared(predicted_R, target[2], float(target[0].mean()))
    return result


def _truth(panel: Panel, date_R: np.ndarray, asset_R: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    past_RT = panel.returns_after(date_R - _PAST, asset_R[:, None], _PAST)[0][:, 0].astype(np.float64)
    ahead_RT = panel.returns_after(date_R, asset_R[:, None], AHEAD)[0][:, 0].astype(np.float64)
    market_RT = panel.market_returns[date_R[:, None] + np.arange(1 - AHEAD, 1)].astype(np.float64)
    har = [_log_volatility(past_RT[:, -sessions:]) for sessions in _HAR] + [_log_volatility(market_RT)]
    level_RT = np.cumsum(np.log1p(past_RT), axis=1)
    targets = {
        "next_volatility": _log_volatility(ahead_RT),
        "next_return": np.log1p(ahead_RT).sum(axis=1),
        "volatility": _log_volatility(past_RT[:, -AHEAD:]),
        "beta": panel.beta[panel.rows(date_R, asset_R)].astype(np.float64),
        "drawdown": level_RT[:, -1] - np.maximum(level_RT.max(axis=1), 0.0),
    }
    return np.stack(har, axis=1), targets


def _log_volatility(returns_RT: np.ndarray) -> np.ndarray:
    """Log of the root mean square return."""
    return np.log(np.maximum(np.sqrt(np.square(returns_RT).mean(axis=1)), _MIN_VOLATILITY))
