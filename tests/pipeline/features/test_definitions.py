"""Each channel equals a slow definition that is written from its formula, window by window, in pandas and NumPy."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from finjepa_model.data.panel import Panel
from finjepa_model.features import CHANNELS
from finjepa_model.features.market import SUMS, session_series
from tests.pipeline.features.market_frames import awkward_market, channel_frame, panel_of

REAL = Path(__file__).parents[4] / "shared" / "data" / "us_wide_sample_2015_2017" / "data"


def real_market() -> pl.DataFrame:
    """A few illiquid, raw-priced stocks with splits, gaps and delistings."""
    frame = pl.read_parquet(REAL / "*.parquet").filter(pl.col("close") > 0)
    kept = frame["symbol"].unique().sort().gather_every(25)
    factor = pl.col("adj_close") / pl.col("close")
    return frame.filter(pl.col("symbol").is_in(kept.implode())).select(
        pl.col("symbol").alias("entity"),
        pl.col("date").str.to_date(),
        *(pl.col(name) * factor for name in ("open", "high", "low", "close")),
        pl.col("volume").cast(pl.Float64),
        dollar_volume=pl.col("close") * pl.col("volume"),
        tradable=pl.col("volume") > 0,
    )


def windows(x: pd.Series, n: int, what, least: int) -> pd.Series:
    """what(known values of the last n) where at least `least` are known, computed anew for each day."""
    values, out = x.to_numpy(float), np.full(len(x), np.nan)
    for t in range(len(x)):
        known = values[max(0, t - n + 1) : t + 1]
        known = known[~np.isnan(known)]
        if len(known) >= least:
            out[t] = what(known)
    return pd.Series(out)


def mean(x: pd.Series, n: int) -> pd.Series:
    return windows(x, n, np.mean, -(-2 * n // 3))


def z(x: pd.Series) -> pd.Series:
    centre = windows(x, 252, np.mean, 60)
    spread = windows(x, 252, lambda known: np.std(known, ddof=1), 60)
    level = windows(x, 252, lambda known: np.sqrt(np.mean(known**2)), 60)
    return ((x - centre) / spread).where(spread > 1e-5 * level, 0.0 * (x - centre))


def log_volatility(variance: pd.Series) -> pd.Series:
    return np.log(np.maximum(np.sqrt(variance), 1e-4))


def decayed(x: pd.Series) -> pd.Series:
    """Weights (31/32)^age over 252 observations."""
    values, out = x.to_numpy(float), np.full(len(x), np.nan)
    for t in range(len(x)):
        part = values[max(0, t - 251) : t + 1][::-1]
        weight = (1 - 2 / 64) ** np.arange(len(part)) * ~np.isnan(part)
        if (weight > 0).sum() >= 20:
            out[t] = np.nansum(weight * np.nan_to_num(part)) / weight.sum()
    return pd.Series(out)


def slow_channels(asset: pd.DataFrame, market: pd.Series) -> dict[str, pd.Series]:
    """Every channel but those that look at other assets or tables (liquidity_rank, event)."""
    o, h, lo, c = (asset[name].reset_index(drop=True) for name in ("open", "high", "low", "close"))
    volume, dollars = (asset[name].reset_index(drop=True) for name in ("volume", "dollar_volume"))
    session = asset["session"].reset_index(drop=True)
    dollars = dollars.where(dollars > 0)
    r = np.log(c / c.shift(1))
    vol = np.maximum(np.sqrt(decayed(r**2)), 1e-4).shift(1)
    shock = {n: np.log(dollars) - windows(np.log(dollars), n, np.median, -(-2 * n // 3)) for n in (21, 63)}
    y = r.where(session.diff() == 1)
    x = np.log1p(market.loc[asset["date"]].reset_index(drop=True)).where(y.notna())
    covariance = mean(x * y, 63) - mean(x, 63) * mean(y, 63)
    variance = mean(x * x, 63) - mean(x, 63) ** 2
    beta = (covariance / variance).where(variance > 1e-8)
    residual = (mean(y * y, 63) - mean(y, 63) ** 2 - beta * covariance).clip(lower=0)
    two_days = np.log(h / lo) ** 2 + np.log(h / lo).shift(1) ** 2
    both = np.log(np.maximum(h, h.shift(1)) / np.minimum(lo, lo.shift(1))) ** 2
    k = 3 - 2 * np.sqrt(2)
    alpha = (np.sqrt(2 * two_days) - np.sqrt(two_days)) / k - np.sqrt(both / k)
    before = r.shift(1)
    pair = r.where(before.notna())
    autocovariance = mean(pair * before, 21) - mean(pair, 21) * mean(before, 21)
    last_trade = session.where(volume != 0).shift(1).rolling(63, min_periods=1).max()
    location = ((c - lo) / (h - lo)).where(h > lo, (h - lo) * 0 + 0.5).clip(0, 1)
    return {
        "log_return": r / vol,
        "overnight_return": np.log(o / c.shift(1)) / vol,
        "intraday_return": np.log(c / o) / vol,
        "high_low_range": z(np.log(h / lo)),
        "close_location": 2 * location - 1,
        "volume_level": z(shock[63]),
        "volume_shock": z(shock[21]),
        **{f"realised_volatility_{n}": np.log2(100 * np.exp(log_volatility(mean(r**2, n)))) for n in (5, 21, 63)},
        "drawdown_252": np.log(c / c.rolling(252, min_periods=1).max()) / (vol * np.sqrt(252)),
        "momentum_21": np.log(c / c.shift(21)) / (vol * np.sqrt(21)),
        "momentum_60": np.log(c / c.shift(60)) / (vol * np.sqrt(60)),
        "momentum_252_21": np.log(c.shift(21) / c.shift(252)) / (vol * np.sqrt(231)),
        "beta_63": beta - 1,
        "residual_volatility_63": z(log_volatility(residual)),
        "amihud_21": z(np.log(mean(r.abs() / dollars, 21).where(lambda m: m > 0))),
        "spread_21": z(mean((2 * np.expm1(alpha) / (1 + np.exp(alpha))).clip(lower=0), 21)),
        "roll_spread_21": 2 * np.sqrt((-autocovariance).clip(lower=0)) / vol,
        "untraded_sessions": np.log1p((session - last_trade - 1).fillna(0).clip(upper=63)),
        "observed": c * 0 + 1,
    }


@pytest.mark.parametrize("which", ["awkward", "real"])
@pytest.mark.filterwarnings("ignore:.*encountered in log")
def test_every_channel_equals_its_slow_definition(which: str, tmp_path: Path):
    if which == "real" and not REAL.is_dir():
        pytest.skip(f"{REAL} is not here")
    prices = awkward_market() if which == "awkward" else real_market()
    panel = panel_of(prices, tmp_path / "panel")
    fast = channel_frame(panel)
    market = pd.Series(panel.market_returns.astype(float), index=panel.dates.astype("datetime64[s]"))
    sessions = pd.Series(np.arange(len(panel.dates)), index=panel.dates.astype("datetime64[s]"))
    compared = set()
    for (entity,), mine in fast.group_by("entity", maintain_order=True):
        asset = pd.DataFrame(prices.filter(pl.col("entity") == entity).sort("date").to_dict(as_series=False))
        asset["date"] = pd.to_datetime(asset["date"]).astype("datetime64[s]")
        asset["session"] = sessions.loc[asset["date"]].to_numpy()
        for name, slow in slow_channels(asset, market).items():
            expected = np.nan_to_num(slow.clip(-5, 5).to_numpy(float), nan=0.0)
            np.testing.assert_allclose(mine[name], expected, atol=1e-5, rtol=1e-5, err_msg=f"{name} of {entity}")
            compared.add(name)
    assert compared | {"liquidity_rank", "event"} == {channel.name for channel in CHANNELS}


def test_liquidity_is_ranked_within_the_universe_of_the_day(tmp_path: Path):
    from scipy.stats import norm

    prices = awkward_market()
    panel = panel_of(prices, tmp_path / "panel")
    dollars = prices.sort("entity", "date").with_columns(
        mean=pl.col("dollar_volume").rolling_mean(63, min_samples=1).over("entity")
    )
    for session in (150, 260, 300, 419):
        assets = panel.eligible_assets(session, 1)
        today = dollars.filter(pl.col("date") == panel.dates[session])
        means = [today.filter(pl.col("entity") == panel.assets[asset])["mean"].item() for asset in assets]
        expected = norm.ppf((pd.Series(means).rank() - 0.5) / len(means))
        rows = panel.rows(session, assets)
        np.testing.assert_allclose(panel.features[rows, panel.channels.index("liquidity_rank")], expected, atol=1e-5)


def test_an_event_shows_on_its_day_only(tmp_path: Path):
    frame = channel_frame(panel_of(awkward_market(), tmp_path / "panel")).filter(pl.col("event") != 0)
    assert frame.select("entity", pl.col("date").dt.to_string("%F")).rows() == [("S00", "2016-02-01")]


def slow_market(prices: pl.DataFrame, panel: Panel) -> dict[str, np.ndarray]:
    """Every market channel, session by session from the table of returns; the universe is that of the session before."""
    dates = [date.item() for date in panel.dates]
    wide = {
        name: prices.pivot("entity", index="date", values=name, aggregate_function="first")
        .to_pandas()
        .set_index("date")
        for name in ("close", "dollar_volume")
    }
    close, dollars = (
        wide[name].reindex(dates).reindex(columns=list(panel.assets)) for name in ("close", "dollar_volume")
    )
    known = close.notna()
    eligible = pd.DataFrame(False, index=dates, columns=close.columns)
    for asset in range(len(panel.assets)):
        days = slice(int(panel.first[asset]), int(panel.first[asset] + panel.lengths[asset]))
        eligible.iloc[days, asset] = panel.eligible[panel.offsets[asset] + np.arange(int(panel.lengths[asset]))]
    # simple return from one session to the next; after a gap it belongs to nobody
    r = (close / close.shift(1) - 1).where(known & known.shift(1, fill_value=False))
    before = eligible.shift(1, fill_value=False) & r.notna()
    liquidity = dollars.apply(lambda x: x.dropna().rolling(63, min_periods=1).mean()).reindex(dates)
    weight = liquidity.shift(1).where(before, 0.0)
    proxy = (weight * r.fillna(0)).sum(axis=1) / weight.sum(axis=1)
    proxy = proxy.where(weight.sum(axis=1) > 0, r.mean(axis=1)).fillna(0.0)
    mine = r.where(before)
    log_proxy = np.log1p(proxy).reset_index(drop=True)
    log_proxy[0] = np.nan
    above = close.apply(
        lambda x: (x.dropna() > x.dropna().rolling(200).mean()).where(x.dropna().rolling(200).mean().notna())
    )
    above = above.reindex(dates).astype(float).where(eligible)
    correlation, component = np.full((2, len(dates)), np.nan)
    returns = (close.apply(lambda x: x.dropna().pct_change()).reindex(dates)).to_numpy()
    for t in range(21, len(dates)):
        old = np.array([t - panel.first[a] >= 21 for a in range(len(panel.assets))])
        chosen = eligible.iloc[t].to_numpy() & old & known.iloc[t - 20 : t + 1].to_numpy().all(axis=0)
        window = returns[t - 20 : t + 1, chosen]
        window = window[:, np.sqrt(((window - window.mean(0)) ** 2).sum(0)) > 1e-4]
        if window.shape[1] >= 2:
            matrix = np.corrcoef(window, rowvar=False)
            correlation[t] = matrix[np.triu_indices(len(matrix), 1)].mean()
            component[t] = np.linalg.eigvalsh(matrix)[-1] / len(matrix)
    vol = log_volatility(decayed(log_proxy**2))
    last = np.exp(vol).shift(1)
    day = pd.Series(panel.dates.astype("datetime64[s]"))
    return {
        "market_return": log_proxy / last,
        "equal_minus_proxy": (mine.mean(axis=1) - proxy).reset_index(drop=True) / last,
        "dispersion": z(log_volatility(mine.var(axis=1, ddof=0).reset_index(drop=True))),
        "correlation_21": z(pd.Series(correlation)),
        "first_component_21": z(pd.Series(component)),
        "above_mean_200": (2 * above.mean(axis=1) - 1).reset_index(drop=True),
        **{
            f"market_volatility_{n}": np.log2(100 * np.exp(log_volatility(windows(log_proxy**2, n, np.mean, n))))
            for n in (5, 21, 63)
        },
        "decayed_volatility": z(vol),
        "weekday": (day.dt.day_of_week - 2) / 2,
    }


@pytest.mark.filterwarnings("ignore:.*encountered in")
def test_every_market_channel_equals_its_slow_definition(tmp_path: Path):
    prices = awkward_market()
    panel = panel_of(prices, tmp_path / "panel")
    compared = {"month_end"}
    for name, slow in slow_market(prices, panel).items():
        expected = np.nan_to_num(slow.clip(-5, 5).to_numpy(float), nan=0.0)
        found = panel.market_features[:, panel.market_channels.index(name)]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5, err_msg=name)
        compared.add(name)
    assert compared == set(panel.market_channels)


def test_the_last_weekday_of_a_month_is_known_from_the_date():
    dates = np.array(["2015-11-27", "2015-11-30", "2015-12-30", "2015-12-31", "2016-01-29"], "datetime64[D]")
    series = session_series(dates, np.zeros((len(SUMS), 5)), np.zeros((2, 5)))
    assert series["month_end"].to_list() == [False, True, False, True, True]
    assert series["weekday"].to_list() == [4, 0, 2, 3, 4]
