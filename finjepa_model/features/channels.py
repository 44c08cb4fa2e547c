"""The table of channels: what the model sees of an asset on a day, as Polars expressions.

Adding a channel is adding one entry to `CHANNELS`. An expression is evaluated over the observations of one asset in order of
date (`.over("asset")`), so that `x.shift(1)` is the observation before and `x.rolling_mean(21)` the last 21 observations. It is
computed in float64, clipped to +-CLIP, stored as float32, and 0 where it is unknown (the channel `observed` tells).

Columns that an expression may use: `open`, `high`, `low`, `close` (adjusted; only their ratios within an asset mean anything),
`volume`, `dollar_volume` (dollars a day), `session` (number of the day), `market_return` (log return of the market proxy),
`liquidity_rank`, `event`, and what `derived_columns` adds. Missing values are null.
"""

from dataclasses import dataclass
from math import log, sqrt

import polars as pl

CLIP = 5.0
LEAST_VOLATILITY = 1e-4  # a day; one basis point keeps the logarithm of a stale price's volatility finite
SPAN, DECAY_WINDOW = 63, 252
DECAY = 1.0 - 2.0 / (SPAN + 1.0)


@dataclass(frozen=True)
class Channel:
    """One feature of an asset, or of the market."""

    name: str
    unit: str  # of the value as it is stored
    source: str  # who described it, or the table that it is taken from
    lookback: int  # observations before today's that today's value can depend on
    needs: tuple[str, ...]  # columns of the prices without which the channel is left out
    value: pl.Expr  # float64, null where unknown
    scored: bool = (
        False  # whether the trailing z-score of the value is stored, (x - mean) / deviation over 252 observations
    )

    def row(self) -> dict[str, object]:
        """The channel as the manifest of a panel has it."""
        described = {"name": self.name, "unit": self.unit, "source": self.source, "lookback": self.lookback}
        computed = {"needs": list(self.needs), "scored": self.scored, "clip": CLIP, "expression": str(self.value)}
        return described | computed


