"""Evaluation of a trained model without plans: collapse monitors, and linear probes of its latents.

Probes are ridges fitted on training rows, chosen on validation rows and reported on test rows, for volatility, returns, beta
and drawdown.

Shapes: B dates, S steps, N assets, M = N + 1 tokens, K predicted steps, R rows (date, asset), P inputs, D width, T sessions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.data.batches import MarketBatch, observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import Splits
from finjepa_model.world_model import WorldModel

# The sign of each of five ways to collapse; actions cannot be ignored, since what a trade leads to is part of a prediction. The
# bounds are those of a model that has learnt nothing at all; one that was only trained too little passes, and has a low skill.
_FAILURES: dict[str, Callable[[Mapping[str, float]], bool]] = {
    "constant latents": lambda v: min(v["latent_std"], v["latent_std_market"]) < 0.02,
    "few dimensions": lambda v: min(v["effective_rank_assets"], v["effective_rank_market"]) < 2.0,
    "slow features only": lambda v: v["slowness"] > 0.995,
    "the predictor copies": lambda v: v["movement"] < 1e-3,
    "error above the spread of the target": lambda v: v["relative_error"] > 2.0,
}


def effective_rank(samples_ND: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred samples (Roy and Vetterli 2007); 1 to D."""
    singular = torch.linalg.svdvals((samples_ND - samples_ND.mean(0)).double())
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


@torch.no_grad()
def monitor(model: WorldModel, batch: MarketBatch) -> dict[str, Any]:
    """The five monitors.

    Returns:
        latent_std, latent_std_market: (a) spread of a latent over samples; 0 when constant.
        effective_rank_assets, effective_rank_market: (b) dimensional collapse.
        slowness: (c) correlation of an asset's latent with that of the step before; 1 when nothing but slow features is left.
        movement: (d) mean square from the latent that a prediction starts from / from it to the true one; 0 when it copies.
        copy_skill, mean_skill: 1 - MSE of the prediction / MSE of predicting no change, or the mean latent.
        relative_error: (e) prediction loss / variance of the target.
        rollout_skill_k: 1 - MSE / MSE of no change, k steps ahead of the context.
        collapsed: whether one of the five has failed; collapse: which, in words.
    """
    observation = batch.observation
    tokens_BSMD = model.see(model.encoder, observation)[0]
    assets_BSND, market_BSD = tokens_BSMD[..., :-1, :], tokens_BSMD[..., -1, :]
    predicted_BSMD, _ = model.predict(tokens_BSMD, observation.present_BN)
    present_BSN = observation.present_BN.unsqueeze(1).expand(assets_BSND.shape[:-1])
    before, after = assets_BSND[:, :-1][present_BSN[:, 1:]], assets_BSND[:, 1:][present_BSN[:, 1:]]
    ahead = predicted_BSMD[:, :-1, :-1][present_BSN[:, 1:]]
    target = model.see(model.teacher, batch.ahead)[0][:, :, :-1][present_BSN[:, 1:]]
    copied = model.see(model.teacher, observation)[0][:, :-1, :-1][present_BSN[:, 1:]] if model.has_teacher else before
    error, change, spread = F.mse_loss(ahead, target), F.mse_loss(copied, target), target.var(0).mean()
    values = {
        "latent_std": spread.sqrt(),
        "latent_std_market": market_BSD.flatten(0, 1).var(0).mean().sqrt(),
        "effective_rank_assets": effective_rank(after),
        "effective_rank_market": effective_rank(market_BSD.flatten(0, 1)),
        "slowness": 1 - F.mse_loss(before, after) / (2 * after.var(0).mean()).clamp(min=1e-12),
        "movement": F.mse_loss(ahead, before) / change.clamp(min=1e-12),
        "copy_skill": 1 - error / change.clamp(min=1e-12),
        "mean_skill": 1 - error / spread.clamp(min=1e-12),
        "relative_error": error / spread.clamp(min=1e-12),
    }
    for k, skill in enumerate(rollout_skill(model, batch, model.config.loss.rollout_steps), start=1):
        values[f"rollout_skill_{k}"] = skill
    numbers = {name: float(value) for name, value in values.items()}
    failed = failures(numbers)
    return numbers | {"collapsed": bool(failed), "collapse": ", ".join(failed) or "none"}


