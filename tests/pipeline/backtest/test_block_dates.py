"""A checkpoint's blocks are dates: whatever panel it meets later, no session that it was trained on judges it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from handmade_panel import noise, write_panel
from handmade_setup import config_for, write_lineage
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import (
    EMBARGO,
    checkpoint_splits,
    history_needed,
    shortest_block,
    split_dates,
)
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest import audit
from finjepa_pipeline.backtest.blocks import BacktestBlock, StrategiesConfig, backtest_blocks, pending_blocks
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

DAYS, ASSETS, FIRST = 900, 4, np.datetime64("2010-01-01")
CONFIG = config_for(ASSETS)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home, the panel that a checkpoint was trained on, and its folder."""
    home = Settings(home=tmp_path_factory.mktemp("home")).ensure()
    panel = panel_of(home.panels / f"hand-made-{DAYS}x{ASSETS}", FIRST + np.arange(DAYS))
    write_lineage(home.checkpoints / "trained", CONFIG, panel)
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
    own = split_dates(DAYS, CONFIG).dates(trained.dates)
    dates_D = changed(*calendar)
    assume(len(dates_D) > 30)
    panel = panel_of(tmp_path_factory.mktemp("panel"), dates_D, assets, "later")
    begins = max(np.searchsorted(dates_D, np.datetime64(own["test"][0])), history_needed(CONFIG) - 1)
    if len(dates_D) - begins < shortest_block(CONFIG):
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
    assert set(panel.dates[slice(*train)]) <= set(trained.dates[slice(*split_dates(DAYS, CONFIG).train)])


@pytest.mark.parametrize("shares", [{}, {"train_share": 0.6, "validation_share": 0.2}])
def test_the_blocks_on_the_panel_of_the_training_are_those_of_the_training(tmp_path, shares):
    config = replace(CONFIG, training=replace(CONFIG.training, **shares))
    panel = panel_of(tmp_path / "p", FIRST + np.arange(DAYS))
    write_lineage(tmp_path / "c", config, panel)
    assert checkpoint_splits(tmp_path / "c", panel) == split_dates(DAYS, config)


def test_a_block_that_holds_sessions_of_the_training_is_refused_before_anybody_walks(home):
    settings, panel, checkpoint = home
    splits = split_dates(DAYS, CONFIG)
    warehouse = Warehouse.from_settings(settings)
    for block in (BacktestBlock("validation", splits.train[1] - 5, DAYS), BacktestBlock("test", *splits.validation)):
        with pytest.raises(FinJEPAError, match=f"the {block.name} block begins on .* may be tested from"):
            pending_blocks(warehouse, checkpoint, panel, StrategiesConfig(), [block])


def test_an_ensemble_is_judged_after_what_each_of_its_members_saw(home, tmp_path):
    """A member that was trained on later sessions forecasts what it has seen."""
    settings, panel, checkpoint = home
    later = panel_of(tmp_path / "later", FIRST + np.arange(2 * DAYS), data_version="later")
    write_lineage(settings.checkpoints / "later", CONFIG, later)
    wanted = StrategiesConfig(planner="mppi", utility="log_growth - disagreement('later')")
    with pytest.raises(FinJEPAError, match="later may be tested from"):
        pending_blocks(Warehouse.from_settings(settings), checkpoint, panel, wanted, backtest_blocks(checkpoint, panel))


def test_an_audit_is_held_on_the_same_test_block(home, tmp_path):
    _, _, checkpoint = home
    longer = panel_of(tmp_path / "longer", FIRST + np.arange(-400, DAYS), data_version="later")
    (tmp_path / "mine.py").write_text("def decide(view):\n    return None\n")
    product, _ = audit._opened(checkpoint, longer.folder, f"{tmp_path}/mine.py:decide")
    setup = product.setup(longer)
    assert setup.decisions[0] == 400 + split_dates(DAYS, CONFIG).test[0]
    synthetic = panel_of(tmp_path / "synthetic", FIRST + np.arange(DAYS))  # nothing was trained on it
    assert product.setup(synthetic).decisions[0] == split_dates(DAYS, CONFIG).test[0]


@pytest.mark.parametrize("blocks", ["missing", {}, {"train": ["x", "y"]}, None])
def test_a_lineage_without_dates_is_one_line(home, tmp_path, blocks):
    _, panel, _ = home
    write_lineage(tmp_path, CONFIG, panel)
    file = tmp_path / "lineage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"blocks": blocks}))
    if blocks == "missing":
        file.unlink()
    with pytest.raises(FinJEPAError, match=r"it is not known on which sessions .*; train it again"):
        backtest_blocks(tmp_path, panel)
