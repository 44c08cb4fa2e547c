"""The observations of a block of assets, and the series that several channels share.

Shape suffixes: N observations of all assets of the block in a row, D sessions.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from finjepa_pipeline.features.rolling import Histories

LEAST_VOLATILITY = 1e-4  # a day; one basis point keeps the logarithm of a stale price's volatility finite


def most(window: int) -> int:
    """Observations that must be known in a window: two thirds of it."""
    return -(-2 * window // 3)


class Rows:
    """Columns of `adjusted_prices` as float64 [N], NaN where missing, each asset's observations in order.

    Only ratios of prices within an asset are used: a constant factor on an asset's history changes nothing.
    """

    def __init__(
        self,
        histories: Histories,
        session_N: np.ndarray,
        columns: Mapping[str, np.ndarray],
        market_returns_D: np.ndarray,
    ):
        self.histories = histories
        self.session = session_N.astype(np.float64)
        self.columns = columns
        self.market_return = market_returns_D[session_N]

    @property
    def open(self) -> np.ndarray:
        return self.columns["open"]

    @property
    def high(self) -> np.ndarray:
        return self.columns["high"]

    @property
    def low(self) -> np.ndarray:
        return self.columns["low"]

    @property
    def close(self) -> np.ndarray:
        return self.columns["close"]

    @cached_property
    def log_dollar_volume(self) -> np.ndarray:
        return np.log(self.dollar_volume)

    @cached_property
    def dollar_volume(self) -> np.ndarray:
        """Dollars a day; a day without a trade is missing, not zero."""
        return np.where(self.columns["dollar_volume"] > 0, self.columns["dollar_volume"], np.nan)

    def lag(self, x_N: np.ndarray, steps: int = 1) -> np.ndarray:
        return self.histories.lag(x_N, steps)

    def mean(self, x_N: np.ndarray, window: int) -> np.ndarray:
        return self.histories.mean(x_N, window, most(window))

    @cached_property
    def log_open(self) -> np.ndarray:
        return np.log(self.open)

    @cached_property
    def log_close(self) -> np.ndarray:
        return np.log(self.close)

    @cached_property
    def log_close_before(self) -> np.ndarray:
        return self.lag(self.log_close)

    @cached_property
    def log_range(self) -> np.ndarray:
        return np.log(self.high / self.low)

    @cached_property
    def log_return(self) -> np.ndarray:
        """Since the last observation, however long ago."""
        return self.log_close - self.log_close_before

    @cached_property
    def daily_return(self) -> np.ndarray:
        """Log return of one session; missing after a gap, where it would span several."""
        return np.where(self.session - self.lag(self.session) == 1, self.log_return, np.nan)

    @cached_property
    def squared_return(self) -> np.ndarray:
        return self.log_return**2

    @cached_property
    def own_volatility(self) -> np.ndarray:
        """Exponentially weighted volatility a day (span 63), as it was known one observation before."""
        variance_N = self.histories.decayed_mean(self.squared_return, span=63, least=20)
        return self.lag(np.maximum(np.sqrt(variance_N), LEAST_VOLATILITY))

    def log_volatility(self, window: int) -> np.ndarray:
        return np.log(np.maximum(np.sqrt(self.mean(self.squared_return, window)), LEAST_VOLATILITY))

    def momentum(self, since: int, until: int = 0) -> np.ndarray:
        """Log return from `since` to `until` observations ago, in units of its own expected deviation."""
        recent_N = self.lag(self.log_close, until) if until else self.log_close
        return (recent_N - self.lag(self.log_close, since)) / (self.own_volatility * np.sqrt(since - until))

    @cached_property
    def regression(self) -> tuple[np.ndarray, np.ndarray]:
        """Slope on the market and residual variance a day over 63 observations."""
        variance_x, variance_y, covariance = self.histories.covariances(
            self.market_return, self.daily_return, 63, most(63)
        )
        slope = np.where(variance_x > LEAST_VOLATILITY**2, covariance / variance_x, np.nan)
        return slope, np.maximum(variance_y - slope * covariance, 0.0)

    @property
    def beta(self) -> np.ndarray:
        return self.regression[0]

    @cached_property
    def untraded_sessions(self) -> np.ndarray:
        """Sessions without a trade between this one and the trade before it, at most 63."""
        traded_N = self.session
        if "volume" in self.columns:
            traded_N = np.where(self.columns["volume"] == 0, np.nan, self.session)
        last_N = self.lag(self.histories.highest(traded_N, 63))
        return np.minimum(np.nan_to_num(self.session - last_N - 1), 63.0)
