"""A market whose expected returns and covariances are known on every day.

Simple return of asset i on session t+1:

    r = mu_t + b_i' (f - E_t f) + sigma_i sqrt(h) z - 0.04 b_i0 (jump - E_t jump)

with three factors whose volatility follows a two-state regime, GARCH(1,1) idiosyncratic variance, t(6) shocks and
market-wide crashes. What is in brackets has mean zero given session t, so that mu_t is the whole expected return.

Shape suffixes: D sessions, A assets, K factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from finjepa_model.errors import FinJEPAError
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

    own_DA = _student(random, (sessions, assets))
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
    return SyntheticMarket(
        config, _dates(config.sessions), returns_DA, alive_DA, signal_DA, expected_DA, loadings_AK, factor_variance_DK,
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


def _student(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """t(6) shocks of unit variance."""
    return random.standard_t(DEGREES, shape) * np.sqrt((DEGREES - 2) / DEGREES)


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


def _dates(count: int) -> np.ndarray:
    """The last `count` sessions of XNYS before 2025."""
    days = np.array(sessions_of(DEFAULT_CALENDAR), "datetime64[D]")
    return days[days < np.datetime64("2025-01-01")][-count:]
