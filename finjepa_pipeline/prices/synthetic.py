"""A market whose expected returns and covariances are known on every day, its daily bars, and the best decisions.

Simple return of asset i on session t+1:

    r = mu_t + b_i' (f - E_t f) + sigma_i sqrt(h) z - 0.04 b_i0 (jump - E_t jump)

with three factors whose volatility follows a two-state regime, GARCH(1,1) idiosyncratic variance, t(6) shocks and
market-wide crashes. What is in brackets has mean zero given session t, so that mu_t is the whole expected return.

Shape suffixes: D sessions, A assets, K factors; T sessions of a decision.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl
import torch

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.plan import project_to_simplex
from finjepa_pipeline.prices.calendar import DEFAULT_CALENDAR
from finjepa_pipeline.prices.calendar import sessions as sessions_of

Variant = Literal["drift", "momentum", "risk", "null"]
VARIANTS: tuple[str, ...] = get_args(Variant)

STAY = np.array([0.99, 0.97])  # probability of staying in the calm, in the stormy regime
FACTOR_VOLATILITY = np.array([[0.008, 0.004, 0.004], [0.018, 0.007, 0.007]])  # a day: market and two styles, by regime
MARKET_DRIFT = np.array([4e-4, -2e-4])  # a day, by regime of the next day
GARCH = (0.05, 0.08, 0.87)  # omega, alpha, beta; unconditional variance 1
DEGREES = 6
MEMORY = 0.97  # of the planted signal
CRASH, CRASHES_A_YEAR = 0.04, 2.0
WARNED, UNWARNED = 0.10, 1.0 / 252.0  # daily probability of a crash while the warning of `risk` is on, and off
WARNINGS, WARNING_SESSIONS = 1.0 / 84.0, 5  # probability that one begins, sessions that it lasts
WARNING_VARIANCE = 4.0  # idiosyncratic variance on its sessions: what shows the warning, as dispersion across assets
SIGNAL_CAP = 3.0
ORACLE_STEPS = 400

# Of the bars
BAR_STEPS = 32  # of the path within a day that open, high, low and close are read from
BLOCK_ASSETS = 50
STALE = 0.01  # share of sessions without a trade
DIVIDEND = 0.005  # of the price, once a quarter
REUSED = 0.1  # share of delisted symbols that another company takes over
SPLIT_ABOVE, MERGE_BELOW = 200.0, 2.0
TICK, LEAST_HALF_SPREAD = 0.005, 0.0002  # half a cent, and 2 bp: what buying costs above and selling below the price


@dataclass(frozen=True)
class SyntheticConfig:
    """What to generate.

    Attributes:
        variant: `drift` plants mu = strength sigma x, with x shown by close location, overnight share and volume;
            `momentum` makes x the asset's own decayed past shocks; `risk` plants no drift of single assets but crashes
            that days of high dispersion announce, with an unconditional mean of zero; `null` is a martingale.
        strength: daily information coefficient of an asset's signal: .03 is easy, .01 hard.
    """

    variant: str = "drift"
    seed: int = 0
    assets: int = 20
    sessions: int = 2520
    strength: float = 0.03

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise FinJEPAError(f"unknown synthetic variant {self.variant!r}; choose one of {', '.join(VARIANTS)}")
        for name in ("assets", "sessions"):
            if getattr(self, name) < 2:
                raise FinJEPAError(f"synthetic market: {name}={getattr(self, name)} must be at least 2")


@dataclass(frozen=True)
class SyntheticMarket:
    """A generated market and the truth about it. Truth at row t is what is known at the close of t about session t+1.

    Attributes:
        dates: datetime64[D], sessions of XNYS.
        returns_DA: simple total returns, 0 before an asset's first session.
        alive_DA: whether the asset is listed; it is not before its IPO and after its delisting.
        signal_DA: the planted x, unit variance; 0 in `risk` and `null`.
        expected_DA: mu, expected simple return of the next session.
        loadings_AK, factor_variance_DK, own_variance_DA: covariance of the next session's returns is
            loadings diag(factor_variance) loadings' + diag(own_variance).
        factor_DK: what the factors did, as it came into the returns of the session (jumps in the first).
        regime_D: 0 calm, 1 stormy; warning_D: whether a crash is announced; crash_D: whether there was one.
        volatility_A: unconditional idiosyncratic volatility a day.
        delisted_A: whether the asset's last session before the end is a delisting, at a terminal return of -30 %.
    """

    config: SyntheticConfig
    dates: np.ndarray
    returns_DA: np.ndarray
    alive_DA: np.ndarray
    signal_DA: np.ndarray
    expected_DA: np.ndarray
    loadings_AK: np.ndarray
    factor_variance_DK: np.ndarray
    own_variance_DA: np.ndarray
    factor_DK: np.ndarray
    regime_D: np.ndarray
    warning_D: np.ndarray
    crash_D: np.ndarray
    volatility_A: np.ndarray
    delisted_A: np.ndarray

    def covariance(
        self, sessions: slice | np.ndarray = slice(None), assets: slice | Sequence[int] = slice(None)
    ) -> np.ndarray:
        """[T, A, A] of some assets, of their returns of the session after each of the given ones."""
        factors_TK, own_TA = self.factor_variance_DK[sessions], self.own_variance_DA[sessions][:, assets]
        loadings_AK = self.loadings_AK[assets]
        loaded = np.einsum("ak,tk,bk->tab", loadings_AK, factors_TK, loadings_AK, optimize=True)
        return loaded + np.eye(own_TA.shape[1]) * own_TA[:, None, :]


def generate(config: SyntheticConfig) -> SyntheticMarket:
    """The market of a config; the same config gives the same market."""
    random = np.random.default_rng([config.seed, VARIANTS.index(config.variant)])
    sessions, assets = config.sessions, config.assets
    regime_D = _regimes(random, sessions)
    warning_D, chance_D, warned_next_D = _warnings(random, config)
    crash_D = np.concatenate([[False], random.random(sessions - 1) < chance_D[:-1]])
    loadings_AK = np.column_stack([random.normal(1.0, 0.3, assets), random.normal(0.0, 0.5, (assets, 2))])
    volatility_A = random.uniform(0.008, 0.020, assets)

    mean_D, factor_variance_DK = _factor_truth(config, regime_D, chance_D)
    shocks_DK = random.normal(size=(sessions, 3)) * FACTOR_VOLATILITY[regime_D]
    if config.variant in ("drift", "momentum"):  # the regime's drift is part of the factor's shock about its mean
        shocks_DK[1:, 0] += MARKET_DRIFT[regime_D[1:]] - mean_D[:-1]
    shocks_DK[1:, 0] -= CRASH * (crash_D[1:] - chance_D[:-1])

    own_DA = random.standard_t(DEGREES, (sessions, assets)) * np.sqrt((DEGREES - 2) / DEGREES)  # of unit variance
    garch_DA = _garch(own_DA, volatility_A)
    own_variance_DA = garch_DA * (1.0 + (WARNING_VARIANCE - 1.0) * warned_next_D)[:, None]
    signal_DA = _signals(random, config, own_DA)
    expected_DA = config.strength * volatility_A * np.clip(signal_DA, -SIGNAL_CAP, SIGNAL_CAP) * bool(signal_DA.any())
    expected_DA += mean_D[:, None] * loadings_AK[:, 0]
    scale_D = np.where(warning_D[1:], WARNING_VARIANCE, 1.0)
    own_shocks_DA = own_DA[1:] * np.sqrt(garch_DA[:-1] * scale_D[:, None])  # of every session but the first
    returns_DA = np.zeros((sessions, assets))
    returns_DA[1:] = expected_DA[:-1] + shocks_DK[1:] @ loadings_AK.T + own_shocks_DA
    np.clip(returns_DA, -0.9, 3.0, out=returns_DA)
    alive_DA, delisted_A = _lives(random, returns_DA)
    first_A = alive_DA.argmax(axis=0)
    returns_DA[(np.arange(sessions)[:, None] <= first_A) | ~alive_DA] = 0.0
    days = np.array(sessions_of(DEFAULT_CALENDAR), "datetime64[D]")
    dates = days[days < np.datetime64("2025-01-01")][-sessions:]
    return SyntheticMarket(
        config, dates, returns_DA, alive_DA, signal_DA, expected_DA, loadings_AK, factor_variance_DK,
        own_variance_DA, shocks_DK, regime_D, warning_D, crash_D, volatility_A, delisted_A,
    )  # fmt: skip


def _regimes(random: np.random.Generator, sessions: int) -> np.ndarray:
    draws, regime_D = random.random(sessions), np.zeros(sessions, np.int64)
    for t in range(1, sessions):
        regime_D[t] = regime_D[t - 1] ^ int(draws[t] > STAY[regime_D[t - 1]])
    return regime_D


def _warnings(random: np.random.Generator, config: SyntheticConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether a crash is announced; the probability of a crash, and of an announcement, in the next session."""
    if config.variant != "risk":
        nothing_D = np.zeros(config.sessions)
        return nothing_D > 0, np.full(config.sessions, CRASHES_A_YEAR / 252.0), nothing_D
    begins_D = random.random(config.sessions) < WARNINGS
    warning_D, goes_on_D = (
        np.convolve(begins_D, np.ones(length))[: config.sessions] > 0
        for length in (WARNING_SESSIONS, WARNING_SESSIONS - 1)
    )
    return warning_D, np.where(warning_D, WARNED, UNWARNED), np.where(goes_on_D, 1.0, WARNINGS)


