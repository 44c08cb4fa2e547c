"""A training goes on where another machine has left it, and what one machine has trained another one does not train again."""

from dataclasses import replace

import pytest

from finjepa_model.config import TrainingConfig, preset
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.records import STATE_FILE
from finjepa_pipeline import compute
from finjepa_pipeline.causes import FAILURE_FILE
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts
from finjepa_pipeline.training.checkpoints import checkpoint_here, checkpoint_id, for_panel, train_checkpoint
from finjepa_pipeline.training.process import CONFIG_FILE
from tests.pipeline.backtest.handmade_panel import noise, write_panel

SMALL = {
    "model.window": "16", "model.patch": "4", "model.dim": "16", "model.heads": "2", "model.time_layers": "1",
    "model.predictor_layers": "1", "loss.sigreg_slices": "16",
}  # fmt: skip
ALONE = {"processes": 1, "threads": 1}


@pytest.fixture
def trained(monkeypatch):
    """Trainings run in this process; the steps of those that ran, and the step after which one is stopped."""

    class Trained:
        steps: list[int] = []  # noqa: RUF012
        stop_after: int | None = None

    def train_here(settings: Settings, training: compute.Training, watch) -> None:
        trainers = []

        def report(record: dict) -> None:
            Trained.steps.append(record["step"])
            trainers[-1].stop_requested = record["step"] == Trained.stop_after

        failure = training.function(training.panel, training.run_folder, report, trainers.append)
        watch()
        if failure is not None:
            (training.run_folder / FAILURE_FILE).write_text(failure)
            raise FinJEPAError(failure)

    monkeypatch.setattr(compute, "train", train_here)
    Trained.steps = []
    return Trained


def _config(panel: Panel, **training: int):
    training = TrainingConfig(batch_size=4, n_assets=2, evaluate_batches=1, log_every=1, **training)
    return for_panel(replace(preset("tiny").override(SMALL), training=training), panel)


def test_a_training_goes_on_in_another_home_and_is_found_in_a_third(tmp_path, trained):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    config = _config(panel, epochs=2, steps_per_epoch=4, checkpoint_every=100)
    store = str(tmp_path / "store")
    first, second, third = (Settings(home=tmp_path / name, artifacts=store).ensure() for name in "abc")
    alone = Settings(home=tmp_path / "alone").ensure()

    trained.stop_after = 5
    with pytest.raises(FinJEPAError, match="training stopped at step 5"):
        train_checkpoint(first, config, panel, {}, ALONE)
    run_name = f"{checkpoint_id(config, panel)}.run"
    assert Artifacts(store).has("checkpoints", run_name)

    trained.stop_after, trained.steps = None, []
    made, reused = train_checkpoint(second, config, panel, {}, ALONE)
    assert not reused
    assert min(trained.steps) == 6  # nothing was trained twice
    whole, _ = train_checkpoint(alone, config, panel, {}, ALONE)
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    trained.steps = []
    found, reused = train_checkpoint(third, config, panel, {}, ALONE)
    assert reused
    assert not trained.steps
    assert (found / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert checkpoint_here(Settings(home=tmp_path / "d", artifacts=store).ensure(), made.name)
    assert checkpoint_here(Settings(home=tmp_path / "e").ensure(), made.name) is None

    Artifacts(store).get("checkpoints", run_name, tmp_path / "left")
    assert not (tmp_path / "left" / STATE_FILE).exists()  # the state has served
    assert (tmp_path / "left" / CONFIG_FILE).is_file()


def test_a_training_that_ended_as_its_driver_died_is_not_trained_again(tmp_path, trained):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    config = _config(panel, epochs=1, steps_per_epoch=2)
    settings = Settings(home=tmp_path / "home").ensure()

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_checkpoint(settings, config, panel, {}, ALONE, watch=die)
    trained.steps = []
    made, reused = train_checkpoint(settings, config, panel, {}, ALONE)
    assert not trained.steps
    assert not reused
    assert (made / "lineage.json").is_file()
