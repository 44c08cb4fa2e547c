"""Derived tables follow from the prices that are shown and from nothing else, however a vendor writes them."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finjepa_model.features import read_prices
from finjepa_model.features.adjust import UniverseRule, adjust_prices, on_sessions
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from tests.pipeline.prices.conftest import UNIVERSE, Home
from tests.pipeline.prices.frames import DAY, OHLC, prices, replaced

pytestmark = pytest.mark.usefixtures("no_contract")
FIVE = UniverseConfig(size=5, min_history=10, window=5, min_dollar_volume=1e8)
TABLES = (
    "price_sessions",
    "price_events",
    "corporate_actions",
    "entities",
    "adjusted_prices",
    "universe",
    "price_histograms",
)


def contents(home: Home) -> dict[str, list[tuple[object, ...]]]:
    return {table: home.query(f"FROM {table} ORDER BY ALL") for table in TABLES}


def derived(home: Home, rows: pl.DataFrame) -> dict[str, list[tuple[object, ...]]]:
    return contents(home.derived(rows, FIVE))


SYMBOLS = tuple(f"S{place}" for place in range(8))


def market(days: int) -> pl.DataFrame:
    """Eight symbols: one ends, one pauses, one comes late, one stands still, one breaks."""
    return prices(SYMBOLS, days=days).filter(
        ~((pl.col("symbol") == "S1") & (DAY > 180))
        & ~((pl.col("symbol") == "S2") & DAY.is_between(60, 180))
        & ~((pl.col("symbol") == "S3") & (DAY < 190))
    )


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_the_path_to_a_state_does_not_matter(new_home: Callable[[], Home], data: st.DataObject) -> None:
    """After any revisions the tables are those of a home that ingests the last state alone."""
    home, rows = new_home(), market(200)
    days = rows["date"].unique().sort().to_list()
    until = data.draw(st.integers(150, 190))
    derived(home, rows.filter(pl.col("date") <= pl.lit(days[until])))
    for _ in range(data.draw(st.integers(1, 2))):
        until += data.draw(st.integers(0, 4))
        for _ in range(data.draw(st.integers(0, 2))):
            symbol, column = data.draw(st.sampled_from(SYMBOLS)), data.draw(st.sampled_from(["volume", "adj_close"]))
            first = data.draw(st.integers(0, until))
            hit = (pl.col("symbol") == symbol) & pl.col("date").is_in(days[first : min(first + 3, until) + 1])
            changed = (pl.col(column) * data.draw(st.sampled_from([2, 5]))).cast(rows.schema[column])
            rows = replaced(rows, hit, **{column: changed})
        state = rows.filter(pl.col("date") <= pl.lit(days[until]))
        assert derived(home, state) == derived(new_home(), state)


def test_the_tables_are_made_again_only_for_other_prices_or_options(home: Home) -> None:
    derived(home, market(120))
    assert derive(home.warehouse, FIVE).reused
    assert not derive(home.warehouse, UniverseConfig(size=4, min_history=10, window=5)).reused


@pytest.mark.parametrize("columns", [["symbol", "date", "close"], list(prices().columns)])
def test_a_full_universe_is_that_of_a_frame_whatever_part_of_the_history_it_has(home: Home, columns: list[str]) -> None:
    symbols = tuple(f"{'QWERTZUIOPAS'[place]}{place}" for place in range(12))
    rows = prices(symbols, days=60).select(columns)
    rows = rows.filter((pl.col("symbol") != "A10") | (DAY > 20))  # the youngest
    derived(home, rows.sort("symbol", "date"))
    newest = rows["date"].max()
    members = {str(entity) for entity, date in home.query("SELECT entity, date FROM universe") if str(date) == newest}
    assert len(members) == FIVE.size
    if "volume" not in columns:
        assert members == set(sorted(symbols)[: FIVE.size])
    days = rows["date"].unique().sort()
    for first in (days[0], days[-30]):
        seen, _ = on_sessions(read_prices(rows.filter(pl.col("date") >= first)).rows)
        market, _ = adjust_prices(seen, UniverseRule(**FIVE.model_dump()))
        [run] = market.runs()
        last = run.filter("eligible", pl.col("session") == run["session"].max())
        assert set(last["symbol"]) == members


SPLIT, DIVIDEND, DAYS = 20, 30, 40
KINDS = ("as traded", "split-adjusted")


def written(kind: str, days: int = DAYS) -> pl.DataFrame:
    """AAA splits 2:1 on day 20 and pays 2 % on day 30, as its vendor wrote it on day `days`; BBB does nothing.

    A share costs about 8 dollars before the split and 4 after it: a filter by price at 5 would know of it where closes do."""
    rows = prices(("AAA", "BBB"), days=DAYS).with_columns(DAY.alias("day"), pl.col(*OHLC) * 0.08)
    rows = rows.with_columns(volume=5_000_000 + 1_000 * pl.col("day"))
    split = pl.when((pl.col("symbol") == "AAA") & (pl.col("day") < SPLIT)).then(2.0).otherwise(1.0)
    known_split = split if days > SPLIT else pl.lit(1.0)
    paid = (
        pl.when((pl.col("symbol") == "AAA") & (pl.col("day") < DIVIDEND) & (days > DIVIDEND)).then(0.98).otherwise(1.0)
    )
    # `close` of the frame is the price of a share as it is after the split.
    traded, known = ([pl.col(name) * factor for name in OHLC] for factor in (split, split / known_split))
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
    traded, adjusted = (new_home().derived(written(kind)) for kind in KINDS)
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
        home = new_home().derived(written(kind, days))
        cut = home.query("SELECT date FROM price_sessions WHERE session = 20")[0][0]
        ratios = "round(close / lag(close) OVER (PARTITION BY entity ORDER BY date), 9), round(open / close, 9)"
        queries = (
            "FROM universe",
            "SELECT symbol, date, action, round(value, 9) FROM corporate_actions",
            f"SELECT entity, date, {ratios}, round(dollar_volume / 1e5), tradable FROM adjusted_prices",
        )
        known.append([home.query(f"{query} WHERE date <= '{cut}' ORDER BY ALL") for query in queries])
    assert known[0] == known[1] == known[2]


def test_a_split_that_nothing_adjusts_is_suspected_and_not_traded(home: Home) -> None:
    home.derived(written("as traded").drop("adj_close"))
    assert home.query("SELECT symbol, action, value FROM corporate_actions") == [("AAA", "suspected_split", 2.0)]
    assert home.query("SELECT entity FROM adjusted_prices WHERE NOT tradable") == [("AAA",)]


def test_a_close_only_source_carries_on_with_what_it_has(home: Home) -> None:
    rows = written("split-adjusted").select("symbol", "date", "close")
    home.write("part.csv", rows)
    assert home.ingest().revision.columns == ("close",)
    derive(home.warehouse, UNIVERSE)
    assert home.query("SELECT count(*), count(open), count(volume), bool_and(tradable) FROM adjusted_prices") == [
        (rows.height, 0, 0, True)
    ]
    assert home.query("SELECT count(*) FROM universe") == [(2 * (DAYS - 9),)]
