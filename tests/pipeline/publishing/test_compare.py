"""`finjepa compare` and exports: differences that are there are found, others not, and names as people type them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from finjepa_model import FinJEPA
from finjepa_model.checkpoint import read_config
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.compare import compare
from finjepa_pipeline.cli import main
from finjepa_pipeline.console import export_backtest, export_path
from finjepa_pipeline.warehouse import insert


def add_returns(con, checkpoint: str, strategy: str, net_T: np.ndarray, first: str = "2020-01-01") -> None:
    key = {"checkpoint": checkpoint, "strategy": strategy, "block": "test", "data_version": "data1", "setup": "s"}
    nothing = {"cost": 0.0, "turnover": 0.0, "wealth": 1.0, "hedge": False}
    dates = np.datetime64(first) + np.arange(len(net_T))
    insert(con, "backtest_returns", key | nothing, {"date": dates, "gross_return": net_T, "net_return": net_T})


@pytest.fixture
def tested(home):
    """Two checkpoints with other settings; qp of the second is better by a sure thing a day, mppi by luck."""
    folder = home.add_checkpoint("aaaa1111")
    config = read_config(folder)
    home.add_checkpoint("bbbb2222", model=FinJEPA(replace(config, training=replace(config.training, batch_size=7))))
    random = np.random.default_rng(0)
    base_T = random.normal(0, 0.01, 500)
    with home.warehouse.connect() as con:
        add_returns(con, "aaaa1111", "qp", base_T)
        add_returns(con, "aaaa1111", "mine:decide@123456", base_T / 2, first="2020-02-01")
        add_returns(con, "bbbb2222", "qp", base_T + 0.001)
        add_returns(con, "bbbb2222", "mppi", random.normal(0, 0.01, 500))
    return home


def compared(home, *names: str):
    with home.warehouse.connect() as con:
        return compare(con, home.settings, names)[0]


def test_a_difference_is_found_where_there_is_one(tested) -> None:
    found = compared(tested, "aaaa/qp", "bbbb2222/qp", "bbbb/mppi")
    assert [side["label"] for side in found["sides"]] == ["aaaa1111/qp", "bbbb2222/qp", "bbbb2222/mppi"]
    sure, luck = found["differences"]
    assert sure["mean"] == pytest.approx((0.252, 0.252, 0.252))
    assert sure["sharpe"][1] is not None
    assert sure["sharpe"][0] > sure["sharpe"][1] > 0
    assert sure["correlation"] == pytest.approx(1)
    assert luck["sharpe"][1] is not None
    assert luck["sharpe"][2] is not None
    assert luck["sharpe"][1] < 0 < luck["sharpe"][2]
    assert ("training.batch_size", str(found["settings"][0][1]), "7", "7") in found["settings"]


def test_only_common_sessions_count_and_names_may_be_short(tested) -> None:
    found = compared(tested, "aaaa/qp", "aaaa/mine.py:decide")
    assert (found["sessions"], found["first"]) == (469, "2020-02-01")
    assert found["differences"][0]["label"] == "mine:decide@123456"
    assert found["settings"] == []
    assert compared(tested, "qp", "mppi")["sides"][0]["checkpoint"] == "bbbb2222"  # of the newest backtest
    for names, why in (
        (("qp", "mpi"), "is mppi meant"),
        (("qp", "qp"), "different ones"),
        (("aaaa", "qp"), "no planner acts for aaaa; name one, as aaaa1111/"),
    ):
        with pytest.raises(FinJEPAError, match=why):
            compared(tested, *names)


def test_the_command_prints_and_writes_a_page(tested, monkeypatch) -> None:
    monkeypatch.setenv("FINJEPA_HOME", str(tested.settings.home))
    done = CliRunner().invoke(main, ["compare", "aaaa/qp", "bbbb/qp"])
    assert done.exit_code == 0, done.output
    pages = list((tested.settings.reports / "comparisons").glob("*.html"))
    assert len(pages) == 1
    text = pages[0].read_text()
    assert "aaaa1111" in text
    assert "training.batch_<wbr>size" in text


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_export_holds_the_stored_returns(tested, tmp_path, ending) -> None:
    path = export_path(f"{tmp_path}/found.{ending}")
    assert path is not None
    with tested.warehouse.connect() as con:
        files = export_backtest(con, "bbbb2222", "data1", path)
        stored = con.execute(
            "SELECT strategy, net_return FROM backtest_returns WHERE checkpoint = 'bbbb2222' ORDER BY strategy, date"
        ).fetchall()
    read = pl.read_csv if ending == "csv" else pl.read_parquet
    assert read(files[0]).select("strategy", "net_return").rows() == stored
    assert files[1].name == f"found-decisions.{ending}"
    for wrong in ("found.xlsx", f"{tmp_path}/nowhere/found.csv"):
        with pytest.raises(FinJEPAError):
            export_path(wrong)