def failures(values: Mapping[str, float]) -> list[str]:
    """The monitors that report a collapse: all that fail, or every one where a value is not a number."""
    broken = any(value != value for value in values.values())
    return [name for name, failed in _FAILURES.items() if broken or failed(values)]


@torch.no_grad()
def rollout_skill(model: WorldModel, batch: MarketBatch, steps: int) -> Tensor:
    """1 - MSE of the roll-out / MSE of no change since the end of the context, of assets and market, at each of K steps; what is
    true is what the teacher sees in the window that begins after the step before."""
    tokens_BSMD = model.see(model.encoder, batch.observation)[0]
    ahead_BKMD = model.rollout(tokens_BSMD[:, :-steps], batch.observation.present_BN, steps)
    last_B1MD = model.see(model.teacher, batch.observation)[0][:, -steps - 1 : -steps]
    truth_BKMD = model.see(model.teacher, batch.ahead)[0][:, -steps:]
    present_BM = F.pad(batch.observation.present_BN, (0, 1), value=True)

    def error(guess_BKMD: Tensor) -> Tensor:
        return ((guess_BKMD - truth_BKMD).square().mean(-1) * present_BM.unsqueeze(1)).sum((0, 2))

    return 1 - error(ahead_BKMD) / error(last_B1MD).clamp(min=1e-12)


STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


@dataclass(frozen=True)
class LinearProbe:
    """y = level + (x - centre) / scale @ weights."""

    centre_P: np.ndarray
    scale_P: np.ndarray
    weights_P: np.ndarray  # or [P, K] for several targets at once
    level: np.ndarray

    @classmethod
    def fit(cls, train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> "LinearProbe":
        """Ridge on (inputs [R, P], targets [R] or [R, K]); the strength is the one with the least squared error on
        validation."""
        x_RP, y_R = (part.astype(np.float64) for part in train)
        centre_P, scale_P, level = x_RP.mean(0), np.maximum(x_RP.std(0), 1e-8), y_R.mean(0)
        x_RP = (x_RP - centre_P) / scale_P
        gram_PP, cross_P = x_RP.T @ x_RP / len(x_RP), x_RP.T @ (y_R - level) / len(x_RP)
        eye_PP = np.eye(len(gram_PP))
        probes = [
            cls(centre_P, scale_P, np.linalg.solve(gram_PP + strength * eye_PP, cross_P), level)
            for strength in STRENGTHS
        ]
        return min(probes, key=lambda probe: float(np.square(probe(validation[0]) - validation[1]).mean()))

    def __call__(self, x_RP: np.ndarray) -> np.ndarray:
        return self.level + (x_RP.astype(np.float64) - self.centre_P) / self.scale_P @ self.weights_P


def r_squared(predicted_R: np.ndarray, target_R: np.ndarray, reference: np.ndarray | float) -> float:
    """1 - squared error / squared error of always saying `reference`, the mean of the training rows."""
    return 1 - float(np.square(predicted_R - target_R).sum() / np.square(target_R - reference).sum())


def rank_ic(predicted_R: np.ndarray, target_R: np.ndarray, date_R: np.ndarray, least: int = 5) -> float:
    """Mean over dates of the rank correlation across the assets of a date; dates with fewer than `least` are left out."""
    values = []
    for date in np.unique(date_R):
        rows = date_R == date
        if rows.sum() >= least and np.ptp(predicted_R[rows]) > 0:
            values.append(np.corrcoef(_ranks(predicted_R[rows]), _ranks(target_R[rows]))[0, 1])
    return float(np.mean(values)) if values else float("nan")


def _ranks(x_R: np.ndarray) -> np.ndarray:
    """0-based ranks; equal values share their mean rank."""
    _, inverse_R, counts = np.unique(x_R, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse_R]


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
    model: WorldModel, panel: Panel, block: tuple[int, int], dates: int = 150, assets: int = 40
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


def probe(model: WorldModel, panel: Panel, blocks: Splits, dates: int = 150, assets: int = 40) -> dict[str, float]:
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
