"""What is said of a rebuilt checkpoint that did not come out the same."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from finjepa_model.checkpoint import read_config
from finjepa_model.config import PRESETS, FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.publishing import reproduce as module
from finjepa_pipeline.publishing.reproduce import compare, overrides, reproduce, surroundings
from finjepa_pipeline.training.checkpoints import checkpoint_here
from finjepa_pipeline.training.step import without_champion


@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(0, 2**31),
    st.floats(1e-6, 1.0),
    st.booleans(),
    st.sampled_from([32, 64]),
)
def test_a_config_survives_being_written_as_overrides(name, seed, rate, shorts, window):
    changes = {"training.seed": str(seed), "training.learning_rate": repr(rate), "model.window": str(window)}
    wanted = preset(name).override(changes | {"portfolio.allow_short": str(shorts).lower()})
    again = preset("tiny").override(overrides(json.loads(wanted.to_json())))
    assert again == FinJEPAConfig.from_json(wanted.to_json())


def test_a_changed_weight_is_found_and_named(home):
    one, other = home.add_checkpoint("aaaa", seed=1), home.add_checkpoint("bbbb", seed=1)
    assert compare(one, other) == ()
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 0.25
    save_file(weights, other / "model.safetensors")
    (difference,) = compare(one, other)
    assert name in difference
    assert "1 of" in difference
    assert "0.25" in difference


def test_what_was_not_as_it_was_is_named(home):
    then = json.loads((home.add_checkpoint("aaaa") / "lineage.json").read_text())
    now = then | {"device": "cuda: H100", "libraries": then["libraries"] | {"torch": "9.9"}}
    assert surroundings(then, then) == ()
    assert [line.split(":")[0] for line in surroundings(then, now)] == ["device", "torch"]
    moved = now | {"blocks": then["blocks"] | {"test": ["2021-01-04", "2023-12-29"]}}
    assert "test block: 2020-01-02 to 2022-12-28 then, 2021-01-04 to 2023-12-29 now" in surroundings(then, moved)


def test_a_checkpoint_without_a_lineage_to_follow_is_refused(home):
    home.add_checkpoint("aaaa")
    with pytest.raises(FinJEPAError, match="lineage"):
        reproduce(home.settings, "aaaa", lambda *_: None, print)


def test_the_champion_that_a_training_begins_with_is_one_of_other_prices(home):
    home.add_checkpoint("a" * 16)
    config = read_config(home.settings.checkpoints / ("a" * 16)).override({"training.initial": "champion"})

    def initial(promoted_on: str) -> str:
        panel = SimpleNamespace(manifest={"data_version": "now"})
        with home.warehouse.connect() as con:
            con.execute("DELETE FROM main.champions")
            con.execute(
                "INSERT INTO main.champions (checkpoint, data_version, verdict, reasons) VALUES (?, ?, 'promoted', '')",
                ["a" * 16, promoted_on],
            )
        return without_champion(home.settings, home.warehouse, panel, config).training.initial

    assert (initial("before"), initial("now")) == ("a" * 16, "")


def test_a_checkpoint_that_began_with_another_is_built_again_beside_it_or_refused(home, monkeypatch):
    parent = home.add_checkpoint("a" * 16)
    lineage = {"config": {"training": {"initial": parent.name}}, "build": {}}
    monkeypatch.setattr(module, "_ops", lambda *_: {})
    monkeypatch.setattr(module, "_lineage", lambda _: lineage)
    home.add_checkpoint("b" * 16)
    seen = []
    with pytest.raises(FinJEPAError, match="there is no checkpoint"):  # the training is none
        module.reproduce(
            home.settings, "b" * 16, lambda scratch, _: seen.append(checkpoint_here(scratch, parent.name)), print
        )
    assert seen[0].resolve() == parent
    lineage["config"]["training"]["initial"] = "c" * 16
    with pytest.raises(FinJEPAError, match=r"began with the weights of c+, which is gone"):
        module.reproduce(home.settings, "b" * 16, lambda *_: None, print)
