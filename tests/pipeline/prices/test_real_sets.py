"""The defects that the README of the real sets lists, each found by a rule that names it."""

from pathlib import Path

import pytest

from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.quality import quality_summary
from tests.pipeline.prices.conftest import Home

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real price sets are not here")


def ingested(home: Home, name: str) -> Home:
    home.ingest(DATA / name / "data")
    derive(home.warehouse, UniverseConfig())
    return home


def counts(home: Home) -> dict[str, int]:
    with home.warehouse.connect() as con:
        return {found.rule: found.rows for found in quality_summary(con)}


def test_sp500_2013_2018(home: Home) -> None:
    ingested(home, "sp500_2013_2018")
    bad = dict(home.query("SELECT symbol, rule FROM quarantined_prices"))
    assert bad == dict.fromkeys(["AOS", "BBY", "CHD", "CHK", "DHR", "LNT", "O", "SPG", "WRK"], "ohlc_order")
    assert home.query("SELECT date::VARCHAR FROM quarantined_prices WHERE symbol = 'LNT'") == [("2016-05-19",)]
    found = counts(home)
    assert (found["missing_ohlc"], found["zero_volume"]) == (11, 4)
    assert "missing_adj_close" not in found
    warned = {(symbol, date) for symbol, date in home.query("SELECT symbol, date::VARCHAR FROM corporate_actions")}
    assert warned >= {
        ("BAX", "2015-07-01"), ("EBAY", "2015-07-20"), ("NI", "2015-07-02"), ("DISCA", "2014-08-07"),
        ("DISCK", "2014-08-07"), ("BHGE", "2017-07-05"), ("AMD", "2016-04-22"), ("VRTX", "2013-04-19"),
    }  # fmt: skip
    assert home.query("SELECT count(*), count(ended_because) FROM entities") == [(505, 0)]
    # 29 histories begin late; so says their entity.
    assert home.query(
        "SELECT count(*) FROM entities WHERE first_date > (SELECT min(first_date) + 10 FROM entities)"
    ) == [(29,)]


def test_stocknet_2012_2017(home: Home) -> None:
    ingested(home, "stocknet88_2012_2017")
    assert home.query("SELECT symbol, date::VARCHAR, rule FROM quarantined_prices ORDER BY symbol") == [
        (symbol, "2016-06-29", "close_not_positive") for symbol in ("PTR", "REX", "SNP")
    ]
    assert counts(home)["zero_volume"] == 111
    assert home.query(
        "SELECT action, count(*) FROM corporate_actions WHERE action IN ('dividend', 'split') GROUP BY 1"
    ) == [("dividend", 1_289)]
    late = "SELECT symbol FROM entities WHERE first_date > (SELECT min(first_date) + 10 FROM entities) ORDER BY symbol"
    assert [symbol for (symbol,) in home.query(late)] == ["ABBV", "AGFS", "BABA", "GMRE"]


def test_us_wide_2015_2017(home: Home) -> None:
    ingested(home, "us_wide_sample_2015_2017")
    stray = home.query(
        "SELECT count(*), count(DISTINCT symbol), bool_or(date = '2015-12-25') FROM quarantined_prices "
        "WHERE rule = 'stray_session'"
    )
    assert stray == [(18, 1, True)]
    splits = home.query("SELECT symbol FROM corporate_actions WHERE action = 'split' ORDER BY symbol")
    assert [symbol for (symbol,) in splits] == [
        "ALBO", "BEBE", "CLRB", "CNTF", "CUR", "DFBG", "DZSI", "INVT", "LXRX", "MXPT", "OTEX", "VSEC", "XGTI", "XGTI",
    ]  # fmt: skip
    assert home.query("SELECT value FROM corporate_actions WHERE symbol = 'OTEX' AND action = 'split'") == [(2.0,)]
    assert home.query("SELECT count(*) FROM entities WHERE ended_because = 'delisted'") == [(44,)]
    assert counts(home)["zero_volume"] == 5_333
