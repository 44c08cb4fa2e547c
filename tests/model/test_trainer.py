"""Training resumes to the bit, ranks share one batch, a broken loss stops it; settings and pooled panels do what they promise."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from finjepa_model.data.batches import BatchSource, observe, step_returns
from finjepa_model.data.splits import learned_blocks, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.run_folder import BEST_FILE, STATE_FILE
from finjepa_model.training.trainer import Trainer, TrainingInterruptedError
from finjepa_pipeline.training.checkpoints import for_panel
from tests.model.training_runs import assert_equal, records, run_config, run_panel
from tests.pipeline.backtest.handmade_panel import write_panel


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    return run_panel(tmp_path_factory.mktemp("panel"))


class _KilledError(Exception):
    pass


def test_resumed_training_equals_uninterrupted_training(panel, tmp_path):
    """Asked to stop after five of ten steps, gone on with, killed after eight and gone on with from the sixth."""
    config = run_config({"recipe": "both"})
    whole = Trainer(config, panel, tmp_path / "whole")
    whole.train()

    broken = Trainer(config, panel, tmp_path / "broken")
    broken.report = lambda record: setattr(broken, "stop_requested", record["step"] == 5)
    with pytest.raises(TrainingInterruptedError):
        broken.train()
    assert torch.load(tmp_path / "broken" / STATE_FILE, weights_only=True)["step"] == 5

    def kill_at_eight(record):
        if record["step"] == 8:
            raise _KilledError

    with pytest.raises(_KilledError):
        Trainer(config, panel, tmp_path / "broken", kill_at_eight).train()
    seen = []
    resumed = Trainer(config, panel, tmp_path / "broken", lambda record: seen.append(record["step"]))
    resumed.train()
    assert seen[0] == 7
    assert_equal(whole.model.state_dict(), resumed.model.state_dict())
    for one, other in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert_equal(one, other)
    assert records(tmp_path / "whole") == records(tmp_path / "broken")


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_state(panel, tmp_path):
    trainer = Trainer(run_config(), panel, tmp_path)

    def poison(record):
        if record["kind"] == "train" and record["step"] == 4:
            with torch.no_grad():
                next(trainer.model.encoder.parameters()).fill_(float("nan"))

    trainer.report = poison
    with pytest.raises(FinJEPAError, match=r"step 4.*learning_rate"):
        trainer.train()
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
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
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)  # NaN is what no session had yet
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


def test_targets_share_no_session_with_their_context_and_end_with_the_block(panel):
    config = run_config()
    window, stride = config.model.window, config.model.stride
    steps = config.model.context_steps + config.loss.rollout_steps
    date, stop = 100, 100 + stride * config.loss.rollout_steps + window // 2
    ahead = BatchSource(panel, config, (0, stop + 2 * window)).batch(np.array([date]), np.array([[2]])).ahead
    for s in range(steps - 1):  # the window that begins after step s
        end = date + stride * (s + 1 - config.model.context_steps)
        rows = panel.rows(np.arange(end + 1, end + window + 1), 2)
        torch.testing.assert_close(ahead.features_BSNTF[0, s, 0], torch.from_numpy(panel.features[rows]))
        torch.testing.assert_close(ahead.market_BSTQ[0, s], torch.tensor(panel.market_features[end + 1 :][:window]))
    source = BatchSource(panel, config, (0, stop + 2 * window))
    source.stop = stop
    cut = source.batch(np.array([date]), np.array([[2]])).ahead
    known = date + stride * (np.arange(steps - 1) + 1 - config.model.context_steps)[:, None] + np.arange(1, window + 1)
    torch.testing.assert_close(cut.observed_BSNT[0, :, 0], torch.from_numpy(known < stop))
    assert (cut.features_BSNTF[0, :, 0][torch.from_numpy(known >= stop)] == 0).all()
    assert (cut.market_BSTQ[0][torch.from_numpy(known >= stop)] == 0).all()


def test_the_labels_are_the_returns_after_the_fill(panel):
    config = run_config()
    source = BatchSource(panel, config, split_dates(len(panel.dates), config).train)
    batch = source.batch(np.array([100]), np.array([[2]]))
    last, stride = 100 + config.model.stride * config.loss.rollout_steps, config.model.stride
    daily = panel.returns[panel.rows(np.arange(last + 2, last + 2 + stride), 2)].astype(float)
    (label,) = step_returns(panel, np.array([last]), np.array([[2]]), stride)[0]
    assert label == pytest.approx(float(np.prod(1 + daily) - 1), rel=1e-5)
    held = panel.returns[panel.rows(np.arange(100 - stride + 1, 101), 2)]
    torch.testing.assert_close(batch.returns_BKTN[0, 0, :, 0], torch.from_numpy(held))


def _gradients(trainer):
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_a_step_in_bfloat16_keeps_weights_and_sigreg_in_float32(panel, tmp_path):
    wide, narrow = (
        Trainer(run_config({"recipe": "both"}, precision=name), panel, tmp_path / name)
        for name in ("float32", "bfloat16")
    )
    seen = {}
    narrow.model.encoder.pool.register_forward_hook(lambda _, __, out: seen.update(encoder=out.dtype))
    statistic = narrow.model.sigreg.statistic
    narrow.model.sigreg.statistic = lambda x: statistic(x) if seen.update(sigreg=x.dtype) is None else None
    before = {name: value.clone() for name, value in narrow.model.state_dict().items()}
    one, other = wide.train_step(), narrow.train_step()
    assert seen == {"encoder": torch.bfloat16, "sigreg": torch.float32}
    kept = [*narrow.model.parameters(), *_gradients(narrow).values()]
    assert {value.dtype for value in kept} == {torch.float32}
    for term, value in one.items():
        assert float(other[term]) == pytest.approx(float(value), rel=0.03, abs=1e-3), term
    assert float(other["loss"]) != float(one["loss"])
    assert any(not torch.equal(value, before[name]) for name, value in narrow.model.state_dict().items())


def test_deterministic_training_repeats_itself_and_refuses_what_does_not(panel, tmp_path):
    def forbidden_operation():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    def train(folder, **training):
        trainer = Trainer(run_config(epochs=1, steps_per_epoch=2, **training), panel, tmp_path / folder)
        trainer.train()
        return trainer.model.state_dict()

    try:
        one, two = (train(folder, deterministic=True) for folder in ("one", "two"))
        with pytest.raises(RuntimeError, match="deterministic"):
            forbidden_operation()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal(one, two)
    assert records(tmp_path / "one") == records(tmp_path / "two")
    Trainer(run_config(), panel, tmp_path / "other")
    forbidden_operation()


def _scripted(panel, folder, validation, **training):
    """A training whose evaluations say what the script says; and the weights at each of them."""
    trainer = Trainer(run_config(epochs=len(validation), steps_per_epoch=1, **training), panel, folder)
    script, weights = iter(validation), []

    def evaluate():
        loss, collapsed = next(script)
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return {"loss": loss}, {"collapsed": collapsed}

    trainer.evaluate = evaluate
    return trainer, weights, trainer.train()


def _holds(trainer, weights):
    return all(torch.equal(value, weights[name]) for name, value in trainer.model.named_parameters())


def test_training_stops_when_nothing_better_has_come_for_as_long_as_its_patience(panel, tmp_path):
    losses = [(1.0, False), (0.5, False), (0.7, False), (0.6, False), (0.1, False), (0.1, False)]
    trainer, weights, metrics = _scripted(panel, tmp_path / "patient", losses, patience=2)
    assert metrics["training"]["steps"] == 4
    assert metrics["training"]["best_step"] == 2
    assert _holds(trainer, weights[1])
    assert not _holds(trainer, weights[-1])
    assert _scripted(panel, tmp_path / "endless", losses, patience=0)[2]["training"]["steps"] == 6
    assert _scripted(panel, tmp_path / "longer", losses, patience=3)[2]["training"]["best_step"] == 5


def test_the_best_model_that_has_not_collapsed_and_the_last_state_are_kept(panel, tmp_path):
    losses = [(0.9, True), (0.8, False), (0.2, True), (float("nan"), False), (0.5, False), (0.6, False)]
    trainer, weights, metrics = _scripted(panel, tmp_path, losses, checkpoint_every=4)
    assert metrics["validation"] == {"loss": 0.5}
    assert metrics["training"]["best_step"] == 5
    assert _holds(trainer, weights[4])
    best, last = (torch.load(tmp_path / name, weights_only=True) for name in (BEST_FILE, STATE_FILE))
    assert all(torch.equal(value, weights[4][name]) for name, value in best["model"].items())
    assert last["step"] == 4
    assert last["best"] == {"loss": 0.8, "step": 2, "evaluations_since": 2}
    assert not list(tmp_path.glob(".tmp-*"))


_RANK = """
import sys, torch.distributed as dist
from pathlib import Path
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.training.trainer import Trainer
dist.init_process_group("gloo")
for file in sorted(Path(sys.argv[1]).glob("*.json")):
    config = FinJEPAConfig.from_json(file.read_text())
    Trainer(config, Panel.open(sys.argv[2]), file.with_suffix(".two")).train()
