"""Configs are typed and checked when they are read, an error names the key; JSON is standard JSON, whoever reads it."""

import dataclasses
import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import PRESETS, FinJEPAConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import from_json, to_json


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


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1, "a": 2}', "1e999", "[" * 10**6, "1" * 10**5, ""])
def test_what_is_not_standard_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
        from_json(text)
