"""Ingestion: what is kept, what is quarantined, and that nothing happens twice."""

import datetime
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.quality import ROW_RULES, quality_frames, quality_summary
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.report.prices import write_quality_page
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

DAMAGE = {
    "close": [None, 0.0, -1.0, float("nan"), float("inf"), 1e300, 900.0, 0.02],
    "adj_close": [0.0, -3.0, float("inf"), float("nan"), None, 1e9, 1e-9],
    "high": [0.01, None, 0.0, float("nan")],
    "low": [1e9, None],
    "open": [1e9, 0.0, None],
    "volume": [-1, None, 0, 2**62],
    "date": ["2021-02-30", "03/01/2021", "", "yesterday", None, "1931-01-05", "2999-01-04", "20210105", "2021-01-16"],
    "symbol": [None, "", " AAA", "aaa", "X" * 65, "A/B", "A#2", "O'B", "  "],
}


def test_the_sample_fills_an_empty_home_and_nothing_is_ingested_twice(home: Home) -> None:
    first = ingest(home.warehouse, home.settings, PriceSourceConfig())
    assert first.moved.added == first.revision.rows == 166_260
    assert first.revision.columns == ("close",)
    again = ingest(home.warehouse, home.settings, PriceSourceConfig())
    assert (again.moved.added, again.moved.ended, again.revision) == (0, 0, first.revision)


BROKEN = (
    ("close", None, "close_not_positive"),
    ("close", -2.0, "close_not_positive"),
    ("date", "2021-13-01", "unreadable_date"),
    ("low", 60.0, "ohlc_order"),
    ("volume", -5, "volume_not_a_count"),
    ("adj_close", 0.0, "adj_close_not_positive"),
    *(("symbol", name, "bad_symbol") for name in (None, "", "  ", "A\x07B", "X" * 65, "AAA#2")),
)


def test_bad_rows_go_to_quarantine_each_with_its_rule(home: Home) -> None:
    rows = prices()
    damaged = rows
    for place, (column, value, _) in enumerate(BROKEN):
        hit = pl.int_range(pl.len()) == 3 * place
        damaged = damaged.with_columns(pl.when(hit).then(pl.lit(value)).otherwise(column).alias(column))
    home.write("part.parquet", damaged)
    assert home.ingest().revision.rows == rows.height - len(BROKEN)
    found = home.query("SELECT rule FROM quarantined_prices ORDER BY rule")  # the first one that each broke
    assert found == sorted((rule,) for _, _, rule in BROKEN)


def test_of_duplicates_one_row_stays_whatever_the_order_of_the_files(home: Home, new_home: Callable[[], Home]) -> None:
    rows = prices()
    twin = rows[3:4].with_columns(pl.col("close") * 1.001)
    home.write("a.parquet", rows)
    home.write("b.parquet", twin)
    home.ingest()
    other = new_home()
    other.write("a.parquet", twin)
    other.write("b.parquet", rows)
    other.ingest()
    assert home.query("SELECT rule FROM quarantined_prices") == [("duplicate",)]
    assert home.query("FROM prices ORDER BY ALL") == other.query("FROM prices ORDER BY ALL")


@pytest.mark.usefixtures("no_contract")  # so much damage would be refused
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_rows_in_are_prices_and_quarantine(new_home: Callable[[], Home], data: st.DataObject) -> None:
    home = new_home()
    damaged = prices(("BAD",), days=12).to_dicts()
    for row in damaged:
        for column in data.draw(st.sets(st.sampled_from(sorted(DAMAGE)), max_size=4)):
            row[column] = data.draw(st.sampled_from(DAMAGE[column]))
    damaged += data.draw(st.lists(st.sampled_from(damaged), max_size=6))
    frame = pl.concat([prices(), pl.DataFrame(damaged, schema=prices().schema, strict=False)])
    frame = frame.sample(fraction=1.0, shuffle=True, seed=data.draw(st.integers(0, 9)))
    home.write(data.draw(st.sampled_from(["part.parquet", "part.csv"])), frame)
    home.ingest()
    ((good, bad, raw),) = home.query(
        "SELECT (SELECT count(*) FROM prices), (SELECT count(*) FROM quarantined_prices), (SELECT count(*) FROM raw_prices)"
    )
    assert good + bad == raw == frame.height
    assert home.query("SELECT symbol, date FROM prices GROUP BY ALL HAVING count(*) > 1") == []


