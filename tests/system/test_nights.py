"""Nightly runs under a real `dagster dev` against a Hub on loopback: what is new is released once, whatever goes wrong."""

import contextlib
import datetime
import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pytest
import yaml

from finjepa_model import FinJEPA
from finjepa_model.checkpoint import CHECKPOINT_FILES
from tests.hub_lookalike import WRITER, HubLookalike
from tests.system.dagster_server import ENDED, DagsterServer
from tests.system.processes import KINDS, connected_to, kind_of
from tests.system.product import QUICK, wait_until, write_prices

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3000)]

DATASET, REPO = "org/prices", "tester/finjepa"
SHARES = {"training.train_share": "0.4", "training.validation_share": "0.4"}
SEEDS = [int(seed) for seed in os.environ.get("FINJEPA_TEST_SEEDS", "0").split(",")]
KILLS = int(os.environ.get("FINJEPA_TEST_KILLS", "4"))
NIGHT = datetime.datetime(2026, 11, 24, 18, tzinfo=ZoneInfo("America/New_York")).timestamp()
# Rows of these tables are those of an undisturbed home; when something was made is another matter.
TABLES = {
    "prices": "*",
    "adjusted_prices": "*",
    "quarantined_prices": "*",
    "corporate_actions": "*",
    "entities": "*",
    "universe": "*",
    "backtest_returns": "*",
    "leaderboard": "* EXCLUDE (created_at, run_id)",
    "champions": "* EXCLUDE (created_at)",
    "decisions": "* EXCLUDE (created_at)",
    "decision_portfolios": "* EXCLUDE (created_at)",
    "releases": "checkpoint, content_hash, tag",
}


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> pl.DataFrame:
    folder = write_prices(tmp_path_factory.mktemp("market") / "prices", sessions=960)
    return pl.read_parquet(folder / "*.parquet")


@contextlib.contextmanager
def market_hub(market: pl.DataFrame) -> Iterator[HubLookalike]:
    with HubLookalike() as server:
        server.add_repo(DATASET, kind="dataset")
        grow(server, market, 900)
        yield server


@pytest.fixture
def hub(market):
    with market_hub(market) as server:
        yield server


def grow(hub: HubLookalike, market: pl.DataFrame, sessions: int) -> None:
    """A revision of the data set with the first so many sessions."""
    days = market["date"].unique().sort()[:sessions]
    stream = io.BytesIO()
    market.filter(pl.col("date").is_in(days.implode())).write_parquet(stream)
    name = "data/train-00000-of-00001.parquet"
    hub.repo(DATASET, "dataset").commit(f"{sessions} sessions", {name: stream.getvalue()})


def home_of(folder: Path) -> Path:
    folder.mkdir(parents=True)
    night = {
        "ingest_prices": {"config": {"data_source": "hf", "dataset_name": DATASET}},
        # champion and challenger must have 210 sessions of validation in common
        "world_model": {"config": {"preset": "tiny", "overrides": QUICK | SHARES}},
        # a model that has learned this little would stay in cash
        "planner_backtests": {"config": {"planner": "mppi", "utility": "log_growth - abs(gross - 0.8)"}},
    }
    (folder / "nightly.yaml").write_text(yaml.safe_dump({"ops": night}))
    return folder


def server_of(home: Path, hub: HubLookalike, repo: str = REPO) -> DagsterServer:
    client = hub.client_env(home / "hf", token=WRITER)
    kept = {name: value for name, value in client.items() if not name.startswith(("FINJEPA_", "DAGSTER_"))}
    return DagsterServer(home, kept | {"FINJEPA_HUB_REPO_ID": repo, "OMP_NUM_THREADS": "1"})


def query(home: Path, statement: str) -> list[tuple]:
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        return con.execute(statement).fetchall()


def contents(home: Path) -> dict[str, list[tuple]]:
    """What a night leaves: the tables without their times, the panel, and the releases with their files."""
    found = {
        table: query(home, f"SELECT {columns} FROM main.{table} ORDER BY ALL") for table, columns in TABLES.items()
    }
    panel = json.loads((home / "panels" / "current.json").read_text())["panel"]
    found["panel"] = [(panel, json.loads((home / "panels" / panel / "manifest.json").read_text())["content_hash"])]
    found["release folders"] = sorted((path.name,) for path in (home / "releases").iterdir())
    return found


