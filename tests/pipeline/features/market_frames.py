"""Small markets with every awkward thing in them, and the tables that the features stage reads."""

from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from finjepa_model.data.panel import Panel
from finjepa_model.features import choose
from finjepa_pipeline.features.panel import adjusted_prices, write_panel
from finjepa_pipeline.warehouse import migrate

IDENTITY = {"feed": "test", "data_version": "test", "content_hash": "test"}
OHLC = ("open", "high", "low", "close")


def awkward_market(sessions: int = 420, assets: int = 8, seed: int = 0) -> pl.DataFrame:
    """Adjusted prices with a late start, an early end, a gap, a halt, zero volume, missing opens and a one-row
    symbol.
    """
    rng = np.random.default_rng(seed)
    dates = np.arange(np.datetime64("2015-01-01"), np.datetime64("2020-01-01"))
    dates = dates[np.is_busday(dates)][:sessions]
    frames = []
    for asset in range(assets):
        close = 50.0 * np.exp(np.cumsum(rng.normal(0, 0.015 + 0.002 * asset, sessions)))
        spread = np.abs(rng.normal(0, 0.01, (2, sessions)))
        opened = close * np.exp(rng.normal(0, 0.006, sessions))
        frame = pl.DataFrame(
            {
                "entity": f"S{asset:02d}",
                "date": dates,
                "open": opened,
                "high": np.maximum(opened, close) * (1 + spread[0]),
                "low": np.minimum(opened, close) * (1 - spread[1]),
                "close": close,
                "volume": rng.lognormal(13, 0.5, sessions),
                "tradable": True,
            }
        ).with_columns(dollar_volume=pl.col("close") * pl.col("volume"))
        keep = np.ones(sessions, bool)
        if asset == 1:
            keep[:150] = False
        if asset == 2:
            keep[-60:] = False
        if asset == 3:
            keep[200:212] = False
            keep[300] = False
        if asset == 4:  # halted: the last price is carried, nothing trades
            halt = np.arange(sessions)
            halted = (halt >= 250) & (halt < 290)
            carried = np.where(halted, close[249], close)
            frame = frame.with_columns(
                *(pl.Series(name, np.where(halted, carried, frame[name])) for name in OHLC),
                volume=pl.Series(np.where(halted, 0.0, frame["volume"])),
                dollar_volume=pl.Series(np.where(halted, 0.0, frame["dollar_volume"])),
                tradable=pl.Series(~halted),
            )
        if asset == 5:
            frame = frame.with_columns(open=pl.when(pl.int_range(pl.len()) % 37 == 5).then(None).otherwise("open"))
        if asset == 6:
            keep[:] = False
            keep[100] = True
        frames.append(frame.filter(pl.Series(keep)))
    return pl.concat(frames).with_columns(pl.col("date").cast(pl.Date))


def warehouse_of(prices: pl.DataFrame, payer: str = "S00") -> duckdb.DuckDBPyConnection:
    """A connection with `adjusted_prices` and a universe of all with 100 observations behind them; `payer` pays a dividend."""
    connection = duckdb.connect()
    migrate(connection)
    columns = ("entity", "date", "open", "high", "low", "close", "volume", "dollar_volume")
    missing = [pl.lit(None, pl.Float64).alias(name) for name in columns if name not in prices.columns]
    table = prices.with_columns(*missing).select(*columns, "tradable")
    connection.register("prices_frame", table.to_arrow())
    connection.execute("CREATE OR REPLACE TABLE adjusted_prices AS FROM prices_frame ORDER BY entity, date")
    connection.execute("""
        CREATE OR REPLACE TABLE universe AS
        SELECT date, entity FROM (SELECT *, row_number() OVER (PARTITION BY entity ORDER BY date) AS n FROM
        prices_frame) WHERE n >= 100 ORDER BY date, entity""")
    connection.execute(f"""
        CREATE TABLE corporate_actions AS SELECT '{payer}' AS symbol, DATE '2016-02-01' AS date, 'dividend' AS action;
        CREATE TABLE entities AS SELECT DISTINCT entity, entity AS symbol, NULL::DOUBLE AS delisting_return FROM adjusted_prices;
        CREATE TABLE price_sessions AS SELECT DISTINCT date FROM adjusted_prices ORDER BY date
        """)
    return connection


def panel_of(prices: pl.DataFrame, folder: Path, payer: str = "S00") -> Panel:
    """The panel of a frame of adjusted prices."""
    folder.mkdir(parents=True)
    with warehouse_of(prices, payer) as connection:
        source = adjusted_prices(connection)
        write_panel(source, choose(source.columns), IDENTITY, folder)
    return Panel.open(folder)


def channel_frame(panel: Panel) -> pl.DataFrame:
    """entity, date and every channel, observed rows only."""
    rows = []
    for asset, name in enumerate(panel.assets):
        place = panel.offsets[asset] + np.arange(panel.lengths[asset])
        dates = panel.dates[panel.first[asset] : panel.first[asset] + panel.lengths[asset]]
        frame = pl.DataFrame({"entity": name, "date": dates, "observed_row": panel.observed[place]})
        rows.append(
            frame.with_columns(
                *(pl.Series(c, panel.features[place, i]) for i, c in enumerate(panel.channels)),
                beta=pl.Series(panel.beta[place]),
                returns=pl.Series(panel.returns[place]),
            )
        )
    return pl.concat(rows).filter("observed_row")
