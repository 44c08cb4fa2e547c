"""Each rule that looks at a history finds the damage that it is named after, and nothing else of a sound market."""

import polars as pl
import pytest

from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.quality import quality_summary
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

SYMBOLS = tuple(f"S{number:02d}" for number in range(60))  # a month of them is more than a thousand rows
DAYS = 300
LAST_MONTHS = pl.col("date") >= "2022-02-01"
DAY = pl.int_range(pl.len()).over("symbol")
RULES = {"factor_step", "busy_factor", "sparse_ohlc", "large_return", "return_drift", "volume_drift"}
PRICES = ("open", "high", "low", "close", "adj_close")


@pytest.fixture(scope="module")
def market() -> pl.DataFrame:
    return prices(SYMBOLS, DAYS)


def _only(symbol: str, changed: pl.Expr, name: str, days: pl.Expr) -> pl.Expr:
    return pl.when((pl.col("symbol") == symbol) & days).then(changed).otherwise(pl.col(name)).alias(name)


def _damage_of_single_symbols(market: pl.DataFrame) -> pl.DataFrame:
    """A day of another factor, dividends every other week, opens that are often missing, a rise of 80 %."""
    return (
        market.with_columns(
            _only("S07", pl.col("adj_close") * 1e-3, "adj_close", DAY == 100),
            _only("S09", pl.lit(None, pl.Float64), "open", DAY % 20 == 3),
        )
        .with_columns(
            _only("S08", pl.col("adj_close") * 1.01 ** (DAY // 10), "adj_close", DAY >= 0),
        )
        .with_columns(_only("S10", pl.col(name) * 1.8, name, DAY >= 150) for name in PRICES)
    )


def _returns_of_another_world(market: pl.DataFrame) -> pl.DataFrame:
    swing = pl.when(LAST_MONTHS & (DAY % 2 == 0)).then(1.08).otherwise(1.0)
    return market.with_columns(pl.col(name) * swing for name in PRICES)


def _volumes_of_another_world(market: pl.DataFrame) -> pl.DataFrame:
    return market.with_columns(
        pl.when(LAST_MONTHS).then(pl.col("volume") * 50).otherwise(pl.col("volume")).alias("volume")
    )


@pytest.mark.parametrize(
    ("damage", "examples"),
    [
        (lambda market: market, {}),
        (
            _damage_of_single_symbols,
            {
                "factor_step": "S07 2021-05-27",
                "busy_factor": "S08 2021-",
                "sparse_ohlc": "S09 2021-",
                "large_return": "S10 2021-08-09",
            },
        ),
        (_returns_of_another_world, {"return_drift": "PSI "}),
        (_volumes_of_another_world, {"volume_drift": "PSI "}),
    ],
)
def test_the_damage_of_a_history_is_found_by_its_rule_and_a_sound_one_breaks_none(
    home: Home, market: pl.DataFrame, damage, examples
) -> None:
    home.write("prices.parquet", damage(market))
    home.ingest()
    derive(home.warehouse, UniverseConfig())
    with home.warehouse.connect() as con:
        found = {finding.rule: finding for finding in quality_summary(con) if finding.rule in RULES}
    assert found.keys() == examples.keys()
    for rule, example in examples.items():
        assert found[rule].rows == 1  # of the drifts: March, the other month, is too short to be compared
        assert found[rule].examples[0].startswith(example)
