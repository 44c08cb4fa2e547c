"""The risk scorecard: forecasts of volatility, covariance and quantiles beside textbook ones, on dates of their own.

Shapes: B dates, N assets, R rows (date, asset), D dates with a score, V horizons, C portfolios, T sessions after a date,
Q quantile levels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import RISK_SESSIONS, returns_until
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import Splits, seen_assets
from finjepa_model.errors import FinJEPAError
from finjepa_model.nn.covariance import minimum_variance
from finjepa_model.nn.risk import (
    HORIZONS,
    LEVELS,
    RETURN_HORIZONS,
    RiskInputs,
)
from finjepa_model.training.risk_fit import RiskBlock, network_of, random_portfolios
from finjepa_model.training.risk_scores import (
    christoffersen,
    compare,
    compare_variance,
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
from finjepa_model.training.textbook import (
    EVERY,
    Covariance,
    Distribution,
    Volatility,
    ewma_distribution,
    ewma_one_factor,
    ewma_volatility,
    fit_har,
    fixed_har_volatility,
    har_volatility,
    har_with_shrunk_correlations,
    history_distribution,
    history_volatility,
    sample_shrinkage,
)
from finjepa_model.world_model import WorldModel

_YEAR = 252
_MOST = 100  # assets of a scored date: what dates have in common limits a t-value, not their assets
_FAN = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class VolatilityScores:
    """Of one forecast and one horizon, by date."""

    qlike_D: np.ndarray
    squared_D: np.ndarray  # error within the date, summed over its assets
    utility_D: np.ndarray
    r2: float


def score_volatility(
    block: RiskBlock, config: FinJEPAConfig, forecasts: Mapping[str, Volatility], most: int = 512
) -> dict[str, list[VolatilityScores]]:
    """Scores of each forecast for each of HORIZONS, on the same rows: at most so many assets of every fifth session."""
    dates, targets, found = [], [], {name: [] for name in forecasts}
    with torch.no_grad():
        for chunk in block.chunks(config, EVERY, most):
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

    crps_D: np.ndarray  # by date
    coverage: dict[float, float]  # of central intervals
    by_year: dict[float, tuple[float, float]]  # the lowest and the highest coverage of a calendar year
    calm_stormy: dict[float, tuple[float, float]]  # the same of the calmer and of the stormier half of the dates
    pit: list[float]  # shares of ten bins
    kupiec: float  # p-value of the 5 % value at risk of the equally weighted portfolio
    christoffersen: float


def score_tails(
    block: RiskBlock,
    config: FinJEPAConfig,
    forecasts: Mapping[str, Distribution],
    every: int = EVERY,
    most: int = _MOST,
) -> dict[str, dict[tuple[str, int], TailScores]]:
    """Of each forecast for ("assets" or "portfolios", 1, 5 or 21 sessions), on every `every`-th session and at most so many of
    its assets; portfolios are random ones.

    Longer horizons overlap, so the tests of breaches look at sessions that are a horizon apart.
    """
    found: dict[str, dict[tuple[str, int], list[_Outcomes]]] = {name: {} for name in forecasts}
    breaches = {name: {horizon: [] for horizon in RETURN_HORIZONS} for name in forecasts}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for chunk in block.chunks(config, every, most):
            wholes = {name: forecast(chunk) for name, forecast in forecasts.items()}
            known_BN = chunk.after_BNT[..., :21].isfinite().all(-1) & chunk.observation.present_BN
            for b, date in enumerate(chunk.dates_B):
                at = known_BN[b].nonzero().squeeze(-1)
                if len(at) < 3:
                    continue
                after_NT = chunk.after_BNT[b, at, :21]
                storm = float(after_NT.square().mean())
                equal_1N = torch.full((1, len(at)), 1 / len(at))
                weights_CN = torch.cat([random_portfolios(len(at), 8, generator).float(), equal_1N])
                ones = {name: whole.take(b, at) for name, whole in wholes.items()}
                for horizon in RETURN_HORIZONS:
                    return_N = (1 + after_NT[:, :horizon]).prod(-1) - 1
                    outcome_C = weights_CN @ return_N
                    for name, one in ones.items():
                        of_assets_NQ = one.quantiles(LEVELS, horizon)[0]
                        of_portfolios_CQ = one.portfolio_quantiles(weights_CN[None], LEVELS, horizon)[0]
                        breach = bool(outcome_C[-1] < of_portfolios_CQ[-1, LEVELS.index(0.05)])
                        breaches[name][horizon].append((int(date), breach))
                        for kind, outcome_R, quantile_RQ in (
                            ("assets", return_N, of_assets_NQ),
                            ("portfolios", outcome_C[:-1], of_portfolios_CQ[:-1]),
                        ):
                            one_date = _Outcomes(int(date), storm, outcome_R.numpy(), quantile_RQ.numpy())
                            found[name].setdefault((kind, horizon), []).append(one_date)
    return {
        name: {
            key: _tail_scores(parts, _apart(breaches[name][key[1]], key[1]), block) for key, parts in of_name.items()
        }
        for name, of_name in found.items()
    }


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
        date_means(crps(outcome_R, quantile_RQ, levels_Q), date_R),
        covered,
        by_year,
        halves,
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


@dataclass(frozen=True)
class Score:
    """One number of the scorecard."""

    block: str  # validation or test
    symbols: str  # seen or unseen in training
    score: str
    horizon: int  # sessions
    forecast: str
    value: float
    t_value: float  # of the model's advantage, positive where it is better; NaN for itself, and where dates are too few


@dataclass(frozen=True)
class Example:
    """Forecasts at one close, and what came."""

    date: str
    assets: list[str]
    forecast_NN: list[list[float]]  # correlations
    realised_NN: list[list[float]]  # over the 63 sessions that followed
    # of equal weights: returns since the close, and quantiles by level at 1, 5, 21 sessions
    portfolio: dict[str, list[float]]


@dataclass(frozen=True)
class Scorecard:
    """How good a world model's forecasts of risk are beside textbook ones."""

    scores: list[Score]
    pit: dict[str, list[float]]  # "portfolios, 5 sessions": shares of ten bins on the last block that was scored
    example: Example | None
    left_out: list[str]  # blocks that could not be scored, and why
    dates: dict[str, tuple[str, str]]  # first and last session of each block


