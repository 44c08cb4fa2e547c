"""The market as a whole: its proxy, what beta is measured against and what a hedge sells, and its context channels.

Shape suffixes: D sessions, N observations of a block in a row, K sums, M market channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finjepa_pipeline.features import kernels
from finjepa_pipeline.features.channels import CLIP, octaves
from finjepa_pipeline.features.rolling import Histories
from finjepa_pipeline.features.source import Block

SUMS = (
    "weighted_return", "weight", "plain_return", "plain_count", "eligible_return", "eligible_square", "eligible_count",
    "above_mean", "above_count",
)  # fmt: skip


@dataclass(frozen=True)
class MarketInputs:
    """What a block's assets bring to the market. Everything that is added up across assets is float32 before it is: a
    rounding of 1e-16 in one asset's adjusted prices then leaves every other asset as it was.

    Attributes:
        returns_N: float32, simple return since the last observation, 0 on the first.
        liquidity_N: float32, mean dollar volume of the last 63 observations, dollars a day; 1 without volumes.
        sums_KN: float64, contribution to each of SUMS.
    """

    returns_N: np.ndarray
    liquidity_N: np.ndarray
    sums_KN: np.ndarray


def market_inputs(block: Block, eligible_N: np.ndarray) -> MarketInputs:
    """Who counts on a session, and with which weight, was known at the close of the session before it.

    Args:
        eligible_N: bool, whether the asset was in the universe at the close of the session.
    """
    histories, close_N = Histories(block.counts, block.skipped), block.columns["close"]
    session_N = block.session_N.astype(np.float64)
    returns_N = (close_N / histories.lag(close_N) - 1.0).astype(np.float32)
    liquidity_N = np.ones(len(close_N), np.float32)
    if "dollar_volume" in block.columns:
        liquidity_N = np.nan_to_num(histories.mean(block.columns["dollar_volume"], 63, 1)).astype(np.float32)
    daily_N = (session_N - histories.lag(session_N) == 1) & np.isfinite(returns_N)
    return_N = np.where(daily_N, returns_N, 0.0).astype(np.float64)
    counts_N = np.nan_to_num(histories.lag(eligible_N.astype(np.float64))) * daily_N
    weight_N = np.nan_to_num(histories.lag(liquidity_N.astype(np.float64))) * counts_N
    mean_200_N = histories.mean(close_N, 200, 200)
    known_200_N = np.isfinite(mean_200_N) & eligible_N
    columns = (
        weight_N * return_N, weight_N, return_N, daily_N, counts_N * return_N, counts_N * return_N**2, counts_N,
        known_200_N & (close_N > mean_200_N), known_200_N,
    )  # fmt: skip
    return MarketInputs(np.nan_to_num(returns_N), liquidity_N, np.stack(columns).astype(np.float64, copy=False))


def add_up(sums_DK: np.ndarray, block: Block, inputs: MarketInputs, since: int) -> None:
    """Add a block to the sums of the sessions from `since` on.

    Asset after asset in ascending order, so that the rounding does not depend on how they were cut into blocks.
    """
    kernels.add_rows(inputs.sums_KN, block.session_N, since, sums_DK)


def proxy_returns(sums_DK: np.ndarray) -> np.ndarray:
    """float32 [D]: return of the universe weighted by trailing dollar volume, by equal weights without volumes.

    Shares outstanding are not in the prices, so that the weights stand in for capitalisation. On sessions before there
    is a universe every observed asset counts the same.
    """
    sums = dict(zip(SUMS, sums_DK.T, strict=True))
    plain_D = sums["plain_return"] / np.maximum(sums["plain_count"], 1.0)
    known_D = sums["weight"] > 0
    weighted_D = sums["weighted_return"] / np.where(known_D, sums["weight"], 1.0)
    return np.where(known_D, weighted_D, plain_D).astype(np.float32)


class Sessions:
    """Series of the market, float64 [D], from which its channels are made."""

    def __init__(
        self, sums_DK: np.ndarray, correlation_D: np.ndarray, component_D: np.ndarray, calendar: dict[str, np.ndarray]
    ):
        self.history = Histories.of_one(len(sums_DK))
        self.sums: dict[str, np.ndarray] = dict(zip(SUMS, sums_DK.T, strict=True))
        self.log_return = np.log1p(proxy_returns(sums_DK).astype(np.float64))
        self.correlation, self.component, self.calendar = correlation_D, component_D, calendar

    @property
    def equal_return(self) -> np.ndarray:
        return self._share("eligible_return", "eligible_count")

    @property
    def dispersion(self) -> np.ndarray:
        variance_D = self._share("eligible_square", "eligible_count") - self.equal_return**2
        return self._log(np.maximum(variance_D, 0.0))

    @property
    def above_mean(self) -> np.ndarray:
        return self._share("above_mean", "above_count")

    def log_volatility(self, window: int) -> np.ndarray:
        return self._log(self.history.mean(self.log_return**2, window, window))

    @property
    def decayed_volatility(self) -> np.ndarray:
        return self._log(self.history.decayed_mean(self.log_return**2, span=63, least=20))

    @property
    def volatility_before(self) -> np.ndarray:
        """Per day, as it was known one session before."""
        return self.history.lag(np.exp(self.decayed_volatility))

    def _share(self, part: str, whole: str) -> np.ndarray:
        known_D = self.sums[whole] > 0
        return np.where(known_D, self.sums[part] / np.where(known_D, self.sums[whole], 1.0), np.nan)

    @staticmethod
    def _log(variance_D: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(np.sqrt(variance_D), 1e-4))


@dataclass(frozen=True)
class MarketChannel:
    """One context channel: computed per session; `scaled` divides by the proxy's volatility of the day before, `z` takes
    the trailing z of 252 sessions, `none` leaves the value as it is."""

    name: str
    unit: str
    formula: str
    source: str
    lookback: int
    normalisation: str
    compute: Callable[[Sessions], np.ndarray]

    def row(self) -> dict[str, object]:
        """The channel as the manifest has it."""
        fields = ("name", "unit", "formula", "source", "lookback", "normalisation")
        return {name: getattr(self, name) for name in fields} | {"needs": ["close"], "clip": CLIP}


# fmt: off
MARKET_CHANNELS = (
    MarketChannel("market_return", "log return", "log(1 + return of the proxy)",
                  "dollar-volume weights, for want of shares outstanding", 253, "scaled", lambda s: s.log_return),
    MarketChannel("equal_minus_proxy", "return", "mean(return, universe) - return of the proxy",
                  "Plyakha, Uppal and Vilkov (2012)", 253, "scaled", lambda s: s.equal_return - np.expm1(s.log_return)),
    MarketChannel("dispersion", "log of 1/sqrt(day)", "log(deviation(return, universe))",
                  "Solnik and Roulet (2000)", 251, "z", lambda s: s.dispersion),
    MarketChannel("correlation_21", "1", "mean pairwise correlation of the 256 most traded, 21",
                  "Pollet and Wilson (2010)", 272, "z", lambda s: s.correlation),
    MarketChannel("first_component_21", "share of variance", "first eigenvalue of that correlation matrix / trace",
                  "Kritzman, Li, Page and Rigobon (2011)", 272, "z", lambda s: s.component),
    MarketChannel("above_mean_200", "-1 none to 1 all", "2 share(close > mean(close, 200)) - 1",
                  "market breadth", 199, "none", lambda s: 2.0 * s.above_mean - 1.0),
    MarketChannel("market_volatility_5", "octaves", "log2(sqrt(mean(market_return^2, 5)) / 0.01)",
                  "Corsi (2009)", 4, "none", lambda s: octaves(s.log_volatility(5))),
    MarketChannel("market_volatility_21", "octaves", "log2(sqrt(mean(market_return^2, 21)) / 0.01)",
                  "Corsi (2009)", 20, "none", lambda s: octaves(s.log_volatility(21))),
    MarketChannel("market_volatility_63", "octaves", "log2(sqrt(mean(market_return^2, 63)) / 0.01)",
                  "Corsi (2009)", 62, "none", lambda s: octaves(s.log_volatility(63))),
    MarketChannel("decayed_volatility", "log of 1/sqrt(day)", "log(sqrt(decayed mean(market_return^2, span 63)))",
                  "RiskMetrics (1996)", 502, "z", lambda s: s.decayed_volatility),
    MarketChannel("weekday", "-1 Monday to 1 Friday", "(weekday - 2) / 2",
                  "the exchange's calendar", 0, "none", lambda s: s.calendar["weekday"]),
    MarketChannel("month_end", "1 on a month's last session", "next session in another month",
                  "the exchange's calendar", 0, "none", lambda s: s.calendar["month_end"]),
    MarketChannel("days_to_next_session", "log days", "log(days to the next session)",
                  "the exchange's calendar", 0, "none", lambda s: s.calendar["days_to_next_session"]),
)
# fmt: on


def market_features(sessions: Sessions) -> np.ndarray:
    """float32 [D, M]: normalised, clipped, 0 where unknown."""
    features_DM = np.empty((len(sessions.log_return), len(MARKET_CHANNELS)), np.float32)
    for column, channel in enumerate(MARKET_CHANNELS):
        value_D = channel.compute(sessions)
        if channel.normalisation == "scaled":
            value_D = value_D / sessions.volatility_before
        elif channel.normalisation == "z":
            value_D = sessions.history.z_scores(value_D, 252, 60)
        kernels.store(value_D, CLIP, column, features_DM)
    return features_DM


def calendar_series(dates: np.ndarray) -> dict[str, np.ndarray]:
    """What the exchange's calendar (XNYS) said beforehand about each session; never what the prices said afterwards."""
    import exchange_calendars

    start, end = str(dates[0]), str(dates[-1] + np.timedelta64(14, "D"))
    sessions = exchange_calendars.get_calendar("XNYS", start=start, end=end).sessions
    known = sessions.to_numpy().astype("datetime64[D]")
    following = known[np.searchsorted(known, dates, side="right")]
    return {
        "weekday": ((dates.astype(np.int64) + 3) % 7 - 2) / 2.0,
        "month_end": (following.astype("datetime64[M]") > dates.astype("datetime64[M]")).astype(np.float64),
        "days_to_next_session": np.log((following - dates).astype(np.float64)),
    }