def assert_released_once(home: Path, hub: HubLookalike, repo: str = REPO) -> None:
    """One commit and one tag for each checkpoint that was promoted, with the files of its local folder."""
    rows = query(home, "SELECT checkpoint FROM champions WHERE verdict = 'promoted' ORDER BY created_at")
    promoted = [name for (name,) in rows]
    tags = dict(query(home, "SELECT checkpoint, tag FROM releases WHERE target = 'local'"))
    there = hub.repo(repo)
    titles = [commit.title for commit in there.commits if commit.title.startswith("Release")]
    assert titles == [f"Release {tags[name]}" for name in promoted]
    for name in promoted:
        commit = next(commit for commit in there.commits if commit.title == f"Release {tags[name]}")
        assert there.tags[tags[name]] == commit.oid
        folder = home / "releases" / tags[name]
        assert all(commit.files[file] == (folder / file).read_bytes() for file in CHECKPOINT_FILES)
    assert len(there.tags) == len(promoted)


def lose_touch(home: Path) -> None:
    """The champion can no longer act, so that the next sound challenger replaces it."""
    [(champion,)] = query(
        home, "SELECT checkpoint FROM champions WHERE verdict = 'promoted' ORDER BY created_at DESC LIMIT 1"
    )
    shutil.rmtree(home / "checkpoints" / champion)


def night(server: DagsterServer) -> str:
    """A night as the schedule starts it; its end state."""
    [request] = server.tick(NIGHT)["runRequests"]
    return server.wait(server.launch(request))