QLIKE, R2, UTILITY = "QLIKE of volatility", "R2 within a date", "utility of volatility targeting, % a year"
LEAST, LEAST_LONG, PORTFOLIO_QLIKE = (
    "least variance, % a year",
    "least variance long-only, % a year",
    "QLIKE of portfolios",
)
STEP_QLIKE, STEP_RATIO = "QLIKE of portfolios in a decision step", "realised over forecast variance in a decision step"
_STEPS = 4  # decision steps ahead


def scorecard(model: WorldModel, panel: Panel, splits: Splits) -> Scorecard:
    """Score the forecasts of a world model on its validation and test block, on symbols that it saw and on those it did not.

    HAR is fitted on the training block. Each t-value is by Diebold and Mariano, with as many lags as targets overlap.
    """
    unseen_A = ~seen_assets(panel, model.config)
    fitted_to = RiskBlock(panel, *splits.train, ~unseen_A)
    scores: list[Score] = []
    pit: dict[str, list[float]] = {}
    example, left_out = None, []
    try:
        har = har_volatility(fit_har(fitted_to, model.config, _MOST))
    except FinJEPAError as error:
        return Scorecard([], {}, None, [f"training: {error}"], {})
    for block_name, sessions in (("validation", splits.validation), ("test", splits.test)):
        for symbols, allowed_A in (("seen", ~unseen_A), ("unseen", unseen_A)):
            block = RiskBlock(panel, *sessions, allowed_A)
            try:
                if not allowed_A.any():
                    continue
                found, pit_of_block = _score_block(model, block, har)
            except FinJEPAError as error:
                left_out.append(f"{block_name}, {symbols} symbols: {error}")
                continue
            scores += [Score(block_name, symbols, *one) for one in found]
            pit |= pit_of_block
            example = _example(model, block) or example
    dates = {
        name: (str(panel.dates[first]), str(panel.dates[stop - 1]))
        for name, (first, stop) in (("validation", splits.validation), ("test", splits.test))
    }
    return Scorecard(scores, pit, example, left_out, dates)


