"""Fits the read-out of expected returns on frozen latents and channels, on the training block alone.

The weight of an input is its covariance with the label, soft-thresholded by its own standard error (the lasso of inputs that
stand alone: Tibshirani 1996, Donoho and Johnstone 1994). Channels and latents each forecast blocks of training dates that
they were not fitted to, with the dates that share a label with them left out (purged blocked cross-validation). The
predictor with the higher t-value is kept and scaled twice: by the slope of the labels on its forecasts out of sample (Copas
1983), and by the positive part of 1 - (c / t)^2 (James and Stein 1961; Morris 1983), c what the better one reaches by chance.
Where nothing is confirmed out of sample the read-out expects the same of every asset.

Shapes: B dates, N assets, R rows (date, asset), Z inputs, K dates that occur.
"""

from dataclasses import dataclass

import numpy as np
import torch

from finjepa_model.data.batches import EligibleIndex, observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed, split_dates, unseen
from finjepa_model.errors import FinJEPAError
from finjepa_model.nn.readout import ReturnReadout
from finjepa_model.world_model import FinJEPA

_THRESHOLD = 1.5  # standard errors of a covariance; chosen on validation blocks (docs/results/world-model.md)
_FOLDS = 5
_CHANCE = 1.5  # a t-value that the better one passes on noise one time in ten
_LEAST_ASSETS = 3  # of a date, for its mean to be taken off
_MOST_DATES, _MOST_ROWS, _MOST_ASSETS = 2000, 100_000, 256
_WINDOWS_AT_ONCE = 1024
_CLIP = 5.0  # of labels, in deviations


@dataclass(frozen=True)
class ReadoutRows:
    """What was known at the close of a date of an asset, and what its return was from the fill on."""

    date_R: np.ndarray  # session numbers, ascending
    inputs_RZ: np.ndarray
    before_RZ: np.ndarray  # a decision step earlier
    target_R: np.ndarray  # in units of trailing volatility over a decision step

    def relative(self) -> "ReadoutRows":
        """Every input and label less its mean over the assets of the date."""
        parts = (self.inputs_RZ, self.before_RZ, self.target_R)
        return ReadoutRows(self.date_R, *(_less_date_mean(part, self.date_R) for part in parts))


def fit_readout(model: FinJEPA, panel: Panel) -> dict[str, float | str]:
    """Set `model.readout`, and say what it rests on.

    Returns:
        Which inputs, how many of them have a weight, t-value out of sample, what is left after shrinkage, persistence, level
        and the number of rows; only the last where the panel is too small to learn from.
    """
    rows = training_rows(model, panel)
    if rows is None:
        return {"rows": 0.0}
    level = float(rows.target_R.mean())
    relative = rows.relative()
    weights_Z, report = fit_rows(relative, len(model.config.model.channels), model.config.model.stride)
    now_R, before_R = relative.inputs_RZ @ weights_Z, relative.before_RZ @ weights_Z
    persistence = float(np.clip(now_R @ before_R / max(before_R @ before_R, 1e-12), 0.0, 1.0))
    model.readout.set(torch.from_numpy(weights_Z), level, persistence)
    return report | {"level": level, "persistence": persistence, "rows": float(len(rows.date_R))}


def fit_rows(rows: ReadoutRows, channels: int, stride: int) -> tuple[np.ndarray, dict[str, float | str]]:
    """weights_Z from rows that are relative to their dates, of which the first `channels` inputs are channels."""
    scale_Z = np.maximum(rows.inputs_RZ.std(0), 1e-8)
    scaled = ReadoutRows(rows.date_R, rows.inputs_RZ / scale_Z, rows.before_RZ, rows.target_R)
    every_Z = np.arange(len(scale_Z))
    designs = {"channels": every_Z[:channels], "latents": every_Z[channels:]}
    dates_K, daily_KZ, count_K = _by_date(scaled)
    overlap = int(np.ceil(stride / max(np.diff(dates_K).mean(), 1.0)))
    forecast_RZ = np.zeros_like(scaled.inputs_RZ)  # what each input adds, by weights of the other folds
    for fold_K in np.array_split(np.arange(len(dates_K)), _FOLDS):
        held_R = (rows.date_R >= dates_K[fold_K[0]]) & (rows.date_R <= dates_K[fold_K[-1]])
        apart_K = np.abs(dates_K - np.clip(dates_K, dates_K[fold_K[0]], dates_K[fold_K[-1]])) > stride + 1
        forecast_RZ[held_R] = scaled.inputs_RZ[held_R] * _weights(daily_KZ[apart_K], count_K[apart_K], overlap)
    tried = {name: _confirm(forecast_RZ[:, Z].sum(1), rows, overlap) for name, Z in designs.items()}
    name, (slope, t_value) = max(tried.items(), key=lambda item: item[1][1])
    left = 1 - (_CHANCE / t_value) ** 2 if t_value > _CHANCE else 0.0
    weights_Z, columns = np.zeros(len(scale_Z)), designs[name]
    fitted_Z = _weights(daily_KZ, count_K, overlap) / scale_Z
    weights_Z[columns] = left * max(slope, 0.0) * fitted_Z[columns]
    return weights_Z, {
        "inputs": name,
        "weighted": float((weights_Z != 0).sum()),
        "t_value": t_value,
        "left_by_shrinkage": left,
    }


