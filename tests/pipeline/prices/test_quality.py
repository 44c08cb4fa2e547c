"""Each rule that looks at a history finds the damage that it is named after, and nothing else of a sound market."""

import polars as pl
import pytest

from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.quality import Finding, quality_summary
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

SYMBOLS = tuple(f"S{number:02d}" for number in range(60))  # a month of them is more than a thousand rows
DAYS = 300
LAST_MONTHS = pl.col("date") >= "2022-02-01"
DAY = pl.int_range(pl.len()).over("symbol")
PRICES = ("open", "high", "low", "close", "adj_close")


@pytest.fixture(scope="module")
def market() -> pl.DataFrame:
    return prices(SYMBOLS, DAYS)


def _only(symbol: str, changed: pl.Expr, name: str, days: pl.Expr) -> pl.Expr:
    return pl.when((pl.col("symbol") == symbol) & days).then(changed).otherwise(pl.col(name)).alias(name)


def _one_day_of_another_factor(market: pl.DataFrame) -> pl.DataFrame:
    return market.with_columns(_only("S07", pl.col("adj_close") * 1e-3, "adj_close", DAY == 100))


def _dividends_every_other_week(market: pl.DataFrame) -> pl.DataFrame:
    return market.with_columns(_only("S07", pl.col("adj_close") * 1.01 ** (DAY // 10), "adj_close", DAY >= 0))


def _opens_that_are_often_missing(market: pl.DataFrame) -> pl.DataFrame:
    return market.with_columns(_only("S07", pl.lit(None, pl.Float64), "open", DAY % 20 == 3))


def _a_rise_of_eighty_percent(market: pl.DataFrame) -> pl.DataFrame:
    return market.with_columns(_only("S07", pl.col(name) * 1.8, name, DAY >= 150) for name in PRICES)


def _returns_of_another_world(market: pl.DataFrame) -> pl.DataFrame:
    swing = pl.when(LAST_MONTHS & (DAY % 2 == 0)).then(1.08).otherwise(1.0)
    return market.with_columns(pl.col(name) * swing for name in PRICES)


def _volumes_of_another_world(market: pl.DataFrame) -> pl.DataFrame:
    return market.with_columns(
        pl.when(LAST_MONTHS).then(pl.col("volume") * 50).otherwise(pl.col("volume")).alias("volume")
    )


def _findings(home: Home, market: pl.DataFrame) -> dict[str, Finding]:
    home.write("prices.parquet", market)
    home.ingest()
    derive(home.warehouse, UniverseConfig())
    with home.warehouse.connect() as con:
        return {finding.rule: finding for finding in quality_summary(con)}


@pytest.mark.parametrize(
    ("damage", "rule", "example"),
    [
        (_one_day_of_another_factor, "factor_step", "S07 2021-05-27"),
        (_dividends_every_other_week, "busy_factor", "S07 2021-"),
        (_opens_that_are_often_missing, "sparse_ohlc", "S07 2021-"),
        (_a_rise_of_eighty_percent, "large_return", "S07 2021-08-09"),
        (_returns_of_another_world, "return_drift", "PSI "),
        (_volumes_of_another_world, "volume_drift", "PSI "),
    ],
)
def test_the_damage_of_a_history_is_found_by_its_rule(home: Home, market: pl.DataFrame, damage, rule, example) -> None:
    finding = _findings(home, damage(market))[rule]
    assert finding.rows == 1  # of the drifts: March, the other month, is too short to be compared
    assert finding.examples[0].startswith(example)


def test_a_sound_market_breaks_no_rule_of_histories(home: Home, market: pl.DataFrame) -> None:
    found = _findings(home, market)
    assert not {"factor_step", "busy_factor", "sparse_ohlc", "large_return", "return_drift", "volume_drift"} & set(
        found
    )
