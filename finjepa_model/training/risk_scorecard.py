"""The risk scorecard: forecasts of volatility, covariance and quantiles beside textbook ones, on dates of their own.

Shapes: B dates, N assets, R rows (date, asset), D dates with a score, V horizons, C portfolios, T sessions after a date,
Q quantile levels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.nn.covariance import estimate, ledoit_wolf, minimum_variance, quadratic_inverse_shrinkage
from finjepa_model.nn.risk import HORIZONS, LEVELS, LOOKBACKS, RETURN_HORIZONS, RiskForecast, RiskInputs, log_realised
from finjepa_model.training.risk_fit import Chunk, Networks, RiskBlock, latents_of, random_portfolios
from finjepa_model.training.risk_scores import (
    Comparison,
    christoffersen,
    compare,
    coverage,
    crps,
    date_means,
    kupiec,
    probability_integral,
    qlike,
    r2_within_dates,
    targeting_utility,
    within_dates,
)
from finjepa_model.world_model import FinJEPA

Volatility = Callable[[Chunk], Tensor]  # log of the daily volatility over each of HORIZONS, [B, N, V]
Covariance = Callable[[Chunk], Tensor]  # daily, over 21 sessions, [B, N, N] float64
Distribution = Callable[[Chunk], RiskForecast]
_YEAR = 252


@dataclass(frozen=True)
class VolatilityScores:
    """Of one forecast and one horizon, by date."""

    qlike_D: np.ndarray
    squared_D: np.ndarray  # error within the date, summed over its assets
    utility_D: np.ndarray
    r2: float


def score_volatility(
    block: RiskBlock, config: FinJEPAConfig, forecasts: Mapping[str, Volatility], every: int = 5
) -> dict[str, list[VolatilityScores]]:
    """Scores of each forecast for each of HORIZONS, on the same rows: all assets of every `every`-th session."""
    dates, targets, found = [], [], {name: [] for name in forecasts}
    with torch.no_grad():
        for chunk in block.chunks(config, every):
            target_BNV = chunk.target_BNV
            known_BN = target_BNV.isfinite().all(-1)
            dates.append(np.repeat(chunk.dates_B, known_BN.sum(-1).numpy()))
            targets.append(target_BNV[known_BN])
            for name, forecast in forecasts.items():
                found[name].append(forecast(chunk)[known_BN])
    date_R, target_RV = np.concatenate(dates), torch.cat(targets).double().numpy()
    scores = {}
    for name, parts in found.items():
        forecast_RV = torch.cat(parts).double().numpy()
        scores[name] = [_volatility_scores(target_RV[:, v], forecast_RV[:, v], date_R) for v in range(len(HORIZONS))]
    return scores


def _volatility_scores(target_R: np.ndarray, forecast_R: np.ndarray, date_R: np.ndarray) -> VolatilityScores:
    realised_R, variance_R = np.exp(2 * target_R), np.exp(2 * forecast_R)
    gap_R = within_dates(target_R, date_R) - within_dates(forecast_R, date_R)
    return VolatilityScores(
        date_means(qlike(realised_R, variance_R), date_R),
        date_means(np.square(gap_R), date_R),
        date_means(targeting_utility(realised_R, variance_R), date_R),
        r2_within_dates(target_R, forecast_R, date_R),
    )


@dataclass(frozen=True)
class PortfolioScores:
    """Of one forecast of covariance, by date: means over the universes that were drawn on it."""

    unconstrained_D: np.ndarray  # realised variance a day of the portfolio of least variance
    long_only_D: np.ndarray
    qlike_D: np.ndarray  # of the variance of random portfolios

    def volatility(self, long_only: bool) -> float:
        """% a year."""
        return 100 * float(np.sqrt((self.long_only_D if long_only else self.unconstrained_D).mean() * _YEAR))


def score_portfolios(
    block: RiskBlock,
    config: FinJEPAConfig,
    forecasts: Mapping[str, Covariance],
    assets: int = 50,
    draws: int = 4,
    every: int = 21,
    seed: int = 0,
) -> dict[str, PortfolioScores]:
    """On every `every`-th session portfolios of `assets` random assets (all, where there are fewer), held for 21 sessions."""
    values: dict[str, list[list[float]]] = {name: [] for name in forecasts}
    index, random, generator = block.index(least=8), np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k in range(0, len(index), every):
            here = index.assets[index.starts[k] : index.starts[k + 1]].astype(np.int64)
            for _ in range(draws):
                chosen_1N = np.sort(random.choice(here, min(assets, len(here)), replace=False))[None]
                chunk = block.chunk(index.sessions[k : k + 1], chosen_1N, config)
                after_NT = chunk.after_BNT[0, :, :21].nan_to_num().double()
                weights_CN = random_portfolios(len(after_NT), 32, generator)
                realised_C = (weights_CN @ after_NT).square().mean(-1)
                for name, forecast in forecasts.items():
                    covariance_1NN = forecast(chunk).double()
                    least = [minimum_variance(covariance_1NN, long_only)[0] @ after_NT for long_only in (False, True)]
                    variance_C = ((weights_CN @ covariance_1NN[0]) * weights_CN).sum(-1)
                    loss = float(qlike(realised_C.numpy(), variance_C.numpy()).mean())
                    values[name].append([*(float(x.square().mean()) for x in least), loss])
    return {name: PortfolioScores(*np.array(rows).reshape(-1, draws, 3).mean(1).T) for name, rows in values.items()}


@dataclass(frozen=True)
class TailScores:
    """Of the quantiles of assets (or of random portfolios) over one horizon."""

    coverage: dict[float, float]  # of central intervals
    by_year: dict[float, tuple[float, float]]  # the lowest and the highest coverage of a calendar year
    calm_stormy: dict[float, tuple[float, float]]  # the same of the calmer and of the stormier half of the dates
    crps: float
    pit: list[float]  # shares of ten bins
    kupiec: float  # p-value of the 5 % value at risk of the equally weighted portfolio
    christoffersen: float


def score_tails(
    block: RiskBlock, config: FinJEPAConfig, forecast: Distribution, every: int = 5, most: int = 100
) -> dict[tuple[str, int], TailScores]:
    """Of ("assets" or "portfolios", 1, 5 or 21 sessions), on every `every`-th session and at most so many of its assets.

    Longer horizons overlap, so the tests of breaches look at sessions that are a horizon apart.
    """
    found: dict[tuple[str, int], list[_Outcomes]] = {}
    breaches: dict[int, list[tuple[int, bool]]] = {horizon: [] for horizon in RETURN_HORIZONS}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for chunk in block.chunks(config, every, most):
            whole = forecast(chunk)
            known_BN = chunk.after_BNT[..., :21].isfinite().all(-1) & chunk.observation.present_BN
            for b, date in enumerate(chunk.dates_B):
                at = known_BN[b].nonzero().squeeze(-1)
                if len(at) < 3:
                    continue
                one, after_NT = whole.take(b, at), chunk.after_BNT[b, at, :21]
                storm = float(after_NT.square().mean())
                equal_1N = torch.full((1, len(at)), 1 / len(at))
                weights_CN = torch.cat([random_portfolios(len(at), 8, generator).float(), equal_1N])
                for horizon in RETURN_HORIZONS:
                    return_N = (1 + after_NT[:, :horizon]).prod(-1) - 1
                    of_assets_NQ = one.quantiles(LEVELS, horizon)[0]
                    outcome_C = weights_CN @ return_N
                    of_portfolios_CQ = one.portfolio_quantiles(weights_CN[None], LEVELS, horizon)[0]
                    breach = bool(outcome_C[-1] < of_portfolios_CQ[-1, LEVELS.index(0.05)])
                    breaches[horizon].append((int(date), breach))
                    for kind, outcome_R, quantile_RQ in (
                        ("assets", return_N, of_assets_NQ),
                        ("portfolios", outcome_C[:-1], of_portfolios_CQ[:-1]),
                    ):
                        one_date = _Outcomes(int(date), storm, outcome_R.numpy(), quantile_RQ.numpy())
                        found.setdefault((kind, horizon), []).append(one_date)
    return {key: _tail_scores(parts, _apart(breaches[key[1]], key[1]), block) for key, parts in found.items()}


@dataclass(frozen=True)
class _Outcomes:
    """What came of the forecasts of one date."""

    date: int
    storm: float  # mean squared return of the month that followed
    outcome_R: np.ndarray
    quantile_RQ: np.ndarray


def _tail_scores(parts: list[_Outcomes], breach_D: np.ndarray, block: RiskBlock) -> TailScores:
    outcome_R = np.concatenate([part.outcome_R for part in parts])
    quantile_RQ = np.concatenate([part.quantile_RQ for part in parts])
    counts_D, storm_D = [len(part.outcome_R) for part in parts], np.array([part.storm for part in parts])
    date_R = np.repeat([part.date for part in parts], counts_D)
    stormy_R = np.repeat(storm_D > np.median(storm_D), counts_D)
    year_R, levels_Q = block.panel.dates[date_R].astype("datetime64[Y]"), np.array(LEVELS)
    covered, by_year, halves = {}, {}, {}
    for share in (0.5, 0.9, 0.98):
        low, high = (LEVELS.index(round(0.5 + sign * share / 2, 3)) for sign in (-1, 1))
        ends = (outcome_R, quantile_RQ[:, low], quantile_RQ[:, high])
        covered[share] = coverage(*ends)
        years = [coverage(*(x[year_R == year] for x in ends)) for year in np.unique(year_R)]
        by_year[share] = (min(years), max(years))
        halves[share] = tuple(coverage(*(x[stormy_R == stormy] for x in ends)) for stormy in (False, True))
    pit_R = probability_integral(outcome_R, quantile_RQ, levels_Q)
    return TailScores(
        covered,
        by_year,
        halves,
        float(date_means(crps(outcome_R, quantile_RQ, levels_Q), date_R).mean()),
        (np.histogram(pit_R, 10, (0, 1))[0] / len(pit_R)).tolist(),
        kupiec(breach_D, 0.05),
        christoffersen(breach_D),
    )


def _apart(breaches: list[tuple[int, bool]], horizon: int) -> np.ndarray:
    """Breaches of dates that are at least `horizon` sessions apart."""
    kept, last = [], -horizon
    for date, breach in breaches:
        if date - last >= horizon:
            kept.append(breach)
            last = date
    return np.array(kept)


# -- what anybody can compute -------------------------------------------------------------------------------------------


def history_volatility(chunk: Chunk, sessions: int = 20) -> Tensor:
    """Standard deviation of the last 20 returns, for every horizon."""
    past_BNR = chunk.observation.past_BNR
    assert past_BNR is not None
    return log_realised(past_BNR, sessions).unsqueeze(-1).expand(*past_BNR.shape[:2], len(HORIZONS))


def ewma_volatility(chunk: Chunk) -> Tensor:
    """RiskMetrics 1996, decay .94, for every horizon."""
    volatility_BN = chunk.observation.volatility_BSN[:, -1]
    return volatility_BN.log().unsqueeze(-1).expand(*volatility_BN.shape, len(HORIZONS))


def fixed_har_volatility(chunk: Chunk) -> Tensor:
    """Mean of four log realised volatilities: HAR that nothing is fitted in."""
    realised_BNK = RiskInputs.of(chunk.observation).simple_BNZ[..., : len(LOOKBACKS)]
    return realised_BNK.mean(-1, keepdim=True).expand(*realised_BNK.shape[:2], len(HORIZONS))


def one_factor_covariance(chunk: Chunk) -> Tensor:
    """Trailing beta, exponentially weighted volatilities: what planners used before there was a risk model."""
    seen = chunk.observation
    beta_BN, volatility_BN = seen.beta_BSN[:, -1].double(), seen.volatility_BSN[:, -1].double()
    systematic_BN = beta_BN * seen.market_volatility_BS[:, -1:].double()
    specific_BN = torch.maximum(volatility_BN.square() - systematic_BN.square(), 0.05 * volatility_BN.square())
    return systematic_BN.unsqueeze(-1) * systematic_BN.unsqueeze(-2) + torch.diag_embed(specific_BN)


def sample_shrinkage(chunk: Chunk, nonlinear: bool = False) -> Tensor:
    """Ledoit and Wolf on the last 252 returns: linear (2004) or non-linear (2022)."""
    shrink = quadratic_inverse_shrinkage if nonlinear else ledoit_wolf
    past_BNR = _past_year(chunk)
    return torch.stack([shrink((x_NR - x_NR.mean(-1, keepdim=True)).T) for x_NR in past_BNR])


def five_lines(chunk: Chunk) -> Tensor:
    """Fixed HAR volatility; correlations half of one factor and half of the sample, 252 returns."""
    correlations_BKNN = estimate(_past_year(chunk), ("one_factor", "sample_252"))
    volatility_BN = fixed_har_volatility(chunk)[..., 0].double().exp()
    return volatility_BN.unsqueeze(-1) * correlations_BKNN.mean(1) * volatility_BN.unsqueeze(-2)


def _past_year(chunk: Chunk) -> Tensor:
    past_BNR = chunk.observation.past_BNR
    assert past_BNR is not None
    return past_BNR[..., -_YEAR:].nan_to_num().double()


# -- of a checkpoint ------------------------------------------------------------------------------------------------------


def scorecard(model: FinJEPA, block: RiskBlock) -> tuple[dict[str, float], Comparison]:
    """Scores of a world model's forecasts of risk over 21 sessions beside textbook ones, by name; and the model's QLIKE of
    volatility less that of fixed HAR.

    Raises:
        FinJEPAError: if the block has no session with eight assets that have a year behind them and a month before them.
    """
    month, head = HORIZONS.index(21), model.risk.head
    networks = Networks() if head is None else Networks([latents_of(model.encoder)], [head])

    def volatility(chunk: Chunk) -> Tensor:  # alone: correlations cost most of a forecast
        distance_BNV, _ = networks.read(chunk.observation)
        return model.risk.log_volatility(RiskInputs.of(chunk.observation), distance_BNV)

    volatilities = {"model": volatility, "fixed HAR": fixed_har_volatility, "EWMA": ewma_volatility}
    of_volatility = score_volatility(block, model.config, volatilities | {"20-day history": history_volatility})
    covariances = {
        "model": lambda chunk: model.forecast_risk(chunk.observation).covariance(),
        "five lines": five_lines,
        "Ledoit-Wolf": sample_shrinkage,
        "non-linear shrinkage": lambda chunk: sample_shrinkage(chunk, nonlinear=True),
        "one factor, EWMA": one_factor_covariance,
    }
    of_portfolios = score_portfolios(block, model.config, covariances, draws=1)
    tails = score_tails(block, model.config, lambda chunk: model.forecast_risk(chunk.observation))["portfolios", 5]
    found = {}
    for name, rows in of_volatility.items():
        found[f"QLIKE of volatility, {name}"] = float(rows[month].qlike_D.mean())
        found[f"R2 within a date, {name}"] = rows[month].r2
    for name, row in of_portfolios.items():
        found[f"least variance, % a year, {name}"] = row.volatility(False)
        found[f"least variance long-only, % a year, {name}"] = row.volatility(True)
    found |= {f"{share:.0%} interval of portfolios covers": value for share, value in tails.coverage.items()}
    ours, plain = of_volatility["model"][month], of_volatility["fixed HAR"][month]
    return found, compare(ours.qlike_D, plain.qlike_D, lag=5)
