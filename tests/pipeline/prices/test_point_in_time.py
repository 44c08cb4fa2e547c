"""What was known when: any earlier view comes back exactly, and later events change nothing that was known before."""

from collections.abc import Callable

import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.derive import derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from tests.pipeline.prices.conftest import UNIVERSE, Home
from tests.pipeline.prices.frames import prices


@pytest.mark.usefixtures("no_contract")
def test_every_earlier_revision_comes_back_exactly(home: Home) -> None:
    rows = prices(days=250)
    views = {}
    for step in range(4):
        rows = rows.with_columns(
            pl.when((pl.int_range(pl.len()) % 7 == step) & (pl.col("symbol") != "CCC"))
            .then(pl.col("volume") + step)
            .otherwise(pl.col("volume"))
            .alias("volume")
        )[: rows.height - step]
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
    restated = rows.with_columns(
        pl.when(pl.int_range(pl.len()) % 9 == 0)
        .then(pl.col("adj_close") * 1.05)
        .otherwise("adj_close")
        .alias("adj_close")
    )
    holed = rows.filter(pl.int_range(pl.len()) % 20 != 7)
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
    halved = pl.when(pl.col("symbol") == "S003").then(pl.col("adj_close") / 2).otherwise("adj_close")
    home.write("part.parquet", rows.filter(pl.col("date") >= days[20]).with_columns(adj_close=halved))
    with pytest.raises(FinJEPAError, match=r"withdrawn_rows is 20.*S003"):
        home.ingest()
    assert home.ingest(accept=["withdrawn_rows"]).moved.kept == 19 * 20
    assert home.query("SELECT symbol, count(*) FROM prices GROUP BY symbol HAVING count(*) <> 60") == [("S003", 40)]
