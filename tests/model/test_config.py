"""Configs are checked when they are read, checkpoints keep every bit; what is wrong with either is refused in one line."""

import dataclasses
import json
import math
import resource
import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import finjepa_model
from finjepa_model import FinJEPA
from finjepa_model.config import PRESETS, FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import from_json, to_json
from finjepa_model.planners import make_planner
from tests.hub_lookalike import HubLookalike


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = preset(name)
    assert FinJEPAConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.dimension", "64", "model.dimension"),
        ("nothing.dim", "64", "nothing.dim"),
        ("model.dim", '"wide"', "model.dim"),
        ("model.dim", "true", "model.dim"),
        ("model.dim", "33", "model.dim"),
        ("model.patch", "7", "model.patch"),
        ("loss.recipe", "magic", "loss.recipe"),
        ("training.learning_rate", "-1", "training.learning_rate"),
        ("training.train_share", "0.95", "training.train_share"),
        ("portfolio.cost_bps", "-5", "portfolio.cost_bps"),
        ("portfolio.tier_spread_bps", "[1.0]", "portfolio.tier_spread_bps"),
        ("portfolio.tier_dollar_volume", "[1e6, 1e7]", "portfolio.tier_dollar_volume"),
    ],
)
def test_wrong_value_is_refused_by_name(key, value, named):
    with pytest.raises(FinJEPAError, match=named.replace(".", r"\.")) as refused:
        preset("tiny").override({key: value})
    assert "\n" not in str(refused.value)


def test_override_changes_only_its_key():
    before = preset("tiny").to_dict()
    after = preset("tiny").override({"loss.recipe": "sigreg", "training.learning_rate": "0.01"}).to_dict()
    before["loss"]["recipe"], before["training"]["learning_rate"] = "sigreg", 0.01
    assert after == before


def test_settings_of_earlier_versions_are_read_over():
    old = {
        "training": {"compile": True, "accumulate": 2, "seed": 3},
        "model": {"adaln_init": "zero"},
        "td": {"symmetric": False},
    }
    assert FinJEPAConfig.from_dict(old) == FinJEPAConfig.from_dict({"training": {"seed": 3}})


def test_unknown_key_in_a_file_and_unknown_preset_are_refused():
    with pytest.raises(FinJEPAError, match=r"model\.flux"):
        FinJEPAConfig.from_json('{"model": {"flux": 1}}')
    with pytest.raises(FinJEPAError, match="tiny"):
        preset("huge")


def _numbers(config):
    """Section, field and type of every number of a config; a tuple of numbers counts."""
    for section in dataclasses.fields(config):
        kind = type(getattr(config, section.name))
        for field in dataclasses.fields(kind):
            hint = typing.get_type_hints(kind)[field.name]
            item = hint if hint in (int, float) else next(iter(typing.get_args(hint)), None)
            if item in (int, float):
                yield section.name, field, item, hint is not item


NUMBERS = list(_numbers(FinJEPAConfig()))


@pytest.mark.parametrize(("section", "field", "item", "many"), NUMBERS, ids=[f"{n[0]}.{n[1].name}" for n in NUMBERS])
@given(data=st.data())
def test_every_number_has_finite_bounds_and_refuses_what_is_outside(section, field, item, many, data):
    assert "bounds" in field.metadata, "a new field needs bounds: write `bounded(default, low, high)`"
    low, high = field.metadata["bounds"]
    assert math.isfinite(low)
    assert math.isfinite(high)
    if item is int:
        outside = st.integers(max_value=math.ceil(low) - 1) | st.integers(min_value=math.floor(high) + 1)
    else:
        outside = st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(10**400)])
        outside |= st.floats(max_value=low, exclude_max=True) | st.floats(min_value=high, exclude_min=True)
    value = data.draw(outside)
    value = (value,) * len(field.default) if many else value
    kind = type(getattr(FinJEPAConfig(), section))
    with pytest.raises(FinJEPAError, match=rf"{section}\.{field.name} must lie in"):
        kind(**{field.name: value})
    with pytest.raises(FinJEPAError, match=rf"{section}\.{field.name}") as refused:
        FinJEPAConfig.from_dict({section: {field.name: value}})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"dim": 64, "dim": 32}}',
        '{"training": {"learning_rate": NaN}}',
        '{"training": {"learning_rate": 1e999}}',
        "[" * 100_000 + "]" * 100_000,
        '{"training": {"seed": 1' + "0" * 10_000 + "}}",
        '{"model": {"window": 2048, "patch": 1, "context_steps": 64}}',
        '{"model": {"channels": ["<img src=x onerror=alert(1)>"]}}',
    ],
    ids=["duplicate", "nan", "overflow", "nested", "digits", "patches", "markup"],
)
def test_odd_json_is_refused_in_one_line(text):
    with pytest.raises(FinJEPAError) as refused:
        FinJEPAConfig.from_json(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(_VALUES)
def test_what_is_not_finite_is_null(value):
    def refuse(constant):
        raise AssertionError(constant)

    text = to_json(value)
    assert json.loads(text, parse_constant=refuse) == from_json(text)


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