@torch.no_grad()
def training_rows(model: FinJEPA, panel: Panel) -> ReadoutRows | None:
    """Rows of evenly spaced dates of the training block whose labels end in it; None where there are too few."""
    config = model.config
    stride, training = config.model.stride, config.training
    block, window = split_dates(len(panel.dates), config).train, history_needed(config) + stride
    seen_A = np.array([not unseen(symbol, training.unseen_symbols) for symbol in panel.assets])
    first, last = max(block[0], window), block[1] - stride - 1
    try:
        index = EligibleIndex.of(panel, window, first, last, least=_LEAST_ASSETS, allowed=seen_A)
    except FinJEPAError:  # too few assets, ever: the model is trained all the same
        return None
    widest = min(int(np.diff(index.starts).max()), _MOST_ASSETS)
    count = min(len(index), _MOST_DATES, max(_MOST_ROWS // widest, 1))
    chosen_B = np.unique(np.linspace(0, len(index) - 1, count).astype(int))
    parts = [
        _rows_of(model, panel, index, part_B, widest)
        for part_B in np.array_split(chosen_B, -(-len(chosen_B) * widest // _WINDOWS_AT_ONCE))
    ]
    rows = ReadoutRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return rows if len(np.unique(rows.date_R)) >= 2 * _FOLDS else None


def _rows_of(
    model: FinJEPA, panel: Panel, index: EligibleIndex, part_B: np.ndarray, widest: int
) -> tuple[np.ndarray, ...]:
    """The columns of `ReadoutRows` of some sessions of the index."""
    stride, dates_B = model.config.model.stride, index.sessions[part_B]
    assets_BN = np.full((len(part_B), widest), -1, np.int64)
    for b, k in enumerate(part_B):
        here = index.assets[index.starts[k] : index.starts[k + 1]]
        picked = here[np.unique(np.linspace(0, len(here) - 1, min(widest, len(here))).astype(int))]
        assets_BN[b, : len(picked)] = picked
    ends_BN = panel.rows(dates_B[:, None] + 1 + stride, assets_BN) >= 0
    assets_BN = np.where(ends_BN, assets_BN, -1)
    device = next(model.parameters()).device
    seen = observe(panel, dates_B, assets_BN, 2, model.config).to(device)
    inputs_BSNZ = ReturnReadout.inputs(seen.features_BSNTF, model.encode(seen)[0]).cpu().numpy().astype(np.float64)
    scale_BN = seen.volatility_BSN[:, -1].cpu().numpy() * stride**0.5
    daily_BNT, _ = panel.returns_after(dates_B + 1, assets_BN, stride)
    target_BN = np.expm1(np.log1p(daily_BNT.astype(np.float64)).sum(-1)) / scale_BN
    place = np.nonzero(ends_BN)
    return (
        dates_B[place[0]],
        inputs_BSNZ[place[0], 1, place[1]],
        inputs_BSNZ[place[0], 0, place[1]],
        np.clip(target_BN[place], -_CLIP, _CLIP),
    )


def _by_date(rows: ReadoutRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dates_K, the products of inputs and label summed over the assets of each, daily_KZ, and the number of these."""
    dates_K, start_K, count_K = np.unique(rows.date_R, return_index=True, return_counts=True)
    return dates_K, np.add.reduceat(rows.inputs_RZ * rows.target_R[:, None], start_K), count_K


def _weights(daily_KZ: np.ndarray, count_K: np.ndarray, overlap: int) -> np.ndarray:
    """Soft-thresholded covariances of inputs and label, weights_Z."""
    total_Z, error_Z = daily_KZ.sum(0), _deviation(daily_KZ, overlap)
    return np.sign(total_Z) * np.maximum(np.abs(total_Z) - _THRESHOLD * error_Z, 0.0) / count_K.sum()


def _deviation(daily_KX: np.ndarray, overlap: int) -> np.ndarray:
    """Of the sum over dates; with the Bartlett weights of Newey and West (1987) for labels that overlap."""
    variance_X = np.square(daily_KX).sum(0)
    for lag in range(1, min(overlap, len(daily_KX) - 1) + 1):
        variance_X = variance_X + 2 * (1 - lag / (overlap + 1)) * (daily_KX[lag:] * daily_KX[:-lag]).sum(0)
    return np.sqrt(np.maximum(variance_X, 1e-18))


def _confirm(forecast_R: np.ndarray, rows: ReadoutRows, overlap: int) -> tuple[float, float]:
    """Slope through the origin of labels on forecasts out of sample, and its t-value by the error of the dates."""
    power = float(np.square(forecast_R).sum())
    if power < 1e-18:
        return 0.0, 0.0
    slope = float(forecast_R @ rows.target_R) / power
    _, start_K = np.unique(rows.date_R, return_index=True)
    surprise_K = np.add.reduceat(forecast_R * (rows.target_R - slope * forecast_R), start_K)
    return slope, slope * power / float(_deviation(surprise_K, overlap))


def _less_date_mean(x_R: np.ndarray, date_R: np.ndarray) -> np.ndarray:
    _, number_R, count_K = np.unique(date_R, return_inverse=True, return_counts=True)
    total_K = np.zeros((len(count_K), *x_R.shape[1:]))
    np.add.at(total_K, number_R, x_R)
    return x_R - (total_K / count_K.reshape(-1, *[1] * (x_R.ndim - 1)))[number_R]
