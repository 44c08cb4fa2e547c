"""Derived tables: they follow from the prices that are shown, and from nothing else."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finjepa_model.features import read_prices
from finjepa_model.features.adjust import UniverseRule, adjust_prices, on_sessions
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

pytestmark = pytest.mark.usefixtures("no_contract")
UNIVERSE = UniverseConfig(size=5, min_history=10, window=5, min_dollar_volume=1e8)
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
    return contents(home.derived(rows, UNIVERSE))


SYMBOLS = tuple(f"S{place}" for place in range(8))


def market(days: int) -> pl.DataFrame:
    """Eight symbols: one ends, one pauses, one comes late, one stands still, one breaks."""
    return prices(SYMBOLS, days=days).filter(
        ~((pl.col("symbol") == "S1") & (pl.int_range(pl.len()).over("symbol") > 180))
        & ~((pl.col("symbol") == "S2") & pl.int_range(pl.len()).over("symbol").is_between(60, 180))
        & ~((pl.col("symbol") == "S3") & (pl.int_range(pl.len()).over("symbol") < 190))
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
            rows = rows.with_columns(pl.when(hit).then(changed).otherwise(column).alias(column))
        state = rows.filter(pl.col("date") <= pl.lit(days[until]))
        assert derived(home, state) == derived(new_home(), state)


def test_the_tables_are_made_again_only_for_other_prices_or_options(home: Home) -> None:
    derived(home, market(120))
    assert derive(home.warehouse, UNIVERSE).reused
    assert not derive(home.warehouse, UniverseConfig(size=4, min_history=10, window=5)).reused


@pytest.mark.parametrize("columns", [["symbol", "date", "close"], list(prices().columns)])
def test_a_full_universe_is_that_of_a_frame_whatever_part_of_the_history_it_has(home: Home, columns: list[str]) -> None:
    symbols = tuple(f"{'QWERTZUIOPAS'[place]}{place}" for place in range(12))
    rows = prices(symbols, days=60).select(columns)
    rows = rows.filter((pl.col("symbol") != "A10") | (pl.int_range(pl.len()).over("symbol") > 20))  # the youngest
    derived(home, rows.sort("symbol", "date"))
    newest = rows["date"].max()
    members = {str(entity) for entity, date in home.query("SELECT entity, date FROM universe") if str(date) == newest}
    assert len(members) == UNIVERSE.size
    if "volume" not in columns:
        assert members == set(sorted(symbols)[: UNIVERSE.size])
    days = rows["date"].unique().sort()
    for first in (days[0], days[-30]):
        seen, _ = on_sessions(read_prices(rows.filter(pl.col("date") >= first)).rows)
        market, _ = adjust_prices(seen, UniverseRule(**UNIVERSE.model_dump()))
        [run] = market.runs()
        last = run.filter("eligible", pl.col("session") == run["session"].max())
        assert set(last["symbol"]) == members
