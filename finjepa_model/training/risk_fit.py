"""Fits a risk model on training dates: closed forms on every row, the network by gradient descent, a dozen weights by portfolios.

Shapes: B dates, N assets, R rows (date, asset), Z simple inputs, J inputs of the level, V horizons, K correlation estimators,
C portfolios, T sessions after a date, F folds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import RISK_SESSIONS, EligibleIndex, Observation, observe, returns_until
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import learned_blocks, seen_assets, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.nn.covariance import minimum_variance
from finjepa_model.nn.risk import (
    HORIZONS,
    LEVELS,
    LOOKBACKS,
    RETURN_HORIZONS,
    RiskInputs,
    RiskModel,
    less_date_mean,
    log_realised,
    realised_after,
)
from finjepa_model.world_model import WorldModel

_HISTORY = 253  # sessions of an asset before it is learned from
_RIDGE = 0.01  # of the variance of an input, on the distance; chosen on validation blocks, as are the numbers below
_LEVEL_RIDGE = 0.5
_LEAST_ROWS = 10  # for each input
_WINDOWS_AT_ONCE = 2048
_SIZES = (50, 35, 25, 18, 12, 8)  # assets of a universe that the mix is trained on
_QUIET = math.log(0.6)  # below the median volatility of the date


@dataclass(frozen=True)
class RiskBlock:
    """Where to learn or to score: sessions first .. stop - 1 of a panel, of which no target reaches beyond the last."""

    panel: Panel
    first: int
    stop: int
    allowed_A: np.ndarray | None = None  # bool, the assets to learn from; all by default

    def has_pairs(self) -> bool:
        """Whether there are eight sessions with eight assets to learn from."""
        try:
            return len(self.index(least=8)) >= 8
        except FinJEPAError:
            return False

    def index(self, horizon: int = 21, least: int = 3) -> EligibleIndex:
        """Pairs with a year behind them and `horizon` sessions of the block before them.

        Raises:
            FinJEPAError: if there are none.
        """
        return EligibleIndex.of(
            self.panel, _HISTORY, max(self.first, _HISTORY), self.stop - horizon, least=least, allowed=self.allowed_A
        )

    def market_target(self, dates_B: np.ndarray) -> Tensor:
        """log realised volatility_BV of the market proxy after each date; NaN where it reaches beyond the block."""
        days_BT = dates_B[:, None] + np.arange(1, RISK_SESSIONS + 1)
        inside_BT = days_BT < self.stop
        after_BT = torch.from_numpy(
            np.where(inside_BT, self.panel.market_returns[np.where(inside_BT, days_BT, 0)], 0.0)
        )
        whole_BV = torch.from_numpy(inside_BT[:, [horizon - 1 for horizon in HORIZONS]])
        realised_BV = torch.stack([log_realised(after_BT[:, :horizon], horizon) for horizon in HORIZONS], dim=-1)
        return torch.where(whole_BV, realised_BV, torch.nan).float()

    def chunks(self, config: FinJEPAConfig, every: int = 1, most: int = 512) -> "Iterator[Chunk]":
        """All pairs of every `every`-th session, a few sessions at a time; at most so many assets of a session."""
        index = self.index()
        places = np.arange(0, len(index), every)
        width = min(int(np.diff(index.starts).max()), most)
        for part in np.array_split(places, max(1, -(-len(places) * width // _WINDOWS_AT_ONCE))):
            assets_BN = np.full((len(part), width), -1, np.int64)
            for b, k in enumerate(part):
                here = index.assets[index.starts[k] : index.starts[k + 1]]
                picked = here[np.unique(np.linspace(0, len(here) - 1, min(width, len(here))).astype(int))]
                assets_BN[b, : len(picked)] = picked
            yield self.chunk(index.sessions[part], assets_BN, config)

    def chunk(self, dates_B: np.ndarray, assets_BN: np.ndarray, config: FinJEPAConfig) -> "Chunk":
        observation = observe(self.panel, dates_B, assets_BN, 1, config)
        after_BNT = returns_until(self.panel, dates_B, assets_BN, RISK_SESSIONS, self.stop)
        return Chunk(dates_B, assets_BN, observation, after_BNT)


@dataclass(frozen=True)
class Chunk:
    """Some dates, what was known then, and what came after."""

    dates_B: np.ndarray
    assets_BN: np.ndarray
    observation: Observation
    after_BNT: Tensor

    @property
    def target_BNV(self) -> Tensor:
        """log realised volatility after the date of present assets; NaN where it is not known."""
        return torch.where(self.observation.present_BN.unsqueeze(-1), realised_after(self.after_BNT), torch.nan)


Network = Callable[[Observation], tuple[Tensor, Tensor]]


def network_of(model: WorldModel) -> Network:
    """What the encoder and the head of risk say at the last step of an observation: distance_BNV and loading_BNL."""

    def read(seen: Observation) -> tuple[Tensor, Tensor]:
        latents = model.encoder(
            seen.features_BSNTF[:, -1], seen.observed_BSNT[:, -1], seen.market_BSTQ[:, -1], seen.present_BN
        )
        assert model.risk.head is not None
        return model.risk.head(*latents)

    return read


def fit_linear(risk: RiskModel, blocks: Sequence[RiskBlock], config: FinJEPAConfig) -> int:
    """Set the level and the linear branch by ridge regressions on every row of the blocks; returns how many rows there were.

    Only sums of products are kept. The level moves with the inputs: what is regressed is its distance from the mean of the four
    windows, on their differences, without a constant, so that it fits years that are calmer or stormier than those it knows.

    Raises:
        FinJEPAError: if there are too few rows.
    """
    contrast_JI = level_contrasts()
    products = [_Products(), _Products()]
    rows = 0
    for chunk in (chunk for block in blocks for chunk in block.chunks(config)):
        inputs, target_BNV = RiskInputs.of(chunk.observation), chunk.target_BNV
        whole_BN = target_BNV.isfinite().all(-1)
        kept = RiskInputs(inputs.simple_BNZ, inputs.market_BK, whole_BN)
        relative_BNZ, target_BNV = kept.relative(), target_BNV.nan_to_num()
        products[0].add(relative_BNZ[whole_BN], less_date_mean(target_BNV, whole_BN)[whole_BN])
        some_B = whole_BN.sum(-1) >= 3
        level_BJ = kept.level_inputs()[some_B]
        mean_BV = (target_BNV * whole_BN.unsqueeze(-1)).sum(1)[some_B] / whole_BN.sum(-1)[some_B].unsqueeze(-1)
        known_B1 = level_BJ[:, : len(LOOKBACKS)].mean(-1, keepdim=True)
        products[1].add(level_BJ @ contrast_JI, mean_BV - known_B1)
        rows += int(whole_BN.sum())
    if rows < _LEAST_ROWS * len(risk.linear_ZV):
        raise FinJEPAError(f"{rows} rows of an asset and a session are too few to fit forecasts of risk to")
    risk.linear_ZV.copy_(products[0].ridge(_RIDGE))
    level_JV = contrast_JI.double() @ products[1].ridge(_LEVEL_RIDGE)
    level_JV[: len(LOOKBACKS)] += 1 / len(LOOKBACKS)
    risk.level_JV.copy_(level_JV)
    return rows


def level_contrasts() -> Tensor:
    """[J, I]: from the inputs of the level to differences of windows, which do not change when all returns are scaled."""
    last = len(LOOKBACKS) - 1
    contrast_JI = torch.zeros(2 * len(LOOKBACKS) + 1, 2 * last)
    for i in range(last):
        for kind in (0, 1):
            contrast_JI[kind * len(LOOKBACKS) + i, kind * last + i] = 1
            contrast_JI[kind * len(LOOKBACKS) + last, kind * last + i] = -1
    return contrast_JI


class _Products:
    """Sums of products of inputs and targets, for a ridge regression without a constant."""

    def __init__(self) -> None:
        self.inputs_ZZ, self.target_ZV, self.count = 0.0, 0.0, 0

    def add(self, x_RZ: Tensor, y_RV: Tensor) -> None:
        x_RZ, y_RV = x_RZ.double(), y_RV.double()
        self.inputs_ZZ, self.target_ZV = self.inputs_ZZ + x_RZ.T @ x_RZ, self.target_ZV + x_RZ.T @ y_RV
        self.count += len(x_RZ)

    def ridge(self, strength: float) -> Tensor:
        assert isinstance(self.inputs_ZZ, Tensor)
        assert isinstance(self.target_ZV, Tensor)
        scale_Z = self.inputs_ZZ.diagonal().clamp(min=1e-9 * self.count)  # an input that does not vary gets no weight
        return torch.linalg.solve(self.inputs_ZZ + torch.diag(strength * scale_Z + 1e-9 * self.count), self.target_ZV)


@dataclass(frozen=True)
class RiskUniverse:
    """Some assets of a date: what correlations and volatilities were forecast, and what came after."""

    correlations_KNN: Tensor
    volatility_NV: Tensor
    after_NT: Tensor  # 21 sessions

    def covariance(self, correlation_NN: Tensor, horizon: int = 1) -> Tensor:
        volatility_N = self.volatility_NV[:, horizon].double()
        return volatility_N[:, None] * correlation_NN.double() * volatility_N


@torch.no_grad()
def draw_universes(
    risk: RiskModel,
    network: Network | None,
    block: RiskBlock,
    config: FinJEPAConfig,
    every: int = 10,
    seed: int = 0,
) -> list[RiskUniverse]:
    """Random assets of every `every`-th session, without the quiet ones (funds of bonds, takeover targets): where they are
    present they alone make up a portfolio of least variance, and the other assets teach nothing."""
    found, random = [], np.random.default_rng(seed)
    index = block.index(least=8)
    for place, k in enumerate(range(0, len(index), every)):
        here = index.assets[index.starts[k] : index.starts[k + 1]].astype(np.int64)
        chunk = block.chunk(index.sessions[k : k + 1], here[None], config)
        calm_N = RiskInputs.of(chunk.observation).simple_BNZ[0, :, LOOKBACKS.index(63)]
        here = here[(calm_N > calm_N.median() + _QUIET).numpy()]
        fitting = [size for size in _SIZES if size <= len(here)]
        if not fitting:
            continue
        size = fitting[place % min(len(fitting), 2)]
        chosen_N = np.sort(random.choice(here, size, replace=False))
        chunk = block.chunk(index.sessions[k : k + 1], chosen_N[None], config)
        found.append(universe(risk, network, chunk))
    return found


def universe(risk: RiskModel, network: Network | None, chunk: Chunk) -> RiskUniverse:
    """Of a chunk with one date."""
    distance_BNV, loading_BNL = network(chunk.observation) if network is not None else (None, None)
    volatility_BNV = risk.log_volatility(RiskInputs.of(chunk.observation), distance_BNV).exp()
    return RiskUniverse(
        risk.correlations(chunk.observation, loading_BNL)[0, :, :-1, :-1],
        volatility_BNV[0],
        chunk.after_BNT[0, :, :21].nan_to_num().double(),
    )


def fit_mix(
    risk: RiskModel, universes: Sequence[RiskUniverse], steps: int = 100, batch: int = 24, seed: int = 0
) -> None:
    """Set the weights of the correlation mix.

    The loss is the mean log realised variance of minimum-variance portfolios, unconstrained and long-only, and the QLIKE (Patton
    2011) of the variance of random portfolios, which keeps the level of correlations right.
    """
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(risk.mix.parameters(), lr=0.05)
    sizes = np.array([len(one.after_NT) for one in universes])
    for _ in range(steps):
        alike = np.flatnonzero(sizes == random.choice(sizes))
        chosen = [universes[i] for i in random.choice(alike, min(batch, len(alike)), replace=False)]
        correlation_BNN = risk.mix(torch.stack([one.correlations_KNN for one in chosen]))
        covariance_BNN = torch.stack([one.covariance(x) for one, x in zip(chosen, correlation_BNN, strict=True)])
        after_BNT = torch.stack([one.after_NT for one in chosen])
        loss = torch.zeros((), dtype=torch.float64)
        for long_only in (False, True):
            return_BT = (minimum_variance(covariance_BNN, long_only).unsqueeze(1) @ after_BNT).squeeze(1)
            loss = loss + return_BT.square().mean(-1).clamp(min=1e-10).log().mean()
        weights_CN = random_portfolios(covariance_BNN.shape[-1], 16, generator)
        variance_BC = ((weights_CN @ covariance_BNN) * weights_CN).sum(-1)
        ratio_BC = (weights_CN @ after_BNT).square().mean(-1) / variance_BC
        loss = loss + (ratio_BC - ratio_BC.clamp(min=1e-6).log()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def random_portfolios(assets: int, count: int, generator: torch.Generator) -> Tensor:
    """weights_CN float64, gross exposure 1: the first half long-only (Dirichlet), the others long and short."""
    size_CN = -torch.rand(count, assets, generator=generator, dtype=torch.float64).clamp(min=1e-12).log()
    sign_CN = torch.randint(0, 2, (count, assets), generator=generator) * 2 - 1
    sign_CN[: count // 2] = 1
    return sign_CN * size_CN / size_CN.sum(-1, keepdim=True)


@torch.no_grad()
def fit_share(risk: RiskModel, network: Network, block: RiskBlock, config: FinJEPAConfig) -> None:
    """Set how much of the distance is the network's, by least squares within [0, 1], on a block that it did not learn from."""
    top_V, bottom_V = torch.zeros(len(HORIZONS)), torch.zeros(len(HORIZONS))
    for chunk in block.chunks(config, every=5):
        target_BNV = chunk.target_BNV
        known_BN = target_BNV.isfinite().all(-1)
        distance_BNV, _ = network(chunk.observation)
        linear_BNV = less_date_mean(RiskInputs.of(chunk.observation).relative() @ risk.linear_ZV, known_BN)
        apart_BNV = less_date_mean(distance_BNV, known_BN) - linear_BNV
        wanted_BNV = less_date_mean(target_BNV.nan_to_num(), known_BN) - linear_BNV
        top_V += (apart_BNV * wanted_BNV).sum((0, 1))
        bottom_V += apart_BNV.square().sum((0, 1))
    risk.share_V.copy_((top_V / bottom_V.clamp(min=1e-9)).clamp(0, 1))


