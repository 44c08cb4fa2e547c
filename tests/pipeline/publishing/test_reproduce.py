"""What is said of a rebuilt checkpoint that did not come out the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from finjepa_model.config import PRESETS, FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.publishing.reproduce import compare, overrides, reproduce, surroundings


@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(0, 2**31),
    st.floats(1e-6, 1.0),
    st.booleans(),
    st.sampled_from([32, 64]),
)
def test_a_config_survives_being_written_as_overrides(name, seed, rate, shorts, window):
    wanted = preset(name).override(
        {
            "training.seed": str(seed),
            "training.learning_rate": repr(rate),
            "portfolio.allow_short": str(shorts).lower(),
            "model.window": str(window),
        }
    )
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
