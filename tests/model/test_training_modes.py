"""What the trainer's settings promise: parts, precision, compilation, determinism, patience, the best model and the last."""

from dataclasses import replace

import pytest
import torch

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import BEST_FILE, STATE_FILE
from finjepa_model.training.trainer import Trainer
from tests.model.training_runs import records, run_config, run_panel


@pytest.fixture
def panel(tmp_path):
    return run_panel(tmp_path / "panel")


def _gradients(trainer):
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recipe", ["ema", "sigreg"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_losses_and_the_gradients_of_the_whole(panel, tmp_path, recipe, parts):
    """But for statistics over samples, which see a part: their weights are zero here."""
    loss = {"recipe": recipe, "sigreg": 0.0, "variance": 0.0, "covariance": 0.0}
    trainers = [
        Trainer(run_config(loss, accumulate=accumulate), panel, tmp_path / str(accumulate)) for accumulate in (1, parts)
    ]
    whole, divided = (trainer.train_step() for trainer in trainers)
    for term in whole.keys() - {"sigreg", "variance", "covariance"}:
        assert float(divided[term]) == pytest.approx(float(whole[term]), rel=1e-5), term
    gradients, of_parts = map(_gradients, trainers)
    assert gradients.keys() == of_parts.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_in_bfloat16_keeps_weights_and_sigreg_in_float32(panel, tmp_path):
    wide, narrow = (
        Trainer(run_config(precision=precision), panel, tmp_path / precision) for precision in ("float32", "bfloat16")
    )
    seen = {}
    narrow.model.encoder.pool.register_forward_hook(lambda _, __, out: seen.update(encoder=out.dtype))
    statistic = narrow.model.sigreg.statistic

    def watched(projected):
        seen["sigreg"] = projected.dtype
        return statistic(projected)

    narrow.model.sigreg.statistic = watched
    before = {name: value.clone() for name, value in narrow.model.state_dict().items()}
    one, other = wide.train_step(), narrow.train_step()
    assert seen == {"encoder": torch.bfloat16, "sigreg": torch.float32}
    assert (
        {p.dtype for p in narrow.model.parameters()}
        == {g.dtype for g in _gradients(narrow).values()}
        == {torch.float32}
    )
    for term, value in one.items():
        assert float(other[term]) == pytest.approx(float(value), rel=0.03, abs=1e-3), term
    assert float(other["loss"]) != float(one["loss"])
    assert any(not torch.equal(value, before[name]) for name, value in narrow.model.state_dict().items())


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one(panel, tmp_path):
    """In training and in evaluation, for every kind of block."""
    runs = {}
    for compiled in (False, True):
        config = run_config(compile=compiled, epochs=1, steps_per_epoch=2)
        config = replace(config, model=replace(config.model, predictor_layers=1))
        trainer = Trainer(config, panel, tmp_path / str(compiled))
        trainer.train()
        runs[compiled] = records(tmp_path / str(compiled))
        blocks = [*trainer.model.encoder.time_blocks, *trainer.model.predictor.portfolio_blocks]
        assert all((block._compiled_call_impl is not None) == compiled for block in blocks)
    for eager, other in zip(runs[False], runs[True], strict=True):
        assert other["loss"] == pytest.approx(eager["loss"], rel=1e-4), eager["step"]


def test_a_model_that_cannot_be_compiled_is_told_in_one_line(panel, tmp_path, monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("No working C++ compiler found\n\nand a page about it")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: setattr(module, "_compiled_call_impl", no_compiler))
    with pytest.raises(FinJEPAError, match=r"C\+\+ compiler found\).*training\.compile=false") as refused:
        Trainer(run_config(compile=True), panel, tmp_path).train()
    assert "\n" not in str(refused.value)


@pytest.fixture
def determinism_off():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("determinism_off")
def test_deterministic_training_repeats_itself_and_refuses_what_does_not(panel, tmp_path):
    def forbidden_operation():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    def train(folder, **training):
        trainer = Trainer(run_config(epochs=1, **training), panel, tmp_path / folder)
        trainer.train()
        return trainer

    one, two = (train(folder, deterministic=True) for folder in ("one", "two"))
    with pytest.raises(RuntimeError, match="deterministic"):
        forbidden_operation()
    for name, value in one.model.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], value), name
    assert records(tmp_path / "one") == records(tmp_path / "two")
    train("other", deterministic=False)
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
    trainer, _, metrics = _scripted(panel, tmp_path / "endless", losses, patience=0)
    assert metrics["training"]["steps"] == 6
    trainer, _, metrics = _scripted(panel, tmp_path / "longer", losses, patience=3)
    assert metrics["training"]["best_step"] == 5


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
    assert {path.name for path in tmp_path.iterdir()} >= {BEST_FILE, STATE_FILE}
    assert not list(tmp_path.glob(".*.tmp"))
