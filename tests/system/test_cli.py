"""The command line from prices to a decision, and what it says to a user who made a mistake."""

import json
import shutil

import dagster as dg
import duckdb
import pytest

from finjepa_model import FinJEPA
from tests.system.product import finjepa, is_iso_date, quick_training, write_prices

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with a checkpoint, trained on a folder of prices."""
    folder = tmp_path_factory.mktemp("product")
    prices = write_prices(folder / "prices")
    source = ["--data_source", "files", "--path", str(prices)]
    done = finjepa(folder / "home", "train", *source, *quick_training())
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "home", source


@pytest.fixture(scope="module")
def published(trained):
    home, _ = trained
    for command in (["backtest", "--planner", "mppi"], ["publish"]):
        done = finjepa(home, *command)
        assert done.returncode == 0, done.stderr[-3000:]
    return home


def test_training_leaves_a_checkpoint_that_loads(trained):
    home, _ = trained
    current = json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"]
    model = FinJEPA.from_pretrained(home / "checkpoints" / current)
    lineage = json.loads((home / "checkpoints" / current / "lineage.json").read_text())
    assert lineage["config"] == json.loads(model.config.to_json())
    assert lineage["data"]["feed"].startswith("files")
    assert lineage["dagster"]["upstream"]["feature_panel"]["run_id"] == lineage["dagster"]["run_id"]


def test_a_checkpoint_is_rebuilt_bit_by_bit_from_its_lineage(trained, tmp_path):
    home, source = trained
    current = json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"]
    done = finjepa(home, "reproduce", current)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal, bit by bit" in done.stdout
    folder, prices = tmp_path / "moved", tmp_path / "prices"
    shutil.copytree(home / "checkpoints" / current, folder)
    lineage = json.loads((folder / "lineage.json").read_text())
    shutil.copytree(source[-1], prices)
    next(prices.iterdir()).unlink()
    lineage["build"]["source"]["path"] = str(prices)
    (folder / "lineage.json").write_text(json.dumps(lineage))
    _is_one_line(finjepa(tmp_path / "empty", "reproduce", str(folder)), 1, "no longer what they were")


def test_the_model_of_a_fold_is_rebuilt_bit_by_bit_from_its_lineage(trained):
    home, folds = trained[0], ["--folds", "1", "--held-back", "0", "--planner", "mppi", "--controls", "none"]
    done = finjepa(home, "backtest", *folds, *quick_training())
    assert done.returncode == 0, done.stderr[-3000:]
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        ((plan, fold, name),) = con.execute("SELECT plan, fold, checkpoint FROM walk_forward_folds").fetchall()
    lineage = json.loads((home / "checkpoints" / name / "lineage.json").read_text())
    assert lineage["data"]["fold"] == f"{plan}:{fold}"
    assert json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"] != name
    done = finjepa(home, "reproduce", name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal, bit by bit" in done.stdout
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        told = instance.fetch_observations(dg.AssetKey("fold_models"), limit=500).records
    assert {record.partition_key for record in told} == {f"{plan}:{fold}"}
    assert {"train_loss", "validation_loss"} <= {key for record in told for key in record.asset_observation.metadata}


def test_the_same_again_does_nothing_and_says_so(trained):
    home, source = trained
    again = finjepa(home, "train", *source, *quick_training())
    assert again.returncode == 0, again.stderr[-3000:]
    assert "no new row" in again.stdout
    assert "nothing to retrain" in again.stdout


def test_decision_is_one_json_object(published):
    done = finjepa(published, "decide", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    decision = json.loads(done.stdout)
    assert is_iso_date(decision["date"])
    assert set(decision["weights"]) == set(decision["signals"]) == set(decision["assets"])
    assert min(decision["weights"].values()) >= 0
    assert abs(sum(decision["weights"].values()) - 1) <= 1e-6
    assert set(decision["signals"].values()) <= {-1, 0, 1}
    assert isinstance(decision["hedge"], bool)
    assert decision["expected_volatility"] >= 0  # 0 where everything is in cash
    assert isinstance(decision["expected_return"], float)
    assert decision["checkpoint"]
    assert decision["data_version"]


def test_an_earlier_date_can_be_decided_and_a_wrong_one_is_told(published):
    earlier = finjepa(published, "decide", "--json", "--as-of", "2012-06-29")
    assert json.loads(earlier.stdout)["date"] == "2012-06-29"
    for wrong in ("29.06.2012", "1999-01-01"):
        _is_one_line(finjepa(published, "decide", "--json", "--as-of", wrong), 1, wrong)


def test_nothing_is_released_twice(published):
    release = next((published / "releases").iterdir())
    before = {file.name: file.stat().st_mtime_ns for file in release.iterdir()}
    done = finjepa(published, "publish")
    assert "already released" in done.stdout
    assert {file.name: file.stat().st_mtime_ns for file in release.iterdir()} == before
    card = (release / "README.md").read_text()
    assert "No evidence of skill" in card or "minus that of 1/N is" in card


def test_doctor_looks_and_says(trained):
    home, _ = trained
    done = finjepa(home, "doctor")
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "files" in done.stdout


def _rows(home):
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT count(*), bit_xor(hash(symbol, date, close)) FROM main.prices").fetchone()


def _is_one_line(done, status, *named):
    assert done.returncode == status, done.stderr[-2000:]
    told = [line for line in done.stderr.splitlines() if line.startswith(("finjepa: ", "Error: "))]
    assert len(told) == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "unexpected" not in told[0]
    for name in named:
        assert name in told[0]


def _empty_folder(folder):
    (folder / "empty").mkdir()
    return ["ingest", "--data-source", "files", "--path", str(folder / "empty")], "empty"


def _csv_without_a_column(folder):
    (folder / "bad.csv").write_text("symbol,date,open\nA,2020-01-02,1\n")
    return ["ingest", "--data-source", "files", "--path", str(folder / "bad.csv")], "close"


def _cut_parquet(folder):
    whole = next(write_prices(folder / "whole", sessions=300).iterdir()).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    return ["ingest", "--data-source", "files", "--path", str(folder / "cut.parquet")], "cut.parquet"


def _unknown_source(folder):
    return ["ingest", "--data-source", "crystal-ball"], "crystal-ball"


def _unknown_key(folder):
    return ["train", "--set", "model.colour=red"], "model.colour"


def _unknown_preset(folder):
    return ["train", "--preset", "giant"], "giant"


def _unknown_planner(folder):
    return ["backtest", "--planner", "oracle"], "oracle"


@pytest.mark.parametrize(
    "mistake",
    [
        _empty_folder, _csv_without_a_column, _cut_parquet, _unknown_source, _unknown_key, _unknown_preset, _unknown_planner,
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_and_changes_nothing(published, tmp_path, mistake):
    before = _rows(published)
    arguments, named = mistake(tmp_path)
    _is_one_line(finjepa(published, *arguments), 1, named)
    assert _rows(published) == before


def test_wrong_usage_has_status_two(tmp_path):
    for arguments in (["train", "--no-such-flag"], ["fly"], ["train", "--seed", "x"]):
        assert finjepa(tmp_path / "home", *arguments).returncode == 2


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    _is_one_line(finjepa(tmp_path / "file" / "home", "ingest"), 1, "FINJEPA_HOME")
    assert (tmp_path / "file").read_text() == "in the way"


def test_commands_before_there_is_anything_say_what_to_run(tmp_path):
    for command in ("backtest", "publish", "decide"):
        _is_one_line(finjepa(tmp_path / "home", command), 1, "finjepa")
    shutil.rmtree(tmp_path / "home")
