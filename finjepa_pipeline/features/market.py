"""The market as a whole: its proxy, what beta is measured against and what a hedge sells, and its context channels.

Shape suffixes: D sessions, N observations of a block in a row, P padded observations (see rolling.py), K sums.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finjepa_pipeline.features.rolling import Layout
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
        sums_NK: contribution to each of SUMS.
    """

    returns_N: np.ndarray
    liquidity_N: np.ndarray
    sums_NK: np.ndarray


def market_inputs(block: Block) -> MarketInputs:
    """Who counts on a session, and with which weight, was known at the close of the session before it."""
    layout = Layout(block.counts, block.skipped)
    place_N = layout.place_N
    close_P = layout.pad(block.columns["close"])
    session_P = layout.pad(block.session_N)
    returns_N = (close_P / layout.lag(close_P, 1) - 1.0)[place_N].astype(np.float32)
    liquidity_N = np.ones(len(place_N), np.float32)
    if "dollar_volume" in block.columns:
        mean_P = layout.mean(layout.pad(block.columns["dollar_volume"]), 63, 1)
        liquidity_N = np.nan_to_num(mean_P[place_N]).astype(np.float32)
    eligible_N = np.nan_to_num(layout.lag(layout.pad(block.eligible_N), 1)[place_N])
    weight_N = np.nan_to_num(layout.lag(layout.pad(liquidity_N), 1)[place_N]) * eligible_N
    daily_N = (session_P - layout.lag(session_P, 1) == 1)[place_N] & np.isfinite(returns_N)
    daily_return_N = np.where(daily_N, returns_N, 0.0).astype(np.float64)
    eligible_N *= daily_N
    weight_N *= daily_N
    of_200 = Layout(block.counts, block.skipped, anchor=200)
    mean_200_N = of_200.mean(of_200.pad(block.columns["close"]), 200, 200)[of_200.place_N]
    known_200_N = np.isfinite(mean_200_N) & block.eligible_N
    columns = (
        weight_N * daily_return_N, weight_N, daily_return_N, daily_N, eligible_N * daily_return_N,
        eligible_N * daily_return_N**2, eligible_N, known_200_N & (block.columns["close"] > mean_200_N), known_200_N,
    )  # fmt: skip
    return MarketInputs(np.nan_to_num(returns_N), liquidity_N, np.stack(columns, axis=1).astype(np.float64))


def add_up(sums_DK: np.ndarray, block: Block, inputs: MarketInputs, since: int) -> None:
    """Add a block to the sums of the sessions from `since` on.

    Asset after asset in ascending order, so that the rounding does not depend on how they were cut into blocks.
    """
    stop = 0
    for count in block.counts.tolist():
        start, stop = stop, stop + count
        begin = start + int(np.searchsorted(block.session_N[start:stop], since))
        if begin == stop:
            continue
        first, last = int(block.session_N[begin]), int(block.session_N[stop - 1])
        if last - first == stop - begin - 1:
            sums_DK[first : last + 1] += inputs.sums_NK[begin:stop]
        else:
            sums_DK[block.session_N[begin:stop]] += inputs.sums_NK[begin:stop]


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
    """Series of the market, float64 [P] over sessions, from which its channels are made."""

    def __init__(
        self, sums_DK: np.ndarray, correlation_D: np.ndarray, component_D: np.ndarray, calendar: dict[str, np.ndarray]
    ):
        count = np.array([len(sums_DK)])
        self.layout = Layout(count, np.zeros_like(count))
        self.sums = {name: self.layout.pad(sums_DK[:, k]) for k, name in enumerate(SUMS)}
        self.log_return = np.log1p(self.layout.pad(proxy_returns(sums_DK)))
        self.correlation = self.layout.pad(correlation_D)
        self.component = self.layout.pad(component_D)
        self.calendar = {name: self.layout.pad(series_D) for name, series_D in calendar.items()}

    @property
    def equal_return(self) -> np.ndarray:
        return self._share("eligible_return", "eligible_count")

    @property
    def dispersion(self) -> np.ndarray:
        variance_P = self._share("eligible_square", "eligible_count") - self.equal_return**2
        return np.log(np.maximum(np.sqrt(np.maximum(variance_P, 0.0)), 1e-4))

    @property
    def above_mean(self) -> np.ndarray:
        return self._share("above_mean", "above_count")

    def log_volatility(self, window: int) -> np.ndarray:
        return self._log(self.layout.mean(self.log_return**2, window, window))

    @property
    def decayed_volatility(self) -> np.ndarray:
        return self._log(self.layout.decayed_mean(self.log_return**2, span=63, least=20))

    @property
    def volatility_before(self) -> np.ndarray:
        """Per day, as it was known one session before."""
        return self.layout.lag(np.exp(self.decayed_volatility), 1)

    def _share(self, part: str, whole: str) -> np.ndarray:
        known_P = self.sums[whole] > 0
        return np.where(known_P, self.sums[part] / np.where(known_P, self.sums[whole], 1.0), np.nan)

    @staticmethod
    def _log(variance_P: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(np.sqrt(variance_P), 1e-4))


