"""A sweep trains every point of its grid with every seed, each once, under a name that says what is special."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.compute import metric_value
from finjepa_pipeline.training.assets import variants

KEYS = st.sampled_from(["training.learning_rate", "model.dim", "loss.recipe", "training.batch_size"])


@given(
    st.dictionaries(KEYS, st.lists(st.sampled_from("abcd"), min_size=1, unique=True), max_size=3),
    st.lists(st.integers(0, 9), min_size=1),
)
def test_every_point_has_every_seed_once(grid, seeds):
    found = variants(grid, seeds)
    points = 1
    for values in grid.values():
        points *= len(values)
    assert len(found) == points * len(set(seeds))
    assert len({json.dumps(changes, sort_keys=True) for changes in found.values()}) == len(found)
    for name, changes in found.items():
        assert set(changes) == {*grid, "training.seed"}
        assert all(f"{key}={changes[key]}" in name for key in grid)


@pytest.mark.parametrize(
    ("grid", "seeds"),
    [({}, []), ({"model.dim": []}, [0]), ({"training.seed": ["1"]}, [0])],
    ids=["seed", "value", "twice"],
)
def test_what_is_no_sweep_is_one_line(grid, seeds):
    with pytest.raises(FinJEPAError, match="seed") as told:
        variants(grid, seeds)
    assert "\n" not in str(told.value)


def test_a_metric_that_is_no_number_of_a_record_is_one_line():
    record = {"kind": "validation", "step": 3, "loss": 0.5, "rank": 3.0}
    assert metric_value(record, "loss") == 0.5
    with pytest.raises(FinJEPAError, match="choose one of loss, rank"):
        metric_value(record, "sharpe")
