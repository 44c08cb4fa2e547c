"""Calendars: of each symbol its own, and decisions on one clock that know no close before it happens."""

import datetime
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.calendar import known_at, sessions
from finjepa_pipeline.prices.derive import derive
from tests.pipeline.prices.conftest import UNIVERSE, Home

FIRST, LAST = datetime.date(2019, 6, 3), datetime.date(2020, 3, 2)
MARKET = {"AAPL": "XNYS", "GE": "XNYS", "BHP.AX": "XASX", "CBA.AX": "XASX", "BTC-USD": "24/7"}


def market(calendars: dict[str, str], seed: int = 0) -> pl.DataFrame:
    """A row for each session of each symbol's calendar; volumes are fractions."""
    random = np.random.default_rng(seed)
    frames = []
    for symbol, calendar in calendars.items():
        days = [day for day in sessions(calendar) if FIRST <= day <= LAST]
        close = 50 * np.exp(np.cumsum(random.normal(0, 0.01, len(days))))
        frames.append(
            pl.DataFrame(
                {
                    "symbol": symbol,
                    "date": [day.isoformat() for day in days],
                    "open": close,
                    "high": close * 1.01,
                    "low": close * 0.99,
                    "close": close,
                    "volume": random.uniform(0.001, 9.0, len(days)),
                    "adj_close": close,
                }
            )
        )
    return pl.concat(frames)


def test_a_market_that_never_closes_goes_in_whole_with_its_fractions(home: Home) -> None:
    rows = market({"BTC": "24/7", "ETH": "24/7"})
    home.write("part.csv", rows)
    report = home.ingest()
    assert (report.revision.calendar, report.revision.rows, report.revision.quarantined_rows) == (
        "24/7",
        rows.height,
        0,
    )
    assert home.query("SELECT sum(volume) FROM prices")[0][0] == pytest.approx(rows["volume"].sum())
    derive(home.warehouse, UNIVERSE)
    assert home.query("SELECT count(*) FROM adjusted_prices") == [(rows.height,)]
    # the next ingestion of the place keeps what was found
    home.write("more.csv", market({"AAPL": "XNYS"}))
    assert home.ingest().revision.calendar == "24/7"


def test_a_wrong_calendar_is_refused_with_the_way_out(home: Home) -> None:
    rows = market({"BTC": "24/7"})
    home.write("part.parquet", rows)
    with pytest.raises(
        FinJEPAError, match=r"stray_session .*BTC 2019-06-08.*--calendar auto .*--accept stray_session"
    ) as error:
        home.ingest(calendar="XNYS")
    assert len(str(error.value)) < 600
    taken = home.ingest(calendar="XNYS", accept=["stray_session"]).revision
    assert taken.rows + taken.quarantined_rows == rows.height
    assert taken.quarantined_rows > 0.25 * rows.height
    with pytest.raises(FinJEPAError, match="'stray_sesion'; did you mean 'stray_session'"):
        home.ingest(accept=["stray_sesion"])


def test_days_that_no_exchange_has_are_refused(home: Home) -> None:
    """Midnights of Tokyo in UTC: Sundays to Thursdays, which every day of the week would hide."""
    rows = market({"AAPL": "XNYS", "GE": "XNYS"})
    early = pl.col("date").str.to_date().dt.offset_by("-1d").dt.to_string()
    home.write("part.parquet", rows.with_columns(date=early))
    with pytest.raises(FinJEPAError, match="stray_session"):
        home.ingest()


def test_each_symbol_keeps_its_own_calendar(home: Home) -> None:
    rows = market(MARKET | {"SAP": "XETR"})
    home.write("part.parquet", rows)
    report = home.ingest(calendar="auto")
    assert report.revision.calendar == "auto:XNYS"
    assert (report.revision.rows, report.revision.quarantined_rows) == (rows.height, 0)
    found = dict(home.query("SELECT symbol, calendar FROM symbol_calendars"))
    assert found == MARKET | {"SAP": found["SAP"]}
    assert found["SAP"] in ("XETR", "XFRA")  # they close on the same days
    holiday = rows.filter(pl.col("symbol") == "AAPL")[:1].with_columns(date=pl.lit("2019-07-04"))
    home.write("more.parquet", holiday)
    home.ingest(calendar="auto:XNYS")
    assert home.query("SELECT symbol, date::VARCHAR, rule FROM quarantined_prices") == [
        ("AAPL", "2019-07-04", "stray_session")
    ]


def test_the_close_of_another_exchange_is_known_from_the_first_close_of_the_clock_after_it() -> None:
    day = datetime.date.fromisoformat
    assert dict(known_at("XASX", "XNYS"))[day("2020-01-15")] == day("2020-01-15")
    assert dict(known_at("XNYS", "XASX"))[day("2020-01-15")] == day("2020-01-16")
    assert dict(known_at("XASX", "XNYS"))[day("2019-07-04")] == day("2019-07-05")  # New York is closed
    assert dict(known_at("24/7", "XNYS"))[day("2020-01-11")] == day("2020-01-13")  # a Saturday


@pytest.mark.usefixtures("no_contract")
@pytest.mark.parametrize("clock", ["XNYS", "XASX"])
def test_no_row_on_the_clock_knows_a_close_that_comes_later(new_home: Callable[[], Home], clock: str) -> None:
    """Change every row whose exchange closes after a session of the clock: what stands at that session stays as it was."""
    rows = market(MARKET)
    cut = datetime.date(2020, 1, 15)
    later = pl.lit(False)
    for symbol, calendar in MARKET.items():
        known = {day.isoformat() for day, at in known_at(calendar, clock) if at <= cut}
        later = later | ((pl.col("symbol") == symbol) & ~pl.col("date").is_in(sorted(known)))
    changed = [
        pl.when(later).then(pl.col(name) * 1.5).otherwise(name).alias(name) for name in ("high", "close", "adj_close")
    ]
    stands, dates = [], []
    for frame in (rows, rows.with_columns(changed)):
        home = new_home()
        home.write("part.parquet", frame)
        home.ingest(calendar=f"auto:{clock}")
        derive(home.warehouse, UNIVERSE)
        query = f"SELECT * FROM {{}} WHERE date <= '{cut}' ORDER BY ALL"
        stands.append(
            [home.query(query.format(table)) for table in ("adjusted_prices", "universe", "corporate_actions")]
        )
        dates.append({day for (day,) in home.query("SELECT DISTINCT date FROM adjusted_prices")})
    assert stands[0] == stands[1]
    assert dates[0] <= set(sessions(clock))
    # and it is not merely late: the row that closed last before the decision is there
    ours, other = ("AAPL", "BHP.AX") if clock == "XNYS" else ("BHP.AX", "AAPL")
    before = cut if clock == "XNYS" else cut - datetime.timedelta(days=1)
    for symbol, day in ((ours, cut), (other, before)):
        close = rows.filter((pl.col("symbol") == symbol) & (pl.col("date") == day.isoformat()))["close"].item()
        query = f"SELECT close FROM adjusted_prices WHERE entity = '{symbol}' AND date = '{cut}'"
        assert home.query(query) == [(pytest.approx(close),)]
