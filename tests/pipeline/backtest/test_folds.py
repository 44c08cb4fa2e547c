"""Blocks of a checkpoint and folds in time: no session is judged that a model learned from or near, whatever panel it meets."""

import json
import re
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from handmade_panel import noise, write_panel
from handmade_setup import config_for, setup_of, write_lineage
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import BatchSource
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import EMBARGO, checkpoint_splits, history_needed, shortest_block, split_dates, unseen
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest import audit
from finjepa_pipeline.backtest.assets import WalkForwardConfig
from finjepa_pipeline.backtest.blocks import BacktestBlock, StrategiesConfig, backtest_blocks, pending_blocks
from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.backtest.leaderboard import build_leaderboard, leaderboard_rows
from finjepa_pipeline.backtest.metrics import annual_return
from finjepa_pipeline.backtest.results import BlockKey, write_block
from finjepa_pipeline.backtest.strategies import Cash, one_over_n
from finjepa_pipeline.backtest.walk_forward import fold_blocks, make_plan, pool, record_opening, store_fold
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse, migrate

CONFIG = FinJEPAConfig().override(
    {"model.window": "24", "model.stride": "5", "training.n_assets": "3", "training.batch_size": "8"}
)


@pytest.mark.parametrize("scheme", ["expanding", "rolling"])
@pytest.mark.parametrize(("sessions", "count", "held_back"), [(4000, 5, 504), (1250, 3, 100)])
def test_blocks_follow_each_other_with_a_gap_and_leave_the_last_one_alone(tmp_path, scheme, sessions, count, held_back):
    panel = write_panel(tmp_path, noise(sessions, 3))
    plan = make_plan(panel, CONFIG, count=count, scheme=scheme, held_back=held_back)
    purge = CONFIG.model.stride * (CONFIG.loss.rollout_steps + 1) + 1
    assert len(plan.folds) == count
    for fold in plan.folds:
        assert fold.validation[0] - fold.train[1] >= max(purge, EMBARGO)
        assert fold.test[0] - fold.validation[1] >= max(purge, EMBARGO)
        assert fold.test[1] <= plan.held_back[0] == sessions - held_back
        assert split_dates(sessions, fold.config).train == fold.train  # what the trainer will do
    for before, after in zip(plan.folds[:-1], plan.folds[1:], strict=True):
        assert before.test[1] <= after.test[0] + 1
        assert after.train[1] > before.train[1]
    assert plan.folds[-1].test[1] == sessions - held_back
    rolled = plan.folds[-1].train[0] > 0
    assert rolled == (scheme == "rolling" and plan.folds[-1].train[1] > 8 * 252)


def test_a_plan_is_named_after_what_makes_it(tmp_path):
    panel = write_panel(tmp_path, noise(1500, 3))
    names = {
        make_plan(panel, config, count=count, scheme="expanding", held_back=held).name
        for config in (CONFIG, CONFIG.override({"training.seed": "1"}))
        for count, held in ((2, 100), (3, 100), (2, 50))
    }
    assert len(names) == 6


@pytest.mark.parametrize(("sessions", "count", "held_back"), [(600, 40, 60), (900, 3, 800), (1250, 30, 100)])
def test_each_way_out_of_folds_that_are_too_many_is_one(tmp_path, sessions, count, held_back):
    panel = write_panel(tmp_path, noise(sessions, 3))
    asked = {"count": count, "scheme": "expanding", "held_back": held_back}
    with pytest.raises(FinJEPAError, match="too few for") as error:
        make_plan(panel, CONFIG, **asked)
    ways = re.findall(r"--(folds|held-back) (\d+)", str(error.value))
    assert ways
    for option, value in ways:
        key = "count" if option == "folds" else "held_back"
        plan = make_plan(panel, CONFIG, **asked | {key: int(value)})
        assert all(fold.test[1] - fold.test[0] >= shortest_block(CONFIG) for fold in plan.folds)


def test_symbols_that_training_never_sees_are_in_no_batch(tmp_path):
    panel = write_panel(tmp_path, noise(700, 12))
    config = CONFIG.override({"training.unseen_symbols": "0.4"})
    hidden_A = np.array([unseen(symbol, 0.4) for symbol in panel.assets])
    assert 0 < hidden_A.sum() < 12
    source = BatchSource(panel, config, split_dates(700, config).train)
    drawn = np.unique(np.concatenate([source.sampler.batch(step)[1].ravel() for step in range(30)]))
    assert not hidden_A[drawn].any()
    assert set(drawn) == set(np.flatnonzero(~hidden_A))
    plan = make_plan(panel, config, count=1, scheme="expanding", held_back=50)
    blocks = {block.name: block for block in fold_blocks(panel, plan.folds[0])}
    np.testing.assert_array_equal(blocks["unseen_symbols"].allowed, hidden_A)


