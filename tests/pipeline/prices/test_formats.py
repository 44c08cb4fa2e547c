"""The same values give the same prices, whatever the format, the place of the file and the zone of the machine."""

import datetime
import gzip
import io
import math
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.scan import scan_sql
from finjepa_pipeline.prices.sources.files import FilesSource
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import PLACE, prices, replaced

NUMBERS = ("open", "high", "low", "close", "volume", "adj_close")
# Exact in float32, in decimal(18, 6) and as a text, so that every format holds the same number.
VALUES = [None, float("nan"), float("inf"), float("-inf"), 0.0, -1.5, 49.5, 50.25, 51.0]
TEXT = {"plain": pa.string(), "large": pa.large_string(), "dictionary": pa.dictionary(pa.int32(), pa.string())}
MADE_OF = {"open": 50.0, "high": 52.0, "low": 48.0, "close": 50.0, "volume": 64.0, "adj_close": 45.0}


def write_parquet(path: Path, rows: pl.DataFrame, number: pa.DataType, text: pa.DataType, **options: Any) -> None:
    columns = {}
    for name in rows.columns:
        values = rows[name].to_list()
        if name not in NUMBERS:
            columns[name] = pa.array(values, text)
        elif pa.types.is_decimal(number):  # which knows neither NaN nor infinity
            finite = [value if value is not None and math.isfinite(value) else None for value in values]
            columns[name] = pa.array(finite, pa.float64()).cast(number)
        else:
            columns[name] = pa.array(values, number)
    pq.write_table(pa.table(columns), path, **options)


@cache
def reader() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


def scanned(path: Path) -> list[tuple[Any, ...]]:
    """The rows of a file with the rules that they break."""
    return reader().execute(scan_sql(reader(), [path])).fetchall()


@st.composite
def damaged_rows(draw: st.DrawFn) -> pl.DataFrame:
    rows = prices(("AAA", "BBB"), days=12).with_columns(pl.lit(value).alias(name) for name, value in MADE_OF.items())
    for name in draw(st.lists(st.sampled_from(NUMBERS), min_size=1, unique=True)):
        places = draw(st.dictionaries(st.integers(0, rows.height - 1), st.sampled_from(VALUES), min_size=1))
        values = [places.get(place, value) for place, value in enumerate(rows[name].to_list())]
        rows = rows.with_columns(pl.Series(name, values, pl.Float64))
    return rows


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=damaged_rows(),
    number=st.sampled_from([pa.float32(), pa.float64(), pa.decimal128(18, 6)]),
    text=st.sampled_from(list(TEXT.values())),
    options=st.fixed_dictionaries(
        {
            "row_group_size": st.sampled_from([1, 5, 100]),
            "write_statistics": st.booleans(),
            "use_dictionary": st.booleans(),
        }
    ),
)
def test_every_format_gives_the_same_rows_and_breaks_the_same_rules(
    tmp_path: Path, rows: pl.DataFrame, number: pa.DataType, text: pa.DataType, options: dict[str, Any]
) -> None:
    plain, packed, parquet = (tmp_path / f"rows.{suffix}" for suffix in ("csv", "csv.gz", "parquet"))
    rows.write_csv(plain)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    write_parquet(parquet, rows, number, text, **options)
    expected = scanned(plain)
    for row, given_row in zip(expected, rows.iter_rows(named=True), strict=True):
        for place, name in ((2, "open"), (3, "high"), (4, "low"), (5, "close"), (7, "adj_close")):
            value = given_row[name]
            known = value is not None and math.isfinite(value)
            assert row[place] == (value if known else None), name
    assert scanned(packed) == expected
    assert scanned(parquet) == expected


@pytest.fixture(params=["America/Los_Angeles", "Pacific/Kiritimati"])
def machine_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


ZONES = ("America/New_York", "Asia/Tokyo", "Europe/London", "UTC", "+09:30", "-05:00")