def test_a_week_of_nights(tmp_path, hub, market):
    home = home_of(tmp_path / "home")
    with server_of(home, hub) as server:
        # the first night: the source is seen, and everything follows from it
        assert night(server) == "SUCCESS", server.log.read_text()[-5000:]
        assert_released_once(home, hub)
        date = query(home, "SELECT max(date) FROM decisions")[0][0]
        assert (home / "reports" / "decisions" / f"{date}.html").is_file()
        first = contents(home)

        # a night with nothing new starts nothing and says so; started by hand all the same, it makes nothing
        tick = server.tick(NIGHT)
        assert tick["runRequests"] in (None, [])
        assert "no new prices" in tick["skipReason"]
        assert "is no session" in server.tick(NIGHT + 2 * 86400)["skipReason"]  # Thanksgiving
        request = {"runConfigYaml": (home / "nightly.yaml").read_text(), "tags": []}
        assert server.wait(server.launch(request)) == "SUCCESS"
        assert contents(home) == first

        # the publisher dies between commit and tag: it is tried again, and finds its commit
        grow(hub, market, 920)
        lose_touch(home)
        hub.fail(r"POST .*/tag/", "delay", seconds=60.0)
        [request] = server.tick(NIGHT)["runRequests"]
        port, seen = int(hub.endpoint.rpartition(":")[2]), len(hub.requests)
        others = set(connected_to(port))  # the code server, which looked at the source
        run = server.launch(request)
        wait_until(lambda: any("/tag/" in line for line in hub.requests[seen:]), seconds=900)
        [publisher] = set(connected_to(port)) - others
        os.kill(publisher, signal.SIGKILL)
        assert server.wait(run) == "SUCCESS", server.log.read_text()[-5000:]
        assert_released_once(home, hub)
        assert query(home, "SELECT count(*) FROM champions WHERE verdict = 'promoted'") == [(2,)]

        # a Hub that misbehaves in every way; the sensor starts this night, since the source has moved
        grow(hub, market, 940)
        lose_touch(home)
        hub.fail(r"GET .*/api/models/.*/refs", "status", status=503)
        hub.fail(r"POST .*/preupload/", "status", status=429, headers={"Retry-After": "1"})
        hub.fail(r"PUT /lfs-storage", "cut")
        hub.fail(r"POST .*/commit/", "lose_answer")
        hub.fail(r"POST .*/tag/", "lose_answer")
        known = {run["runId"] for run in server.runs()}
        server.start_sensor("price_source_sensor")
        wait_until(lambda: {run["runId"] for run in server.runs()} > known, seconds=900)
        [run] = [run for run in server.runs() if run["runId"] not in known]
        assert "the source moved" in {tag["key"]: tag["value"] for tag in run["tags"]}["finjepa/why"]
        assert server.wait(run["runId"]) == "SUCCESS", server.log.read_text()[-5000:]
        assert_released_once(home, hub)
        assert query(home, "SELECT count(*) FROM champions WHERE verdict = 'promoted'") == [(3,)]

        # a decision every ten sessions, those between two nights made afterwards, and no token was written down
        columns = "date, previous_date, made_afterwards"
        chain = query(home, f"SELECT {columns} FROM decision_portfolios WHERE book = 'champion' ORDER BY date")
        assert [previous for _, previous, _ in chain] == [None, *(date for date, _, _ in chain[:-1])]
        assert [afterwards for _, _, afterwards in chain] == [False, True, False, True, False]
    assert server.left_behind == []
    assert files_with(home, WRITER) == []
    card = FinJEPA.from_pretrained(next((home / "releases").iterdir()))
    assert card.config.training.epochs == int(QUICK["training.epochs"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, market):
    """Two nights of a home with nobody in their way: the home between them, what it holds after them, how long the second
    took in seconds, and the title of its release."""
    folder = tmp_path_factory.mktemp("undisturbed")
    home, between = home_of(folder / "home"), folder / "between"
    with market_hub(market) as hub:
        with server_of(home, hub) as server:
            assert night(server) == "SUCCESS", server.log.read_text()[-5000:]
        shutil.copytree(home, between, symlinks=True)
        grow(hub, market, 930)
        lose_touch(home)
        with server_of(home, hub) as server:
            began = time.monotonic()
            assert night(server) == "SUCCESS", server.log.read_text()[-5000:]
            length = time.monotonic() - began
        assert server.left_behind == []
        return between, contents(home), length, releases(hub, REPO)[-1]


@pytest.fixture(scope="module")
def deaths() -> Counter[str]:
    """How many processes of each kind were killed so far, over all seeds."""
    return Counter()


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_process_was_killed_at_any_moment_of_a_night_the_next_does_what_is_missing(
    seed, tmp_path, hub, market, undisturbed, deaths
):
    """FINJEPA_TEST_SEEDS: which draws of moments and processes, such as 1,2,3; FINJEPA_TEST_KILLS: how many of each die."""
    between, wanted, length, release = undisturbed
    random_ = random.Random(seed)
    disturbed = tmp_path / "disturbed"
    shutil.copytree(between, disturbed, symlinks=True)
    grow(hub, market, 930)
    lose_touch(disturbed)
    server = server_of(disturbed, hub, "tester/disturbed")
    server.start()
    [request] = server.tick(NIGHT)["runRequests"]
    server.launch(request)
    killed = []
    while len(killed) < KILLS:
        kind, victim = meet(server, random_, deaths, 2 * length / KILLS)
        killed.append(kind)
        deaths[kind] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(timeout=8)  # it looks every five seconds whether the others live
        if not server.is_up(patience=30):
            server.kill()
            server.start()
        if all(run["status"] in ENDED for run in server.runs()):  # it went through, or was tried often enough
            for request in server.tick(NIGHT)["runRequests"] or []:
                server.launch(request)
    server.stop()
    (tmp_path / "killed.txt").write_text("\n".join(killed))
    with server:  # the next night
        server.wait_for_all()
        for request in server.tick(NIGHT)["runRequests"] or []:
            assert server.wait(server.launch(request)) == "SUCCESS", (killed, server.log.read_text()[-5000:])
        assert server.tick(NIGHT)["skipReason"], killed
    assert server.left_behind == [], killed
    found = contents(disturbed)
    for name in wanted:
        assert found[name] == wanted[name], (name, killed)
    released = releases(hub, "tester/disturbed")
    assert len(released) == len(set(released))
    assert released[-1] == release


def meet(server: DagsterServer, random_: random.Random, deaths: Counter[str], patience: float) -> tuple[str, int]:
    """Kind and number of a process at a random moment of the next `patience` seconds, of a kind that died least so far."""
    time.sleep(random_.uniform(0, patience))
    found = {kind: pid for pid in server.processes() if (kind := kind_of(pid)) in KINDS}
    return min(sorted(found.items()), key=lambda one: (deaths[one[0]], random_.random()))


def releases(hub: HubLookalike, repo: str) -> list[str]:
    return [commit.title for commit in hub.repo(repo).commits if commit.title.startswith("Release")]


def files_with(folder: Path, secret: str) -> list[Path]:
    """Files below a folder in which a secret can be read."""
    needle = secret.encode()
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]
