"""A checkpoint is made once, stored under a name that stands for its content, and found wherever it lies."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.config import TrainingConfig, preset
from finjepa_model.data.splits import split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import compute
from finjepa_pipeline.backtest.blocks import checkpoint_folder
from finjepa_pipeline.causes import FAILURE_FILE
from finjepa_pipeline.report.page import duration
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training import checkpoints
from finjepa_pipeline.training.checkpoints import (
    checkpoint_here,
    checkpoint_id,
    content_hash,
    for_panel,
    named_checkpoint,
    refuse_other_code,
    train_checkpoint,
    training_code_version,
)
from finjepa_pipeline.training.step import announcement
from tests.hub_lookalike import READER, HubLookalike
from tests.pipeline.backtest.handmade_panel import noise, write_panel

REPO = "tester/finjepa"
SMALL = {
    "model.window": "16", "model.patch": "4", "model.dim": "16", "model.heads": "2", "model.time_layers": "1",
    "model.predictor_layers": "1", "loss.sigreg_slices": "16",
}  # fmt: skip
ALONE = {"processes": 1, "threads": 1}


def _write(folder, weights: str, **lineage: str):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


def _trained(settings, name: str, weights: str):
    """As the training of this home leaves a checkpoint."""
    folder = _write(settings.checkpoints / name, weights)
    return _write(folder, weights, checkpoint=name, content=content_hash(folder))


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home").ensure()


def test_a_release_of_the_hub_is_named_with_its_commit(settings, tmp_path, monkeypatch):
    with HubLookalike() as hub:
        hub.patch(monkeypatch, tmp_path, READER)
        repo = hub.add_repo(REPO, files={"config.json": b"{}", "model.safetensors": b"first"})
        first, second = repo.head.oid, repo.commit("next", {"model.safetensors": b"second"}).oid
        for asked, oid, content in ((REPO, second, "second"), (f"{REPO}@{first}", first, "first")):
            found = named_checkpoint(settings, asked)
            assert found.name == f"{REPO}@{oid}"
            assert (found.folder / "model.safetensors").read_text() == content


def test_a_folder_that_is_overwritten_has_another_name(settings, tmp_path):
    first = named_checkpoint(settings, _write(tmp_path / "mine", "first")).name
    assert named_checkpoint(settings, tmp_path / "mine").name == first
    assert first.startswith("mine@")
    assert named_checkpoint(settings, _write(tmp_path / "mine", "second")).name != first
    (tmp_path / "empty").mkdir()
    with pytest.raises(FinJEPAError, match="not a FinJEPA checkpoint"):
        named_checkpoint(settings, tmp_path / "empty")


def test_what_this_home_trained_has_its_id_until_its_files_change(settings, tmp_path):
    mine, other = _trained(settings, "a" * 16, "first"), _trained(settings, "b" * 16, "second")
    for asked in ("a" * 16, mine, str(mine)):
        assert named_checkpoint(settings, asked).name == "a" * 16
    assert checkpoint_folder(settings, str(mine)) == mine
    shutil.copytree(other, mine, dirs_exist_ok=True)
    assert named_checkpoint(settings, "a" * 16).name.startswith("a" * 16 + "@")
    with pytest.raises(FinJEPAError, match="not as this home trained it"):
        checkpoint_folder(settings, "a" * 16)
    with pytest.raises(FinJEPAError, match="not as this home trained it"):  # two folders may have one name
        checkpoint_folder(settings, str(_write(tmp_path / "b" / ("b" * 16), "third")))


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

        failure = training.function(training.panels[0], training.run_folder, report, trainers.append)
        watch()
        if failure is not None:
            (training.run_folder / FAILURE_FILE).write_text(failure)
            raise FinJEPAError(failure)

    monkeypatch.setattr(compute, "train", train_here)
    return Trained


def test_a_training_goes_on_where_it_stopped_and_is_found_in_another_home(tmp_path, trained, monkeypatch):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    small = TrainingConfig(batch_size=4, n_assets=2, evaluate_batches=1, log_every=1, epochs=2, steps_per_epoch=4)
    config = for_panel(replace(preset("tiny").override(SMALL), training=small), panel)
    store = str(tmp_path / "store")
    first, second, alone = (
        Settings(home=tmp_path / name, artifacts=artifacts).ensure()
        for name, artifacts in (("a", store), ("b", store), ("alone", None))
    )

    trained.stop_after = 5
    with pytest.raises(FinJEPAError, match="training stopped at step 5"):
        train_checkpoint(first, config, panel, {}, ALONE)
    trained.stop_after, trained.steps = None, []

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # the driver dies as the training ends
        train_checkpoint(first, config, panel, {}, ALONE, watch=die)
    assert min(trained.steps) == 6  # nothing was trained twice
    trained.steps = []
    made, reused = train_checkpoint(first, config, panel, {}, ALONE)
    assert not trained.steps
    assert not reused
    assert (made / "lineage.json").is_file()
    whole, _ = train_checkpoint(alone, config, panel, {}, ALONE)
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    trained.steps = []
    found, reused = train_checkpoint(second, config, panel, {}, ALONE)
    assert reused
    assert not trained.steps
    assert (found / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert checkpoint_here(Settings(home=tmp_path / "d", artifacts=store).ensure(), made.name)
    assert checkpoint_here(Settings(home=tmp_path / "e").ensure(), made.name) is None

    other = config.override({"training.seed": "7"})
    assert checkpoint_id(other, panel) != made.name
    monkeypatch.setattr(checkpoints, "training_code_version", lambda: "other code")
    assert checkpoint_id(config, panel) != made.name


def test_a_training_begins_with_the_weights_of_a_checkpoint_that_knows_nothing_of_later_sessions(
    tmp_path, trained, settings
):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    small = TrainingConfig(batch_size=4, n_assets=2, evaluate_batches=1, log_every=1, epochs=1, steps_per_epoch=2)
    config = for_panel(replace(preset("tiny").override(SMALL), training=small), panel)
    blocks = {"blocks": split_dates(len(panel.dates), config).dates(panel.dates)}
    parent, _ = train_checkpoint(settings, config, panel, blocks, ALONE)
    still = {"training.initial": parent.name, "training.learning_rate": "1e-12", "training.warmup_steps": "0"}

    def weights(**changes: str):
        child, _ = train_checkpoint(settings, config.override(still | changes), panel, blocks, ALONE)
        assert child != parent
        return FinJEPA.from_pretrained(child).encoder.state_dict()

    began = FinJEPA.from_pretrained(parent).encoder.state_dict()
    torch.testing.assert_close(weights(), began, rtol=0, atol=1e-9)
    for changes, refusal in (
        ({"model.dim": "32"}, "another model"),
        ({"training.train_share": "0.6"}, "has learned up to"),
        ({"training.initial": "0" * 16}, "is no checkpoint"),
    ):
        with pytest.raises(FinJEPAError, match=refusal):
            weights(**changes)


def test_other_code_is_refused():
    with pytest.raises(FinJEPAError, match="install the same FinJEPA on both"):
        refuse_other_code(f"other than {training_code_version()}")


def test_a_training_says_how_much_it_is_and_how_long_by_one_of_its_kind(settings):
    config = preset("tiny")
    steps = config.training.epochs * config.training.steps_per_epoch
    assert f"{steps:,} steps" in announcement(settings.checkpoints, config)
    assert "first of its kind" in announcement(settings.checkpoints, config)
    folder = _write(settings.checkpoints / "aaaa", "weights")
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.json").write_text(json.dumps({"training": {"seconds": 30.0, "steps": 10}}))
    assert f"about {duration(3.0 * steps)} here" in announcement(settings.checkpoints, config)
    other = replace(config, model=replace(config.model, dim=2 * config.model.dim))
    assert "first of its kind" in announcement(settings.checkpoints, other)
    assert [duration(seconds) for seconds in (20, 3300, 10_000)] == ["20 s", "55 min", "3 h"]
