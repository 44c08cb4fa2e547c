"""A home with a champion in it: a small real world model, a leaderboard and backtest returns, with no pipeline run."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model import hub as client
from finjepa_model.config import FinJEPAConfig, LossConfig, ModelConfig
from finjepa_pipeline.backtest.results import BEFORE_THE_GATE
from finjepa_pipeline.publishing.gate import Champion, Verdict, current_champion, judge
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.lineage import made_with
from finjepa_pipeline.warehouse import Warehouse, insert, now
from tests.hub_lookalike import HubLookalike
from tests.model.test_risk import market
from tests.pipeline.backtest.handmade_panel import write_panel

DATA = {"data_version": "data1", "feed": "sample", "source": "sample", "rows": 1000, "last_date": "2022-12-28"}
BLOCKS = {
    "train": ["2000-01-03", "2014-11-28"],
    "validation": ["2015-01-01", "2019-11-29"],
    "test": ["2020-01-02", "2022-12-28"],
}


class Home:
    """FINJEPA_HOME for tests of publishing."""

    def __init__(self, folder: Path):
        self.settings = Settings(home=folder).ensure()
        self.warehouse = Warehouse.from_settings(self.settings)
        with self.warehouse.connect() as con:
            for version in ("data1", "data2"):
                self.add_prices(con, version)

    @staticmethod
    def add_prices(con, data_version: str, *, broken: bool = False) -> None:
        """A revision of prices whose contract holds, or does not."""
        outcome = {"column": "moved_symbols", "severity": "critical", "success": not broken}
        con.execute(
            "INSERT INTO revisions BY NAME SELECT 1 AS revision, ? AS data_version, ? AS outcomes_json",
            [data_version, json.dumps([outcome])],
        )

    def add_checkpoint(
        self, name: str, *, seed: int = 0, collapsed: bool = False, level: float = 0.0, model: FinJEPA | None = None
    ) -> Path:
        """A checkpoint whose forecasts of log volatility are off by `level`."""
        torch.manual_seed(seed)
        config = FinJEPAConfig(
            model=ModelConfig(channels=("log_return",), dim=8, heads=2, predictor_layers=1),
            loss=LossConfig(sigreg_slices=8),
        )
        model = model or FinJEPA(config)
        model.risk.level_JV[-1] += level
        config, folder = model.config, self.settings.checkpoints / name
        model.save_pretrained(folder)
        made = made_with() | {"config": config.to_dict(), "seed": seed, "data": DATA, "blocks": BLOCKS, "build": {}}
        made |= {"panel_hash": "panel1", "device": "cpu", "dagster": {"run_id": None}}
        diagnostics = {"effective_rank_assets": 5.0, "effective_rank_market": 4.0, "collapsed": collapsed}
        for file, content in {
            "normalization.json": {"channels": [{"name": channel} for channel in config.model.channels]},
            "metrics.json": {"validation": {"loss": 1.0}, "diagnostics": diagnostics, "training": {}},
            "lineage.json": made,
        }.items():
            (folder / file).write_text(json.dumps(content))
        (folder / "README.md").write_text("not released yet\n")
        return folder

    def add_backtest(
        self,
        checkpoint: str,
        mean: float,
        *,
        days: int = 300,
        strategy: str = "finjepa_cem",
        data_version: str = "data1",
        audited: bool = True,
    ) -> None:
        """Returns of a planner with this daily mean, of 1/N beside it, a leaderboard of both blocks, and a trial."""
        if audited:
            self.add_audit(checkpoint, strategy)
        noise_T = np.random.default_rng(7).normal(0, 0.01, days)
        noise_T -= noise_T.mean()
        key = {"checkpoint": checkpoint, "data_version": data_version, "setup": f"setup-{checkpoint}"}
        span = {"start_date": date(2020, 1, 2), "end_date": date(2022, 12, 28), "created_at": now()}
        nothing = {"cost": 0.0, "turnover": 0.0, "wealth": 1.0, "hedge": False}
        with self.warehouse.connect() as con:
            for name, level in ((strategy, mean), ("equal_weight", 0.0)):
                mine = key | {"strategy": name}
                returns = {
                    "date": np.datetime64("2015-01-01") + np.arange(days),
                    "gross_return": noise_T + level,
                    "net_return": noise_T + level,
                }
                insert(con, "backtest_returns", mine | {"block": "validation"} | nothing, returns)
                trial = {"block": ["validation"], "excess_sharpe": [0.1], "n_days": [days], "created_at": [now()]}
                insert(con, "backtest_trials", mine, trial)
                excess = (0.1, -0.2, 0.4) if name == strategy else (0.0, 0.0, 0.0)
                numbers = {"sharpe": 0.8, "sharpe_low": -0.1, "sharpe_high": 1.7, "annual_return": 0.1, "n_days": 750}
                numbers |= {"annual_volatility": 0.15, "max_drawdown": -0.2, "annual_turnover": 1.5}
                numbers |= dict(zip(("excess_sharpe", "excess_low", "excess_high"), excess, strict=True))
                insert(con, "leaderboard", mine | span | numbers, {"block": ["validation", "test"]})

    def add_audit(self, checkpoint: str, strategy: str = "finjepa_cem", **failed: str) -> None:
        """A trial before the gate that it passed, save for the tests that are named with what was found."""
        with self.warehouse.connect() as con:
            key = {"checkpoint": checkpoint, "strategy": strategy, "data_version": "data1", "run_id": "run1"}
            found = {
                "test": list(BEFORE_THE_GATE),
                "passed": [test not in failed for test in BEFORE_THE_GATE],
                "finding": [failed.get(test, "sound") for test in BEFORE_THE_GATE],
            }
            insert(con, "audit_results", key | {"created_at": now()}, found)

    def judge(self, checkpoint: str, data_version: str = "data1", write: bool = True) -> Verdict:
        """The gate, on a made market whose sessions are days from 2014 to April 2016."""
        returns_DA, _ = market()
        dates_D = np.datetime64("2014-01-01") + np.arange(850)
        folder = self.settings.panels / data_version
        panel = write_panel(folder, returns_DA[:850, :8], dates_D=dates_D, data_version=data_version)
        return judge(self.settings, self.warehouse, self.settings.checkpoints / checkpoint, panel, write)

    def promote(self, checkpoint: str, planner: str = "mppi", when: str = "2020-01-01 00:00:00") -> None:
        """As if the gate had let a checkpoint pass, at a moment in UTC."""
        with self.warehouse.connect() as con:
            con.execute(
                """INSERT INTO champions BY NAME SELECT ? AS checkpoint, 'data1' AS data_version, 'promoted' AS verdict,
                'it won' AS reasons, ? AS strategy, ?::TIMESTAMP AS created_at""",
                [checkpoint, planner, when],
            )

    @property
    def champion(self) -> Champion:
        with self.warehouse.connect() as con:
            champion = current_champion(con)
        assert champion is not None
        return champion

    def rows(self, query: str) -> list[tuple]:
        with self.warehouse.connect() as con:
            return con.execute(query).fetchall()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def champion_home(home: Home) -> Home:
    """A home in which the checkpoint `aaaa` is the champion."""
    home.add_checkpoint("aaaa")
    home.add_backtest("aaaa", 0.0005)
    assert home.judge("aaaa").verdict == "promoted"
    return home


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubLookalike]:
    """The look-alike, with the client of this process pointed at it and without pauses between its attempts."""
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=lambda seconds: None))
    with HubLookalike() as server:
        server.patch(monkeypatch, tmp_path)
        yield server
