"""Configs are typed and checked when they are read; an error names the key."""

import pytest

from finjepa_model.config import PRESETS, FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError


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


def test_unknown_key_in_a_file_and_unknown_preset_are_refused():
    with pytest.raises(FinJEPAError, match=r"model\.flux"):
        FinJEPAConfig.from_json('{"model": {"flux": 1}}')
    with pytest.raises(FinJEPAError, match="tiny"):
        preset("huge")