@pytest.mark.usefixtures("machine_zone")
@pytest.mark.parametrize("hour", [0, 23])
def test_a_day_is_that_of_the_zone_it_was_written_in(tmp_path: Path, hour: int) -> None:
    rows = prices(("AAA",), days=60)  # over the change to summer time in New York and in London
    days = [datetime.date.fromisoformat(day) for day in rows["date"]]
    for place, zone in enumerate(ZONES):
        sign = -1 if zone[0] == "-" else 1
        fixed = (
            datetime.timedelta(0)
            if zone[0].isalpha()
            else sign * datetime.timedelta(hours=int(zone[1:3]), minutes=int(zone[4:]))
        )
        offset = ZoneInfo(zone) if zone[0].isalpha() else datetime.timezone(fixed)
        stamps = [datetime.datetime.combine(day, datetime.time(hour), offset) for day in days]
        column = pa.array(stamps, pa.timestamp(("s", "ms", "us", "ns")[place % 4], zone))
        file = tmp_path / "part.parquet"
        pq.write_table(rows.drop("date").to_arrow().append_column("date", column), file)
        assert [row[1] for row in scanned(file)] == days, zone
        for style in (str, datetime.datetime.isoformat):
            file = tmp_path / "part.csv"
            rows.with_columns(pl.Series("date", [style(stamp) for stamp in stamps])).write_csv(file)
            assert [row[1] for row in scanned(file)] == days, zone


def test_numbers_are_no_days(home: Home) -> None:
    days = prices().with_columns(pl.col("date").str.to_date())
    for unit in ("s", "ms", "us", "ns"):
        home.write("part.parquet", days.with_columns(pl.col("date").dt.epoch(unit)))
        with pytest.raises(FinJEPAError, match=r"the column date holds BIGINT|INTEGER.*YYYY-MM-DD"):
            home.ingest()
        (home.files / "part.parquet").unlink()
        home.write("part.csv", days.with_columns(pl.col("date").dt.epoch(unit)))
        with pytest.raises(FinJEPAError, match="YYYY-MM-DD"):
            home.ingest()
        (home.files / "part.csv").unlink()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_start_and_end_are_days_and_both_are_included(home: Home, suffix: str) -> None:
    rows = prices(days=20)
    days = rows["date"].unique().sort()
    timed = rows.with_columns((pl.col("date") + " 16:00:00").alias("date"))
    if suffix == "parquet":
        timed = timed.with_columns(pl.col("date").str.to_datetime("%Y-%m-%d %H:%M:%S"))
    broken = replaced(timed.cast({"date": pl.String}), PLACE == 3, date=pl.lit("soon"))
    home.write(f"part.{suffix}", broken if suffix == "csv" else timed)
    home.ingest(start=days[4], end=days[9])
    stored = home.query("SELECT DISTINCT date::VARCHAR FROM prices ORDER BY 1")
    assert stored == [(day,) for day in days[4:10]]
    kept = home.query("SELECT rule FROM quarantined_prices")  # whether it is of these days is not known
    assert kept == ([("unreadable_date",)] if suffix == "csv" else [])


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_a_folder_says_only_what_its_files_do_not(home: Home, suffix: str) -> None:
    rows = prices(days=10)
    expected = [(row[0], row[1]) for row in rows.select("symbol", "date").sort("symbol", "date").iter_rows()]

    def put(folder: str, part: pl.DataFrame) -> None:
        place = home.files / folder / f"part.{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "parquet":
            part.write_parquet(place)
        else:
            content = part.write_csv().encode()
            place.write_bytes(gzip.compress(content) if suffix == "csv.gz" else content)

    for (symbol, day), part in rows.group_by("symbol", "date"):
        if symbol == "AAA":
            put(f"symbol=ZZZ/date=2001-01-0{1 + int(str(day)[-1]) % 9}/{day}", part)  # both are in the file
        elif symbol == "BBB":
            put(f"symbol=BBB/{day}", part.drop("symbol"))
        else:
            put(f"symbol=QQQ/symbol=CCC/date={day}/year=1999", part.drop("symbol", "date"))
    home.ingest()
    assert home.query("SELECT symbol, date::VARCHAR FROM prices ORDER BY ALL") == expected


