"""A training goes on where another machine has left it, and what one machine has trained another one does not train again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from finjepa_model.config import FinJEPAConfig, TrainingConfig, preset
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import STATE_FILE
from finjepa_model.training.trainer import Trainer, TrainingInterruptedError
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts
from finjepa_pipeline.training.exchange import CONFIG_FILE, FAILURE_FILE, RESULT_FOLDER
from finjepa_pipeline.training.run import checkpoint_here, checkpoint_id, for_panel, train_checkpoint
from tests.pipeline.backtest.handmade_panel import noise, write_panel

SMALL = {
    "model.window": "16", "model.patch": "4", "model.dim": "16", "model.heads": "2", "model.time_layers": "1",
    "model.predictor_layers": "1", "loss.sigreg_slices": "16",
}  # fmt: skip


class Training:
    """The training process, in this one; it is asked to stop after a step."""

    def __init__(self, panel: Panel, stop_after: int | None = None):
        self.panel, self.stop_after, self.steps = panel, stop_after, []

    def __call__(self, command: list[str], environment: object) -> None:
        run_folder = Path(command[command.index("--run-folder") + 1])
        config = FinJEPAConfig.from_json((run_folder / CONFIG_FILE).read_text())
        trainer = Trainer(config, self.panel, run_folder)

        def report(record: dict) -> None:
            self.steps.append(record["step"])
            trainer.stop_requested = record["step"] == self.stop_after

        trainer.report = report
        try:
            metrics = trainer.train()
        except TrainingInterruptedError as error:
            (run_folder / FAILURE_FILE).write_text(f"{error}\n")
            return
        trainer.model.save_pretrained(run_folder / RESULT_FOLDER)
        (run_folder / RESULT_FOLDER / "metrics.json").write_text(json.dumps(metrics))


def test_a_training_goes_on_in_another_home_and_is_found_in_a_third(tmp_path):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    training = TrainingConfig(
        batch_size=4, n_assets=2, epochs=2, steps_per_epoch=4, evaluate_batches=1, log_every=1, checkpoint_every=100
    )
    tiny = preset("tiny").override(SMALL)
    config = for_panel(replace(tiny, training=training), panel)
    store = str(tmp_path / "store")
    first, second, third = (Settings(home=tmp_path / name, artifacts=store).ensure() for name in "abc")
    alone = Settings(home=tmp_path / "alone").ensure()

    cut = Training(panel, stop_after=5)
    with pytest.raises(FinJEPAError, match="training stopped at step 5"):
        train_checkpoint(first, config, panel, {}, cut, processes=1)
    run_name = f"{checkpoint_id(config, panel)}.run"
    assert Artifacts(store).has("checkpoints", run_name)

    rest = Training(panel)
    made, reused = train_checkpoint(second, config, panel, {}, rest, processes=1)
    assert not reused
    assert min(rest.steps) == 6  # nothing was trained twice
    whole, _ = train_checkpoint(alone, config, panel, {}, Training(panel), processes=1)
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    nobody = Training(panel)
    found, reused = train_checkpoint(third, config, panel, {}, nobody, processes=1)
    assert reused
    assert not nobody.steps
    assert (found / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert checkpoint_here(Settings(home=tmp_path / "d", artifacts=store).ensure(), made.name)
    assert checkpoint_here(Settings(home=tmp_path / "e").ensure(), made.name) is None

    Artifacts(store).get("checkpoints", run_name, tmp_path / "left")
    assert not (tmp_path / "left" / STATE_FILE).exists()  # the state has served
    assert (tmp_path / "left" / CONFIG_FILE).is_file()


def test_a_training_that_ended_as_its_driver_died_is_not_trained_again(tmp_path):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    training = TrainingConfig(batch_size=4, n_assets=2, epochs=1, steps_per_epoch=2, evaluate_batches=1)
    config = for_panel(replace(preset("tiny").override(SMALL), training=training), panel)
    settings = Settings(home=tmp_path / "home").ensure()

    def die(command: list[str], environment: object) -> None:
        Training(panel)(command, environment)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_checkpoint(settings, config, panel, {}, die, processes=1)
    nobody = Training(panel)
    made, reused = train_checkpoint(settings, config, panel, {}, nobody, processes=1)
    assert not nobody.steps
    assert not reused
    assert (made / "lineage.json").is_file()
