"""Sources over the network: the Hub with the real clients against a look-alike, Yahoo against frames of the library's shapes."""

import datetime
import gzip
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.ingest import IngestReport, ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig, yahoo
from tests.hub_lookalike import READER, WRITER, HubLookalike
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import PLACE, prices, session_days

pytestmark = pytest.mark.usefixtures("no_contract")


def ingested(home: Home, **config: Any) -> IngestReport:
    return ingest(home.warehouse, home.settings, PriceSourceConfig(**config))


# -- the Hub ----------------------------------------------------------------------------------------------------------


def parquet(rows: pl.DataFrame, **options: Any) -> bytes:
    stream = io.BytesIO()
    rows.write_parquet(stream, **options)
    return stream.getvalue()


@pytest.fixture
def shards() -> dict[str, bytes]:
    return {f"data/part-{k}.parquet": parquet(prices((name,))) for k, name in enumerate(("AAA", "BBB"))}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubLookalike]:
    """The clients of this process may read there, and `datasets` looks there too."""
    with HubLookalike() as server:
        server.patch(monkeypatch, tmp_path / "hf", READER)
        yield server


@pytest.fixture
def ask(home: Home, hub: HubLookalike) -> Callable[..., IngestReport]:
    return lambda **config: ingested(home, **{"data_source": "hf", "dataset_name": "org/prices"} | config)


def test_a_revision_is_pinned_fetched_once_and_only_its_new_shards_are_read(ask, hub, shards, home) -> None:
    repo = hub.add_repo("org/prices", kind="dataset", files=shards)
    first = ask()
    assert (first.moved.added, first.revision.rows, first.revision.version) == (80, 80, repo.head.oid)
    assert ask().moved.added == 0
    repo.commit("another symbol", {"data/part-2.parquet": parquet(prices(("CCC",)))})
    moved = ask()
    assert (moved.moved.added, moved.revision.rows, moved.revision.version) == (40, 120, repo.head.oid)
    assert ask(symbols=["BBB"], start="2021-02-01").revision.rows == 21
    for part in (0, 1, 2):
        assert sum(request.startswith("GET") and f"part-{part}" in request for request in hub.requests) == 1
    tagged = repo.commit("restated", {"data/part-0.parquet": parquet(prices(("AAA",), seed=1))}).oid
    repo.commit("restated again", shards)
    ask(revision=tagged)
    closes = home.query("SELECT close FROM prices WHERE symbol = 'AAA' ORDER BY date")
    assert closes == prices(("AAA",), seed=1).select("close").rows()


def test_a_data_set_in_folders_is_read_and_what_is_not_read_is_named(ask, hub) -> None:
    files = {f"symbol={name}/p.parquet": parquet(prices((name,)).drop("symbol")) for name in ("AAA", "BBB")}
    files["more/old.csv"] = prices(("CCC",)).write_csv().encode()
    hub.add_repo("org/prices", kind="dataset", files=files)
    report = ask()
    assert report.moved.added == report.revision.rows == prices(("AAA", "BBB")).height
    assert report.note == "not read: more/old.csv"


def test_a_download_that_is_cut_goes_on_where_it_was(ask, hub) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(500)), days=1_400).with_columns(volume=PLACE)
    whole = parquet(rows, compression="uncompressed")
    assert len(whole) > 30 << 20  # the client keeps 10 MiB at a time, and loses its connection after two thirds
    hub.add_repo("org/prices", kind="dataset", files={"data/part-0.parquet": whole})
    hub.fail(r"GET .*part-0", "cut_answer")
    assert ask().revision.rows == rows.height
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in hub.ranges]
    assert max(starts) >= 10 << 20
    assert sum(what.startswith("GET") and "part-0" in what for what in hub.requests) == 2


@pytest.mark.parametrize(
    "layout",
    ["json lines", pytest.param("gzipped csv", marks=pytest.mark.slow), pytest.param("arrow", marks=pytest.mark.slow)],
)
def test_a_data_set_of_another_layout_is_read_through_datasets(ask, hub, monkeypatch, layout: str) -> None:
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
    rows = prices()
    if layout == "json lines":
        files = {
            f"{name}.jsonl": part.write_ndjson().encode() for name, part in (("train", rows[:60]), ("test", rows[60:]))
        }
    elif layout == "gzipped csv":
        files = {"data/train.csv.gz": gzip.compress(rows.write_csv().encode())}
    else:
        stream = io.BytesIO()
        rows.write_ipc_stream(stream, compat_level=pl.CompatLevel.oldest())
        files = {"data/train.arrow": stream.getvalue()}
    repo = hub.add_repo("org/prices", kind="dataset", files=files)
    whole = ask()
    assert (whole.moved.added, whole.revision.rows, whole.revision.version) == (120, 120, repo.head.oid)
    assert ask(symbols=["BBB"], start="2021-02-01").revision.rows == 21
    repo.commit("a change", {**dict.fromkeys(files), "train.jsonl": b'{"a": 1}\n'})
    with pytest.raises(FinJEPAError, match="lacks the column"):
        ask()


