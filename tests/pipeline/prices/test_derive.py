"""Derived tables: what a night adds to them is what a rebuild would give."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finjepa_pipeline.prices import derive as derive_module
from finjepa_pipeline.prices.derive import DeriveReport, UniverseConfig, derive
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

pytestmark = pytest.mark.usefixtures("no_contract")
UNIVERSE = UniverseConfig(size=5, min_history=10, window=5, min_dollar_volume=1e8)
TABLES = (
    "price_sessions",
    "price_events",
    "stale_prices",
    "corporate_actions",
    "entities",
    "adjusted_prices",
    "universe",
    "(SELECT date, quantity, bin, sum(n) FROM price_histograms GROUP BY ALL)",
)


def contents(home: Home) -> dict[str, list[tuple[object, ...]]]:
    return {table: home.query(f"FROM {table} ORDER BY ALL") for table in TABLES}


def rebuilt(home: Home) -> dict[str, list[tuple[object, ...]]]:
    with home.warehouse.connect() as con:
        con.execute("DELETE FROM derived_state")
    assert derive(home.warehouse, UNIVERSE).rebuilt
    return contents(home)


def night(home: Home, rows: pl.DataFrame) -> DeriveReport:
    home.write("part.parquet", rows)
    home.ingest()
    return derive(home.warehouse, UNIVERSE)


SYMBOLS = tuple(f"S{place}" for place in range(8))


def market(days: int) -> pl.DataFrame:
    """Eight symbols: one ends, one pauses, one comes late, one stands still, one breaks."""
    return prices(SYMBOLS, days=days).filter(
        ~((pl.col("symbol") == "S1") & (pl.int_range(pl.len()).over("symbol") > 180))
        & ~((pl.col("symbol") == "S2") & pl.int_range(pl.len()).over("symbol").is_between(60, 180))
        & ~((pl.col("symbol") == "S3") & (pl.int_range(pl.len()).over("symbol") < 190))
    )


def test_a_night_makes_only_what_it_changes_and_a_rebuild_gives_the_same(home: Home) -> None:
    rows = market(230).with_columns(
        pl.when(pl.col("symbol") == "S4").then(pl.lit(20.0)).otherwise("close").alias("close")
    )
    rows = rows.with_columns(high=pl.max_horizontal("high", "close"), low=pl.min_horizontal("low", "close"))
    days = rows["date"].unique().sort().to_list()
    assert night(home, rows.filter(pl.col("date") <= days[199])).rebuilt
    for day in range(200, 203):
        # S0 pays a dividend each day: its adjusted closes are restated from the beginning.
        rows = rows.with_columns(
            pl.when((pl.col("symbol") == "S0") & (pl.col("date") < days[day]))
            .then(pl.col("adj_close") * 0.99)
            .otherwise("adj_close")
            .alias("adj_close")
        )
        report = night(home, rows.filter(pl.col("date") <= days[day]))
        assert not report.rebuilt
        assert contents(home) == rebuilt(home)


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_whatever_a_revision_changes_the_tables_are_those_of_a_rebuild(
    new_home: Callable[[], Home], data: st.DataObject
) -> None:
    home, rows = new_home(), market(200)
    days = rows["date"].unique().sort().to_list()
    until = data.draw(st.integers(150, 190))
    night(home, rows.filter(pl.col("date") <= pl.lit(days[until])))
    for _ in range(data.draw(st.integers(1, 2))):
        until += data.draw(st.integers(0, 4))
        for _ in range(data.draw(st.integers(0, 2))):
            symbol, column = data.draw(st.sampled_from(SYMBOLS)), data.draw(st.sampled_from(["volume", "adj_close"]))
            first = data.draw(st.integers(0, until))
            hit = (pl.col("symbol") == symbol) & pl.col("date").is_in(days[first : min(first + 3, until) + 1])
            if data.draw(st.booleans()):
                rows = rows.filter(~hit)
            else:
                changed = (pl.col(column) * data.draw(st.sampled_from([2, 5]))).cast(rows.schema[column])
                rows = rows.with_columns(pl.when(hit).then(changed).otherwise(column).alias(column))
        night(home, rows.filter(pl.col("date") <= pl.lit(days[until])))
        assert contents(home) == rebuilt(home)


def test_blocks_of_symbols_give_what_one_block_gives(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    night(home, market(120))
    whole = contents(home)
    monkeypatch.setattr(derive_module, "BLOCK_ROWS", 200)
    assert rebuilt(home) == whole


@pytest.mark.parametrize("columns", [["symbol", "date", "close"], list(prices().columns)])
def test_names_do_not_decide_who_is_in_a_full_universe(new_home: Callable[[], Home], columns: list[str]) -> None:
    symbols = tuple(f"S{place:02}" for place in range(12))
    rows = prices(symbols, days=30).select(columns)
    renamed = dict(zip(symbols, (f"{'QWERTZUIOPAS'[place]}{place}" for place in range(12)), strict=True))
    members = []
    for names in ({symbol: symbol for symbol in symbols}, renamed):
        home = new_home()
        night(home, rows.with_columns(pl.col("symbol").replace(names)).sort("symbol", "date"))
        back = {name: symbol for symbol, name in names.items()}
        members.append({(date, back[str(entity)]) for date, entity in home.query("FROM universe")})
        for _, count in home.query("SELECT date, count(*) FROM universe GROUP BY date"):
            assert count == UNIVERSE.size
    assert members[0] == members[1]
    if "volume" not in columns:  # the same all along: no volume moves them
        assert len({entity for _, entity in members[0]}) == UNIVERSE.size
        assert {entity for _, entity in members[0]} != set(symbols[: UNIVERSE.size])
