"""Two commands on one home: a run works on what it ingested in every step, or ends with the names of both feeds."""

import json
from types import SimpleNamespace

import dagster as dg
import pytest

from finjepa_model import FinJEPA
from finjepa_model.data.panel import Panel
from finjepa_pipeline.backtest import assets as backtest
from finjepa_pipeline.backtest.audit import ChallengerAudit
from finjepa_pipeline.features import assets as features
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices import assets as prices
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.publishing import assets as publishing
from finjepa_pipeline.publishing.gate import Verdict
from finjepa_pipeline.runs import made_in_run
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.training import assets as training
from finjepa_pipeline.training.lineage import lineage_of_run
from finjepa_pipeline.warehouse import Warehouse
from tests.pipeline.prices.frames import prices as frame


@dg.asset(deps=["planner_backtests"])
def leaderboard() -> None:
    """Has no part in this but its place between the others."""


ASSETS = [
    prices.ingest_prices, prices.derive_prices, features.feature_panel, training.world_model,
    training.risk_scorecard,
    backtest.planner_backtests, leaderboard, publishing.challenger_audit, publishing.champion, publishing.daily_decision,
]  # fmt: skip


class Home:
    """A home, the folders of prices A and B, and what the steps of a run on A have worked on."""

    def __init__(self, folder, monkeypatch):
        self.settings = Settings(home=folder / "home").ensure()
        self.warehouse = Warehouse.from_settings(self.settings)
        self.source = {}
        for name, seed in (("A", 0), ("B", 1)):
            (folder / name).mkdir()
            frame(days=400, seed=seed).write_parquet(folder / name / "p.parquet")
            self.source[name] = PriceSourceConfig(data_source="files", path=str(folder / name))
        self.used: list[str] = []
        self.lineage: dict = {}
        self.before: dict[str, list] = {}
        self.monkeypatch = monkeypatch
        self.wrap(prices, "derive")
        self.wrap(features, "build_panel")
        self.replace(training, "train_in_step", self.trained)
        self.replace(training, "score_checkpoint", self.scored)
        monkeypatch.setattr(FinJEPA, "from_pretrained", lambda folder: None)
        self.replace(backtest, "run_backtests", self.tested)
        self.replace(publishing, "audit_challenger", self.audited)
        self.replace(publishing, "judge", self.judged)

    def wrap(self, module, name: str) -> None:
        self.replace(module, name, getattr(module, name))

    def replace(self, module, name: str, function) -> None:
        """`function` in the place of a step's work, after what another command is to do before it."""

        def after(*args, **kwargs):
            for other in self.before.pop(name, []):
                other()
            return function(*args, **kwargs)

        self.monkeypatch.setattr(module, name, after)

    def ingest(self, name: str) -> None:
        ingest(self.warehouse, self.settings, self.source[name])

    def whole(self, name: str) -> None:
        """Prices, panel and a newest checkpoint of another source."""
        self.ingest(name)
        derive(self.warehouse, UniverseConfig())
        with self.warehouse.connect() as con:
            build_panel(con, self.settings)
        self.checkpoint("other")

    def checkpoint(self, name: str):
        folder = self.settings.checkpoints / name
        folder.mkdir(exist_ok=True)
        monitors = {"diagnostics": {"collapsed": False, "collapse": 0.0}, "validation": {"loss": 1.0}}
        speed = {"steps": 1, "seconds": 1.0, "device": "cpu"}
        (folder / "metrics.json").write_text(json.dumps(monitors | {"training": speed}))
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_text("{}")
        (self.settings.checkpoints / "current.json").write_text(json.dumps({"checkpoint": name}))
        return folder

    def saw(self, panel: Panel, checkpoint: str = "mine") -> None:
        self.used.append(f"{panel.manifest['feed']} {checkpoint}")

    def trained(self, context, home, warehouse, panel, config, where, **_):
        self.saw(panel)
        self.lineage = lineage_of_run(context, warehouse, panel, config, where)
        folder = self.checkpoint("mine")
        (folder / "lineage.json").write_text(json.dumps(self.lineage))
        return folder, False

    def scored(self, settings, folder, panel):
        self.saw(panel, folder.name)
        return {"scores": [], "left_out": [], "dates": {}}, folder / "risk.html"

    def tested(self, warehouse, home, checkpoint, panel, backtest, log):
        self.saw(Panel.open(panel), checkpoint.name)
        return {"rows": 0, "blocks": {}, "computed": 1}

    def audited(self, settings, warehouse, checkpoint, panel, run_id, log):
        self.saw(Panel.open(panel), checkpoint.name)
        return ChallengerAudit(None, {}, ())

    def judged(self, settings, warehouse, checkpoint, panel, write):
        self.used.append(f"{panel.manifest['data_version']} {checkpoint.name}")
        return Verdict(checkpoint.name, None, "refused", ())

    def run(self, *keys: str, **ops) -> dg.ExecuteInProcessResult:
        config = (
            {"ingest_prices": {"config": self.source["A"].model_dump(exclude_none=True)}} if "prices" in keys else {}
        )
        return dg.materialize(
            [asset for asset in ASSETS if any(key.to_user_string() in keys for key in asset.keys)],
            resources={"settings": SettingsResource(home=str(self.settings.home)), "warehouse": self.warehouse},
            run_config={"ops": config | {name: {"config": values} for name, values in ops.items()}},
            raise_on_error=False,
        )