def test_the_test_blocks_of_a_plan_are_chained_as_one_life(tmp_path):
    panel = write_panel(tmp_path, noise(900, 4, seed=3))
    plan = make_plan(panel, CONFIG, count=2, scheme="expanding", held_back=50)
    con = duckdb.connect()
    migrate(con)
    version = panel.manifest["data_version"]
    lived = []
    for k, fold in enumerate(plan.folds):
        setup = setup_of(panel, block=fold.test, window=34)
        walks = [simulate(one_over_n(), setup), simulate(Cash(), setup)]
        lived.append(walks[0].net_T)
        write_block(con, BlockKey(f"c{k}", version, "test", f"k{k}"), walks)
        for _ in range(2):  # a second run replaces the row
            store_fold(con, panel, plan, fold, f"c{k}")
    pool(con, plan.name)
    [(folds,)] = con.execute("SELECT count(*) FROM walk_forward_folds").fetchall()
    assert folds == 2
    build_leaderboard(con, plan.name, version, labels={"fold": "all folds"})
    row = next(row for row in leaderboard_rows(con, plan.name) if row["strategy"] == "equal_weight")
    assert row["n_days"] == sum(map(len, lived))
    assert row["annual_return"] == pytest.approx(annual_return(np.concatenate(lived)))
    assert row["fold"] == "all folds"
    query = "SELECT wealth FROM backtest_returns WHERE checkpoint = ? AND strategy = 'equal_weight' ORDER BY date DESC"
    wealth = con.execute(query, [plan.name]).fetchall()
    assert wealth[0][0] == pytest.approx(np.prod(1 + np.concatenate(lived)))
    assert record_opening(con, panel, plan, "c1", "run") == 1
    assert record_opening(con, panel, plan, "c1", "run") == 2


def test_the_config_of_a_walk_forward_names_its_strategies(tmp_path, monkeypatch):
    """With the utility that was asked for; an unknown name is refused."""
    mine = tmp_path / "mine.py"
    mine.write_text("def decide(view):\n    return None\n")
    monkeypatch.setenv("FINJEPA_STRATEGIES", str(tmp_path))
    asked = {"planner": "mppi", "utility": "log_growth - 5*variance", "n_assets": 7}
    config = WalkForwardConfig(controls="ewma", strategies=[f"{mine}:decide"], **asked)
    names = list(config.tested("test"))
    planner = "mppi | log_growth - 5*variance"
    assert {planner, f"{planner} with ewma", "equal_weight", "momentum_60"} < set(names)
    assert names[-1].startswith("mine:decide@")
    assert f"{planner} with ewma" not in config.tested("validation")
    with pytest.raises(FinJEPAError, match="nobody"):
        WalkForwardConfig(controls="nobody").tested("test")


DAYS, ASSETS, FIRST = 900, 4, np.datetime64("2010-01-01")
CHECKPOINT = config_for(ASSETS)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home, the panel that a checkpoint was trained on, and its folder."""
    home = Settings(home=tmp_path_factory.mktemp("home")).ensure()
    panel = panel_of(home.panels / f"hand-made-{DAYS}x{ASSETS}", FIRST + np.arange(DAYS))
    write_lineage(home.checkpoints / "trained", CHECKPOINT, panel)
    return home, panel, home.checkpoints / "trained"


def panel_of(folder, dates_D: np.ndarray, assets: int = ASSETS, data_version: str = "first") -> Panel:
    return write_panel(folder, noise(len(dates_D), assets), dates_D=dates_D, data_version=data_version)


def changed(first: int, last: int, every: int) -> np.ndarray:
    """Another calendar: it begins and ends so many days after the old one, and leaves out every so many'th day."""
    dates_D = FIRST + np.arange(first, DAYS + last)
    return np.delete(dates_D, np.s_[every - 1 :: every])


# prepend or drop at the front, append or drop at the end, sessions of another exchange, more or fewer symbols
CALENDARS = st.tuples(st.integers(-1500, 850), st.integers(-850, 1500), st.integers(2, 40))


