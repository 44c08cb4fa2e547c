"""Ingestion: what is kept, what is quarantined, nothing happens twice, whoever dies and whatever the home is called."""

import datetime
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.console import err, out
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.prices.contract import ROW_RULES, Outcome, docs_page, quality_frames, quality_summary, write_docs
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.report.prices import write_quality_page
from finjepa_pipeline.runner import open_instance
from finjepa_pipeline.settings import Settings
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import PLACE, prices, replaced

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
        damaged = replaced(damaged, 3 * place == PLACE, **{column: pl.lit(value)})
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


def test_a_new_file_adds_its_rows_a_restated_row_a_version_and_the_same_content_in_other_files_nothing(
    home: Home,
) -> None:
    rows = prices(days=41)
    newest = rows["date"].max()
    home.write("a.parquet", rows.filter(pl.col("date") < newest))
    home.ingest()
    home.write("b.parquet", rows.filter(pl.col("date") == newest))
    second = home.ingest()
    assert (second.moved.added, second.moved.ended, second.revision.rows) == (3, 0, rows.height)
    (home.files / "b.parquet").unlink()
    home.write("a.parquet", rows.sample(fraction=1.0, shuffle=True, seed=1))
    assert home.ingest().revision == second.revision
    place = (pl.col("symbol") == "AAA") & (pl.col("date") == rows["date"][5])
    home.write("a.parquet", replaced(rows, place, close=pl.col("close") * 1.001))
    third = home.ingest()
    assert (third.moved.added, third.moved.ended, third.revision.rows) == (1, 1, rows.height)
    versions = home.query("SELECT valid_from, valid_to, count(*) FROM raw_prices GROUP BY ALL ORDER BY ALL")
    assert versions == [(1, 3, 1), (1, None, rows.height - 4), (2, None, 3), (3, None, 1)]


TICKERS = (
    "M&M.NS", "BRK/B", "aapl", "AAPL", "AAPL US Equity", "RELIANCEPOWER.NS", "O'B; DROP", "<b>X</b>", "[red]", "\u03a9", "ES=F",
    "2330.TW",
)  # fmt: skip


def test_names_of_vendors_are_symbols_and_stay_as_they_are(home: Home) -> None:
    rows = prices(TICKERS)
    home.write("part.csv", replaced(rows, PLACE % 2 == 0, symbol=pl.format("  {} ", "symbol")))
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


FORK = multiprocessing.get_context("fork")  # the children start with everything imported, so that kills hit the work
UNIVERSE = UniverseConfig(min_history=10, window=5)
TABLES = ("raw_prices", "prices", "quarantined_prices", "adjusted_prices", "corporate_actions", "entities", "universe")


def work(home: Home) -> None:
    home.ingest()
    derive(home.warehouse, UNIVERSE)


def contents(home: Home) -> list[list[tuple[object, ...]]]:
    return [home.query(f"SELECT * FROM {table} ORDER BY ALL") for table in TABLES]


def market(home: Home, days: int) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(80)), days=60)
    dates = rows["date"].unique().sort()
    home.write("part.parquet", rows.filter(rows["date"] <= dates[days - 1]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_ingestion_leaves_no_trace(new_home: Callable[[], Home]) -> None:
    undisturbed = new_home()
    market(undisturbed, 50)
    work(undisturbed)
    started = time.monotonic()
    market(undisturbed, 51)
    work(undisturbed)
    whole_s = time.monotonic() - started
    expected = contents(undisturbed)
    drawn = random.Random(7)
    for _ in range(20):
        home = new_home()
        for days in (50, 51):  # killed in the first ingestion, and in the one that restates
            market(home, days)
            child = FORK.Process(target=work, args=(home,))
            child.start()
            time.sleep(drawn.uniform(0, whole_s))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            work(home)
        found = contents(home)
        for table, ours, theirs in zip(TABLES, found, expected, strict=True):
            assert [_placeless(row) for row in ours] == [_placeless(row) for row in theirs], table


def _placeless(row: tuple[object, ...]) -> tuple[object, ...]:
    """Without the feed's name, which is the folder's."""
    return tuple(None if isinstance(value, str) and value.startswith("files:") else value for value in row)


def test_two_ingestions_at_once_make_one_revision(home: Home) -> None:
    market(home, 50)
    home.ingest()  # imports what the children need
    market(home, 51)
    children = [FORK.Process(target=home.ingest) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert home.query("SELECT revision, new_rows FROM revisions ORDER BY revision") == [(1, 4_000), (2, 80)]


NAMES = ("O'Brien a [b] {c,d} 100% #1 & co; $HOME", 'spät 市场 a*b say "so"', "year=1999", "symbol=ZZZ")


@pytest.mark.usefixtures("no_contract")
@pytest.mark.parametrize("name", NAMES)
def test_a_home_works_whatever_its_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    home = Home(folder)
    rows = prices(days=10)
    home.write("part.csv", rows)
    home.ingest()
    derive(home.warehouse, UniverseConfig(min_history=1, window=1))
    assert home.query("SELECT count(*) FROM adjusted_prices") == [(rows.height,)]
    assert home.query("SELECT count(*) FROM entities") == [(3,)]
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with open_instance(home.settings) as instance:  # its dagster.yaml was read
        assert not instance.telemetry_enabled
        assert instance.run_retries_enabled
        assert instance.get_runs() == []


@pytest.mark.parametrize("name", ["$HOME x", "${HOME}", "a$b$"])
def test_data_docs_stay_in_the_home_whatever_its_name(tmp_path: Path, name: str) -> None:
    """Great Expectations replaces `$NAME` in its configuration by variables of the environment."""
    outcomes = (Outcome("rows", 1.0, None, "critical", "there are prices", observed=3.0),)
    write_docs(outcomes, tmp_path / name)
    assert docs_page(tmp_path / name).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["what?", "back\\slash"])
def test_a_home_that_cannot_work_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(FinJEPAError, match="in its path; set FINJEPA_HOME to a folder without one"):
        Settings(home=tmp_path / name).ensure()
    assert not (tmp_path / name).exists()


def test_what_is_printed_is_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (out, err):
        with console.capture() as printed:
            console.print("files:/a [b]/set[1] :smile: [/]")
        assert printed.get().strip() == "files:/a [b]/set[1] :smile: [/]"
