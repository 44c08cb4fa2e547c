"""Training resumes to the bit, ranks share one batch, and a broken loss stops it with the last good state kept."""

import numpy as np
import pytest
import torch

from finjepa_model.data.batches import BatchSource, observe, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import STATE_FILE
from finjepa_model.training.trainer import Trainer, TrainingInterruptedError
from tests.model.training_runs import records, run_config, run_panel
from tests.pipeline.backtest.handmade_panel import write_panel


@pytest.fixture
def panel(tmp_path):
    return run_panel(tmp_path / "panel")


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(("recipe", "accumulate"), [("sigreg", 1), ("both", 2)])
def test_resumed_training_equals_uninterrupted_training(panel, tmp_path, recipe, accumulate):
    """Asked to stop after five of ten steps, gone on with, killed after eight and gone on with from the sixth."""
    config = run_config({"recipe": recipe}, accumulate=accumulate)
    whole = Trainer(config, panel, tmp_path / "whole")
    whole.train()

    broken = Trainer(config, panel, tmp_path / "broken")

    def stop_at_five(record):
        broken.stop_requested = record["step"] == 5

    broken.report = stop_at_five
    with pytest.raises(TrainingInterruptedError):
        broken.train()
    assert torch.load(tmp_path / "broken" / STATE_FILE, weights_only=True)["step"] == 5

    def kill_at_eight(record):
        if record["step"] == 8:
            raise _KilledError

    with pytest.raises(_KilledError):
        Trainer(config, panel, tmp_path / "broken", kill_at_eight).train()
    resumed = Trainer(config, panel, tmp_path / "broken")
    seen = []
    resumed.report = lambda record: seen.append(record["step"])
    resumed.train()
    assert seen[0] == 7
    _assert_equal(whole.model.state_dict(), resumed.model.state_dict())
    for one, other in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        _assert_equal(one, other)
    assert records(tmp_path / "whole") == records(tmp_path / "broken")


def _assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_state(panel, tmp_path):
    trainer = Trainer(run_config(), panel, tmp_path / "run")

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
        seen.append(observe(panel, np.array([80, 60]), np.array([[0, 1, 2], [3, 1, -1]]), 3, run_config()))
    for one, other in zip(vars(seen[0]).values(), vars(seen[1]).values(), strict=True):
        assert torch.equal(one, other)
    assert not seen[0].present_BN[1, 2]


def test_batches_stay_inside_their_block_and_are_a_function_of_the_step(panel):
    config = run_config()
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
    config = run_config()
    source = BatchSource(panel, config, split_dates(len(panel.dates), config).train)
    dates, assets = np.array([100]), np.array([[2]])
    batch = source.batch(dates, assets)
    last = 100 + config.model.stride * config.loss.rollout_steps
    daily = panel.returns[panel.rows(np.arange(last + 2, last + 2 + config.model.stride), 2)].astype(float)
    assert float(batch.step_return_BSN[0, -1, 0]) == pytest.approx(float(np.prod(1 + daily) - 1), rel=1e-5)
    held = panel.returns[panel.rows(np.arange(100 - config.model.stride + 1, 101), 2)]
    torch.testing.assert_close(batch.returns_BKTN[0, 0, :, 0], torch.from_numpy(held))