@settings(max_examples=25, deadline=None)
@given(CALENDARS, st.integers(3, 7))
def test_no_session_that_was_trained_on_judges_whatever_is_added_or_dropped(tmp_path_factory, home, calendar, assets):
    _, trained, checkpoint = home
    own = split_dates(DAYS, CHECKPOINT).dates(trained.dates)
    dates_D = changed(*calendar)
    assume(len(dates_D) > 30)
    panel = panel_of(tmp_path_factory.mktemp("panel"), dates_D, assets, "later")
    begins = max(np.searchsorted(dates_D, np.datetime64(own["test"][0])), history_needed(CHECKPOINT) - 1)
    if len(dates_D) - begins < shortest_block(CHECKPOINT):
        with pytest.raises(FinJEPAError, match=r"to be tested on.*; ingest newer prices, or train again"):
            backtest_blocks(checkpoint, panel)
        return
    blocks = {block.name: block for block in backtest_blocks(checkpoint, panel)}
    days = {name: panel.dates[block.start : block.stop] for name, block in blocks.items()}
    assert days["test"][0] > np.datetime64(own["validation"][1]) + EMBARGO
    assert days["test"][-1] == panel.dates[-1]  # everything after validation
    if "validation" in days:
        assert days["validation"][0] > np.datetime64(own["train"][1]) + EMBARGO
        assert days["validation"][-1] <= np.datetime64(own["validation"][1])
    train = checkpoint_splits(checkpoint, panel).train
    assert set(panel.dates[slice(*train)]) <= set(trained.dates[slice(*split_dates(DAYS, CHECKPOINT).train)])


@pytest.mark.parametrize("shares", [{}, {"train_share": 0.6, "validation_share": 0.2}])
def test_the_blocks_on_the_panel_of_the_training_are_those_of_the_training(tmp_path, shares):
    config = replace(CHECKPOINT, training=replace(CHECKPOINT.training, **shares))
    panel = panel_of(tmp_path / "p", FIRST + np.arange(DAYS))
    write_lineage(tmp_path / "c", config, panel)
    assert checkpoint_splits(tmp_path / "c", panel) == split_dates(DAYS, config)


def test_a_block_that_holds_sessions_of_the_training_is_refused_before_anybody_walks(home):
    settings, panel, checkpoint = home
    splits = split_dates(DAYS, CHECKPOINT)
    warehouse = Warehouse.from_settings(settings)
    for block in (BacktestBlock("validation", splits.train[1] - 5, DAYS), BacktestBlock("test", *splits.validation)):
        with pytest.raises(FinJEPAError, match=f"the {block.name} block begins on .* may be tested from"):
            pending_blocks(warehouse, checkpoint, panel, StrategiesConfig(), [block])


def test_an_ensemble_is_judged_after_what_each_of_its_members_saw(home, tmp_path):
    """A member that was trained on later sessions forecasts what it has seen."""
    settings, panel, checkpoint = home
    later = panel_of(tmp_path / "later", FIRST + np.arange(2 * DAYS), data_version="later")
    write_lineage(settings.checkpoints / "later", CHECKPOINT, later)
    wanted = StrategiesConfig(planner="mppi", utility="log_growth - disagreement('later')")
    with pytest.raises(FinJEPAError, match="later may be tested from"):
        pending_blocks(Warehouse.from_settings(settings), checkpoint, panel, wanted, backtest_blocks(checkpoint, panel))


def test_an_audit_is_held_on_the_same_test_block(home, tmp_path):
    _, _, checkpoint = home
    longer = panel_of(tmp_path / "longer", FIRST + np.arange(-400, DAYS), data_version="later")
    (tmp_path / "mine.py").write_text("def decide(view):\n    return None\n")
    product, _ = audit._opened(checkpoint, longer.folder, f"{tmp_path}/mine.py:decide")
    setup = product.setup(longer)
    assert setup.decisions[0] == 400 + split_dates(DAYS, CHECKPOINT).test[0]
    synthetic = panel_of(tmp_path / "synthetic", FIRST + np.arange(DAYS))  # nothing was trained on it
    assert product.setup(synthetic).decisions[0] == split_dates(DAYS, CHECKPOINT).test[0]


@pytest.mark.parametrize("blocks", ["missing", {}, {"train": ["x", "y"]}, None])
def test_a_lineage_without_dates_is_one_line(home, tmp_path, blocks):
    _, panel, _ = home
    write_lineage(tmp_path, CHECKPOINT, panel)
    file = tmp_path / "lineage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"blocks": blocks}))
    if blocks == "missing":
        file.unlink()
    with pytest.raises(FinJEPAError, match=r"it is not known on which sessions .*; train it again"):
        backtest_blocks(tmp_path, panel)
