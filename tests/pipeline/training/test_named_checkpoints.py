"""A checkpoint is stored under a name that stands for its content, wherever it comes from."""

import json
import shutil
import subprocess
import sys

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.blocks import checkpoint_folder
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import content_hash, named_checkpoint
from tests.hub_lookalike import READER, HubLookalike

REPO = "tester/finjepa"
_RESOLVE = """
import sys
from pathlib import Path
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import named_checkpoint
found = named_checkpoint(Settings(home=Path(sys.argv[1])), sys.argv[2])
print(found.name, (found.folder / "model.safetensors").read_text())
"""


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


def test_a_release_of_the_hub_is_named_with_its_commit(tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"first"}
    with HubLookalike() as hub:
        repo = hub.add_repo(REPO, files=files)

        def resolved(asked: str) -> str:
            environment = hub.client_env(tmp_path / "hf", token=READER)
            command = [sys.executable, "-c", _RESOLVE, str(tmp_path / "home"), asked]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

        first = repo.head.oid
        assert resolved(REPO) == f"{REPO}@{first} first"
        second = repo.commit("next", {"model.safetensors": b"second"}).oid
        assert resolved(REPO) == f"{REPO}@{second} second"
        assert resolved(f"{REPO}@{first}") == f"{REPO}@{first} first"


def test_a_folder_that_is_overwritten_has_another_name(settings, tmp_path):
    first = named_checkpoint(settings, _write(tmp_path / "mine", "first")).name
    assert named_checkpoint(settings, tmp_path / "mine").name == first
    assert first.startswith("mine@")
    assert named_checkpoint(settings, _write(tmp_path / "mine", "second")).name != first
    (tmp_path / "mine" / "config.json").write_text('{"portfolio": {}}')
    assert named_checkpoint(settings, tmp_path / "mine").name != first


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
    assert named_checkpoint(settings, _write(settings.checkpoints / ("c" * 16), "old")).name == "c" * 16


def test_a_folder_without_a_model_is_named(settings, tmp_path):
    with pytest.raises(FinJEPAError, match="not a FinJEPA checkpoint"):
        named_checkpoint(settings, tmp_path)
