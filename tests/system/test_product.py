"""The product from outside: one command from prices to a release, others on the home that it leaves, and Dagster's UI over HTTP.

`finjepa demo` itself, which trains longer, is slow.
"""

import http.client
import json
import os
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest

from finjepa_model import FinJEPA
from finjepa_pipeline import cli
from finjepa_pipeline.ui import OriginGuard
from tests.system.dagster_server import DagsterServer
from tests.system.product import environment, finjepa, is_one_line, quick_training, works, write_prices

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

JSON = {"Content-Type": "application/json"}
QUERY = '{"query": "{ version }"}'
_ASSETS = """{ assetNodes { assetKey { path } dependencyKeys { path } groupName isMaterializable
  assetMaterializations(limit: 1) { metadataEntries { label } }
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { status } } } } } }"""


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """From a folder of prices to a release, which stays here as the Hub cannot be reached: the options of `train`. The gate
    refuses one model in many by luck, when it finds something where there is nothing to find; then the next seed is trained."""
    folder = tmp_path_factory.mktemp("product")
    source = ["--data_source", "files", "--path", str(write_prices(folder / "prices"))]
    release = ["--push-to-hub", "--hub-repo-id", "tester/finjepa", "--planner", "mppi"]
    for seed in range(3):
        options = [*source, *quick_training(), "--seed", str(seed)]
        works(folder / "home", "train", *options, *release, timeout=600)
        if any((folder / "home" / "releases").iterdir()):
            break
    (folder / "decision.json").write_text(works(folder / "home", "decide", "--json"))
    return folder / "home", options