@torch.no_grad()
def fit_scale(risk: RiskModel, network: Network | None, blocks: Sequence[RiskBlock], config: FinJEPAConfig) -> None:
    """Move the level so that the forecast of the variance is unbiased: mean of realised over forecast variance is 1, which is
    where QLIKE is least. The mean of log volatility lies below the log of its mean."""
    totals_2V, counts_2V = torch.zeros(2, len(HORIZONS)), torch.zeros(2, len(HORIZONS))
    for block, chunk in ((where, chunk) for where in blocks for chunk in where.chunks(config, every=5)):
        inputs = RiskInputs.of(chunk.observation)
        distance_BNV = network(chunk.observation)[0] if network is not None else None
        forecast_BNV = risk.log_volatility(inputs, distance_BNV)
        market_B1V = block.market_target(chunk.dates_B).unsqueeze(1)
        pairs = ((chunk.target_BNV, forecast_BNV), (market_B1V, inputs.market_BK.mean(-1)[:, None, None]))
        for kind, (target_BNV, log_BNV) in enumerate(pairs):
            totals_2V[kind] += torch.exp(2 * (target_BNV - log_BNV).nan_to_num(-50.0)).sum((0, 1))
            counts_2V[kind] += target_BNV.isfinite().sum((0, 1))
    shift_2V = 0.5 * (totals_2V / counts_2V.clamp(min=1)).clamp(0.25, 4.0).log()
    risk.level_JV[-1] += shift_2V[0]
    risk.market_shift_V.copy_(shift_2V[1])