def test_an_unusable_place_is_one_clear_line_and_changes_nothing(home: Home) -> None:
    home.write("part.parquet", prices())
    before = home.ingest()
    broken = home.settings.home.parent / "broken"
    whole = (home.files / "part.parquet").read_bytes()
    for name, content in {
        "empty": None,
        "cut.parquet": whole[: len(whole) // 2],
        "missing.csv": prices().drop("close", "adj_close").write_csv().encode(),
        "no-rows.csv": prices()[:0].write_csv().encode(),
        "text.csv": b"this is not a table",
        "zero.parquet": b"",
    }.items():
        place = broken / name.split(".")[0]
        place.mkdir(parents=True)
        if content is not None:
            (place / name).write_bytes(content)
        with pytest.raises(FinJEPAError) as error:
            home.ingest(place)
        assert "\n" not in str(error.value)
        assert str(place) in str(error.value)
    with home.warehouse.connect() as con:
        assert current_revision(con) == before.revision
    with pytest.raises(FinJEPAError, match="nothing at"):
        home.ingest(Path("/no/such/folder"))


def test_a_restated_row_adds_a_version_and_the_same_content_in_other_files_adds_none(home: Home) -> None:
    rows = prices()
    home.write("part.parquet", rows)
    first = home.ingest()
    home.write("part.parquet", rows.sample(fraction=1.0, shuffle=True, seed=1))
    assert home.ingest().revision == first.revision
    restated = rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 5).then(pl.col("close") * 1.001).otherwise(pl.col("close")).alias("close")
    )
    home.write("part.parquet", restated)
    second = home.ingest()
    assert (second.moved.added, second.moved.ended, second.revision.rows) == (1, 1, rows.height)
    versions = home.query("SELECT valid_from, valid_to, count(*) FROM raw_prices GROUP BY ALL ORDER BY ALL")
    assert versions == [(1, 2, 1), (1, None, rows.height - 1), (2, None, 1)]


def test_a_new_file_adds_only_its_rows(home: Home) -> None:
    rows = prices(days=41)
    newest = rows["date"].max()
    home.write("a.parquet", rows.filter(pl.col("date") < newest))
    home.ingest()
    home.write("b.parquet", rows.filter(pl.col("date") == newest))
    report = home.ingest()
    assert (report.moved.added, report.moved.ended, report.revision.rows) == (3, 0, rows.height)
    # The whole again in one file is the same content.
    (home.files / "b.parquet").unlink()
    home.write("a.parquet", rows)
    assert home.ingest().revision == report.revision


TICKERS = (
    "M&M.NS", "BRK/B", "aapl", "AAPL", "AAPL US Equity", "RELIANCEPOWER.NS", "O'B; DROP", "<b>X</b>", "[red]", "\u03a9", "ES=F",
    "2330.TW",
)  # fmt: skip


def test_names_of_vendors_are_symbols_and_stay_as_they_are(home: Home) -> None:
    rows = prices(TICKERS)
    padded = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.format("  {} ", "symbol")).otherwise("symbol")
    home.write("part.csv", rows.with_columns(padded.alias("symbol")))
    assert home.ingest().revision.quarantined_rows == 0
    derive(home.warehouse, UniverseConfig(min_history=10, window=5, min_dollar_volume=1))
    found = home.query("SELECT entity, count(*) FROM adjusted_prices GROUP BY entity")
    assert sorted(found) == sorted((ticker, 40) for ticker in TICKERS)
    with home.warehouse.connect() as con:
        findings, frames = quality_summary(con), quality_frames(con)
    page = home.settings.reports / "prices.html"
    write_quality_page(page, findings, **frames)
    assert "<b>X" not in page.read_text(encoding="utf-8")
    some = home.ingest(symbols=["O'B; DROP", "aapl"])
    assert some.revision.rows == 80


def test_a_home_of_older_rules_is_judged_again(home: Home) -> None:
    rows = prices()
    home.write("part.parquet", rows)
    first = home.ingest().revision
    with home.warehouse.connect() as con:  # as an older version has left it: a ticker was no symbol
        con.execute("UPDATE price_history SET broken = 8 WHERE symbol = 'AAA'")
        con.execute("UPDATE revisions SET judgement = 1, quarantined_rows = 40")
    assert home.query("SELECT count(*) FROM prices") == [(80,)]
    report = home.ingest()
    assert "judged again" in (report.note or "")
    assert (report.revision.rows, report.revision.quarantined_rows) == (rows.height, 0)
    assert home.query("SELECT symbol, date, close, volume FROM prices ORDER BY ALL") == [
        (s, datetime.date.fromisoformat(d), c, v)
        for s, d, c, v in rows.select("symbol", "date", "close", "volume").sort("symbol", "date").iter_rows()
    ]
    again = home.ingest()
    assert (again.moved.added, again.moved.ended, again.revision, again.note) == (0, 0, report.revision, None)
    assert report.revision.data_version == first.data_version
    as_it_was = home.ingest(as_of="1")
    assert as_it_was.revision.rows == 80


def test_the_views_know_the_rules_of_quarantine(home: Home) -> None:
    """The schema names the bits of hard rules; a row that breaks one of them is shown with its name."""
    with home.warehouse.connect() as con:
        con.execute("INSERT INTO active_view VALUES (1, 1)")
        row = "INSERT INTO price_history (feed_id, valid_from, symbol, close, broken) VALUES (1, 1, ?, 1, ?)"
        for rule in ROW_RULES:
            con.execute(row, [rule.name, rule.bit])
        con.execute(row, ["all", sum(rule.bit for rule in ROW_RULES)])
        hard = [rule.name for rule in ROW_RULES if rule.severity == "hard"]
        found = dict(con.execute("SELECT symbol, rules FROM quarantined_prices").fetchall())
        assert found == {**{name: [name] for name in hard}, "all": hard}
        sound = {name for (name,) in con.execute("SELECT symbol FROM prices").fetchall()}
        assert sound == {rule.name for rule in ROW_RULES} - set(hard)
