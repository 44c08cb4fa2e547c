"""The source `yfinance` against frames of the library's shapes; the library itself is a stand-in, for there is no network."""

import datetime
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig, yahoo
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import session_days

pytestmark = pytest.mark.usefixtures("no_contract")
FIELDS = ("Adj Close", "Close", "High", "Low", "Open", "Volume")


class Library(SimpleNamespace):
    """yfinance.download of yfinance 1.7: frames side by side, empty for what failed, which the log says."""

    def __init__(self) -> None:
        super().__init__(asked=[], fails={}, caches=[])

    def set_tz_cache_location(self, folder: str) -> None:
        self.caches.append(folder)

    def download(self, tickers, *, start, end, auto_adjust, actions, threads, **options) -> pd.DataFrame:
        assert (auto_adjust, actions, threads) == (False, False, False)
        self.asked.append(list(tickers))
        frames = {}
        for symbol in tickers:
            days = pd.DatetimeIndex(session_days(30), name="Date")
            days = days[(days >= start) & (days < end)]
            close = 50 + np.arange(len(days)) + len(symbol)
            frames[symbol] = pd.DataFrame(dict.fromkeys(FIELDS, close * 1.0), index=days)
            frames[symbol]["Adj Close"] *= 0.9
            if self.fails.get(symbol, 0) > 0:
                self.fails[symbol] -= 1
                logging.getLogger("yfinance").error(f"['{symbol}']: YFPricesMissingError('possibly delisted')")
                frames[symbol] = frames[symbol].iloc[:0]
        index = max((frame.index for frame in frames.values()), key=len)
        found = pd.concat({s: f.reindex(index) for s, f in frames.items()}, axis=1, names=["Ticker", "Price"])
        found.columns = found.columns.swaplevel(0, 1)
        return found.sort_index(level=0, axis=1)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setitem(sys.modules, "yfinance", made)
    monkeypatch.setattr(yahoo.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(yahoo, "_last_day", lambda now: session_days(30)[-1])
    return made


def ingested(home: Home, symbols: str, **more: str):
    config = PriceSourceConfig(data_source="yfinance", symbols=symbols.split(","), **more)
    return ingest(home.warehouse, home.settings, config)


def test_prices_come_adjusted_and_raw_and_the_same_day_is_asked_once(home: Home, library: Library) -> None:
    report = ingested(home, "AAPL,msft,BRK-B", start=session_days(30)[5])
    assert home.query("SELECT symbol, count(*) FROM prices GROUP BY ALL ORDER BY ALL") == [
        ("AAPL", 25),
        ("BRK-B", 25),
        ("MSFT", 25),
    ]
    assert home.query("SELECT count(*) FROM prices WHERE abs(adj_close - 0.9 * close) > 1e-9 OR volume IS NULL") == [
        (0,)
    ]
    assert library.caches[0].startswith(str(home.settings.home))
    assert ingested(home, "MSFT,BRK-B,AAPL", start=session_days(30)[5]).revision == report.revision
    assert len(library.asked) == 1


def test_what_fails_is_asked_for_again_and_what_has_come_is_kept(home: Home, library: Library, monkeypatch) -> None:
    monkeypatch.setattr(yahoo, "BATCH", 2)
    library.fails = {"BBB": 1, "DDD": 99}
    with pytest.raises(FinJEPAError, match=r"no prices of DDD from .* run the same command again"):
        ingested(home, "AAA,BBB,CCC,DDD")
    assert library.asked == [["AAA", "BBB"], ["BBB"], ["CCC", "DDD"], *[["DDD"]] * 3]
    library.fails = {}
    ingested(home, "AAA,BBB,CCC,DDD")
    assert library.asked[6:] == [["CCC", "DDD"]]  # not the batch that was complete
    assert home.query("SELECT count(DISTINCT symbol) FROM prices") == [(4,)]


def test_a_day_counts_when_it_is_over() -> None:
    for hour, day in ((21, "2024-05-02"), (22, "2024-05-03")):
        now = datetime.datetime(2024, 5, 3, hour, 30, tzinfo=datetime.UTC)
        assert yahoo._last_day(now) == day


def test_without_the_library_or_symbols_the_way_out_is_named(home: Home, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "yfinance", None)
    monkeypatch.setattr(yahoo.time, "sleep", lambda seconds: None)
    with pytest.raises(FinJEPAError, match=r"pip install 'finjepa\[yfinance\]'"):
        ingested(home, "AAPL")
    with pytest.raises(FinJEPAError, match="needs symbols"):
        ingest(home.warehouse, home.settings, PriceSourceConfig(data_source="yfinance"))