Found = list[tuple[str, int, str, float, float]]


def volatility_of(model: WorldModel) -> Volatility:
    """That of a world model, without the correlations, which cost most of a forecast."""
    network = network_of(model)
    return lambda chunk: model.risk.log_volatility(RiskInputs.of(chunk.observation), network(chunk.observation)[0])


def _score_block(model: WorldModel, block: RiskBlock, har: Volatility) -> tuple[Found, dict[str, list[float]]]:
    """(score, horizon, forecast, value, t-value) of one block, and histograms of the probability integral."""
    config = model.config
    volatilities: dict[str, Volatility] = {
        "model": volatility_of(model),
        "without network": lambda chunk: model.risk.log_volatility(RiskInputs.of(chunk.observation)),
        "HAR with market": har,
        "fixed HAR": fixed_har_volatility,
        "EWMA": ewma_volatility,
        "20-day history": history_volatility,
    }
    found: Found = []
    of_volatility = score_volatility(block, config, volatilities, _MOST)
    for name, rows in of_volatility.items():
        for v, horizon in enumerate(HORIZONS):
            ours, row, lag = of_volatility["model"][v], rows[v], -(-horizon // EVERY)
            found += [
                (QLIKE, horizon, name, float(row.qlike_D.mean()), _advantage(ours.qlike_D, row.qlike_D, lag)),
                (R2, horizon, name, row.r2, _advantage(ours.squared_D, row.squared_D, lag)),
                (UTILITY, horizon, name, float(row.utility_D.mean()), _advantage(row.utility_D, ours.utility_D, lag)),
            ]
    covariances: dict[str, Covariance] = {
        "model": lambda chunk: model.forecast_risk(chunk.observation).covariance(),
        "fixed HAR, one-factor shrinkage": har_with_shrunk_correlations,
        "Ledoit-Wolf": sample_shrinkage,
        "non-linear shrinkage": lambda chunk: sample_shrinkage(chunk, nonlinear=True),
        "one factor, EWMA": ewma_one_factor,
    }
    of_portfolios = score_portfolios(block, config, covariances, draws=1)
    ours = of_portfolios["model"]
    for name, row in of_portfolios.items():
        pairs = ((LEAST, ours.unconstrained_D, row.unconstrained_D), (LEAST_LONG, ours.long_only_D, row.long_only_D))
        for score, ours_D, other_D in pairs:
            better = -compare_variance(ours_D, other_D, lag=1).t_value if name != "model" else math.nan
            found.append((score, 21, name, row.volatility(score == LEAST_LONG), better))
        better = _advantage(ours.qlike_D, row.qlike_D, 1)
        found.append((PORTFOLIO_QLIKE, 21, name, float(row.qlike_D.mean()), better))
    found += score_steps(model, block)
    distributions: dict[str, Distribution] = {
        "model": lambda chunk: model.forecast_risk(chunk.observation),
        "EWMA": ewma_distribution,
        "20-day history": history_distribution,
    }
    tails = score_tails(block, config, distributions)
    pit = {}
    for (kind, horizon), ours in tails["model"].items():
        for name in distributions:
            row, lag = tails[name][kind, horizon], -(-horizon // EVERY)
            better = _advantage(ours.crps_D, row.crps_D, lag)
            found.append((f"CRPS of {kind}, %", horizon, name, 100 * float(row.crps_D.mean()), better))
            for share, value in row.coverage.items():
                found.append(
                    (f"{100 * share:.0f} % interval of {kind} covers, %", horizon, name, 100 * value, math.nan)
                )
            if kind == "portfolios":
                found.append(("5 % value at risk of 1/N: Kupiec p", horizon, name, row.kupiec, math.nan))
                found.append(
                    ("5 % value at risk of 1/N: Christoffersen p", horizon, name, row.christoffersen, math.nan)
                )
        pit[f"{kind}, {horizon} sessions"] = ours.pit
    return found, pit


def _advantage(ours_D: np.ndarray, other_D: np.ndarray, lag: int) -> float:
    return -compare(ours_D, other_D, lag).t_value if ours_D is not other_D else math.nan


def score_steps(model: WorldModel, block: RiskBlock, every: int = 21) -> Found:
    """(score, sessions, forecast, value, t-value) of the term structure: variance of random portfolios in each of the next
    decision steps, beside that of the first step."""
    stride = model.config.model.stride
    index, generator = block.index(horizon=_STEPS * stride, least=3), torch.Generator().manual_seed(0)
    losses = np.zeros((len(range(0, len(index), every)), _STEPS, 2))
    ratios = np.zeros((len(losses), _STEPS))
    for d, k in enumerate(range(0, len(index), every)):
        here = index.assets[index.starts[k] : index.starts[k + 1]][:100].astype(np.int64)
        chunk = block.chunk(index.sessions[k : k + 1], here[None], model.config)
        covariance_HMM = model.forecast_risk(chunk.observation).step_covariance(stride, _STEPS)[0].double()
        weights_CN = random_portfolios(len(here), 16, generator)
        after_NHT = returns_until(block.panel, chunk.dates_B, chunk.assets_BN, _STEPS * stride, block.stop)[0]
        step_NH = after_NHT.nan_to_num().double().unflatten(-1, (_STEPS, stride)).log1p().sum(-1).expm1()
        realised_CH = (weights_CN @ step_NH).square()
        variance_CH = torch.einsum("cn,hnm,cm->ch", weights_CN, covariance_HMM[:, :-1, :-1], weights_CN)
        ratios[d] = (realised_CH / variance_CH).mean(0)
        for i, forecast_CH in enumerate((variance_CH, variance_CH[:, :1].expand_as(variance_CH))):
            # one squared return a portfolio: the mean over portfolios keeps the logarithm finite
            losses[d, :, i] = (realised_CH / forecast_CH + forecast_CH.log()).mean(0)
    found: Found = []
    for h in range(_STEPS):
        sessions, lag = (h + 1) * stride, -(-_STEPS * stride // every)
        for i, name in enumerate(("model", "first step for all")):
            better = _advantage(losses[:, h, 0], losses[:, h, 1], lag) if i else math.nan
            found.append((STEP_QLIKE, sessions, name, float(losses[:, h, i].mean()), better))
        found.append((STEP_RATIO, sessions, "model", float(ratios[:, h].mean()), math.nan))
    return found


def _example(model: WorldModel, block: RiskBlock, most: int = 20) -> Example | None:
    """At the last close of the block with 63 sessions after it, of assets that are spread over the universe."""
    try:
        index = block.index(horizon=RISK_SESSIONS)
    except FinJEPAError:
        return None
    here = index.assets[index.starts[-2] : index.starts[-1]].astype(np.int64)
    chosen = here[np.unique(np.linspace(0, len(here) - 1, most).astype(int))]
    chunk = block.chunk(index.sessions[-1:], chosen[None], model.config)
    forecast = model.forecast_risk(chunk.observation)
    after_NT = chunk.after_BNT[0].nan_to_num().double()
    equal_11N = torch.full((1, 1, len(chosen)), 1 / len(chosen))
    quantiles_YQ = [
        forecast.portfolio_quantiles(equal_11N, _FAN, horizon)[0, 0].tolist() for horizon in RETURN_HORIZONS
    ]
    path_T = (1 + after_NT[:, :21]).cumprod(-1).mean(0) - 1
    return Example(
        str(block.panel.dates[chunk.dates_B[0]]),
        [block.panel.assets[asset] for asset in chosen],
        forecast.correlation_BNN[0].tolist(),
        torch.corrcoef(after_NT).nan_to_num().tolist(),
        {"realised": path_T.tolist()}
        | {f"{q:g}": list(column) for q, column in zip(_FAN, zip(*quantiles_YQ, strict=True), strict=True)},
    )
