"""JSON is standard JSON, whoever reads it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.files import from_json, to_json

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
