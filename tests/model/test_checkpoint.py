"""A checkpoint keeps every bit; one that is damaged, not finite, too large or of another shape is refused in one line."""

import dataclasses
import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

import finjepa_model
from finjepa_model import FinJEPA
from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from tests.hub_lookalike import HubLookalike


@pytest.fixture
def folder(tmp_path):
    config = preset("tiny").override({"model.dim": "8", "td.hidden": "8", "td.enabled": "true"})
    model = dataclasses.replace(config.model, channels=("a", "b"), market_channels=("m",))
    FinJEPA(dataclasses.replace(config, model=model)).save_pretrained(tmp_path)
    (tmp_path / "normalization.json").write_text(json.dumps({"channels": [{"name": "a"}, {"name": "b"}]}))
    return tmp_path


def refusal(folder) -> str:
    with pytest.raises(FinJEPAError) as refused:
        FinJEPA.from_pretrained(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_round_trip_is_exact(folder, tmp_path):
    model = FinJEPA.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = FinJEPA.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_what_is_missing_or_cut_is_named(folder, tmp_path):
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != name}, file)
    assert name in refusal(folder)
    save_file(weights | {name: weights[name].to(torch.float16)}, file)
    assert name in refusal(folder)
    file.write_bytes(file.read_bytes()[:100])
    assert "cannot be read" in refusal(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    assert "colour" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)
    assert "no checkpoint folder" in refusal(tmp_path / "elsewhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_any_tensor_that_is_not_finite_is_named(folder, value):
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in list(weights)[:: len(weights) // 6]:
        broken = {**weights, name: weights[name].clone()}
        broken[name].view(-1)[-1] = value
        save_file(broken, file)
        assert name in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        '{"channels": [{"name": "a"}, {"name": "b", "scale": NaN}]}',
        '{"channels": [{"name": "a"}, {"name": "b", "scale": 1e999}]}',
        '{"channels": [{"name": "b"}, {"name": "a"}]}',
        '{"channels": 3}',
        '{"channels": [{"name": "a"}], "channels": [{"name": "a"}, {"name": "b"}]}',
        "[" * 100_000,
        "\x00",
        '"' + "a" * (17 << 20) + '"',
    ],
)
def test_a_damaged_normalization_is_refused(folder, content):
    (folder / "normalization.json").write_text(content)
    assert "normalization.json" in refusal(folder)


def test_a_huge_config_is_refused_before_memory_is_taken(folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"dim": 8192, "heads": 64, "predictor_layers": 128, "time_layers": 128, "mlp_ratio": 64}
    (folder / "config.json").write_text(json.dumps(config))
    assert "does not fit its config.json" in refusal(folder)
    config["model"]["dim"] = 2**40
    (folder / "config.json").write_text(json.dumps(config))
    assert "model.dim" in refusal(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("enabled", [False, True])
def test_a_checkpoint_older_than_the_present_td_branch_is_read_without_its_branch(folder, enabled):
    """Its config has keys that are gone, and where it had the branch there are weights of it."""
    old = {"actor_learning_rate": 2e-4, "covariance_decay": 0.995, "fine_tune": False, "prior_ratio": 0.6}
    old |= {"relabelled": 2048, "task_learning_rate": 1e-4, "temperature": 0.7, "enabled": enabled, "steps": 600}
    config, file = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    (folder / "config.json").write_text(json.dumps(config | {"td": old}))
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("td.")}
    gone = {"heads.portfolio.bias": torch.ones(2)} | (
        {"zero_shot.net.weight": torch.ones(2), "td.algorithm.actor.position.1.bias": torch.ones(2)} if enabled else {}
    )
    save_file(weights | gone, file)
    model = FinJEPA.from_pretrained(folder)
    assert model.td is None
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert model.config == FinJEPAConfig.from_dict({**config, "td": {}})
    with pytest.raises(FinJEPAError, match="one of an earlier version is not read"):
        make_planner("td").plan(lambda actions: actions.hedge_X.sum(-1), None)


def test_every_name_that_the_package_exports_is_there():
    assert all(getattr(finjepa_model, name).__name__ == name for name in finjepa_model.__all__)


def test_large_files_of_the_hub_are_not_downloaded(folder, monkeypatch):
    with HubLookalike() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("finjepa_model.checkpoint.LARGEST_JSON", 10)
        files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
        hub.add_repo("tester/large", files=files)
        assert "has" in refusal("tester/large")