@pytest.fixture
def home(tmp_path, monkeypatch):
    return Home(tmp_path, monkeypatch)


TO_THE_MODEL = ("prices", "universe", "feature_panel", "world_model")
WHOLE = (*TO_THE_MODEL, "planner_backtests", "leaderboard", "challenger_audit", "champion")


def _failure(result: dg.ExecuteInProcessResult) -> str:
    [failed] = [event for event in result.all_events if event.is_step_failure]
    return str(failed.step_failure_data.user_failure_data.description)


@pytest.mark.parametrize("step", ["derive", "build_panel"])
def test_a_run_whose_prices_are_no_longer_shown_ends_with_both_names(home, step):
    home.before[step] = [lambda: home.whole("B")]
    said = _failure(home.run(*TO_THE_MODEL))
    assert "/A (" in said
    assert "/B (" in said
    assert "\n" not in said
    assert home.used == []


def test_tables_that_were_derived_of_other_prices_make_no_panel(home):
    home.before["build_panel"] = [lambda: home.whole("B"), lambda: home.ingest("A")]
    assert "not of the prices" in _failure(home.run(*TO_THE_MODEL))


@pytest.mark.parametrize("step", ["train_in_step", "run_backtests", "audit_challenger"])
def test_after_its_panel_a_run_keeps_to_it_whatever_others_do(home, step):
    home.before[step] = [lambda: home.whole("B")]
    result = home.run(*WHOLE)
    assert result.success, _failure(result)
    [feed] = {used.split()[-2] for used in home.used[:-1]}
    assert feed.endswith("/A")
    assert [used.split()[-1] for used in home.used] == ["mine"] * len(home.used)
    assert home.used[-1].split()[0] == home.lineage["data"]["data_version"]
    assert home.lineage["data"]["feed"].endswith("/A")
    assert home.lineage["build"]["source"]["path"].endswith("/A")
    assert home.lineage["data"]["first_date"] is not None
    assert home.lineage["dagster"]["run_id"] == result.run_id
    assert Panel.open(current_panel(home.settings)).manifest["feed"].endswith("/B")  # the other command had its way too


def test_a_decision_on_prices_that_were_named_is_on_them_or_refused(home):
    home.whole("A")
    with home.warehouse.connect() as con:
        mine = current_revision(con)
    home.ingest("B")
    asked = {"prices": {"feed": mine.feed, "data_version": mine.data_version}}
    said = _failure(home.run("daily_decision", daily_decision=asked))
    assert "/A (" in said
    assert "/B (" in said


def test_a_run_that_is_tried_again_goes_on_from_what_its_first_attempt_made():
    @dg.asset
    def feature_panel(context: dg.AssetExecutionContext):
        context.add_output_metadata({"panel": context.run.run_id})

    with dg.instance_for_test() as instance:
        first, _ = (dg.materialize([feature_panel], instance=instance).run_id for _ in range(2))
        of_first = {"parent_run_id": first, "root_run_id": first}
        again = instance.create_run_for_job(dg.job(name="x")(lambda: None), **of_first)
        own = instance.create_run_for_job(dg.job(name="x")(lambda: None))
        made = [made_in_run(SimpleNamespace(run=run, instance=instance), "feature_panel") for run in (again, own)]
    assert made == [{"panel": first}, {}]
