"""The pipeline under a real `dagster dev`: every asset is materialised over GraphQL, and the lineage is whole."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import duckdb
import pytest

from tests.system.product import COMMANDS, QUICK, ROOT, environment, write_prices

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

_LAUNCH = """
mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } }
} }"""
_STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status stepStats { stepKey status } } } }"
_ASSETS = """{ assetNodes { assetKey { path } dependencyKeys { path } description groupName isMaterializable owners { __typename }
  assetMaterializations(limit: 1) { metadataEntries { label } } } }"""
_CHECKS = """{ assetNodes { assetKey { path } assetChecksOrError { ... on AssetChecks { checks {
  name executionForLatestMaterialization { status } } } } } }"""

_BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_BACKFILL_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status error { message } } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dagster")
    home = folder / "home"
    (home / "dagster").mkdir(parents=True)
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster" / "dagster.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            COMMANDS / "dagster",
            "dev",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workspace",
            ROOT / "workspace.yaml",
        ],
        env=environment(home) | {"DAGSTER_HOME": str(home / "dagster"), "PATH": f"{COMMANDS}:{os.environ['PATH']}"},
        cwd=folder,
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/graphql", process)
        yield f"http://127.0.0.1:{port}/graphql", folder
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _ask(url, query, **variables):
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def _wait_until_up(url, process):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if _ask(url, "{ assetNodes { id } }")["assetNodes"]:
                return
        time.sleep(1)
    raise AssertionError("dagster dev did not come up")


@pytest.fixture(scope="module")
def finished(server):
    """A run of the whole pipeline, launched as the UI launches it."""
    url, folder = server
    prices = write_prices(folder / "prices")
    config = {
        "ingest_prices": {"config": {"data_source": "files", "path": str(prices)}},
        "world_model": {"config": {"preset": "tiny", "overrides": QUICK}},
        "planner_backtests": {"config": {"planner": "mppi"}},
    }
    params = {
        "selector": {"repositoryLocationName": "finjepa", "repositoryName": "__repository__", "jobName": "nightly"},
        "runConfigData": {"ops": config},
        "mode": "default",
    }
    launched = _ask(url, _LAUNCH, params=params)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = _ended(url, launched["run"]["runId"])
    assert run["status"] == "SUCCESS", (run, (folder / "log").read_text()[-4000:])
    return url


def _ended(url, run_id):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        run = _ask(url, _STATUS, id=run_id)["runOrError"]
        if run["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
            return run
        time.sleep(2)
    raise AssertionError(f"run {run_id} did not end")


def test_every_asset_is_materialised_described_and_owned(finished):
    nodes = _ask(finished, _ASSETS)["assetNodes"]
    made = [node for node in nodes if node["isMaterializable"] and node["groupName"] != "walk_forward"]
    assert len(made) >= 14
    for node in made:
        name = "/".join(node["assetKey"]["path"])
        if name not in ("past_decisions", "model_sweep"):  # which a person launches, for dates and for grids
            assert node["assetMaterializations"], f"{name} was not materialised"
            assert node["assetMaterializations"][0]["metadataEntries"], f"{name} has no metadata"
        assert node["description"], f"{name} has no description"
        assert node["owners"], f"{name} has no owner"
    assert {node["groupName"] for node in made} == {"prices", "features", "model", "backtest", "publishing"}


def test_lineage_reaches_from_a_price_row_to_a_release(finished):
    nodes = _ask(finished, _ASSETS)["assetNodes"]
    upstream = {node["assetKey"]["path"][0]: {key["path"][0] for key in node["dependencyKeys"]} for node in nodes}

    def ancestors(name):
        return {name}.union(*(ancestors(parent) for parent in upstream.get(name, ())))

    way = ["price_source", "raw_prices", "prices", "adjusted_prices", "universe", "feature_panel", "world_model"]
    way += ["world_model_evaluation", "planner_backtests", "leaderboard", "champion"]
    assert set(way) <= ancestors("hub_release")
    assert set(way) <= ancestors("daily_decision")


def test_blocking_checks_ran_and_hold(finished):
    checks = {}
    for node in _ask(finished, _CHECKS)["assetNodes"]:
        for check in node["assetChecksOrError"].get("checks") or ():
            if execution := check["executionForLatestMaterialization"]:  # the audit is a job of its own
                checks[check["name"]] = execution["status"]
    assert checks["latents_have_not_collapsed"] == "SUCCEEDED"
    assert checks["price_contract"] == "SUCCEEDED"


@pytest.mark.slow
def test_decisions_of_earlier_dates_are_backfilled(finished, server):
    _, folder = server
    with duckdb.connect(str(folder / "home" / "warehouse.duckdb")) as con:
        con.execute(
            "UPDATE champions SET verdict = 'promoted'"
        )  # so little was learned that the trial may refuse it by chance
    days = ["2012-06-27", "2012-06-28", "2012-06-29"]
    params = {"assetSelection": [{"path": ["past_decisions"]}], "partitionNames": days[:2]}
    launched = _ask(finished, _BACKFILL, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        backfill = _ask(finished, _BACKFILL_STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
        if backfill["status"] not in ("REQUESTED", "SCHEDULING"):
            break
        time.sleep(2)
    assert backfill["status"] == "COMPLETED_SUCCESS", (backfill, (folder / "log").read_text()[-4000:])

    # the job `catch_up` does the same for a range, and what is decided stays as it is
    span = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[2]}
    params = {
        "selector": {"repositoryLocationName": "finjepa", "repositoryName": "__repository__", "jobName": "catch_up"},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in span.items()]},
        "mode": "default",
    }
    decisions = folder / "home" / "reports" / "decisions"
    before = {path.name: path.read_bytes() for path in decisions.glob("2012-*.json")}
    assert [name[:10] for name in sorted(before)] == days[:2]
    launched = _ask(finished, _LAUNCH, params=params)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    assert _ended(finished, launched["run"]["runId"])["status"] == "SUCCESS", (folder / "log").read_text()[-4000:]
    after = {path.name: path.read_bytes() for path in decisions.glob("2012-*.json")}
    assert [name[:10] for name in sorted(after)] == days
    assert before.items() <= after.items()
    assert all(json.loads(content)["book"] == "hindsight" for content in after.values())