def _factor_truth(config: SyntheticConfig, regime_D: np.ndarray, chance_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected return of the market factor and variances of all factors in the next session, given this one's regime."""
    stays_D = STAY[regime_D]
    stormy_D = np.where(regime_D == 1, stays_D, 1.0 - stays_D)
    variance_DK = (1 - stormy_D)[:, None] * FACTOR_VOLATILITY[0] ** 2 + stormy_D[:, None] * FACTOR_VOLATILITY[1] ** 2
    variance_DK[:, 0] += CRASH**2 * chance_D * (1 - chance_D)
    mean_D = np.zeros(len(regime_D))
    if config.variant in ("drift", "momentum"):
        mean_D = (1 - stormy_D) * MARKET_DRIFT[0] + stormy_D * MARKET_DRIFT[1]
        variance_DK[:, 0] += (1 - stormy_D) * stormy_D * (MARKET_DRIFT[0] - MARKET_DRIFT[1]) ** 2
    if config.variant == "risk":  # crashes that are announced are expected; over all sessions the mean is zero
        announced = 1.0 - (1.0 - WARNINGS) ** WARNING_SESSIONS
        mean_D = -CRASH * (chance_D - (announced * WARNED + (1 - announced) * UNWARNED))
    return mean_D, variance_DK


def _garch(own_DA: np.ndarray, volatility_A: np.ndarray) -> np.ndarray:
    """Idiosyncratic variance of the session after each."""
    omega, alpha, beta = GARCH
    variance_DA, variance_A = np.empty_like(own_DA), np.ones(own_DA.shape[1])
    for t in range(len(own_DA)):
        if t:
            variance_A = omega + variance_A * (alpha * own_DA[t] ** 2 + beta)
        variance_DA[t] = variance_A
    return variance_DA * volatility_A**2


def _signals(random: np.random.Generator, config: SyntheticConfig, own_DA: np.ndarray) -> np.ndarray:
    if config.variant not in ("drift", "momentum"):
        return np.zeros_like(own_DA)
    news_DA = random.normal(size=own_DA.shape) if config.variant == "drift" else own_DA
    signal_DA = np.empty_like(own_DA)
    signal_DA[0] = news_DA[0]
    for t in range(1, len(own_DA)):
        signal_DA[t] = MEMORY * signal_DA[t - 1] + np.sqrt(1 - MEMORY**2) * news_DA[t]
    return signal_DA


def _lives(random: np.random.Generator, returns_DA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """When assets are listed: a fifth come to the market in its first half; 3 % a year leave it, more after a fall."""
    sessions, assets = returns_DA.shape
    late_A = random.random(assets) < 0.2
    first_A = np.where(late_A, random.integers(1, sessions // 2 + 1, assets), 0)
    first_A[0] = 0
    session_D1 = np.arange(sessions)[:, None]
    level_DA = np.cumsum(np.where(session_D1 > first_A, np.log1p(returns_DA), 0.0), axis=0)
    fallen_DA = 1.0 - np.exp(level_DA - np.maximum.accumulate(level_DA, axis=0))
    hazard_DA = 0.02 / 252.0 * (1.0 + 3.0 * fallen_DA)
    hazard_DA[(session_D1 < first_A + 252) | (session_D1 >= sessions - 21)] = 0.0
    dies_DA = random.random((sessions, assets)) < hazard_DA
    delisted_A = np.asarray(dies_DA.any(axis=0))
    last_A = np.where(delisted_A, dies_DA.argmax(axis=0), sessions - 1)
    return np.asarray((session_D1 >= first_A) & (session_D1 <= last_A)), delisted_A


# Daily bars in the Hub schema


def write_bars(market: SyntheticMarket, folder: Path) -> list[Path]:
    """Write the bars as `bars-*.parquet` into a folder; returns the files."""
    files = []
    for block, bars in enumerate(_blocks(market)):
        files.append(folder / f"bars-{block:05d}.parquet")
        bars.write_parquet(files[-1], compression="zstd", mkdir=True)
    return files


def bars_of(market: SyntheticMarket) -> pl.DataFrame:
    """All bars: symbol, date (text), open, high, low, close, volume, adj_close."""
    return pl.concat(_blocks(market))


def symbols_of(market: SyntheticMarket) -> list[str]:
    """A name for each asset; some who came late carry the name of one who left more than 60 sessions before."""
    symbols = [f"SYN{asset:05d}" for asset in range(market.config.assets)]
    random = np.random.default_rng([market.config.seed, 77])
    first_A = market.alive_DA.argmax(axis=0)
    last_A = len(market.dates) - 1 - market.alive_DA[::-1].argmax(axis=0)
    free = list(np.flatnonzero(first_A > 0))
    for dead in np.flatnonzero(market.delisted_A):
        heirs = [asset for asset in free if first_A[asset] > last_A[dead] + 60]
        if heirs and random.random() < REUSED:
            symbols[heirs[0]] = symbols[dead]
            free.remove(heirs[0])
    return symbols


def _blocks(market: SyntheticMarket) -> Iterator[pl.DataFrame]:
    """Bars of a few assets at a time; an asset is drawn by itself, so that blocks do not matter."""
    symbols = symbols_of(market)
    order = sorted(range(len(symbols)), key=lambda asset: (symbols[asset], int(market.alive_DA[:, asset].argmax())))
    for start in range(0, len(order), BLOCK_ASSETS):
        yield pl.concat([_asset(market, asset, symbols[asset]) for asset in order[start : start + BLOCK_ASSETS]])


def _asset(market: SyntheticMarket, asset: int, symbol: str) -> pl.DataFrame:
    random = np.random.default_rng([market.config.seed, 1000 + asset])
    days = np.flatnonzero(market.alive_DA[:, asset])
    returns = market.returns_DA[days, asset]
    price, shares = _corporate_history(random, returns, days)
    total_return_index = np.cumprod(1.0 + returns)
    close = price / shares
    relative = _bars(random, market, asset, days, returns)
    stale = random.random(len(days)) < STALE
    stale[[0, -1]] = False
    bars = relative * close[:, None]
    spread = half_spread(close)
    bars[:, 1] *= 1.0 + spread  # somebody bought at the high and sold at the low
    bars[:, 2] *= 1.0 - spread
    volume = _volume(random, market, asset, days, returns) * shares
    adjusted = total_return_index * (close[-1] / total_return_index[-1])
    last_traded = np.maximum.accumulate(np.where(stale, 0, np.arange(len(days))))
    # A day without a trade repeats the last close; an event on such a day shows in the factor as it does elsewhere.
    factor = adjusted / close
    shown = adjusted[last_traded] / factor
    bars = np.where(stale[:, None], shown[:, None], bars)
    return pl.DataFrame(
        {
            "symbol": pl.Series([symbol]).new_from_index(0, len(days)),
            "date": pl.Series(market.dates[days]).cast(pl.Date).dt.to_string("%Y-%m-%d"),
            **{name: bars[:, column] for column, name in enumerate(("open", "high", "low"))},
            "close": bars[:, 3],
            "volume": np.where(stale, 0, np.maximum(volume, 1.0)).astype(np.int64),
            "adj_close": bars[:, 3] * factor,
        }
    )


def _corporate_history(
    random: np.random.Generator, returns: np.ndarray, days: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Price of a share of the first day, less the dividends that were paid, and shares that it has become, by day."""
    paid = np.where((days + random.integers(63)) % 63 == 0, DIVIDEND, 0.0)
    paid[0] = 0.0
    price = random.lognormal(3.5, 0.5) * np.cumprod((1.0 + returns) * (1.0 - paid))
    shares = np.ones(len(days))
    start, held = 0, 1.0
    while True:  # once for each split, not for each day
        level = price[start:] / held
        beyond = np.flatnonzero((level > SPLIT_ABOVE) | (level < MERGE_BELOW))
        if not len(beyond) or start + beyond[0] + 1 >= len(days):
            return price, shares
        factor = 2.0 if level[beyond[0]] > SPLIT_ABOVE else 0.1
        start += int(beyond[0]) + 1
        held *= factor
        shares[start:] = held


def _bars(
    random: np.random.Generator, market: SyntheticMarket, asset: int, days: np.ndarray, returns: np.ndarray
) -> np.ndarray:
    """[N, 4] open, high, low, close relative to the close. The planted signal shows in the opening and in the extremes."""
    deviation = np.sqrt(
        market.own_variance_DA[days, asset] + market.factor_variance_DK[days] @ market.loadings_AK[asset] ** 2
    )
    shown = market.signal_DA[days, asset] if market.config.variant == "drift" else np.zeros(len(days))
    log_return = np.log1p(returns)
    overnight = 0.3 * log_return + 0.3 * deviation * (random.normal(size=len(days)) + 0.5 * shown)
    inside = log_return - overnight
    path = np.cumsum(random.standard_normal((len(days), BAR_STEPS), np.float32), axis=1)
    place = np.arange(1, BAR_STEPS + 1, dtype=np.float32) / BAR_STEPS
    path = (path - path[:, -1:] * place) * (0.8 * deviation / np.sqrt(BAR_STEPS))[:, None] + place * inside[:, None]
    lean = 0.5 * deviation * (shown + random.normal(size=len(days)))
    high = np.maximum(path.max(axis=1), 0.0) + np.maximum(-lean, 0.0)
    low = np.minimum(path.min(axis=1), 0.0) - np.maximum(lean, 0.0)
    high, low = np.maximum(high, inside), np.minimum(low, inside)
    return np.exp(np.column_stack([np.zeros(len(days)), high, low, inside]) - inside[:, None])


def half_spread(price: np.ndarray) -> np.ndarray:
    """Share of the price, by the price of a share."""
    return LEAST_HALF_SPREAD + TICK / price


def _volume(
    random: np.random.Generator, market: SyntheticMarket, asset: int, days: np.ndarray, returns: np.ndarray
) -> np.ndarray:
    shown = market.signal_DA[days, asset] if market.config.variant == "drift" else 0.0
    surprise = np.abs(returns) / market.volatility_A[asset]
    return np.exp(random.normal(14.0, 0.7) + 0.15 * surprise + 0.3 * shown + random.normal(0.0, 0.3, len(days)))


# The best that can be known: myopic mean-variance decisions from the true moments, without costs. Utility of weights w for the
# next session: w'mu - aversion/2 w'Sigma w. Cost-free oracles must never be compared with net results.


def expected_utility(
    weights_TA: np.ndarray, mean_TA: np.ndarray, covariance_TAA: np.ndarray, aversion: float
) -> np.ndarray:
    """Expected utility a day of each session's weights, [T]."""
    risk_T = np.einsum("ta,tab,tb->t", weights_TA, covariance_TAA, weights_TA, optimize=True)
    return (weights_TA * mean_TA).sum(axis=1) - aversion / 2.0 * risk_T


def share_of_gain(mine: float, base: float, best: float) -> float:
    """(mine - base) / (best - base): the part of what could be gained over a base, mostly 1/N, that was gained. 1 is the
    best, 0 the base, and less than 0 is worse than the base; nan where there is nothing to gain."""
    return (mine - base) / (best - base) if best > base else float("nan")


def oracle_weights(mean_TA: np.ndarray, covariance_TAA: np.ndarray, aversion: float) -> np.ndarray:
    """Best long-only weights that sum to 1, all sessions at once, by accelerated projected gradients (Beck and Teboulle 2009)."""
    step_T1 = 1.0 / (aversion * np.linalg.norm(covariance_TAA, axis=(1, 2)))[:, None]
    weights_TA = np.full_like(mean_TA, 1.0 / mean_TA.shape[1])
    ahead_TA, momentum = weights_TA, 1.0
    for _ in range(ORACLE_STEPS):
        gradient_TA = mean_TA - aversion * (covariance_TAA @ ahead_TA[..., None])[..., 0]
        moved_TA = torch.from_numpy(ahead_TA + step_T1 * gradient_TA)
        new_TA = project_to_simplex(moved_TA, torch.tensor(True)).numpy()
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead_TA = new_TA + (momentum - 1.0) / following * (new_TA - weights_TA)
        weights_TA, momentum = new_TA, following
    return weights_TA
