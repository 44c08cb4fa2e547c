"""Training resumes to the bit, ranks share one batch, and a broken loss stops it with the last good state kept."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from finjepa_model.config import TrainingConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.batches import BatchSource, observe
from finjepa_model.training.records import read_metrics
from finjepa_model.training.splits import split_dates
from finjepa_model.training.state import STATE_FILE
from finjepa_model.training.trainer import Trainer, TrainingInterruptedError
from tests.model.markets import small_config
from tests.pipeline.backtest.handmade_panel import write_panel


@pytest.fixture
def panel(tmp_path):
    returns = 0.01 * np.random.default_rng(0).standard_normal((400, 5))
    return write_panel(tmp_path / "panel", returns, features_DAF=np.stack([returns * 100] * 3, -1))


def _config(**training):
    defaults = {"epochs": 2, "steps_per_epoch": 5, "batch_size": 8, "n_assets": 3, "warmup_steps": 2}
    config = small_config()
    config = replace(config, model=replace(config.model, market_channels=("market",)))
    settings = TrainingConfig(**(defaults | {"evaluate_batches": 1, "checkpoint_every": 3, "log_every": 1} | training))
    return replace(config, training=settings)


_SPEED = ("samples_per_second", "flops_per_second", "share_of_matmul_rate")


def test_resumed_training_equals_uninterrupted_training(panel, tmp_path):
    whole = Trainer(_config(), panel, tmp_path / "whole")
    whole.train()

    broken = Trainer(_config(), panel, tmp_path / "broken", report=lambda record: None)
    steps = []

    def stop_at_six(record):
        steps.append(record["step"])
        broken.stop_requested = record["step"] >= 6

    broken.report = stop_at_six
    with pytest.raises(TrainingInterruptedError):
        broken.train()
    assert (tmp_path / "broken" / STATE_FILE).is_file()
    resumed = Trainer(_config(), panel, tmp_path / "broken")
    resumed.train()
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    drop = lambda r: {k: v for k, v in r.items() if k not in _SPEED}  # noqa: E731
    logs = [[drop(r) for r in read_metrics(tmp_path / run)] for run in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_state(panel, tmp_path):
    trainer = Trainer(_config(), panel, tmp_path / "run")

    def poison(record):
        if record["kind"] == "train" and record["step"] == 4:
            with torch.no_grad():
                next(trainer.model.encoder.parameters()).fill_(float("nan"))

    trainer.report = poison
    with pytest.raises(FinJEPAError, match=r"step 4.*learning_rate"):
        trainer.train()
    state = torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_an_observation_reads_nothing_after_its_date(tmp_path):
    rng = np.random.default_rng(1)
    returns = 0.01 * rng.standard_normal((120, 4))
    future = returns.copy()
    future[81:] = 0.05 * rng.standard_normal((39, 4))
    seen = []
    for name, market in (("one", returns), ("other", future)):
        panel = write_panel(tmp_path / name, market, features_DAF=np.stack([market] * 3, -1))
        seen.append(observe(panel, np.array([80, 60]), np.array([[0, 1, 2], [3, 1, -1]]), 3, _config()))
    for one, other in zip(vars(seen[0]).values(), vars(seen[1]).values(), strict=True):
        assert torch.equal(one, other)
    assert not seen[0].present_BN[1, 2]


def test_batches_stay_inside_their_block_and_are_a_function_of_the_step(panel):
    config = _config()
    splits = split_dates(len(panel.dates), config)
    for block in (splits.train, splits.validation):
        source = BatchSource(panel, config, block)
        dates, _ = source.sampler.batch(0)
        reach = config.model.stride * (config.loss.rollout_steps + 1) + 1
        assert dates.min() >= block[0]
        assert (dates + reach).max() < block[1]
        first, again = source.draw(7), BatchSource(panel, config, block).draw(7)
        assert torch.equal(first.returns_BKTN, again.returns_BKTN)
    assert splits.train[1] + config.model.stride * (config.loss.rollout_steps + 1) < splits.validation[0]


def test_the_labels_are_the_returns_after_the_fill(panel):
    config = _config()
    source = BatchSource(panel, config, split_dates(len(panel.dates), config).train)
    dates, assets = np.array([100]), np.array([[2]])
    batch = source.batch(dates, assets)
    last = 100 + config.model.stride * config.loss.rollout_steps
    daily = panel.returns[panel.rows(np.arange(last + 2, last + 2 + config.model.stride), 2)].astype(float)
    assert float(batch.step_return_BSN[0, -1, 0]) == pytest.approx(float(np.prod(1 + daily) - 1), rel=1e-5)
    held = panel.returns[panel.rows(np.arange(100 - config.model.stride + 1, 101), 2)]
    torch.testing.assert_close(batch.returns_BKTN[0, 0, :, 0], torch.from_numpy(held))


_RANK = """
import json, sys, torch.distributed as dist
from pathlib import Path
from finjepa_model.config import FinJEPAConfig
from finjepa_model.training.panel import Panel
from finjepa_model.training.trainer import Trainer
dist.init_process_group("gloo")
config = FinJEPAConfig.from_json(Path(sys.argv[1]).read_text())
trainer = Trainer(config, Panel.open(sys.argv[2]), Path(sys.argv[3]))
trainer.train()
dist.destroy_process_group()
"""


def test_two_ranks_have_the_losses_of_one_process_on_the_same_batch(panel, tmp_path):
    config = _config(epochs=1, steps_per_epoch=4)
    Trainer(config, panel, tmp_path / "one").train()
    (tmp_path / "config.json").write_text(config.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(tmp_path / "config.json"), str(panel.folder), str(tmp_path / "two")],
            env=os.environ
            | {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    one, two = (list(read_metrics(tmp_path / run)) for run in ("one", "two"))
    assert [r["step"] for r in two if r["kind"] == "train"] == [1, 2, 3, 4]
    for alone, together in zip(one, two, strict=True):
        for name in (
            "loss",
            "prediction",
            "rollout",
            "masked_patch",
            "sigreg",
            "inverse_dynamics",
            "covariance",
            "heads",
        ):
            assert together[name] == pytest.approx(alone[name], rel=1e-4), (name, alone["step"])
