"""Moves that no share makes every day: what counts, who bears it, and what is known when."""

from collections.abc import Callable

import polars as pl
import pytest

from finjepa_pipeline.prices.contract import quality_summary
from finjepa_pipeline.prices.derive import derive
from tests.pipeline.prices.conftest import UNIVERSE, Home
from tests.pipeline.prices.frames import DAY, OHLC, prices, replaced

PRICES = (*OHLC, "adj_close")
HIT = 100


def market(factor: float, days: pl.Expr, heavy: float = 1.0, columns: tuple[str, ...] = PRICES) -> pl.DataFrame:
    """Three symbols over 130 sessions; the prices of AAA are multiplied on some days, its volume on the first of them."""
    hit = (pl.col("symbol") == "AAA") & days
    rows = replaced(prices(days=130), hit, **{name: pl.col(name) * factor for name in columns})
    return replaced(rows, hit & (DAY == HIT), volume=(pl.col("volume") * heavy).cast(pl.Int64))


def growth(home: Home) -> list[tuple[str, float]]:
    """What a holder of AAA has at the end of each of its entities, of 1 at its start; the policy at its end included."""
    query = """
        SELECT entity, arg_max(prices.close, date) / arg_min(prices.close, date)
            * (1 + coalesce(any_value(delisting_return), 0))
        FROM adjusted_prices AS prices JOIN entities USING (entity) WHERE symbol = 'AAA' GROUP BY entity ORDER BY entity"""
    return [(str(entity), float(value)) for entity, value in home.query(query)]


def untradable(home: Home) -> list[object]:
    query = "SELECT date::VARCHAR FROM adjusted_prices WHERE entity LIKE 'AAA%' AND NOT tradable ORDER BY date"
    return [day for (day,) in home.query(query)]


def actions(home: Home) -> list[object]:
    return [action for (action,) in home.query("SELECT action FROM corporate_actions WHERE symbol = 'AAA'")]


@pytest.fixture(scope="module")
def quiet() -> pl.DataFrame:
    return prices(days=130)


def day(quiet: pl.DataFrame, place: int) -> str:
    return quiet["date"].unique().sort()[place]


def plain_growth(quiet: pl.DataFrame) -> float:
    closes = quiet.filter(pl.col("symbol") == "AAA")["close"]
    return closes[-1] / closes[0]


def test_the_holder_of_a_failed_bank_bears_it(home: Home, quiet: pl.DataFrame) -> None:
    home.derived(market(0.09, DAY >= HIT, heavy=40))
    assert home.query("SELECT count(*) FROM quarantined_prices") == [(0,)]
    assert growth(home) == [("AAA", pytest.approx(0.09 * plain_growth(quiet)))]
    assert untradable(home) == [day(quiet, HIT)]
    assert actions(home) == ["extreme_move"]


def test_a_bank_that_fails_on_its_last_day_costs_the_same(home: Home, quiet: pl.DataFrame) -> None:
    rows = market(0.09, DAY >= HIT, heavy=40).filter((pl.col("symbol") != "AAA") | (DAY <= HIT))
    home.derived(rows)
    closes = rows.filter(pl.col("symbol") == "AAA")["close"]
    # and the policy of what has fallen apart takes 30 % of the rest
    assert growth(home) == [("AAA", pytest.approx(0.7 * closes[-1] / closes[0]))]


@pytest.mark.parametrize("days", [1, 2, 4])
def test_a_tick_that_comes_back_is_quarantined(home: Home, quiet: pl.DataFrame, days: int) -> None:
    home.derived(market(0.05, DAY.is_between(HIT, HIT + days - 1)))
    found = home.query("SELECT symbol, date::VARCHAR, rule FROM quarantined_prices ORDER BY date")
    assert found == [("AAA", day(quiet, HIT + place), "impossible_move") for place in range(days)]
    assert growth(home) == [("AAA", pytest.approx(plain_growth(quiet)))]


def test_a_real_gain_that_stays_is_earned(home: Home, quiet: pl.DataFrame) -> None:
    home.derived(market(4.4, DAY >= HIT, heavy=30))
    assert growth(home) == [("AAA", pytest.approx(4.4 * plain_growth(quiet)))]
    assert untradable(home) == [day(quiet, HIT)]


