"""Sources over the network: the Hub with the real clients against a look-alike, Yahoo against frames of the library's shapes."""

import datetime
import gzip
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig, yahoo
from tests.hub_lookalike import READER, WRITER, HubLookalike
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices, session_days

SCRIPT = """
import json, sys
from pathlib import Path
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices import contract
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

contract.judge = lambda *_: ()  # the Hub is what is tested here
settings = Settings(home=Path(sys.argv[1])).ensure()
answers = []
for config in json.loads(sys.argv[2]):
    try:
        report = ingest(Warehouse.from_settings(settings), settings, PriceSourceConfig(data_source="hf", **config))
        answers.append([report.moved.added, report.revision.rows, report.revision.version, report.note])
    except FinJEPAError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


class Client:
    def __init__(self, hub: HubLookalike, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def ingest(self, *configs: dict[str, Any], token: str | None = READER, env: dict[str, str] | None = None) -> Any:
        """What ingestions one after the other in one process answer; of one without options the answer alone."""
        asked = json.dumps([{"dataset_name": "org/prices", **config} for config in configs or ({},)])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(self.folder / "home"), asked],
            env={**self.hub.client_env(self.folder / "hf", token=token), **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout.splitlines()[-1])
        return answers if configs else answers[0]


def parquet(rows: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    rows.write_parquet(stream)
    return stream.getvalue()


@pytest.fixture
def shards() -> dict[str, bytes]:
    return {"data/part-0.parquet": parquet(prices(("AAA",))), "data/part-1.parquet": parquet(prices(("BBB",)))}


def test_a_revision_is_pinned_fetched_once_and_only_its_new_shards_are_read(
    tmp_path: Path, shards: dict[str, bytes]
) -> None:
    with HubLookalike() as hub:
        repo = hub.add_repo("org/prices", kind="dataset", files=shards)
        client = Client(hub, tmp_path)
        first, again = client.ingest({}, {})
        assert first[:3] == [80, 80, repo.head.oid]
        assert again[0] == 0
        repo.commit("another symbol", {"data/part-2.parquet": parquet(prices(("CCC",)))})
        moved, some = client.ingest({}, {"symbols": ["BBB"], "start": "2021-02-01"})
        assert moved[:3] == [40, 120, repo.head.oid]
        assert some[1] == 21


def test_a_data_set_in_folders_is_read_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    files = {f"symbol={name}/p.parquet": parquet(prices((name,)).drop("symbol")) for name in ("AAA", "BBB")}
    with HubLookalike() as hub:
        hub.add_repo(
            "org/prices", kind="dataset", files=files | {"more/old.csv": prices(("CCC",)).write_csv().encode()}
        )
        new, rows, _, note = Client(hub, tmp_path).ingest()
    assert new == rows == prices(("AAA", "BBB")).height
    assert note == "not read: more/old.csv"


def test_a_download_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(500)), days=1_400).with_columns(
        volume=pl.int_range(pl.len())
    )
    stream = io.BytesIO()
    rows.write_parquet(stream, compression="uncompressed")
    size = len(stream.getvalue())
    assert size > 30 << 20  # the client keeps 10 MiB at a time, and loses its connection after two thirds
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files={"data/part-0.parquet": stream.getvalue()})
        hub.fail(r"GET .*part-0", "cut_answer")
        assert Client(hub, tmp_path).ingest()[1] == rows.height
        starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in hub.ranges]
        assert max(starts) >= 10 << 20
        assert sum(what.startswith("GET") and "part-0" in what for what in hub.requests) == 2


@pytest.mark.parametrize(
    "layout",
    ["json lines", pytest.param("gzipped csv", marks=pytest.mark.slow), pytest.param("arrow", marks=pytest.mark.slow)],
)
def test_a_data_set_of_another_layout_is_read_through_datasets(tmp_path: Path, layout: str) -> None:
    rows = prices()
    if layout == "json lines":
        files = {
            f"{part}.jsonl": rows[at : at + 60].write_ndjson().encode() for part, at in (("train", 0), ("test", 60))
        }
    elif layout == "gzipped csv":
        files = {"data/train.csv.gz": gzip.compress(rows.write_csv().encode())}
    else:
        stream = io.BytesIO()
        rows.write_ipc_stream(stream, compat_level=pl.CompatLevel.oldest())
        files = {"data/train.arrow": stream.getvalue()}
    with HubLookalike() as hub:
        repo = hub.add_repo("org/prices", kind="dataset", files=files)
        client = Client(hub, tmp_path)
        whole, some = client.ingest({}, {"symbols": ["BBB"], "start": "2021-02-01"})
        assert whole[:3] == [120, 120, repo.head.oid]
        assert some[1] == 21
        repo.commit("a change", {**dict.fromkeys(files), "train.jsonl": b'{"a": 1}\n'})
        assert "lacks the column" in client.ingest()


def test_a_token_that_was_saved_by_logging_in_is_used(tmp_path: Path, shards: dict[str, bytes]) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards, gated=True)
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(WRITER)
        assert Client(hub, tmp_path).ingest(token=None)[1] == 80


def test_passing_trouble_is_waited_out_as_long_as_the_hub_asks(tmp_path: Path, shards: dict[str, bytes]) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards)
        hub.fail(r"GET /api/datasets/org/prices/revision", "status", status=429, headers={"Retry-After": "2"})
        hub.fail(r"GET /api/datasets/org/prices$", "status", status=429, headers={"Retry-After": "2"})
        hub.fail(r"GET /api/datasets/org/prices/tree", "status", status=503)
        hub.fail(r"GET .*part-0", "cut")
        hub.fail(r"GET .*part-0", "reset_answer")
        hub.fail(r"GET .*part-1", "reset")
        assert Client(hub, tmp_path).ingest()[1] == 80
        times = zip(hub.requests, hub.times, strict=True)
        asked = [when for what, when in times if re.search(r"prices(/revision.*)?$", what)]
        assert asked[1] - asked[0] >= 2


def test_lasting_trouble_is_one_line_that_says_what_to_do(tmp_path: Path, shards: dict[str, bytes]) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards)
        hub.add_repo("org/gated", kind="dataset", files=shards, gated=True)
        hub.fail(r"(GET|HEAD) .*part-1", "status", status=404, times=20)
        client = Client(hub, tmp_path)
        names = [{"dataset_name": "org/other"}, {"dataset_name": "org/gated"}, {"revision": "v9"}, {}]
        answers = client.ingest(*names)
        answers.append(client.ingest(token="hf_ExpiredTokenOfTheLookalike000000"))
        answers.append(client.ingest(env={"HF_HUB_OFFLINE": "1"}))
    said = (
        "there is no data set org/other", "is gated; accept its terms at", "no such revision", "has disappeared",
        "hf auth login", "HF_HUB_OFFLINE",
    )  # fmt: skip
    for answer, says in zip(answers, said, strict=True):
        assert says in answer
        assert "\n" not in answer


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
    found = home.query("SELECT symbol, count(*) FROM prices GROUP BY ALL ORDER BY ALL")
    assert found == [(symbol, 25) for symbol in ("AAPL", "BRK-B", "MSFT")]
    assert home.query("FROM prices WHERE abs(adj_close - 0.9 * close) > 1e-9 OR volume IS NULL") == []
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
