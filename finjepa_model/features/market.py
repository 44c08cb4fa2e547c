"""The market as a whole: its proxy, what takes all assets of a session at once, and the channels of its context.

Who counts on a session, and with which weight, was known at the close of the session before it.

Shape suffixes: D sessions, A assets, N observations of some assets in a row, T days of the correlation window.
"""

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import polars as pl

from finjepa_model.features.channels import (
    Channel,
    decayed_variance,
    log_volatility,
    octaves,
    stored,
    trailing_moments,
    z_score,
)

DAYS = 21
MOST_TRADED = 256
SUMS = ("weighted_return", "weight", "plain_return", "plain_count", "eligible_return", "eligible_square", "eligible_count",
        "above_mean", "above_count")  # fmt: skip


def market_inputs(frame: pl.DataFrame) -> pl.DataFrame:
    """What observations bring to the market.

    Args:
        frame: observations in order of asset and date: asset, session, close, dollar_volume (null without volumes), eligible (in
            the universe at that close).

    Returns:
        session; `returns`, simple, since the last observation, null on the first; `liquidity`, mean dollar volume of 63 observations,
        1 without volumes; and the contribution to each of SUMS.
    """
    close, eligible = pl.col("close"), pl.col("eligible")
    unknown = 0.0 if frame["dollar_volume"].count() else 1.0
    liquidity = pl.col("dollar_volume").rolling_mean(63, min_samples=1).fill_null(unknown)
    frame = frame.select(
        "asset", "session", "close", "eligible",
        (close / close.shift(1) - 1.0).over("asset").alias("returns"),
        liquidity.over("asset").alias("liquidity"),
        close.rolling_mean(200).over("asset").alias("mean_200"),
        (pl.col("session").diff() == 1).fill_null(False).over("asset").alias("daily"),
    )  # fmt: skip
    one_day = pl.when(pl.col("daily")).then(pl.col("returns")).otherwise(0.0)
    counted = (eligible.shift(1, fill_value=False).over("asset") & pl.col("daily")).cast(pl.Float64)
    weight = pl.col("liquidity").shift(1, fill_value=0.0).over("asset") * counted
    old = pl.col("mean_200").is_not_null() & eligible
    above = (old & (close > pl.col("mean_200"))).fill_null(False)
    eligibles = (counted * one_day, counted * one_day**2, counted)
    values = (weight * one_day, weight, one_day, pl.col("daily"), *eligibles, above, old)
    sums = (value.cast(pl.Float64).alias(name) for name, value in zip(SUMS, values, strict=True))
    return frame.select("session", "returns", "liquidity", *sums)


def session_sums(inputs: pl.DataFrame, sessions: int) -> np.ndarray:
    """float64 [K, D]: the sums of each session, added in the order of the rows."""
    at = inputs["session"].to_numpy()
    return np.stack([np.bincount(at, inputs[name].to_numpy(), sessions) for name in SUMS])


def proxy_returns(sums_KD: np.ndarray) -> np.ndarray:
    """float32 [D]: return of the universe weighted by trailing dollar volume, by equal weights without volumes.

    Shares outstanding are not in the prices, so that the weights stand in for capitalisation. On sessions before there is a
    universe every observed asset counts the same.
    """
    sums = dict(zip(SUMS, sums_KD, strict=True))
    known_D = sums["weight"] > 0
    weighted_D = sums["weighted_return"] / np.where(known_D, sums["weight"], 1.0)
    return np.where(known_D, weighted_D, sums["plain_return"] / np.maximum(sums["plain_count"], 1.0)).astype(np.float32)


def liquidity_ranks(liquidity_DA: np.ndarray) -> np.ndarray:
    """float32 [D, A]: normal quantile of the mid-rank of liquidity among the assets that are in the universe (NaN: not)."""
    ranks_DA = np.full(liquidity_DA.shape, np.nan, np.float32)
    normal_quantile = lru_cache(2**16)(NormalDist().inv_cdf)  # sessions share the ranks of as many assets
    for session, liquidity_A in enumerate(liquidity_DA):
        eligible = np.flatnonzero(~np.isnan(liquidity_A))
        _, place, counts = np.unique(liquidity_A[eligible], return_inverse=True, return_counts=True)
        middle = (np.cumsum(counts) - counts / 2.0) / max(len(eligible), 1)
        ranks_DA[session, eligible] = np.array([normal_quantile(share) for share in middle])[place]
    return ranks_DA