def least_known(window: int) -> int:
    """Observations that must be known in a window: two thirds of it."""
    return -(-2 * window // 3)


def mean(x: pl.Expr, window: int) -> pl.Expr:
    return x.rolling_mean(window, min_samples=least_known(window))


def z_score(name: str) -> pl.Expr:
    """(x - mean) / standard deviation of a column whose `trailing_moments` stand beside it; 0 where it does not vary."""
    centre, deviation = pl.col(f"{name}:mean"), pl.col(f"{name}:deviation")
    return pl.when(deviation > 1e-6).then((pl.col(name) - centre) / deviation).otherwise(0.0)


def trailing_moments(name: str) -> list[pl.Expr]:
    """Of the last 252 observations, at least 60 of them known."""
    x = pl.col(name)
    mean, deviation = x.rolling_mean(252, min_samples=60), x.rolling_std(252, min_samples=60)
    return [mean.over("asset").alias(f"{name}:mean"), deviation.over("asset").alias(f"{name}:deviation")]


def log_volatility(variance: pl.Expr) -> pl.Expr:
    return variance.clip(0.0).sqrt().clip(LEAST_VOLATILITY).log()


def octaves(log_volatility: pl.Expr) -> pl.Expr:
    """Above 1 % a day, in powers of two: a level that the same number means for every asset and year."""
    return (log_volatility - log(0.01)) / log(2.0)


def decayed_variance(returns: pl.Expr) -> pl.Expr:
    """Exponentially weighted mean square (span 63) of the last 252 returns, at least 20 of them; the first one is unknown.

    The weights beyond 252 observations, 0.03 % of the whole, are cut off, so that the value does not depend on where the
    history begins.
    """
    sums = (returns**2).fill_null(0.0).ewm_mean(alpha=1.0 - DECAY, adjust=False)  # of which the first is 0: no bias
    count = pl.int_range(pl.len()).clip(0, DECAY_WINDOW)
    recent = sums - DECAY**DECAY_WINDOW * sums.shift(DECAY_WINDOW, fill_value=0.0)
    return pl.when(count >= 20).then(recent / (1.0 - pl.lit(DECAY).pow(count)))


def derived_columns() -> list[pl.Expr]:
    """Columns that several channels share.

    `log_return` spans the time since the last observation, however long; `daily_return` is null where that is more than one
    session. `volatility` is exponentially weighted, a day, and as it was known one observation before. `dollars` is the dollar
    volume of days with a trade.
    """
    log_return = pl.col("close").log().diff()
    return [
        log_return.alias("log_return"),
        pl.when(pl.col("session").diff() == 1).then(log_return).alias("daily_return"),
        decayed_variance(log_return).sqrt().clip(LEAST_VOLATILITY).shift(1).alias("volatility"),
        pl.when(pl.col("dollar_volume") > 0).then(pl.col("dollar_volume")).alias("dollars"),
    ]


def regression_columns() -> list[pl.Expr]:
    """`beta`: slope of the daily returns on the market's over 63 observations; `residual_variance`: a day."""
    y = pl.col("daily_return")
    x = pl.when(y.is_not_null()).then(pl.col("market_return"))
    covariance = mean(x * y, 63) - mean(x, 63) * mean(y, 63)
    variance = mean(x * x, 63) - mean(x, 63) ** 2
    beta = pl.when(variance > LEAST_VOLATILITY**2).then(covariance / variance)
    residual = mean(y * y, 63) - mean(y, 63) ** 2 - beta * covariance
    return [beta.alias("beta"), residual.clip(0.0).alias("residual_variance")]


def momentum(since: int, until: int = 0) -> pl.Expr:
    """Log return from `since` to `until` observations ago, in units of its own expected deviation."""
    return (pl.col("close").shift(until) / pl.col("close").shift(since)).log() / (volatility * sqrt(since - until))


def volume_shock(window: int) -> pl.Expr:
    return dollars.log() - dollars.log().rolling_median(window, min_samples=least_known(window))


def close_location() -> pl.Expr:
    """-1 at the low of the day, 1 at its high, 0 where the day is flat."""
    span = high - low
    return 2.0 * pl.when(span > 0).then(((close - low) / span).clip(0.0, 1.0)).otherwise(0.0 * span + 0.5) - 1.0


def corwin_schultz() -> pl.Expr:
    """Corwin and Schultz (2012), A simple way to estimate bid-ask spreads, equations 14 and 18; negative estimates are 0."""
    squared_range = log_range**2
    two_days = squared_range + squared_range.shift(1)
    both = (pl.max_horizontal(high, high.shift(1)) / pl.min_horizontal(low, low.shift(1))).log() ** 2
    constant = 3.0 - 2.0 * sqrt(2.0)
    alpha = (sqrt(2.0) - 1.0) / constant * two_days.sqrt() - (both / constant).sqrt()
    # a flat day inside the range of the day beside it makes alpha zero but for rounding, which a z-score would blow up
    return mean(pl.when(alpha < 1e-9).then(0.0).otherwise(2.0 * (alpha / 2.0).tanh()), 21)


def roll() -> pl.Expr:
    """Roll (1984): twice the root of minus the autocovariance of returns."""
    before = log_return.shift(1)
    now = pl.when(before.is_not_null()).then(log_return)
    return 2.0 * (mean(now, 21) * mean(before, 21) - mean(now * before, 21)).clip(0.0).sqrt()


def untraded_sessions() -> pl.Expr:
    """Sessions without a trade between this one and the trade before it, at most 63."""
    traded = pl.when(pl.col("volume").fill_null(1.0) != 0).then(pl.col("session"))
    last = traded.rolling_max(63, min_samples=1).shift(1)
    return (pl.col("session") - last - 1).fill_null(0).clip(0, 63)


open_, high, low, close = pl.col("open"), pl.col("high"), pl.col("low"), pl.col("close")
log_return, volatility, dollars = pl.col("log_return"), pl.col("volatility"), pl.col("dollars")
log_range = (high / low).log()
amihud = mean(log_return.abs() / dollars, 21)

# fmt: off
CHANNELS = (
    Channel("log_return", "deviations", "Campbell, Lo and MacKinlay (1997)", 253, ("close",), log_return / volatility),
    Channel("overnight_return", "deviations", "Lou, Polk and Skouras (2019)", 253, ("open", "close"), (open_ / close.shift(1)).log() / volatility),
    Channel("intraday_return", "deviations", "Lou, Polk and Skouras (2019)", 253, ("open", "close"), (close / open_).log() / volatility),
    Channel("high_low_range", "z of log ratio", "Parkinson (1980)", 251, ("high", "low"), log_range, scored=True),
    Channel("close_location", "-1 low to 1 high", "Chaikin, accumulation and distribution", 0, ("high", "low", "close"), close_location()),
    Channel("volume_level", "z of log ratio", "Gervais, Kaniel and Mingelgrin (2001)", 313, ("dollar_volume",), volume_shock(63), scored=True),
    Channel("volume_shock", "z of log ratio", "Gervais, Kaniel and Mingelgrin (2001)", 271, ("dollar_volume",), volume_shock(21), scored=True),
    Channel("realised_volatility_5", "octaves", "Corsi (2009)", 5, ("close",), octaves(log_volatility(mean(log_return**2, 5)))),
    Channel("realised_volatility_21", "octaves", "Corsi (2009)", 21, ("close",), octaves(log_volatility(mean(log_return**2, 21)))),
    Channel("realised_volatility_63", "octaves", "Corsi (2009)", 63, ("close",), octaves(log_volatility(mean(log_return**2, 63)))),
    Channel("drawdown_252", "yearly deviations", "George and Hwang (2004)", 253, ("close",), (close / close.rolling_max(252, min_samples=1)).log() / (volatility * sqrt(252.0))),
    Channel("momentum_21", "deviations", "Jegadeesh (1990)", 253, ("close",), momentum(21)),
    Channel("momentum_60", "deviations", "Moskowitz, Ooi and Pedersen (2012)", 253, ("close",), momentum(60)),
    Channel("momentum_252_21", "deviations", "Jegadeesh and Titman (1993)", 253, ("close",), momentum(252, 21)),
    Channel("beta_63", "1", "Sharpe (1964)", 64, ("close",), pl.col("beta") - 1.0),
    Channel("residual_volatility_63", "z of log volatility", "Ang, Hodrick, Xing and Zhang (2006)", 315, ("close",), log_volatility(pl.col("residual_variance")), scored=True),
    Channel("amihud_21", "z of log 1/dollar", "Amihud (2002)", 273, ("close", "dollar_volume"), pl.when(amihud > 0).then(amihud.log()), scored=True),
    Channel("spread_21", "z of share of price", "Corwin and Schultz (2012)", 273, ("high", "low"), corwin_schultz(), scored=True),
    Channel("roll_spread_21", "deviations", "Roll (1984)", 253, ("close",), roll() / volatility),
    Channel("liquidity_rank", "Gaussian rank", "mean dollar volume of 63 observations, within the universe", 62, ("dollar_volume",), pl.col("liquidity_rank")),
    Channel("event", "1 on the day", "ex-date of a dividend or a split (corporate_actions)", 0, ("close",), pl.col("event").cast(pl.Float64)),
    Channel("untraded_sessions", "log(1 + sessions)", "Lesmond, Ogden and Trzcinka (1999)", 64, ("close",), untraded_sessions().cast(pl.Float64).log1p()),
    Channel("observed", "1 if observed", "adjusted_prices", 0, ("close",), pl.when(close.is_not_null()).then(1.0)),
)
# fmt: on


def available(columns: frozenset[str]) -> tuple[Channel, ...]:
    """The channels that prices with these columns allow."""
    return tuple(channel for channel in CHANNELS if columns.issuperset(channel.needs))


def channel_values(frame: pl.DataFrame, channels: tuple[Channel, ...]) -> pl.DataFrame:
    """The channels of some assets, and their `beta` to the market.

    Args:
        frame: observations in order of asset and date, with `asset` and the columns above; a price column that the source lacks
            is null.

    Returns:
        float32 columns named by channel, and `beta` float32, within +-5, 1 while unknown; rows as in `frame`.
    """
    frame = frame.with_columns(value.over("asset") for value in derived_columns())
    frame = frame.with_columns(value.over("asset") for value in regression_columns())
    values = frame.select("asset", "beta", *(channel.value.over("asset").alias(channel.name) for channel in channels))
    scored = [channel.name for channel in channels if channel.scored]
    values = values.with_columns(moment for name in scored for moment in trailing_moments(name))
    return values.select(
        *(stored(z_score(c.name) if c.scored else pl.col(c.name)).alias(c.name) for c in channels),
        pl.col("beta").clip(-5.0, 5.0).fill_null(1.0).cast(pl.Float32),
    )


def stored(x: pl.Expr) -> pl.Expr:
    """float32, clipped, 0 where unknown."""
    return x.clip(-CLIP, CLIP).fill_nan(0.0).fill_null(0.0).cast(pl.Float32)