@torch.no_grad()
def fit_tails(risk: RiskModel, universes: Sequence[RiskUniverse], seed: int = 0) -> None:
    """Set the quantiles of standardised returns of assets and of portfolios: those of training dates, no shape assumed."""
    generator = torch.Generator().manual_seed(seed)
    levels_Q = torch.tensor(LEVELS, dtype=torch.float64)
    residuals: dict[tuple[int, int], list[Tensor]] = {}
    for one in universes:
        correlation_NN = risk.mix(one.correlations_KNN[None])[0]
        for y, horizon in enumerate(RETURN_HORIZONS):
            place = 0 if horizon <= HORIZONS[0] else 1
            covariance_NN = one.covariance(correlation_NN, place)
            after_NT = one.after_NT[:, : 21 - 21 % horizon].unflatten(-1, (-1, horizon))[:, :1]
            return_NT = (1 + after_NT).prod(-1) - 1
            least_N = minimum_variance(covariance_NN[None])
            weights_CN = torch.cat([random_portfolios(len(covariance_NN), 16, generator), least_N])
            variance_C = ((weights_CN @ covariance_NN) * weights_CN).sum(-1)
            scale = horizon**0.5
            residuals.setdefault((0, y), []).append(
                (return_NT / (covariance_NN.diagonal().sqrt() * scale)[:, None]).flatten()
            )
            residuals.setdefault((1, y), []).append(
                ((weights_CN @ return_NT) / (variance_C.sqrt() * scale)[:, None]).flatten()
            )
    for (kind, y), found in residuals.items():
        values, order = torch.cat(found).sort()
        place_Q = levels_Q * (len(order) - 1)
        low_Q = place_Q.long()
        high_Q = (low_Q + 1).clamp(max=len(order) - 1)
        risk.quantiles_2YQ[kind, y] = torch.lerp(values[low_Q], values[high_Q], place_Q - low_Q).float()