@dataclass(frozen=True)
class MarketChannel:
    """One context channel: computed per session; `scaled` divides by the proxy's volatility of the day before, `z` takes
    the trailing z of 252 sessions, `none` leaves the value as it is."""

    name: str
    unit: str
    formula: str
    lookback: int
    normalisation: str
    compute: Callable[[Sessions], np.ndarray]

    def row(self) -> dict[str, object]:
        """The channel as the manifest has it."""
        fields = ("name", "unit", "formula", "lookback", "normalisation")
        return {name: getattr(self, name) for name in fields} | {"needs": ["close"], "clip": 5.0}


# fmt: off
MARKET_CHANNELS = (
    MarketChannel("market_return", "log return", "log(1 + return of the proxy)", 253, "scaled", lambda s: s.log_return),
    MarketChannel("equal_minus_proxy", "return", "mean(return, universe) - return of the proxy", 253, "scaled",
                  lambda s: s.equal_return - np.expm1(s.log_return)),
    MarketChannel("dispersion", "log of 1/sqrt(day)", "log(deviation(return, universe))", 251, "z", lambda s: s.dispersion),
    MarketChannel("correlation_21", "1", "mean pairwise correlation of the 256 most traded, 21", 272, "z",
                  lambda s: s.correlation),
    MarketChannel("first_component_21", "share of variance", "first eigenvalue of that correlation matrix / trace", 272, "z",
                  lambda s: s.component),
    MarketChannel("above_mean_200", "-1 none to 1 all", "2 share(close > mean(close, 200)) - 1", 199, "none",
                  lambda s: 2.0 * s.above_mean - 1.0),
    MarketChannel("market_volatility_5", "log of 1/sqrt(day)", "log(sqrt(mean(market_return^2, 5)))", 255, "z",
                  lambda s: s.log_volatility(5)),
    MarketChannel("market_volatility_21", "log of 1/sqrt(day)", "log(sqrt(mean(market_return^2, 21)))", 271, "z",
                  lambda s: s.log_volatility(21)),
    MarketChannel("market_volatility_63", "log of 1/sqrt(day)", "log(sqrt(mean(market_return^2, 63)))", 313, "z",
                  lambda s: s.log_volatility(63)),
    MarketChannel("decayed_volatility", "log of 1/sqrt(day)", "log(sqrt(decayed mean(market_return^2, span 63)))", 502, "z",
                  lambda s: s.decayed_volatility),
    MarketChannel("weekday", "-1 Monday to 1 Friday", "(weekday - 2) / 2", 0, "none", lambda s: s.calendar["weekday"]),
    MarketChannel("month_end", "1 on a month's last session", "next session in another month", 0, "none",
                  lambda s: s.calendar["month_end"]),
    MarketChannel("days_to_next_session", "log days", "log(days to the next session)", 0, "none",
                  lambda s: s.calendar["days_to_next_session"]),
)
# fmt: on


def market_features(sessions: Sessions) -> np.ndarray:
    """float32 [D, M]: normalised, clipped, 0 where unknown."""
    columns = []
    for channel in MARKET_CHANNELS:
        value_P = channel.compute(sessions)
        if channel.normalisation == "scaled":
            value_P = value_P / sessions.volatility_before
        elif channel.normalisation == "z":
            value_P = sessions.layout.z_scores(value_P, 252, 60)
        columns.append(np.nan_to_num(np.clip(value_P[sessions.layout.place_N], -5.0, 5.0)).astype(np.float32))
    return np.stack(columns, axis=1)


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
