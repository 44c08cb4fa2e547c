"""The observations of a block of assets, and the series that several channels share.

Shape suffixes: S assets, N observations of all of them in a row, P padded observations (see rolling.py), D sessions.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from finjepa_pipeline.features.rolling import Layout

LEAST_VOLATILITY = 1e-4  # a day; one basis point keeps the logarithm of a stale price's volatility finite


def most(window: int) -> int:
    """Observations that must be known in a window: two thirds of it."""
    return -(-2 * window // 3)


class Rows:
    """Columns of `adjusted_prices` as float64 [P], NaN where missing, each asset's observations in order.

    Only ratios of prices within an asset are used: a constant factor on an asset's history changes nothing.
    """

    def __init__(
        self, layout: Layout, session_N: np.ndarray, columns: Mapping[str, np.ndarray], market_returns_D: np.ndarray
    ):
        self.layout = layout
        self.session = layout.pad(session_N)
        self.columns = {name: layout.pad(column_N) for name, column_N in columns.items()}
        known_P = ~np.isnan(self.session)
        self.market_return = np.full(layout.size, np.nan)
        self.market_return[known_P] = market_returns_D[self.session[known_P].astype(np.int64)]

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

    def lag(self, x_P: np.ndarray, steps: int = 1) -> np.ndarray:
        return self.layout.lag(x_P, steps)

    def mean(self, x_P: np.ndarray, window: int) -> np.ndarray:
        return self.layout.mean(x_P, window, most(window))

    @cached_property
    def log_close(self) -> np.ndarray:
        return np.log(self.close)

    @cached_property
    def log_return(self) -> np.ndarray:
        """Since the last observation, however long ago."""
        return self.log_close - self.lag(self.log_close)

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
        variance_P = self.layout.decayed_mean(self.squared_return, span=63, least=20)
        return self.lag(np.maximum(np.sqrt(variance_P), LEAST_VOLATILITY))

    def log_volatility(self, window: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.log(np.maximum(np.sqrt(self.mean(self.squared_return, window)), LEAST_VOLATILITY))

    def momentum(self, since: int, until: int = 0) -> np.ndarray:
        """Log return from `since` to `until` observations ago, in units of its own expected deviation."""
        recent_P = self.lag(self.log_close, until) if until else self.log_close
        return (recent_P - self.lag(self.log_close, since)) / (self.own_volatility * np.sqrt(since - until))

    @cached_property
    def regression(self) -> tuple[np.ndarray, np.ndarray]:
        """Slope on the market and residual variance a day over 63 observations."""
        y_P = self.daily_return
        x_P = np.where(np.isnan(y_P), np.nan, self.market_return)
        mean_x, mean_y = self.layout.means(x_P, y_P, 63, most(63))
        mean_xx, mean_xy = self.layout.means(x_P * x_P, x_P * y_P, 63, most(63))
        variance_x, variance_y = mean_xx - mean_x**2, self.mean(y_P * y_P, 63) - mean_y**2
        covariance = mean_xy - mean_x * mean_y
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = np.where(variance_x > LEAST_VOLATILITY**2, covariance / variance_x, np.nan)
        return slope, np.maximum(variance_y - slope * covariance, 0.0)

    @property
    def beta(self) -> np.ndarray:
        return self.regression[0]

    @cached_property
    def untraded_sessions(self) -> np.ndarray:
        """Sessions without a trade between this one and the trade before it, at most 63."""
        traded_P = self.session
        if "volume" in self.columns:
            traded_P = np.where(self.columns["volume"] == 0, np.nan, self.session)
        last_P = self.lag(self.layout.highest(traded_P, 63))
        return np.minimum(np.where(np.isfinite(last_P), self.session - last_P - 1, 0.0), 63.0)
