"""What is judged as tasks is what is judged here, to the bit; and a task is told names and numbers, never a panel."""

import pickle
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from finjepa_model.errors import FinJEPAError
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.artifacts import Artifacts, files_of
from finjepa_pipeline.backtest.docket import Docket
from finjepa_pipeline.backtest.evaluate import Hearing, _judge_here
from finjepa_pipeline.backtest.store import Case
from finjepa_pipeline.scale.walks import REPLAYS, Sitting, Tasks, forecast_one, replay_one, walk_one
from tests.pipeline.backtest.handmade_court import config_for, court_over_test_block
from tests.pipeline.backtest.handmade_panel import noise, write_panel

DAYS, ASSETS = 1400, 12
NAMES = ("equal_weight", "momentum_60", "mppi", "ewma", "shuffled_actions")


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("home")
    config = config_for(ASSETS)
    panel = write_panel(folder / "panels" / "p", noise(DAYS, ASSETS))
    torch.manual_seed(0)
    FinJEPA(config).save_pretrained(folder / "checkpoints" / "c")
    court = court_over_test_block(panel, config, 24, overnight=np.zeros(len(panel.returns)) + 1e-4)
    docket = Docket(planners=("mppi",), controls=("ewma", "shuffled_actions"), n_assets=ASSETS, fill="open")
    return Hearing(Case("c", "data", "test", "mark"), folder / "checkpoints" / "c", docket, court, NAMES)


def test_tasks_find_what_is_found_here(hearing):
    ((_, here),) = _judge_here([hearing], lambda line: None)
    told = pickle.loads(pickle.dumps(Sitting.of(hearing, None)))
    overnight = hearing.court.overnight
    found = [walk_one(told, overnight, name) for name in reversed(NAMES)][::-1]  # in whatever order they come
    for (walked, expected), mine in zip(found, here.walks, strict=True):
        for name, value in vars(mine).items():
            np.testing.assert_array_equal(getattr(walked, name), value, err_msg=f"{mine.strategy} {name}")
        assert (expected is not None) == (mine.strategy in here.expectations)
    replays = [replay_one(told, overnight, level, *found) for level in REPLAYS]
    replayed = {name: array for one in replays for name, array in one.items()}
    assert list(replayed) == list(here.replays)
    for name, array in here.replays.items():
        np.testing.assert_array_equal(replayed[name], array)
    for name, quality in here.forecasts.items():
        assert repr(forecast_one(told, overnight, name)) == repr(quality)  # NaN equals NaN
    assert np.isfinite(here.forecasts["ewma"]["ic"].mean)


def test_a_task_is_told_names_and_numbers(hearing):
    panel_bytes = sum(file.stat().st_size for file in hearing.court.panel.folder.iterdir())
    told = len(pickle.dumps((Sitting.of(hearing, "s3://bucket/prefix"), "equal_weight")))
    assert told < 5_000
    assert told < panel_bytes / 100


def test_what_hearings_share_is_stored_once(hearing):
    ray = MagicMock()
    tasks = Tasks(ray)
    for block in ("validation", "test"):
        tasks.of(replace(hearing, case=replace(hearing.case, block=block)), Sitting.of(hearing, None))
    stored = [call.args[0] for call in ray.put.call_args_list]
    assert sum(one is hearing.court.overnight for one in stored) == 1


def test_who_walks_longest_begins_first_and_is_told_in_the_order_of_the_hearing(hearing):
    tasks = Tasks(MagicMock())
    tasks._walk = MagicMock()
    tasks._walk.remote.side_effect = lambda here, overnight, name: name
    walks, _, _ = tasks.of(hearing, Sitting.of(hearing, None))
    begun = [call.args[-1] for call in tasks._walk.remote.call_args_list]
    assert begun == ["mppi", "ewma", "shuffled_actions", "equal_weight", "momentum_60"]
    assert list(walks.items()) == [(name, name) for name in NAMES]


def test_a_node_that_does_not_see_the_home_fetches_a_copy_once(hearing, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = Artifacts(str(tmp_path / "store"))
    panel, checkpoint = hearing.court.panel.folder, hearing.checkpoint
    told = replace(
        Sitting.of(hearing, store.url), panel=Path("/nowhere/panels/p"), checkpoint=Path("/nowhere/checkpoints/c")
    )
    with pytest.raises(FinJEPAError, match="neither at /nowhere/checkpoints/c nor in FINJEPA_ARTIFACTS"):
        walk_one(told, None, "equal_weight")
    store.put("panels", "p", files_of(panel))
    store.put("checkpoints", "c", files_of(checkpoint))
    far, _ = walk_one(told, None, "mppi")
    near, _ = walk_one(Sitting.of(hearing, None), None, "mppi")
    np.testing.assert_array_equal(far.net_T, near.net_T)
    copy = store.in_place(told.panel)
    before = copy.stat().st_ino
    store.forget("panels", "p")
    assert store.in_place(told.panel).stat().st_ino == before
