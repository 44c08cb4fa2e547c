"""A home with a champion in it: a small real world model, a leaderboard and backtest returns, with no pipeline run."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from finjepa_model.config import FinJEPAConfig, LossConfig, ModelConfig
from finjepa_pipeline.backtest.charges import BEFORE_THE_GATE
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.lineage import lineage
from finjepa_pipeline.warehouse import Warehouse, sql

if TYPE_CHECKING:
    from finjepa_model import FinJEPA

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
            con.execute(sql("backtest_schema"))
            con.execute(sql("derived_schema").format(temporary=""))
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
        self, name: str, *, seed: int = 0, collapsed: bool = False, model: "FinJEPA | None" = None
    ) -> Path:
        import torch

        from finjepa_model import FinJEPA

        torch.manual_seed(seed)
        config = FinJEPAConfig(
            model=ModelConfig(channels=("log_return",), dim=8, heads=2, predictor_layers=1),
            loss=LossConfig(sigreg_slices=8),
        )
        model = model or FinJEPA(config)
        config, folder = model.config, self.settings.checkpoints / name
        model.save_pretrained(folder)
        made = lineage(config=config.to_dict(), seed=seed, data=DATA, panel_hash="panel1", device="cpu", blocks=BLOCKS)
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
        """Returns of a planner with this daily mean, of 1/N beside it, a leaderboard of the test block, and a trial."""
        if audited:
            self.add_audit(checkpoint, strategy)
        noise_T = np.random.default_rng(7).normal(0, 0.01, days)
        noise_T -= noise_T.mean()
        court = f"court-{checkpoint}"
        with self.warehouse.connect() as con:
            for name, level in ((strategy, mean), ("equal_weight", 0.0)):
                for day, value in enumerate(noise_T + level):
                    row = [
                        checkpoint,
                        name,
                        "validation",
                        date(2015, 1, 1) + timedelta(day),
                        value,
                        value,
                        data_version,
                        court,
                    ]
                    con.execute("INSERT INTO backtest_returns VALUES (?, ?, ?, ?, ?, ?, 0, 0, 1, false, ?, ?)", row)
                con.execute(
                    "INSERT INTO backtest_trials VALUES (?, ?, ?, 'validation', ?, 0.1, ?, now()::TIMESTAMP, NULL, NULL)",
                    [court, checkpoint, name, data_version, days],
                )
                excess = None if name == "equal_weight" else [0.1, -0.2, 0.4]
                con.execute(
                    """INSERT INTO leaderboard BY NAME SELECT $c AS checkpoint, $s AS strategy,
                    unnest(['validation', 'test']) AS block,
                    DATE '2020-01-02' AS start_date, DATE '2022-12-28' AS end_date, 0.8 AS sharpe, -0.1 AS sharpe_low,
                    1.7 AS sharpe_high, 0.1 AS annual_return, 0.15 AS annual_volatility, -0.2 AS max_drawdown,
                    0.02 AS cvar_95, 0.5 AS hit_rate, 1.5 AS annual_turnover, 0.001 AS cost_drag, $e[1] AS excess_sharpe,
                    $e[2] AS excess_low, $e[3] AS excess_high, 750 AS n_days, $d AS data_version, $k AS court,
                    now()::TIMESTAMP AS created_at""",
                    {"c": checkpoint, "s": name, "e": excess or [0.0, 0.0, 0.0], "d": data_version, "k": court},
                )

    def add_audit(self, checkpoint: str, strategy: str = "finjepa_cem", **failed: str) -> None:
        """A trial before the gate that it passed, save for the tests that are named with what was found."""
        with self.warehouse.connect() as con:
            for test in BEFORE_THE_GATE:
                con.execute(
                    """INSERT INTO audit_results BY NAME SELECT $c AS checkpoint, $s AS strategy, 'data1' AS data_version,
                    $t AS test, $p AS passed, $f AS finding, 'run1' AS run_id, now()::TIMESTAMP AS created_at""",
                    {
                        "c": checkpoint,
                        "s": strategy,
                        "t": test,
                        "p": test not in failed,
                        "f": failed.get(test, "sound"),
                    },
                )

    def rows(self, query: str) -> list[tuple]:
        with self.warehouse.connect() as con:
            return con.execute(query).fetchall()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def champion_home(home: Home) -> Home:
    """A home in which the checkpoint `aaaa` is the champion."""
    from finjepa_pipeline.publishing.gate import judge

    folder = home.add_checkpoint("aaaa")
    home.add_backtest("aaaa", 0.0005)
    with home.warehouse.connect() as con:
        assert judge(con, folder, "data1").verdict == "promoted"
    return home