@pytest.fixture(scope="module")
def home(training):
    return training[0]


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs a command in this process, which saves the seconds that an interpreter takes to load the libraries."""

    def run(home: Path, *arguments: str) -> SimpleNamespace:
        for name in [name for name in os.environ if name.startswith(("FINJEPA_", "DAGSTER_", "HF_"))]:
            monkeypatch.delenv(name)
        for name in ("FINJEPA_HOME", "FINJEPA_COMPUTE"):
            monkeypatch.setenv(name, environment(home)[name])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        told = capfd.readouterr()
        return SimpleNamespace(status=ended.value.code or 0, stdout=told.out, stderr=told.err)

    return run


def test_the_checkpoint_loads_and_knows_where_it_comes_from(home):
    current = json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"]
    model = FinJEPA.from_pretrained(home / "checkpoints" / current)
    lineage = json.loads((home / "checkpoints" / current / "lineage.json").read_text())
    assert lineage["config"] == json.loads(model.config.to_json())
    assert lineage["data"]["feed"].startswith("files")
    assert lineage["dagster"]["run_id"]


def test_decision_is_one_json_object(home, command):
    decision = json.loads((home.parent / "decision.json").read_text())
    assert set(decision["weights"]) == set(decision["signals"]) == set(decision["assets"])
    assert min(decision["weights"].values()) >= 0
    assert abs(sum(decision["weights"].values()) - 1) <= 1e-6
    assert set(decision["signals"].values()) <= {-1, 0, 1}
    assert isinstance(decision["hedge"], bool)
    assert decision["expected_volatility"] >= 0  # 0 where everything is in cash
    assert isinstance(decision["expected_return"], float)
    assert decision["checkpoint"]
    assert decision["data_version"]
    earlier = command(home, "decide", "--json", "--as-of", "2012-06-29")
    assert json.loads(earlier.stdout)["date"] == "2012-06-29" < decision["date"]
    for wrong in ("29.06.2012", "1999-01-01"):
        refused = command(home, "decide", "--json", "--as-of", wrong)
        is_one_line(refused.status, refused.stderr, wrong)


def test_the_same_again_does_nothing_and_says_so(training, command):
    home, options = training
    release = next((home / "releases").iterdir())
    before = {file.name: file.stat().st_mtime_ns for file in release.iterdir()}
    again = command(home, "train", *options)
    assert again.status == 0, again.stderr[-3000:]
    assert "no new row" in again.stdout
    assert "nothing to retrain" in again.stdout
    assert "already released" in command(home, "publish").stdout
    assert {file.name: file.stat().st_mtime_ns for file in release.iterdir()} == before
    card = (release / "README.md").read_text()
    assert "No evidence of skill" in card or "minus that of 1/N is" in card


@pytest.mark.slow
def test_the_demo_shows_everything_and_how_to_open_the_ui_and_does_nothing_twice(tmp_path):
    printed = works(tmp_path / "home", "demo", timeout=900)
    assert all(text in printed for text in ("1/N", "Release: wrote", "finjepa_pipeline.ui", str(tmp_path / "home")))
    again = works(tmp_path / "home", "demo", timeout=900)
    assert all(text in again for text in ("no new row", "nothing to retrain", "already released"))


@pytest.fixture(scope="module")
def server(home):
    with DagsterServer(home, environment(home)) as server:
        yield server
    assert server.left_behind == []


def test_every_asset_is_materialised_with_its_lineage_and_its_checks(server):
    nodes = server.ask(_ASSETS)["assetNodes"]
    made = [node for node in nodes if node["isMaterializable"] and node["groupName"] not in ("walk_forward", "audit")]
    assert len(made) >= 14
    for node in made:
        name = "/".join(node["assetKey"]["path"])
        if name not in ("model_sweep", "retention", "live_record", "live_record_release"):  # of grids, and of the night
            assert node["assetMaterializations"], f"{name} was not materialised"
            assert node["assetMaterializations"][0]["metadataEntries"], f"{name} has no metadata"
    assert {node["groupName"] for node in made} == {"prices", "features", "model", "backtest", "publishing"}

    upstream = {node["assetKey"]["path"][0]: {key["path"][0] for key in node["dependencyKeys"]} for node in nodes}

    def ancestors(name):
        return {name}.union(*(ancestors(parent) for parent in upstream.get(name, ())))

    way = {"price_source", "raw_prices", "prices", "adjusted_prices", "universe", "feature_panel", "world_model"}
    way |= {"planner_backtests", "leaderboard", "champion"}
    assert way <= ancestors("hub_release") & ancestors("daily_decision")

    checks = {
        check["name"]: check["executionForLatestMaterialization"]["status"]
        for node in nodes
        for check in node["assetChecksOrError"].get("checks") or ()
        if check["executionForLatestMaterialization"]  # the audit is a job of its own
    }
    assert checks["latents_have_not_collapsed"] == checks["price_contract"] == "SUCCEEDED"


def test_a_run_that_the_ui_launches_decides_for_its_date(server):
    run = server.launch_job("decide", {"daily_decision": {"as_of": "2012-06-28"}})
    assert server.wait(run) == "SUCCESS", server.log.read_text()[-4000:]
    assert list((server.home / "reports" / "decisions").glob("2012-06-28*.json"))


def _rows(home):
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT count(*), bit_xor(hash(symbol, date, close)) FROM main.prices").fetchone()


def _mistakes(folder: Path):
    """Commands, and what the error must name."""
    (folder / "empty").mkdir()
    (folder / "bad.csv").write_text("symbol,date,open\nA,2020-01-02,1\n")
    whole = next(write_prices(folder / "whole", sessions=300).iterdir()).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    for file, named in (("empty", "empty"), ("bad.csv", "close"), ("cut.parquet", "cut.parquet")):
        yield ["ingest", "--data-source", "files", "--path", str(folder / file)], named
    yield ["ingest", "--data-source", "crystal-ball"], "crystal-ball"
    yield ["train", "--set", "model.colour=red"], "model.colour"
    yield ["train", "--preset", "giant"], "giant"
    yield ["backtest", "--planner", "oracle"], "oracle"


def test_a_mistake_ends_in_one_line_and_changes_nothing(home, command, tmp_path):
    before = _rows(home)
    for arguments, named in _mistakes(tmp_path):
        done = command(home, *arguments)
        is_one_line(done.status, done.stderr, named)
    done = finjepa(home, "backtest", "--planner", "oracle")  # a process says the same as `command`
    is_one_line(done.returncode, done.stderr, "oracle")
    assert _rows(home) == before


def test_homes_that_are_empty_or_cannot_be_written_and_wrong_usage(command, tmp_path):
    for name in ("backtest", "publish", "decide"):
        done = command(tmp_path / "home", name)
        is_one_line(done.status, done.stderr, "finjepa")
    (tmp_path / "file").write_text("in the way")
    done = command(tmp_path / "file" / "home", "ingest")
    is_one_line(done.status, done.stderr, "FINJEPA_HOME")
    assert (tmp_path / "file").read_text() == "in the way"
    for arguments in (["train", "--no-such-flag"], ["fly"], ["train", "--seed", "x"]):
        assert command(tmp_path / "home", *arguments).status == 2


def test_doctor_looks_and_says(home, command):
    done = command(home, "doctor")
    assert done.status == 0
    assert "torch" in done.stdout
    assert "files" in done.stdout


def _send(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_what_a_page_of_others_can_send_is_refused(server):
    own, port = server.url, server.port
    assert _send(port, "POST", "/graphql", QUERY, JSON | {"Origin": own, "Sec-Fetch-Site": "same-origin"})[0] == 200
    assert _send(port, "GET", "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link in an alert
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    refused = [
        ("POST", "/graphql", "query={version}", form | {"Origin": "https://evil.example"}),
        ("POST", "/graphql", "query={version}", form),
        ("POST", "/graphql", QUERY, {"Content-Type": "text/plain"}),
        ("GET", "/", None, {"Host": "evil.example"}),
        ("GET", "/graphql?query=%7Bversion%7D", None, {}),
    ]
    foreign = [
        {"Origin": origin} for origin in ("https://evil.example", "null", "http://localhost:1", f"{own}.evil.example")
    ]
    foreign += [{"Host": host} for host in ("evil.example", f"127.0.0.1.evil.example:{port}")]
    refused += [("POST", "/graphql", QUERY, JSON | headers) for headers in (*foreign, {"Sec-Fetch-Site": "cross-site"})]
    for request in refused:
        status, said = _send(port, *request)
        assert status == 403, request
        assert said.startswith("refused: "), request
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws"}  # fmt: skip
    for header in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert _send(port, "GET", "/graphql", headers=websocket | header)[0] == 403


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("finjepa.example", "https://finjepa.example", True),
        ("localhost:3000", "https://finjepa.example", True),  # a proxy that does not pass the Host on
        ("[::1]:3000", "http://[::1]:3000", True),
        ("finjepa.example", "https://evil.example", False),
        ("[", None, False),
        ("", None, False),
    ],
)
def test_the_address_of_the_operator_is_known(host, origin, passes):
    headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
    headers += [(b"origin", origin.encode())] if origin else []
    scope = {"type": "http", "method": "POST", "path": "/graphql", "headers": headers}
    assert (OriginGuard(None, "https://finjepa.example/").refusal(scope) is None) is passes