def test_a_file_that_moves_to_another_folder_is_read_again(home: Home) -> None:
    (home.files / "symbol=AAA").mkdir()
    prices(("AAA",)).drop("symbol").write_parquet(home.files / "symbol=AAA" / "p.parquet")
    home.ingest()
    (home.files / "symbol=AAA").rename(home.files / "symbol=BBB")
    home.ingest()  # what was delivered of AAA before stays
    assert home.query("SELECT DISTINCT symbol FROM prices ORDER BY symbol") == [("AAA",), ("BBB",)]


STRANGE = ("set[1]", "a*b", "what?", "{a,b}", "O'Brien", 'say "so"', "100% #1 & co", "spät", "[!x]", "**")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_exists_is_a_path_and_no_pattern(home: Home, suffix: str) -> None:
    for name in (*STRANGE, "set1", "aXb", "whatX", "a", "b", "y"):
        symbol = "AAA" if name in STRANGE else "BBB"
        (home.files / name).mkdir()
        home.write(f"{name}/{name}.{suffix}", prices((symbol,), days=5))

    def symbols(place: Path) -> set[str]:
        files = FilesSource(str(place), home.settings.home).snapshot().files
        return {row[0] for file in files for row in scanned(Path(file.name))}

    for name in STRANGE:
        for place in (home.files / name, home.files / name / f"{name}.{suffix}", home.files / name / f"*.{suffix}"):
            assert symbols(place) == {"AAA"}, place
    assert symbols(home.files / "set[1]*" / f"*.{suffix}") == {"BBB"}  # nothing has this name: a pattern after all


def test_every_file_of_a_folder_is_read_or_named(home: Home) -> None:
    home.write("a.csv", prices(("AAA",)))
    (home.files / "b.CSV.GZ").write_bytes(gzip.compress(prices(("BBB",)).write_csv().encode()))
    (home.files / "2020" / "01").mkdir(parents=True)
    home.write("2020/01/c.parquet", prices(("CCC",)))
    (home.files / "empty.csv").write_text(prices()[:0].write_csv())  # only a header: no rows
    for name in (".hidden.csv", "_SUCCESS", "_part.parquet", "a.csv.crc", "d.txt", "e.feather"):
        (home.files / name).write_bytes(b"no prices")
    (home.files / "_delta_log").mkdir()
    (home.files / "_delta_log" / "1.parquet").write_bytes(b"no prices")
    (home.files / ".cache").mkdir()
    (home.files / ".cache" / "1.parquet").write_bytes(b"no prices")
    os.symlink(home.files / "2020", home.files / "link")
    report = home.ingest()
    assert home.query("SELECT DISTINCT symbol FROM prices ORDER BY 1") == [("AAA",), ("BBB",), ("CCC",)]
    assert report.note is not None
    assert report.note.endswith("and 4 more")  # of seven, without the hidden ones
    for name in ("_SUCCESS", "_delta_log", "_part.parquet", "a.csv.crc", "d.txt", "e.feather", "link"):
        (home.files / name).rename(home.files / f".{name}")
    assert home.ingest().note is None


def yfinance_frame(rows: pl.DataFrame) -> pd.DataFrame:
    """As `yfinance.download(..., auto_adjust=False)` gives it."""
    frame = pd.DataFrame(rows.to_dict(as_series=False)).assign(date=lambda x: pd.to_datetime(x["date"]))
    names = {name: name.replace("_", " ").title() for name in NUMBERS}
    wide = frame.rename(columns=names).pivot(index="date", columns="symbol")
    return wide.rename_axis(index="Date", columns=["Price", "Ticker"])