def test_a_token_that_was_saved_by_logging_in_is_used(ask, hub, shards, tmp_path, monkeypatch) -> None:
    hub.add_repo("org/prices", kind="dataset", files=shards, gated=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(WRITER)
    assert ask().revision.rows == 80


def test_passing_trouble_is_waited_out_as_long_as_the_hub_asks(ask, hub, shards, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("finjepa_model.hub.time", SimpleNamespace(sleep=waited.append))
    hub.add_repo("org/prices", kind="dataset", files=shards)
    hub.fail(r"GET /api/datasets/org/prices$", "status", status=429, headers={"Retry-After": "17"})
    hub.fail(r"GET /api/datasets/org/prices/tree", "status", status=503)
    hub.fail(r"GET .*part-0", "cut")
    hub.fail(r"GET .*part-0", "reset_answer")
    hub.fail(r"GET .*part-1", "reset")
    assert ask().revision.rows == 80
    assert waited[0] == 17


def test_lasting_trouble_is_one_line_that_says_what_to_do(ask, hub, shards, monkeypatch) -> None:
    monkeypatch.setattr("finjepa_model.hub.time", SimpleNamespace(sleep=lambda seconds: None))
    hub.add_repo("org/prices", kind="dataset", files=shards)
    hub.add_repo("org/gated", kind="dataset", files=shards, gated=True)
    hub.fail(r"(GET|HEAD) .*part-1", "status", status=404, times=20)

    def refused(way_out: str, **config: str) -> None:
        with pytest.raises(FinJEPAError, match=way_out) as error:
            ask(**config)
        assert "\n" not in str(error.value)

    refused("there is no data set org/other", dataset_name="org/other")
    refused("is gated; accept its terms at", dataset_name="org/gated")
    refused("no such revision", revision="v9")
    refused("has disappeared")
    monkeypatch.setenv("HF_TOKEN", "hf_ExpiredTokenOfTheLookalike000000")
    refused("hf auth login")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE")


# -- Yahoo ------------------------------------------------------------------------------------------------------------

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


def downloaded(home: Home, symbols: str, **more: str) -> IngestReport:
    return ingested(home, data_source="yfinance", symbols=symbols.split(","), **more)


def test_prices_come_adjusted_and_raw_and_the_same_day_is_asked_once(home: Home, library: Library) -> None:
    report = downloaded(home, "AAPL,msft,BRK-B", start=session_days(30)[5])
    found = home.query("SELECT symbol, count(*) FROM prices GROUP BY ALL ORDER BY ALL")
    assert found == [(symbol, 25) for symbol in ("AAPL", "BRK-B", "MSFT")]
    assert home.query("FROM prices WHERE abs(adj_close - 0.9 * close) > 1e-9 OR volume IS NULL") == []
    assert library.caches[0].startswith(str(home.settings.home))
    assert downloaded(home, "MSFT,BRK-B,AAPL", start=session_days(30)[5]).revision == report.revision
    assert len(library.asked) == 1


def test_what_fails_is_asked_for_again_and_what_has_come_is_kept(home: Home, library: Library, monkeypatch) -> None:
    monkeypatch.setattr(yahoo, "BATCH", 2)
    library.fails = {"BBB": 1, "DDD": 99}
    with pytest.raises(FinJEPAError, match=r"no prices of DDD from .* run the same command again"):
        downloaded(home, "AAA,BBB,CCC,DDD")
    assert library.asked == [["AAA", "BBB"], ["BBB"], ["CCC", "DDD"], *[["DDD"]] * 3]
    library.fails = {}
    downloaded(home, "AAA,BBB,CCC,DDD")
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
        downloaded(home, "AAPL")
    with pytest.raises(FinJEPAError, match="needs symbols"):
        ingested(home, data_source="yfinance")
