"""Fits the read-out of expected returns on frozen latents and channels, on every row of the training block and nothing else.

The weight of an input is its covariance with the label, soft-thresholded by its own standard error (the lasso of inputs that
stand alone: Tibshirani 1996, Donoho and Johnstone 1994). Channels and latents each forecast folds of training dates that
they were not fitted to, with the dates that share a label with them left out (purged blocked cross-validation). The
predictor with the higher t-value is kept and scaled twice: by the slope of the labels on its forecasts out of sample (Copas
1983), and by the positive part of 1 - (c / t)^2 (James and Stein 1961; Morris 1983), c what the better one reaches by chance.
Where nothing is confirmed out of sample the read-out expects the same of every asset.

All of it follows from sums over the rows of a block of consecutive sessions, so that a whole market needs no memory for its rows.

Shapes: B dates, N assets, R rows (date, asset), Z inputs, K blocks of as many sessions as a decision step has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from finjepa_model.data.batches import EligibleIndex, observe, step_returns
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed, learned_blocks, seen_assets
from finjepa_model.errors import FinJEPAError
from finjepa_model.nn.readout import ReturnReadout
from finjepa_model.world_model import WorldModel

_THRESHOLD = 1.5  # standard errors of a covariance; chosen on validation blocks (docs/results/world-model.md)
_FOLDS = 5
_CHANCE = 1.5  # a t-value that the better one passes on noise one time in ten
_LEAST_ASSETS = 3  # of a date, for its mean to be taken off
# windows; of a larger market evenly spaced sessions are encoded, and channels are read on all rows
_MOST_ENCODED = 400_000
_WINDOWS_AT_ONCE = 4096
_CLIP = 5.0  # of labels, in deviations
_OVERLAP = 2  # blocks whose labels share a session with those of a block


class RowSums:
    """Sums over rows whose inputs and labels are relative to their dates.

    Attributes:
        of_block: by the number of a block, products of inputs and label [Z], of inputs [Z, Z], and the number of rows.
        kept_ZZ: products of the inputs with themselves a decision step before; before_ZZ: of those before.
    """

    def __init__(self) -> None:
        self.of_block: dict[int, list[np.ndarray]] = {}
        self.kept_ZZ: np.ndarray | float = 0.0
        self.before_ZZ: np.ndarray | float = 0.0

    def add(self, block_R: np.ndarray, inputs_RZ: np.ndarray, before_RZ: np.ndarray, target_R: np.ndarray) -> None:
        """Rows of whole dates."""
        for block in np.unique(block_R).tolist():
            x_RZ, y_R = inputs_RZ[block_R == block], target_R[block_R == block]
            sums = [x_RZ.T @ y_R, x_RZ.T @ x_RZ, np.array(len(y_R), float)]
            held = self.of_block.get(block)
            self.of_block[block] = sums if held is None else [a + b for a, b in zip(held, sums, strict=True)]
        self.kept_ZZ = self.kept_ZZ + inputs_RZ.T @ before_RZ
        self.before_ZZ = self.before_ZZ + before_RZ.T @ before_RZ

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """blocks_K, ascending, moment_KZ, gram_KZZ and count_K."""
        blocks = sorted(self.of_block)
        parts = zip(*(self.of_block[block] for block in blocks), strict=True)
        moment_KZ, gram_KZZ, count_K = (np.stack(part) for part in parts)
        return np.array(blocks), moment_KZ, gram_KZZ, count_K


@dataclass(frozen=True)
class Fitted:
    """Of one design: what is forecast, and how sure that is out of sample."""

    weights_Z: np.ndarray
    slope: float
    t_value: float
    persistence: float


def fit_readout(model: WorldModel, panel: Panel) -> dict[str, float | str]:
    """Set `model.readout`, and say what it rests on.

    Returns:
        Which inputs, how many of them have a weight, t-value out of sample, what is left after shrinkage, persistence, level
        and the number of rows; only the last where the panel is too small to learn from.
    """
    channels = len(model.config.model.channels)
    designs, level, rows = training_sums(model, panel)
    if not designs:
        return {"rows": 0.0}
    name, fitted, left = choose(designs)
    weights_Z = np.zeros(channels + model.config.model.dim)
    weights_Z[slice(channels) if name == "channels" else slice(channels, None)] = left * fitted.slope * fitted.weights_Z
    model.readout.set(torch.from_numpy(weights_Z), level, fitted.persistence)
    return {
        "inputs": name,
        "weighted": float((weights_Z != 0).sum()),
        "t_value": fitted.t_value,
        "left_by_shrinkage": left,
        "level": level,
        "persistence": fitted.persistence,
        "rows": float(rows),
    }


def choose(designs: Mapping[str, RowSums]) -> tuple[str, Fitted, float]:
    """The design with the higher t-value, and what is left of it after shrinkage."""
    tried = {name: fit_design(sums) for name, sums in designs.items()}
    name, fitted = max(tried.items(), key=lambda item: item[1].t_value)
    left = 1 - (_CHANCE / fitted.t_value) ** 2 if fitted.t_value > _CHANCE else 0.0
    return name, fitted, left


def fit_design(sums: RowSums) -> Fitted:
    """Weights from all blocks, and slope and t-value of forecasts of folds by the weights of the others."""
    blocks_K, moment_KZ, gram_KZZ, count_K = sums.stacked()
    variance_Z = np.maximum(np.einsum("kzz->z", gram_KZZ) / count_K.sum(), 1e-16)

    def weights(chosen_K: np.ndarray) -> np.ndarray:
        total_Z, error_Z = moment_KZ[chosen_K].sum(0), _deviation(moment_KZ[chosen_K])
        kept_Z = np.sign(total_Z) * np.maximum(np.abs(total_Z) - _THRESHOLD * error_Z, 0.0)
        return kept_Z / count_K[chosen_K].sum() / variance_Z

    every_K = np.arange(len(blocks_K))
    agreed_K, power_K = np.zeros((2, len(every_K)))  # products of forecast and label, and of the forecast with itself
    for fold_K in np.array_split(every_K, _FOLDS):
        inside_K = np.clip(blocks_K, blocks_K[fold_K[0]], blocks_K[fold_K[-1]])
        weights_Z = weights(every_K[np.abs(blocks_K - inside_K) > _OVERLAP])
        agreed_K[fold_K] = moment_KZ[fold_K] @ weights_Z
        power_K[fold_K] = gram_KZZ[fold_K] @ weights_Z @ weights_Z
    slope, t_value = 0.0, 0.0
    if power_K.sum() > 1e-18:
        slope = float(agreed_K.sum() / power_K.sum())
        t_value = slope * float(power_K.sum() / _deviation((agreed_K - slope * power_K)[:, None])[0])
    weights_Z = weights(every_K)
    before = float(weights_Z @ sums.before_ZZ @ weights_Z)
    persistence = float(weights_Z @ sums.kept_ZZ @ weights_Z) / max(before, 1e-12)
    return Fitted(weights_Z, max(slope, 0.0), t_value, min(max(persistence, 0.0), 1.0))


@torch.no_grad()
def training_sums(model: WorldModel, panel: Panel) -> tuple[dict[str, RowSums], float, int]:
    """The sums of both designs, mean label and number of rows of the training blocks, whose labels end in them; no designs
    where there are too few."""
    config, parts = model.config, []
    window = history_needed(config) + config.model.stride
    for one, (first, stop) in learned_blocks(panel, config):
        try:
            allowed_A = seen_assets(one, config)
            last = stop - config.model.stride - 1
            parts.append(
                (one, EligibleIndex.of(one, window, max(first, window), last, least=_LEAST_ASSETS, allowed=allowed_A))
            )
        except FinJEPAError:  # too few assets, ever: the model is trained all the same
            continue
    designs = {"channels": RowSums(), "latents": RowSums()}
    windows = sum(len(index.assets) for _, index in parts)
    spacing = max(1, -(-windows // _MOST_ENCODED))
    total, rows = 0.0, 0
    for one, index in parts:
        for places, encoded in _runs(index, spacing):
            date_R, channels_2RF, latents_2RD, target_R = _rows_of(model, one, index, places, encoded)
            total, rows = total + float(target_R.sum()), rows + len(target_R)
            block_R = _block_of(one, date_R, config.model.stride)
            target_R = _less_date_mean(target_R, date_R)
            for name, inputs_2RX in (("channels", channels_2RF), ("latents", latents_2RD)):
                if inputs_2RX is not None:
                    now_RX, before_RX = (_less_date_mean(x_RX, date_R) for x_RX in inputs_2RX)
                    designs[name].add(block_R, now_RX, before_RX, target_R)
    enough = all(len(sums.of_block) >= 2 * _FOLDS for sums in designs.values())
    return (designs if enough else {}), total / max(rows, 1), rows


def _runs(index: EligibleIndex, spacing: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Places of sessions in an index that are read together, and whether they are encoded too."""
    every = np.arange(len(index))
    for encoded in (True, False):
        places = every[(every % spacing == 0) == encoded]
        sizes = np.diff(index.starts)[places]
        cut = np.flatnonzero(np.diff(np.cumsum(sizes) // _WINDOWS_AT_ONCE)) + 1
        yield from ((part, encoded) for part in np.split(places, cut) if len(part))


def _rows_of(
    model: WorldModel, panel: Panel, index: EligibleIndex, places: np.ndarray, encoded: bool
) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[np.ndarray, ...] | None, np.ndarray]:
    """Session, inputs now and a decision step before, and label, in units of trailing volatility, of rows of some sessions."""
    stride, dates_B = model.config.model.stride, index.sessions[places]
    assets_BN = np.full((len(places), int(np.diff(index.starts)[places].max())), -1, np.int64)
    for b, k in enumerate(places):
        here = index.assets[index.starts[k] : index.starts[k + 1]]
        assets_BN[b, : len(here)] = here
    assets_BN = np.where(panel.rows(dates_B[:, None] + 1 + stride, assets_BN) >= 0, assets_BN, -1)
    device = next(model.parameters()).device
    seen = observe(panel, dates_B, assets_BN, 2, model.config, past=0)
    scale_BN = seen.volatility_BSN[:, -1].numpy() * stride**0.5
    target_BN = step_returns(panel, dates_B, assets_BN, stride) / scale_BN
    b_R, n_R = np.nonzero(assets_BN >= 0)

    def rows(x_BSNX: torch.Tensor) -> tuple[np.ndarray, ...]:
        x_BSNX = x_BSNX.cpu().double()
        return x_BSNX[b_R, 1, n_R].numpy(), x_BSNX[b_R, 0, n_R].numpy()

    latents = rows(model.encode(seen.to(device))[0]) if encoded else None
    return (
        dates_B[b_R],
        rows(ReturnReadout.means(seen.features_BSNTF)),
        latents,
        np.clip(target_BN[b_R, n_R], -_CLIP, _CLIP),
    )


def _block_of(panel: Panel, session_R: np.ndarray, stride: int) -> np.ndarray:
    """Number of the block of weekdays that a session lies in, the same on every calendar."""
    return np.busday_count("1900-01-01", panel.dates[session_R]) // stride


def _deviation(block_KX: np.ndarray) -> np.ndarray:
    """Of the sum over blocks; with the Bartlett weights of Newey and West (1987) for labels that overlap."""
    variance_X = np.square(block_KX).sum(0)
    for lag in range(1, min(_OVERLAP, len(block_KX) - 1) + 1):
        variance_X = variance_X + 2 * (1 - lag / (_OVERLAP + 1)) * (block_KX[lag:] * block_KX[:-lag]).sum(0)
    return np.sqrt(np.maximum(variance_X, 1e-18))


def _less_date_mean(x_RX: np.ndarray, date_R: np.ndarray) -> np.ndarray:
    """Rows of a date stand together."""
    _, start_K, number_R, count_K = np.unique(date_R, return_index=True, return_inverse=True, return_counts=True)
    mean_KX = np.add.reduceat(x_RX, start_K) / count_K.reshape(-1, *[1] * (x_RX.ndim - 1))
    return x_RX - mean_KX[number_R]
