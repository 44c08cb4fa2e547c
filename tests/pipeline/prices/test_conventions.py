"""Two ways to write one market: closes as traded, and closes already divided by later splits. Both give the same returns."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from finjepa_pipeline.prices.derive import derive
from tests.pipeline.prices.conftest import UNIVERSE, Home
from tests.pipeline.prices.frames import prices

pytestmark = pytest.mark.usefixtures("no_contract")
SPLIT, DIVIDEND, DAYS = 20, 30, 40
KINDS = ("as traded", "split-adjusted")


def market(kind: str, days: int = DAYS) -> pl.DataFrame:
    """AAA splits 2:1 on day 20 and pays 2 % on day 30, as its vendor wrote it on day `days`; BBB does nothing.

    A share costs about 8 dollars before the split and 4 after it: a filter by price at 5 would know of it where closes do."""
    rows = prices(("AAA", "BBB"), days=DAYS).with_columns(
        pl.int_range(pl.len()).over("symbol").alias("day"), pl.col("open", "high", "low", "close") * 0.08
    )
    rows = rows.with_columns(volume=5_000_000 + 1_000 * pl.col("day"))
    split = pl.when((pl.col("symbol") == "AAA") & (pl.col("day") < SPLIT)).then(2.0).otherwise(1.0)
    known_split = split if days > SPLIT else pl.lit(1.0)
    paid = (
        pl.when((pl.col("symbol") == "AAA") & (pl.col("day") < DIVIDEND) & (days > DIVIDEND)).then(0.98).otherwise(1.0)
    )
    # `close` of the frame is the price of a share as it is after the split.
    traded, known = (
        [pl.col(name) * factor for name in ("open", "high", "low", "close")] for factor in (split, split / known_split)
    )
    return (
        rows.filter(pl.col("day") < days)
        .with_columns(adj_close=pl.col("close") * split / known_split * paid, size=split)
        .with_columns(traded if kind == "as traded" else known)
        .with_columns(
            (pl.col("volume") / (1.0 if kind == "split-adjusted" and days > SPLIT else pl.col("size"))).cast(pl.Int64)
        )
        .drop("size", "day")
    )


def returns(home: Home) -> dict[tuple[str, str], float]:
    rows = home.query(
        "SELECT entity, date::VARCHAR, ln(close / lag(close) OVER (PARTITION BY entity ORDER BY date)) FROM adjusted_prices"
    )
    return {(entity, date): value for entity, date, value in rows if value is not None}


def test_both_conventions_give_the_same_returns_and_the_events_that_each_can_show(new_home: Callable[[], Home]) -> None:
    traded, adjusted = (new_home().derived(market(kind)) for kind in KINDS)
    ours, theirs = returns(traded), returns(adjusted)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), [theirs[key] for key in ours], atol=1e-9)
    assert max(abs(value) for value in ours.values()) < 0.1  # neither the split nor the dividend is a return
    for name in ("open", "high", "low"):  # all prices of a row are adjusted alike
        query = f"SELECT entity, date, round({name} / close, 9), round(dollar_volume / 1e5) FROM adjusted_prices ORDER BY ALL"
        assert traded.query(query) == adjusted.query(query)
    actions = "SELECT symbol, action, round(value, 6) FROM corporate_actions ORDER BY ALL"
    assert adjusted.query(actions) == [("AAA", "dividend", 0.02)]
    assert traded.query(actions) == [("AAA", "dividend", 0.02), ("AAA", "split", 2.0)]
    assert traded.query("FROM universe ORDER BY ALL") == adjusted.query("FROM universe ORDER BY ALL")


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_split_or_dividend_changes_nothing_that_was_known(new_home: Callable[[], Home], kind: str) -> None:
    known = []
    for days in (SPLIT, DIVIDEND, DAYS):
        home = new_home().derived(market(kind, days))
        cut = home.query("SELECT date FROM price_sessions WHERE session = 20")[0][0]
        known.append(
            [
                home.query(f"FROM universe WHERE date <= '{cut}' ORDER BY ALL"),
                home.query(
                    f"SELECT symbol, date, action, round(value, 9) FROM corporate_actions WHERE date <= '{cut}'"
                ),
                home.query(
                    "SELECT entity, date, round(close / lag(close) OVER (PARTITION BY entity ORDER BY date), 9), "
                    "round(open / close, 9), round(dollar_volume / 1e5), tradable FROM adjusted_prices "
                    f"WHERE date <= '{cut}' ORDER BY ALL"
                ),
            ]
        )
    assert known[0] == known[1] == known[2]


def test_a_split_that_nothing_adjusts_is_suspected_and_not_traded(home: Home) -> None:
    home.derived(market("as traded").drop("adj_close"))
    assert home.query("SELECT symbol, action, value FROM corporate_actions") == [("AAA", "suspected_split", 2.0)]
    assert home.query("SELECT entity FROM adjusted_prices WHERE NOT tradable") == [("AAA",)]


def test_a_close_only_source_carries_on_with_what_it_has(home: Home) -> None:
    rows = market("split-adjusted").select("symbol", "date", "close")
    home.write("part.csv", rows)
    assert home.ingest().revision.columns == ("close",)
    derive(home.warehouse, UNIVERSE)
    assert home.query("SELECT count(*), count(open), count(volume), bool_and(tradable) FROM adjusted_prices") == [
        (rows.height, 0, 0, True)
    ]
    assert home.query("SELECT count(*) FROM universe") == [(2 * (DAYS - 9),)]