def fit_risk(
    risk: RiskModel,
    blocks: Sequence[RiskBlock],
    config: FinJEPAConfig,
    network: Network | None = None,
    held_out: RiskBlock | None = None,
) -> dict[str, float]:
    """Set everything that is not the network.

    Args:
        held_out: a block that the network did not learn from; on it the share of the network is fitted.

    Returns:
        The number of rows, the share of the network, and the weight of each correlation estimator.
    """
    rows = fit_linear(risk, blocks, config)
    if network is not None and held_out is not None:
        fit_share(risk, network, held_out, config)
    fit_scale(risk, network, blocks, config)
    universes = [one for block in blocks for one in draw_universes(risk, network, block, config)]
    if universes:
        fit_mix(risk, universes)
        fit_tails(risk, universes)
    weights = dict(zip(risk.mix.names, risk.mix.weights_K.tolist(), strict=True))
    shares = {f"share_of_network_{h}": float(share) for h, share in zip(HORIZONS, risk.share_V, strict=True)}
    return {"rows": float(rows)} | shares | weights


def fit_trained(model: WorldModel, panel: Panel) -> dict[str, float]:
    """Fit the risk model of a trained world model on its training block, the share of its network on its validation block.

    Returns:
        See `fit_risk`; no rows where the panel has too few assets or sessions to learn from, and the model stays fixed HAR.
    """
    config, device = model.config, next(model.parameters()).device
    blocks = [RiskBlock(one, *block, seen_assets(one, config)) for one, block in learned_blocks(panel, config)]
    learned = [blocks[0], *(block for block in blocks[1:] if block.has_pairs())]
    validation = RiskBlock(panel, *split_dates(len(panel.dates), config).validation, blocks[0].allowed_A)
    model.to("cpu").eval()
    try:
        network = network_of(model) if config.loss.risk > 0 else None
        return fit_risk(model.risk, learned, config, network, validation if validation.has_pairs() else None)
    except FinJEPAError:
        return {"rows": 0.0}
    finally:
        model.to(device)
