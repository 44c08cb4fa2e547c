"""What was known when: earlier views come back exactly, later events change nothing, and no close is known before it comes."""

import datetime
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.calendar import known_at, sessions
from finjepa_pipeline.prices.derive import derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from tests.pipeline.prices.conftest import UNIVERSE, Home
from tests.pipeline.prices.frames import PLACE, bars, prices, replaced


@pytest.mark.usefixtures("no_contract")
def test_every_earlier_revision_comes_back_exactly(home: Home) -> None:
    rows = prices(days=250)
    views = {}
    for step in range(4):
        hit = (step == PLACE % 7) & (pl.col("symbol") != "CCC")
        rows = replaced(rows, hit, volume=pl.col("volume") + step)[: rows.height - step]
        home.write("part.parquet", rows)
        report = home.ingest()
        views[report.revision] = home.query("FROM prices ORDER BY ALL")
    assert len(views) == 4
    for revision, view in views.items():
        shown = ingest(home.warehouse, home.settings, PriceSourceConfig(as_of=str(revision.number)))
        assert shown.revision == revision
        assert home.query("FROM prices ORDER BY ALL") == view
    still = ingest(home.warehouse, home.settings, PriceSourceConfig(as_of="2"))
    assert "as of revision 2" in (ingest(home.warehouse, home.settings, PriceSourceConfig()).note or "")
    assert still.revision.number == 2
    # The commit or the hash names it as well.
    by_hash = ingest(home.warehouse, home.settings, PriceSourceConfig(as_of=next(iter(views)).version[:10]))
    assert by_hash.revision.number == 1
    with pytest.raises(FinJEPAError, match="no revision 99 of any feed here; the newest are 4"):
        ingest(home.warehouse, home.settings, PriceSourceConfig(as_of="99"))


@pytest.mark.usefixtures("no_contract")
def test_multiplying_a_history_by_a_constant_changes_no_ratio(new_home: Callable[[], Home]) -> None:
    ratios = []
    for factor in (1.0, 8.0):
        home = new_home()
        home.write("part.parquet", prices().with_columns(pl.col("adj_close") * factor))
        home.ingest()
        derive(home.warehouse, UNIVERSE)
        ratio = "round(close / lag(close) OVER (PARTITION BY entity ORDER BY date), 9)"
        query = (
            f"SELECT entity, date, {ratio}, volume, dollar_volume, tradable FROM adjusted_prices ORDER BY entity, date"
        )
        ratios.append(
            [home.query(query), home.query("FROM universe ORDER BY ALL"), home.query("FROM corporate_actions")]
        )
    assert ratios[0] == ratios[1]


def test_a_late_session_is_held_back_until_it_is_whole(home: Home) -> None:
    symbols = tuple(f"S{place:03d}" for place in range(60))
    rows = prices(symbols, days=30)
    newest = rows["date"].max()
    rest = rows.filter((pl.col("date") == newest) & (pl.col("symbol") >= "S030"))
    home.write("a.parquet", rows.join(rest, on=["symbol", "date"], how="anti"))
    assert home.ingest().revision.quarantined_rows == 30
    assert home.query("SELECT DISTINCT rule FROM quarantined_prices") == [("late_session",)]
    home.write("b.parquet", rest)
    report = home.ingest()
    assert (report.revision.quarantined_rows, report.revision.rows) == (0, rows.height)


def test_a_shrinking_or_restated_history_is_refused_and_stays_as_it_was(home: Home) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(20)))
    home.write("part.parquet", rows)
    before = home.ingest().revision
    restated = replaced(rows, PLACE % 9 == 0, adj_close=pl.col("adj_close") * 1.05)
    holed = rows.filter(PLACE % 20 != 7)
    for damaged, name in ((holed, "withdrawn_rows"), (restated, "moved_symbols")):
        home.write("part.parquet", damaged)
        with pytest.raises(FinJEPAError, match=f"is refused: {name}.* such as S000.*--accept {name}"):
            home.ingest()
        assert home.query("SELECT revision, total_rows FROM revisions") == [(1, rows.height)]
        assert home.query("SELECT count(*) FROM prices") == [(before.rows,)]
    home.write("part.parquet", holed)
    accepted = home.ingest(accept=["withdrawn_rows"])
    assert (accepted.revision.rows, accepted.moved.withdrawn) == (holed.height, rows.height - holed.height)
    assert accepted.revision.accepted == ("withdrawn_rows",)


def test_a_delivery_with_a_later_window_extends_the_history(home: Home) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(20)), days=60)
    days = rows["date"].unique().sort()
    early, late = (rows.filter(chosen) for chosen in (pl.col("date") < days[40], pl.col("date") >= days[20]))
    home.write("part.parquet", early)
    home.ingest()
    home.write("part.parquet", late.filter(pl.col("symbol") != "S007"))
    report = home.ingest()
    assert (report.moved.withdrawn, report.moved.kept) == (0, 19 * 20 + 40)  # S007 was not delivered at all
    assert home.query("SELECT count(*) FROM prices WHERE symbol <> 'S007'") == [(19 * 60,)]
    assert report.revision.data_version != Home(home.files.parent / "other").ingest(home.files).revision.data_version
    with pytest.raises(FinJEPAError, match="withdrawn_rows is 420"):
        home.ingest(whole=True)
    home.ingest(whole=True, accept=["withdrawn_rows"])
    assert home.query("SELECT count(*) FROM prices") == [(19 * 40,)]


def test_rows_whose_adjustment_is_out_of_date_are_not_joined_to_newer_ones(home: Home) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(20)), days=60)
    days = rows["date"].unique().sort()
    home.write("part.parquet", rows.filter(pl.col("date") < days[40]))
    home.ingest()
    # S003 has split since: what is held of it is worth twice as much as the delivery says
    newer = rows.filter(pl.col("date") >= days[20])
    home.write("part.parquet", replaced(newer, pl.col("symbol") == "S003", adj_close=pl.col("adj_close") / 2))
    with pytest.raises(FinJEPAError, match=r"withdrawn_rows is 20.*S003"):
        home.ingest()
    assert home.ingest(accept=["withdrawn_rows"]).moved.kept == 19 * 20
    assert home.query("SELECT symbol, count(*) FROM prices GROUP BY symbol HAVING count(*) <> 60") == [("S003", 40)]


FIRST, LAST = datetime.date(2019, 6, 3), datetime.date(2020, 3, 2)
MARKET = {"AAPL": "XNYS", "GE": "XNYS", "BHP.AX": "XASX", "CBA.AX": "XASX", "BTC-USD": "24/7"}


def market(calendars: dict[str, str], seed: int = 0) -> pl.DataFrame:
    """A row for each session of each symbol's calendar; volumes are fractions."""
    random = np.random.default_rng(seed)
    rows = [
        bars(symbol, [day.isoformat() for day in sessions(calendar) if FIRST <= day <= LAST], random)
        for symbol, calendar in calendars.items()
    ]
    return pl.concat(rows).with_columns(volume=pl.col("volume") / 1e6, adj_close="close")


def test_a_market_that_never_closes_goes_in_whole_with_its_fractions(home: Home) -> None:
    rows = market({"BTC": "24/7", "ETH": "24/7"})
    home.write("part.csv", rows)
    found = home.ingest().revision
    assert (found.calendar, found.rows, found.quarantined_rows) == ("24/7", rows.height, 0)
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
    moved = replaced(rows, later, **{name: pl.col(name) * 1.5 for name in ("high", "close", "adj_close")})
    stands, dates = [], []
    for frame in (rows, moved):
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
