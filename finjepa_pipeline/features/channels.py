"""The one table of channels: what the panel holds, what the manifest, docs/channels.md and the UI show.

Adding a channel is adding one entry. A formula sees the observations of an asset up to and including its own day
(Rows gives nothing else), and is computed in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finjepa_pipeline.features import kernels
from finjepa_pipeline.features.rows import LEAST_VOLATILITY, Rows, most

CLIP = 5.0
Z_WINDOW, Z_LEAST = 252, 60


def as_is(rows: Rows, x_N: np.ndarray) -> np.ndarray:
    return x_N


def trailing_z(rows: Rows, x_N: np.ndarray) -> np.ndarray:
    return rows.histories.z_scores(x_N, Z_WINDOW, Z_LEAST)


def own_volatility(rows: Rows, x_N: np.ndarray) -> np.ndarray:
    """x / exponentially weighted volatility (span 63) of the day before."""
    return x_N / rows.own_volatility


NORMALISATIONS: dict[Callable[[Rows, np.ndarray], np.ndarray], str] = {
    as_is: "none",
    trailing_z: f"trailing z, {Z_WINDOW} observations, at least {Z_LEAST}",
    own_volatility: "divided by the exponentially weighted volatility (span 63) of the day before",
}


@dataclass(frozen=True)
class Channel:
    """One feature of an asset.

    Attributes:
        unit: of the formula's value, before normalisation.
        source: who described it, or the table that it is taken from.
        needs: columns of adjusted_prices without which the channel is left out.
        lookback: observations before today's that today's value can depend on, normalisation included.
    """

    name: str
    unit: str
    formula: str
    source: str
    needs: tuple[str, ...]
    lookback: int
    normalise: Callable[[Rows, np.ndarray], np.ndarray]
    compute: Callable[[Rows], np.ndarray]

    def row(self) -> dict[str, object]:
        """The channel as the manifest has it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "formula": self.formula,
            "source": self.source,
            "needs": list(self.needs),
            "lookback": self.lookback,
            "normalisation": NORMALISATIONS[self.normalise],
            "clip": CLIP,
        }


def close_location(rows: Rows) -> np.ndarray:
    span_N = rows.high - rows.low
    inside_N = np.where(span_N > 0, (rows.close - rows.low) / span_N, np.where(np.isnan(span_N), np.nan, 0.5))
    return 2.0 * np.clip(inside_N, 0.0, 1.0) - 1.0


def amihud(rows: Rows) -> np.ndarray:
    illiquidity_N = rows.mean(np.abs(rows.log_return) / rows.dollar_volume, 21)
    return np.where(illiquidity_N > 0, np.log(illiquidity_N), np.nan)


def corwin_schultz(rows: Rows) -> np.ndarray:
    """Corwin and Schultz (2012), A simple way to estimate bid-ask spreads, equations 14 and 18; negative estimates
    are 0.
    """
    range_N = rows.log_range**2
    beta_N = range_N + rows.lag(range_N)
    gamma_N = np.log(np.maximum(rows.high, rows.lag(rows.high)) / np.minimum(rows.low, rows.lag(rows.low))) ** 2
    constant = 3.0 - 2.0 * np.sqrt(2.0)
    alpha_N = (np.sqrt(2.0) - 1.0) / constant * np.sqrt(beta_N) - np.sqrt(gamma_N / constant)
    # a flat day inside the range of the day beside it makes alpha zero but for rounding, which a z-score would blow up
    spread_N = np.where(alpha_N < 1e-9, 0.0, 2.0 * np.tanh(alpha_N / 2.0))
    return rows.mean(spread_N, 21)


def roll_spread(rows: Rows) -> np.ndarray:
    """Roll (1984): twice the root of minus the autocovariance of returns."""
    _, _, covariance_N = rows.histories.covariances(rows.log_return, rows.lag(rows.log_return), 21, most(21))
    return 2.0 * np.sqrt(np.maximum(-covariance_N, 0.0))


def shock(rows: Rows, window: int) -> np.ndarray:
    return rows.log_dollar_volume - rows.histories.median(rows.log_dollar_volume, window, most(window))


def drawdown(rows: Rows) -> np.ndarray:
    return rows.log_close - rows.histories.highest(rows.log_close, 252)


def octaves(log_volatility_N: np.ndarray) -> np.ndarray:
    """Above 1 % a day, in powers of two: a level that the same number means for every asset and year."""
    return (log_volatility_N - np.log(0.01)) / np.log(2.0)


def residual_volatility(rows: Rows) -> np.ndarray:
    return np.log(np.maximum(np.sqrt(rows.regression[1]), LEAST_VOLATILITY))