@pytest.mark.usefixtures("no_contract")
def test_a_move_counts_until_the_next_sessions_tell(
    home: Home, new_home: Callable[[], Home], quiet: pl.DataFrame
) -> None:
    rows = market(0.05, DAY == HIT)
    known = rows.filter(DAY <= HIT)
    home.derived(known)
    closes = known.filter(pl.col("symbol") == "AAA")["close"]
    # no session says yet what it was: it counts at its price (twentyfold cheaper is no split on this volume) and is not tradable
    assert home.query("SELECT count(*) FROM quarantined_prices") == [(0,)]
    assert growth(home) == [("AAA", pytest.approx(closes[-1] / closes[0]))]
    assert untradable(home) == [day(quiet, HIT)]
    home.write("part.parquet", rows.filter(DAY <= HIT + 1))
    report = home.ingest()
    derive(home.warehouse, UNIVERSE)
    assert (report.moved.rejudged, report.moved.examples["rejudged_rows"]) == (1, [f"AAA {day(quiet, HIT)}"])
    whole = new_home().derived(rows.filter(DAY <= HIT + 1))
    query = "SELECT symbol, date, close FROM {} ORDER BY ALL"
    for table in ("prices", "quarantined_prices"):
        assert home.query(query.format(table)) == whole.query(query.format(table))
    for table in ("adjusted_prices", "entities", "price_sessions"):
        assert home.query(f"FROM {table} ORDER BY ALL") == whole.query(f"FROM {table} ORDER BY ALL")


def test_a_move_that_is_no_tick_stays_as_it_was_judged_on_its_day(
    new_home: Callable[[], Home], quiet: pl.DataFrame
) -> None:
    rows = market(0.09, DAY >= HIT, heavy=40)
    until, known = f"WHERE date <= '{day(quiet, HIT)}' ORDER BY ALL", []
    for last in (HIT, HIT + 1, 129):
        home = new_home().derived(rows.filter(last >= DAY))
        queries = (f"SELECT date, close, tradable FROM adjusted_prices {until}", f"FROM corporate_actions {until}")
        known.append([home.query(query) for query in queries])
    assert known[0] == known[1] == known[2]


@pytest.mark.parametrize(
    ("factor", "columns", "without"),
    [
        (0.01, PRICES, "nothing"),  # pence and pounds, with an adj_close that knows nothing of it
        (100.0, PRICES, "nothing"),
        (0.01, PRICES[:4], "adj_close"),
        (0.05, PRICES[:4], "volume"),  # 20 for 1 in a file of closes
        (20.0, PRICES[:4], "volume"),
    ],
)
def test_a_lasting_step_asks_and_costs_its_holder_nothing(
    home: Home, quiet: pl.DataFrame, factor: float, columns: tuple[str, ...], without: str
) -> None:
    rows = market(factor, DAY >= HIT, columns=columns)
    kept = {"nothing": rows.columns, "adj_close": [*rows.columns[:7]], "volume": ["symbol", "date", "close"]}
    home.derived(rows.select(kept[without]))
    closes = quiet.filter(pl.col("symbol") == "AAA")["close"]
    assert growth(home) == [
        ("AAA", pytest.approx(closes[HIT - 1] / closes[0])),
        ("AAA#2", pytest.approx(closes[-1] / closes[HIT])),
    ]
    assert untradable(home) == [day(quiet, HIT)]
    with home.warehouse.connect() as con:
        (finding,) = [found for found in quality_summary(con) if found.rule == "price_step"]
    assert finding.examples == (f"AAA {day(quiet, HIT)}",)
    assert "adj_close" in finding.reason


def test_a_split_of_a_thousand_for_one_with_its_adj_close_is_a_split(home: Home, quiet: pl.DataFrame) -> None:
    home.derived(market(1000.0, DAY >= HIT, heavy=0.001, columns=PRICES[:4]))
    assert home.query("SELECT count(*) FROM quarantined_prices") == [(0,)]
    assert home.query("SELECT action, value FROM corporate_actions WHERE symbol = 'AAA'") == [("split", 0.001)]
    assert growth(home) == [("AAA", pytest.approx(plain_growth(quiet)))]


@pytest.mark.parametrize(("pause", "entities"), [(3 * 365, 2), (365, 2), (330, 1), (30, 1)])
def test_a_name_that_comes_back_after_a_year_is_another_company(home: Home, pause: int, entities: int) -> None:
    rows = prices(("AAA", "BBB"), days=1000)
    first = pl.col("date").str.to_date().min() + pl.duration(days=300)
    away = (pl.col("date").str.to_date() > first) & (pl.col("date").str.to_date() < first + pl.duration(days=pause))
    rows = replaced(rows, pl.col("symbol") == "AAA", **dict.fromkeys(PRICES, 50.0 + DAY % 3))
    home.derived(rows.filter(~(away & (pl.col("symbol") == "AAA"))))
    found = home.query("SELECT entity FROM entities WHERE symbol = 'AAA' ORDER BY entity")
    assert found == [("AAA",), ("AAA#2",)][:entities]