dist.destroy_process_group()
"""
RUNS = {
    "sigreg": run_config({"recipe": "sigreg"}, epochs=1, steps_per_epoch=3),
    "both": run_config({"recipe": "both", "ema_start": 0.5}, epochs=1, steps_per_epoch=2),
    "vicreg": run_config({"recipe": "vicreg", "rollout_steps": 3}, epochs=1, steps_per_epoch=2),
}
OBJECTIVE = {"loss", "prediction", "rollout", "masked_patch", "inverse_dynamics", "risk"}
OF_RECIPE = {
    "sigreg": {"sigreg"},
    "both": {"sigreg"},
    "vicreg": {"latent_variance", "latent_covariance", "temporal_similarity"},
}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder with every run by two gloo ranks, in `NAME.two`, and the panel."""
    folder = tmp_path_factory.mktemp("ranks")
    panel = run_panel(folder / "panel")
    for name, config in RUNS.items():
        (folder / f"{name}.json").write_text(config.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _RANK, str(folder), str(panel.folder)]
    ranks = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    return folder, panel


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_have_every_term_of_one_process_on_the_same_batch(together, name):
    folder, panel = together
    Trainer(RUNS[name], panel, folder / f"{name}.one").train()
    one, two = (records(folder / f"{name}.{ranks}") for ranks in ("one", "two"))
    steps = RUNS[name].training.steps_per_epoch
    assert [(r["kind"], r["step"]) for r in two] == [*(("train", k + 1) for k in range(steps)), ("validation", steps)]
    for alone, shared in zip(one, two, strict=True):
        terms = OBJECTIVE | OF_RECIPE[name]
        if alone["kind"] == "train":
            terms |= {"gradient_norm"}
            assert set(alone) == terms | {"kind", "step"}
        for term in terms:
            assert shared[term] == pytest.approx(alone[term], rel=1e-4), (term, alone["step"])


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