def co_movement(returns_DA: np.ndarray, liquidity_DA: np.ndarray) -> np.ndarray:
    """float64 [2, D]: mean pairwise correlation over 21 sessions, and the first eigenvalue of that correlation matrix / trace.

    Of the 256 most traded assets of the universe that were observed on all 21 days; NaN where there are fewer than two.

    Args:
        returns_DA: simple, NaN where not observed or on an asset's first observation.
        liquidity_DA: NaN where the asset is not in the universe.
    """
    found_2D = np.full((2, len(returns_DA)), np.nan)
    unknown_DA = np.cumsum(np.isnan(returns_DA), axis=0, dtype=np.int32)
    for session in range(DAYS, len(returns_DA)):
        whole_A = unknown_DA[session] == unknown_DA[session - DAYS]
        chosen = np.flatnonzero(whole_A & ~np.isnan(liquidity_DA[session]))
        if len(chosen) > MOST_TRADED:
            chosen = np.sort(chosen[np.argsort(liquidity_DA[session, chosen], kind="stable")[-MOST_TRADED:]])
        returns_TA = returns_DA[session - DAYS + 1 : session + 1, chosen].astype(np.float64)
        centred_TA = returns_TA - returns_TA.mean(axis=0)
        deviation_A = np.sqrt((centred_TA**2).sum(axis=0))
        standard_TA = centred_TA[:, deviation_A > 1e-4] / deviation_A[deviation_A > 1e-4]
        assets = standard_TA.shape[1]
        if assets >= 2:
            total = float((standard_TA.sum(axis=1) ** 2).sum())
            largest = float(np.linalg.eigvalsh(standard_TA @ standard_TA.T)[-1])
            found_2D[:, session] = (total - assets) / (assets * (assets - 1.0)), largest / assets
    return found_2D


def session_series(dates: np.ndarray, sums_KD: np.ndarray, together_2D: np.ndarray) -> pl.DataFrame:
    """One row a session: the columns that the market's channels are made of, null where unknown.

    Args:
        dates: datetime64[D]; sums_KD: of SUMS; together_2D: of `co_movement`.
    """
    sums = pl.DataFrame(dict(zip(SUMS, sums_KD, strict=True)))
    log_return = np.log1p(proxy_returns(sums_KD).astype(np.float64))
    log_return[0] = np.nan  # nothing was known before
    following = np.busday_offset(dates, 1, roll="backward")  # holidays are left out: they differ by exchange
    equal, square = (
        pl.when(pl.col("eligible_count") > 0).then(pl.col(name) / pl.col("eligible_count"))
        for name in ("eligible_return", "eligible_square")
    )
    return sums.select(
        pl.Series("log_return", log_return).fill_nan(None),
        equal.alias("equal_return"),
        log_volatility(square - equal**2).alias("dispersion"),
        pl.when(pl.col("above_count") > 0).then(pl.col("above_mean") / pl.col("above_count")).alias("above_mean"),
        pl.Series("correlation", together_2D[0]).fill_nan(None),
        pl.Series("component", together_2D[1]).fill_nan(None),
        pl.Series("weekday", (dates.astype("datetime64[D]").astype(np.int64) + 3) % 7),
        pl.Series("month_end", following.astype("datetime64[M]") > dates.astype("datetime64[M]")),
    ).with_columns(log_volatility(decayed_variance(pl.col("log_return"))).alias("decayed"))


def volatility(window: int) -> pl.Expr:
    return octaves(log_volatility((log_return**2).rolling_mean(window)))


log_return, volatility_before = pl.col("log_return"), pl.col("decayed").exp().shift(1)

# fmt: off
MARKET_CHANNELS = (
    Channel("market_return", "deviations", "dollar-volume weights, for want of shares outstanding", 253, ("close",), log_return / volatility_before),
    Channel("equal_minus_proxy", "deviations", "Plyakha, Uppal and Vilkov (2012)", 253, ("close",), (pl.col("equal_return") - (log_return.exp() - 1.0)) / volatility_before),
    Channel("dispersion", "z of log volatility", "Solnik and Roulet (2000)", 251, ("close",), pl.col("dispersion"), scored=True),
    Channel("correlation_21", "z of correlation", "Pollet and Wilson (2010)", 272, ("close",), pl.col("correlation"), scored=True),
    Channel("first_component_21", "z of share of variance", "Kritzman, Li, Page and Rigobon (2011)", 272, ("close",), pl.col("component"), scored=True),
    Channel("above_mean_200", "-1 none to 1 all", "market breadth: share above the mean of 200 observations", 199, ("close",), 2.0 * pl.col("above_mean") - 1.0),
    Channel("market_volatility_5", "octaves", "Corsi (2009)", 4, ("close",), volatility(5)),
    Channel("market_volatility_21", "octaves", "Corsi (2009)", 20, ("close",), volatility(21)),
    Channel("market_volatility_63", "octaves", "Corsi (2009)", 62, ("close",), volatility(63)),
    Channel("decayed_volatility", "z of log volatility", "RiskMetrics (1996)", 502, ("close",), pl.col("decayed"), scored=True),
    Channel("weekday", "-1 Monday to 1 Friday", "the date", 0, ("close",), (pl.col("weekday") - 2.0) / 2.0),
    Channel("month_end", "1 on a month's last weekday", "the date", 0, ("close",), pl.col("month_end").cast(pl.Float64)),
)
# fmt: on


def market_values(series: pl.DataFrame) -> np.ndarray:
    """float32 [D, M]: the market's channels from `session_series`."""
    values = series.select(channel.value.alias(channel.name) for channel in MARKET_CHANNELS)
    values = values.with_columns(pl.lit(0).alias("asset"))
    scored = [channel.name for channel in MARKET_CHANNELS if channel.scored]
    values = values.with_columns(moment for name in scored for moment in trailing_moments(name))
    return values.select(
        stored(z_score(c.name) if c.scored else pl.col(c.name)).alias(c.name) for c in MARKET_CHANNELS
    ).to_numpy(order="c")
