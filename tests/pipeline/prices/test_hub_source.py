"""The Hub as a source, with the real clients against a look-alike."""

import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.hub_lookalike import READER, WRITER, Fault, HubLookalike
from tests.pipeline.prices.frames import prices

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
try:
    report = ingest(Warehouse.from_settings(settings), settings, PriceSourceConfig(**json.loads(sys.argv[2])))
    print(json.dumps([report.moved.added, report.revision.rows, report.revision.version, report.note]))
except FinJEPAError as error:
    print(json.dumps(str(error)))
"""


class Client:
    def __init__(self, hub: HubLookalike, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def ingest(self, token: str | None = READER, env: dict[str, str] | None = None, **config: Any) -> Any:
        config = {"data_source": "hf", "dataset_name": "org/prices", **config}
        return self.run(SCRIPT, json.dumps(config), token=token, env=env)

    def run(self, script: str, *more: str, token: str | None = READER, env: dict[str, str] | None = None) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.folder / "home"), *more],
            env={**self.hub.client_env(self.folder / "hf", token=token), **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


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
        new_rows, rows, version, _ = client.ingest()
        assert (new_rows, rows, version) == (80, 80, repo.head.oid)
        assert client.ingest()[0] == 0
        repo.commit("another symbol", {"data/part-2.parquet": parquet(prices(("CCC",)))})
        new_rows, rows, version, _ = client.ingest()
        assert (new_rows, rows, version) == (40, 120, repo.head.oid)
        assert client.ingest(symbols=["BBB"], start="2021-02-01")[1] == 21


def test_a_data_set_in_folders_is_read_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    files = {f"symbol={name}/p.parquet": parquet(prices((name,)).drop("symbol")) for name in ("AAA", "BBB")}
    with HubLookalike() as hub:
        hub.add_repo(
            "org/prices", kind="dataset", files=files | {"more/old.csv": prices(("CCC",)).write_csv().encode()}
        )
        new, rows, _, note = Client(hub, tmp_path).ingest()
    assert new == rows == prices(("AAA", "BBB")).height
    assert note == "not read: more/old.csv"


@pytest.mark.parametrize("fault", ["cut_answer", "reset_answer"])
def test_a_download_that_is_cut_goes_on_where_it_was(tmp_path: Path, fault: Fault) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(500)), days=1_400).with_columns(
        volume=pl.int_range(pl.len())
    )
    stream = io.BytesIO()
    rows.write_parquet(stream, compression="uncompressed")
    size = len(stream.getvalue())
    assert size > 30 << 20  # the client keeps 10 MiB at a time, and loses its connection after two thirds
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files={"data/part-0.parquet": stream.getvalue()})
        hub.fail(r"GET .*part-0", fault)
        assert Client(hub, tmp_path).ingest()[1] == rows.height
        starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in hub.ranges]
        assert max(starts) >= 10 << 20
        assert sum(what.startswith("GET") and "part-0" in what for what in hub.requests) == 2


def test_a_hub_that_asks_for_patience_gets_it(tmp_path: Path, shards: dict[str, bytes]) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards)
        hub.fail(r"GET /api/datasets/org/prices/revision", "status", status=429, headers={"Retry-After": "3"})
        hub.fail(r"GET /api/datasets/org/prices$", "status", status=429, headers={"Retry-After": "3"})
        assert Client(hub, tmp_path).ingest()[1] == 80
        asked = [
            when
            for what, when in zip(hub.requests, hub.times, strict=True)
            if re.search(r"prices(/revision.*)?$", what)
        ]
        assert asked[1] - asked[0] >= 3


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
        assert client.ingest()[:3] == [120, 120, repo.head.oid]
        assert client.ingest(symbols=["BBB"], start="2021-02-01")[1] == 21
        repo.commit("a change", {**dict.fromkeys(files), "train.jsonl": b'{"a": 1}\n'})
        assert "lacks the column" in client.ingest()


def test_a_token_that_was_saved_by_logging_in_is_used(tmp_path: Path, shards: dict[str, bytes]) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards, gated=True)
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(WRITER)
        assert Client(hub, tmp_path).ingest(token=None)[1] == 80


def test_passing_trouble_is_waited_out(tmp_path: Path, shards: dict[str, bytes]) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards)
        hub.fail(r"GET /api/datasets/org/prices", "status", status=503)
        hub.fail(r"GET /api/datasets/org/prices/tree", "status", status=429)
        hub.fail(r"GET .*part-0", "cut")
        hub.fail(r"GET .*part-1", "reset")
        assert Client(hub, tmp_path).ingest()[1] == 80


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("unknown", "there is no data set org/other"),
        ("gated", "is gated; accept its terms at"),
        ("token", "hf auth login"),
        ("offline", "HF_HUB_OFFLINE"),
        ("revision", "no such revision"),
        ("shard", "has disappeared"),
    ],
)
def test_lasting_trouble_is_one_line_that_says_what_to_do(
    tmp_path: Path, shards: dict[str, bytes], trouble: str, says: str
) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards, gated=trouble == "gated")
        client = Client(hub, tmp_path)
        if trouble == "shard":
            hub.fail(r"(GET|HEAD) .*part-1", "status", status=404, times=20)
        answer = client.ingest(
            token="hf_ExpiredTokenOfTheLookalike000000" if trouble == "token" else READER,
            env={"HF_HUB_OFFLINE": "1"} if trouble == "offline" else None,
            **({"dataset_name": "org/other"} if trouble == "unknown" else {}),
            **({"revision": "v9"} if trouble == "revision" else {}),
        )
        assert isinstance(answer, str), answer
        assert says in answer
        assert "\n" not in answer


def test_gated_prices_are_had_with_access_and_an_unreachable_hub_leaves_what_is_held(
    tmp_path: Path, shards: dict[str, bytes]
) -> None:
    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files=shards, gated=True)
        client = Client(hub, tmp_path)
        assert client.ingest(token=WRITER)[1] == 80
        held = client.ingest(env={"HF_HUB_OFFLINE": "1"}, data_source=None, dataset_name=None)
        assert held[:2] == [0, 80]
        assert "carried on" in held[3]