# fmt: off
CHANNELS = (
    Channel("log_return", "log return", "log(close / close[1])",
            "Campbell, Lo and MacKinlay (1997)", ("close",), 253, own_volatility, lambda r: r.log_return),
    Channel("overnight_return", "log return", "log(open / close[1])",
            "Lou, Polk and Skouras (2019)", ("open", "close"), 253, own_volatility, lambda r: r.log_open - r.log_close_before),
    Channel("intraday_return", "log return", "log(close / open)",
            "Lou, Polk and Skouras (2019)", ("open", "close"), 253, own_volatility, lambda r: r.log_close - r.log_open),
    Channel("high_low_range", "log ratio", "log(high / low)",
            "Parkinson (1980)", ("high", "low"), 251, trailing_z, lambda r: r.log_range),
    Channel("close_location", "-1 low to 1 high", "2 (close - low) / (high - low) - 1, 0 if flat",
            "Chaikin, accumulation and distribution", ("high", "low", "close"), 0, as_is, close_location),
    Channel("volume_level", "log ratio", "log(dollar_volume) - median(log(dollar_volume), 63)",
            "Gervais, Kaniel and Mingelgrin (2001)", ("dollar_volume",), 313, trailing_z, lambda r: shock(r, 63)),
    Channel("volume_shock", "log ratio", "log(dollar_volume) - median(log(dollar_volume), 21)",
            "Gervais, Kaniel and Mingelgrin (2001)", ("dollar_volume",), 271, trailing_z, lambda r: shock(r, 21)),
    Channel("realised_volatility_5", "octaves", "log2(sqrt(mean(log_return^2, 5)) / 0.01)",
            "Corsi (2009)", ("close",), 5, as_is, lambda r: octaves(r.log_volatility(5))),
    Channel("realised_volatility_21", "octaves", "log2(sqrt(mean(log_return^2, 21)) / 0.01)",
            "Corsi (2009)", ("close",), 21, as_is, lambda r: octaves(r.log_volatility(21))),
    Channel("realised_volatility_63", "octaves", "log2(sqrt(mean(log_return^2, 63)) / 0.01)",
            "Corsi (2009)", ("close",), 63, as_is, lambda r: octaves(r.log_volatility(63))),
    Channel("drawdown_252", "yearly deviations", "log(close / max(close, 252)) / (own_volatility sqrt(252))",
            "George and Hwang (2004)", ("close",), 253, as_is, lambda r: drawdown(r) / (r.own_volatility * np.sqrt(252.0))),
    Channel("momentum_21", "deviations", "log(close / close[21]) / (own_volatility sqrt(21))",
            "Jegadeesh (1990)", ("close",), 253, as_is, lambda r: r.momentum(21)),
    Channel("momentum_60", "deviations", "log(close / close[60]) / (own_volatility sqrt(60))",
            "Moskowitz, Ooi and Pedersen (2012)", ("close",), 253, as_is, lambda r: r.momentum(60)),
    Channel("momentum_252_21", "deviations", "log(close[21] / close[252]) / (own_volatility sqrt(231))",
            "Jegadeesh and Titman (1993)", ("close",), 253, as_is, lambda r: r.momentum(252, 21)),
    Channel("beta_63", "1", "cov(log_return, market, 63) / var(market, 63) - 1",
            "Sharpe (1964)", ("close",), 64, as_is, lambda r: r.beta - 1.0),
    Channel("residual_volatility_63", "log of 1/sqrt(day)", "log(deviation(log_return - beta market, 63))",
            "Ang, Hodrick, Xing and Zhang (2006)", ("close",), 315, trailing_z, residual_volatility),
    Channel("amihud_21", "log of 1/dollar", "log(mean(abs(log_return) / dollar_volume, 21))",
            "Amihud (2002)", ("close", "dollar_volume"), 273, trailing_z, amihud),
    Channel("spread_21", "share of price", "mean(two-day high-low spread, 21)",
            "Corwin and Schultz (2012)", ("high", "low"), 273, trailing_z, corwin_schultz),
    Channel("roll_spread_21", "share of price", "2 sqrt(-cov(log_return, log_return[1], 21))",
            "Roll (1984)", ("close",), 253, own_volatility, roll_spread),
    Channel("liquidity_rank", "Gaussian rank", "normal quantile of the rank of mean(dollar_volume, 63) in the universe",
            "the universe table", ("dollar_volume",), 62, as_is, lambda r: r.columns["rank"]),
    Channel("event", "1 on the day", "1 on the ex-date of a dividend or a split",
            "the corporate_actions table", ("close",), 0, as_is, lambda r: r.columns["event"]),
    Channel("untraded_sessions", "log(1 + sessions)", "log1p(sessions without a trade since the last one, at most 63)",
            "Lesmond, Ogden and Trzcinka (1999)", ("close",), 64, as_is, lambda r: np.log1p(r.untraded_sessions)),
    Channel("observed", "1 if observed", "1",
            "the adjusted_prices table", ("close",), 0, as_is, lambda r: np.where(np.isnan(r.close), np.nan, 1.0)),
)
# fmt: on

LOOKBACK = max(channel.lookback for channel in CHANNELS)


def available(columns: frozenset[str]) -> tuple[Channel, ...]:
    """The channels that a source with these columns allows."""
    return tuple(channel for channel in CHANNELS if columns.issuperset(channel.needs))


def features(rows: Rows, channels: tuple[Channel, ...]) -> np.ndarray:
    """float32 [N, F]: normalised, clipped, 0 where unknown."""
    features_NF = np.empty((len(rows.session), len(channels)), np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # of what is unknown
        for column, channel in enumerate(channels):
            kernels.store(channel.normalise(rows, channel.compute(rows)), CLIP, column, features_NF)
    return features_NF
