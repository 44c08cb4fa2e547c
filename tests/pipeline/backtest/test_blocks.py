"""Blocks of a backtest: the same results from several processes, complete or not stored, and a failure counts for nothing."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import compute
from finjepa_pipeline.backtest import blocks
from finjepa_pipeline.backtest.blocks import (
    StrategiesConfig,
    backtest_blocks,
    compute_blocks,
    pending_blocks,
    run_blocks,
)
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts
from finjepa_pipeline.warehouse import Warehouse
from tests.pipeline.backtest.handmade_panel import noise, write_panel
from tests.pipeline.backtest.handmade_setup import config_for, write_lineage

ASSETS = 12
NAMES = {"equal_weight", "momentum_60", "mppi", "mppi with ewma", "mppi with shuffled_actions"}


class Home:
    """An untrained checkpoint on a panel by hand."""

    def __init__(self, folder: Path):
        self.settings = Settings(home=folder, compute="local:1").ensure()
        self.warehouse = Warehouse.from_settings(self.settings)
        config = config_for(ASSETS)
        self.panel = write_panel(self.settings.panels / "p", noise(1400, ASSETS))
        self.checkpoint = self.settings.checkpoints / "c"
        torch.manual_seed(0)
        FinJEPA(config).save_pretrained(self.checkpoint)
        write_lineage(self.checkpoint, config, self.panel)

    def pending(self, **asked) -> list[blocks.PendingBlock]:
        config = StrategiesConfig(n_assets=ASSETS, **{"planner": "mppi", "controls": "none"} | asked)
        spans = [
            blocks.BacktestBlock(block.name, block.start, block.start + 24)
            for block in backtest_blocks(self.checkpoint, self.panel)
        ]
        return pending_blocks(self.warehouse, self.checkpoint, self.panel, config, spans)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    plain = blocks.baselines
    monkeypatch.setattr(blocks, "baselines", lambda: [one for one in plain() if one.name in NAMES])
    return Home(tmp_path / "home")


def test_several_processes_have_the_results_of_one(home):
    pending = home.pending(controls="ewma,shuffled_actions")[1:]  # the test block
    assert len(pickle.dumps(pending[0])) < 5_000  # a task is names and numbers
    several = home.settings.model_copy(update={"compute": "local:2"})
    here, there = (
        next(compute_blocks(settings, pending, lambda line: None))[1] for settings in (home.settings, several)
    )
    for one, other in zip(here, there, strict=True):
        assert repr((one.expectations, one.forecasts)) == repr((other.expectations, other.forecasts))  # with their NaN
        for name, value in (vars(one) | one.replays).items():
            if isinstance(value, np.ndarray):
                same = (vars(other) | other.replays)[name]
                np.testing.assert_array_equal(same, value, err_msg=f"{one.strategy} {name}")
    by_name = {result.strategy: result for result in here}
    assert by_name.keys() == NAMES
    assert not by_name["mppi with ewma"].forecasts
    assert set(by_name["mppi"].forecasts) == {"world_model"}


def test_a_node_that_does_not_see_the_home_fetches_a_copy_once(home, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = Artifacts(str(tmp_path / "store"))
    for folder in (home.panel.folder, home.checkpoint):
        store.put(folder.parent.name, folder.name, folder)
    block = home.pending()[1]
    near = blocks.result_of((block, "mppi"))
    job = pickle.dumps((blocks.result_of, (block, "mppi")))
    home.settings.home.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("FINJEPA_ARTIFACTS", "")  # set by the call, and unset after the test
    for cached in (blocks._setup, blocks._controls):
        cached.cache_clear()
    returned, error = compute._call(job)
    assert not returned
    assert "is not a feature panel" in str(error)
    returned, far = compute._call(job, store.url)
    assert returned
    np.testing.assert_array_equal(far.net_T, near.net_T)
    copies = [path for path in tmp_path.glob("finjepa-artifacts-*/*/*/*") if path.is_dir()]
    assert sorted(path.name for path in copies) == ["c", "p"]


def test_a_backtest_that_was_killed_goes_on_with_the_first_block_that_is_not_complete(home, monkeypatch):
    pending = home.pending()
    assert [block.key.block for block in pending] == ["validation", "test"]
    simulate = blocks.simulate

    def killed_in_the_second(strategy, setup, views):
        if setup.decisions[0] == pending[1].conditions["decisions"][0] and strategy.name == "momentum_60":
            raise KeyboardInterrupt
        return simulate(strategy, setup, views)

    monkeypatch.setattr(blocks, "simulate", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_blocks(home.warehouse, home.settings, pending, lambda line: None)
    monkeypatch.setattr(blocks, "simulate", simulate)
    rest = home.pending()
    assert [(block.key, block.strategies) for block in rest] == [(pending[1].key, pending[1].strategies)]
    assert run_blocks(home.warehouse, home.settings, rest, lambda line: None) == 23 * len(rest[0].strategies)
    assert home.pending() == []


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_strategy_that_fails_is_named_with_its_line_and_counts_for_nothing(home, tmp_path, monkeypatch, fails_at):
    body = "class Mine:\n    calls = 0\n    def decide(self, view):\n        self.calls += 1\n"
    (tmp_path / "mine.py").write_text(f"{body}        return 1 / ({fails_at} - self.calls) and None\n")
    decided, simulate = [], blocks.simulate
    monkeypatch.setattr(
        blocks, "simulate", lambda strategy, *rest: decided.append(strategy) or simulate(strategy, *rest)
    )
    pending = home.pending(strategies=[f"{tmp_path}/mine.py:Mine"])
    with pytest.raises(FinJEPAError, match=r"mine\.py:5: ZeroDivisionError"):
        run_blocks(home.warehouse, home.settings, pending, lambda line: None)
    assert bool(decided) == (fails_at > 1)  # a failure on the first date is found before anything is computed
    with home.warehouse.connect() as con:
        assert con.execute("SELECT strategy FROM backtest_trials").fetchall() == []


def test_baselines_are_computed_once_a_home_and_are_the_same_for_every_checkpoint(home, monkeypatch):
    run_blocks(home.warehouse, home.settings, home.pending(), lambda line: None)
    first = home.checkpoint
    home.checkpoint = home.settings.checkpoints / "other"
    torch.manual_seed(1)
    config = config_for(ASSETS)
    FinJEPA(config).save_pretrained(home.checkpoint)
    write_lineage(home.checkpoint, config, home.panel)
    pending = home.pending()
    assert [set(block.strategies) for block in pending] == [{"mppi"}, {"mppi"}]
    run_blocks(home.warehouse, home.settings, pending, lambda line: None)
    assert home.pending() == []
    columns = "block, strategy, date, net_return, cost, turnover, wealth"
    with home.warehouse.connect() as con:
        mine, theirs = (
            con.execute(
                f"SELECT {columns} FROM backtest_returns WHERE checkpoint = ? AND strategy <> 'mppi' ORDER BY ALL",
                [name],
            ).fetchall()
            for name in (home.checkpoint.name, first.name)
        )
        replays = con.execute("SELECT checkpoint, count(*) FROM backtest_replays GROUP BY ALL ORDER BY ALL").fetchall()
    assert mine == theirs != []
    assert replays[0][1] == replays[1][1]
    monkeypatch.setattr(blocks, "PROTOCOL", 0)  # under other conditions nothing is taken over
    assert all("equal_weight" in block.strategies for block in home.pending())
