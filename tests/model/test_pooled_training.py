"""One model of several markets: it learns from all of them, up to the last day of its own training block."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finjepa_model.data.splits import learned_blocks, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.trainer import Trainer
from finjepa_pipeline.training.checkpoints import for_panel
from tests.model.training_runs import run_config
from tests.pipeline.backtest.handmade_panel import write_panel

SESSIONS = 300


def _market(folder, seed, channels, later=1.0):
    """Assets of different volatility; from the last training day of the first panel on, returns are multiplied."""
    random = np.random.default_rng(seed)
    returns_DA = random.normal(0, np.linspace(0.01, 0.03, 9), (SESSIONS, 9))
    returns_DA[split_dates(SESSIONS, run_config()).train[1] :] *= later
    return write_panel(folder, returns_DA, features_DAF=random.standard_normal((SESSIONS, 9, channels)))


def _trained(folder, **market):
    panel = _market(folder / "own", 0, 2)
    _market(folder / "further", 1, 3, **market)
    config = for_panel(run_config(panels=("further",), epochs=1), panel)
    assert config.model.channels == ("channel_0", "channel_1", "channel_2")
    trainer = Trainer(config, panel, folder / "run")
    trainer.train()
    return trainer


def test_a_pooled_training_sees_no_session_after_its_own_training_block(tmp_path):
    one, other = (_trained(tmp_path / name, later=later) for name, later in (("one", 1.0), ("other", 5.0)))
    state, same = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    drawn = {id(source) for source in one.source.sources if len(source.sampler.index)}
    assert len(drawn) == 2
    alone = Trainer(replace(one.config, training=replace(one.config.training, panels=())), one.panel, tmp_path / "run")
    alone.train()
    assert not all(torch.equal(state[name], x) for name, x in alone.model.state_dict().items())


def test_a_panel_that_is_not_there_or_begins_too_late_is_refused_in_one_line(tmp_path):
    panel = _market(tmp_path / "own", 0, 2)
    with pytest.raises(FinJEPAError, match=r"no panel 'gone' in .*; there are own"):
        learned_blocks(panel, run_config(panels=("gone",)))
    late = np.datetime64("2020-01-01") + np.arange(200, 200 + SESSIONS)
    write_panel(tmp_path / "late", np.full((SESSIONS, 9), 0.01), dates_D=late)
    with pytest.raises(FinJEPAError, match=r"late has \d+ sessions up to 2020-07-\d\d"):
        learned_blocks(panel, run_config(panels=("late",)))