def shapes(rows: pl.DataFrame) -> dict[str, dict[str, bytes]]:
    """Ways in which people keep the same prices: files by name."""
    fields = yfinance_frame(rows)
    others = {"symbol": "Ticker", "date": "Date", "open": "Open", "high": "HIGH", "low": "Low Price", "close": "Close/Last",
              "volume": "Vol.", "adj_close": "Adj Close"}  # fmt: skip
    named = rows.rename(others)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("stocks/all.csv", named.write_csv())
    return {
        "names": {"all.csv": named.write_csv().encode()},
        "a mark and line ends of Windows": {
            "all.csv": b"\xef\xbb\xbf" + named.write_csv(line_terminator="\r\n").encode()
        },
        "gz": {"all.csv.gz": gzip.compress(named.write_csv().encode())},
        "zip": {"all.zip": packed.getvalue()},
        "file of a symbol": {
            f"{symbol}.csv": part.drop("Ticker").write_csv().encode() for (symbol,), part in named.group_by("Ticker")
        },
        "two header lines": {"download.csv": fields.to_csv().encode()},
        "symbols above": {
            "download.csv": fields.swaplevel(axis=1).sort_index(axis=1).rename_axis(None).to_csv().encode()
        },
        "one header line": {
            "wide.csv": fields.set_axis([f"{b}_{a}" for a, b in fields.columns], axis=1).to_csv().encode()
        },
        "day first": {
            "all.csv": named.with_columns(pl.col("Date").str.to_date().dt.strftime("%d.%m.%Y")).write_csv().encode()
        },
    }


def test_every_common_shape_of_files_gives_the_same_prices(new_home: Callable[[], Home], no_contract: None) -> None:
    rows = prices(("AAA", "BRK-B", "LOW"), days=30)
    expected = rows.sort("symbol", "date").rows()
    for shape, files in shapes(rows).items():
        home = new_home()
        for name, content in files.items():
            (home.files / name).write_bytes(content)
        declared = {"date_format": "%d.%m.%Y"} if shape == "day first" else {}
        home.ingest(**declared)
        found = home.query(
            "SELECT symbol, date::VARCHAR, open, high, low, close, volume, adj_close FROM prices ORDER BY 1, 2"
        )
        assert [row[:2] for row in found] == [row[:2] for row in expected], shape
        assert np.allclose([row[2:] for row in found], [row[2:] for row in expected], rtol=1e-12), shape


def test_closes_alone_in_a_wide_file_are_prices_and_their_odd_texts_go_to_quarantine(
    home: Home, no_contract: None
) -> None:
    rows = prices(("AAA", "BBB"), days=20)
    wide = rows.pivot("symbol", index="date", values="close").cast({"BBB": pl.String})
    home.write("closes.csv", replaced(replaced(wide, PLACE == 4, BBB=pl.lit("n/a")), PLACE == 5, BBB=pl.lit("")))
    home.ingest()
    assert home.query("SELECT symbol, count(*) FROM prices GROUP BY ALL ORDER BY ALL") == [("AAA", 20), ("BBB", 18)]
    assert home.query("SELECT symbol, rule FROM quarantined_prices") == [("BBB", "unreadable_number")]


def test_what_cannot_be_understood_is_refused_with_the_nearest_guess(home: Home) -> None:
    rows = prices()
    for name, content, way_out in (
        ("typo.csv", rows.drop("adj_close").rename({"close": "clsoe"}), "is 'clsoe' the close"),
        ("nameless.csv", rows.drop("symbol"), "called after it, as AAPL.csv"),
        ("day.csv", rows.with_columns(pl.col("date").str.replace_all("-", "/")), "--date-format %Y/%m/%d"),
        ("twice.csv", rows.with_columns(Close=pl.col("close")), "which one is meant"),
    ):
        file = home.write(name, content)
        with pytest.raises(FinJEPAError, match=re.escape(way_out)):
            home.ingest()
        file.unlink()
