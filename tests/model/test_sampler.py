"""Batches come from eligible pairs only, cover the sessions evenly, and go on where a run stopped."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import preset
from finjepa_model.data.batches import DateSampler, EligibleIndex, subsets
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import shortage, split_dates, ways_out
from finjepa_model.errors import FinJEPAError
from tests.model.test_panel import SESSIONS, panel  # noqa: F401  (a fixture)


@pytest.fixture
def index() -> EligibleIndex:
    sizes = np.array([3, 5, 4, 9, 3])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    assets = np.concatenate([np.arange(size) * 2 for size in sizes]).astype(np.int32)
    return EligibleIndex(np.array([10, 11, 13, 17, 20]), starts, assets)


def test_index_is_what_the_panel_says_session_by_session(panel: Panel):  # noqa: F811
    index = EligibleIndex.of(panel, window=4, start=5, stop=36, least=1)
    expected = {date: panel.eligible_assets(date, 4).tolist() for date in range(5, 36)}
    expected = {date: assets for date, assets in expected.items() if assets}
    found = {
        int(session): index.assets[index.starts[k] : index.starts[k + 1]].tolist()
        for k, session in enumerate(index.sessions)
    }
    assert found == expected
    allowed = np.array([False, True, True, True])
    only = EligibleIndex.of(panel, window=4, start=0, stop=SESSIONS, least=1, allowed=allowed)
    assert 0 not in only.assets


def test_an_index_of_nothing_says_what_to_do(panel: Panel):  # noqa: F811
    with pytest.raises(FinJEPAError, match="fewer assets"):
        EligibleIndex.of(panel, window=4, start=0, stop=SESSIONS, least=10)


def test_subsets_are_sets_and_uniform():
    random = np.random.default_rng(0)
    size = np.full(30_000, 5)
    chosen = np.sort(subsets(random, size, 3), axis=1)
    assert (np.diff(chosen, axis=1) > 0).all()
    assert chosen.min() == 0
    assert chosen.max() == 4
    _, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(counts) == 10
    np.testing.assert_allclose(counts / len(chosen), 0.1, atol=0.01)
    assert (np.sort(subsets(random, np.array([3, 4]), 3)[0]) == [0, 1, 2]).all()


def test_an_epoch_visits_every_session_once(index: EligibleIndex):
    sampler = DateSampler(index, batch_size=5, n_assets=3, seed=0)
    for step in range(4):
        sessions, assets = sampler.batch(step)
        assert sorted(sessions) == index.sessions.tolist()
        for session, chosen in zip(sessions, assets, strict=True):
            k = int(np.searchsorted(index.sessions, session))
            assert len(set(chosen.tolist())) == 3
            assert set(chosen.tolist()) <= set(index.assets[index.starts[k] : index.starts[k + 1]].tolist())


def test_a_step_is_the_same_wherever_a_run_begins(index: EligibleIndex):
    whole = [DateSampler(index, batch_size=4, n_assets=2, seed=7).batch(step) for step in range(9)]
    resumed = DateSampler(index, batch_size=4, n_assets=2, seed=7)
    for step in (8, 5, 6):
        np.testing.assert_array_equal(resumed.batch(step)[0], whole[step][0])
        np.testing.assert_array_equal(resumed.batch(step)[1], whole[step][1])
    other = DateSampler(index, batch_size=4, n_assets=2, seed=8)
    assert any((other.batch(step)[1] != whole[step][1]).any() for step in range(9))


def test_a_session_with_fewer_assets_gives_all_that_it_has(index: EligibleIndex):
    for session, assets_N in zip(*DateSampler(index, batch_size=20, n_assets=4, seed=3).batch(0), strict=True):
        k = int(np.searchsorted(index.sessions, session))
        here = index.assets[index.starts[k] : index.starts[k + 1]]
        drawn = np.sort(assets_N[assets_N >= 0])
        assert len(drawn) == min(4, len(here))
        assert np.isin(drawn, here).all()
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("sessions", "block"), [(513, "validation"), (120, "training")])
def test_a_block_that_is_too_short_is_named(sessions: int, block: str):
    with pytest.raises(FinJEPAError, match=f"{sessions} sessions are too few: the {block} block has"):
        split_dates(sessions, preset("tiny"))


def remedies(text: str) -> list[tuple[int | None, dict[str, str]]]:
    """(sessions, config overrides) of each way out that a message names."""
    found = []
    for one in text.split(" or "):
        history = re.fullmatch(r"bring a history of (\d+) sessions", one)
        found.append((int(history[1]) if history else None, dict(re.findall(r"--set (\S+)=(\S+)", one))))
    assert all(sessions or changes for sessions, changes in found), text
    return found


@given(
    st.integers(0, 2500),
    st.sampled_from([10, 5, 1]),
    st.sampled_from([0.5, 0.7, 0.9]),
    st.sampled_from([0.02, 0.15, 0.4]),
)
def test_each_way_out_of_a_block_that_is_too_short_is_one(sessions, stride, train, validation):
    """Applied alone, it makes all blocks long enough, and leaves sessions to learn from after an asset's first year."""
    changes = {"model.stride": stride, "training.train_share": train, "training.validation_share": validation}
    try:
        config = preset("tiny").override({key: str(value) for key, value in changes.items()})
    except FinJEPAError:  # no room for a test block
        return
    for more, overrides in remedies(ways_out(sessions, config)):
        mended = config.override(overrides)
        splits = split_dates(more or sessions, mended)
        assert shortage(splits, mended) == ""
        assert splits.train[1] > 252


def test_a_message_names_only_what_lengthens_the_block():
    """A shorter window does nothing for a validation block, and other shares do nothing for a history of half a year."""
    with pytest.raises(FinJEPAError) as error:
        split_dates(513, preset("tiny"))
    assert "model.window" not in str(error.value)
    assert "--set training.train_share=0.6 --set training.validation_share=0.2" in str(error.value)
    with pytest.raises(FinJEPAError) as error:
        split_dates(130, preset("tiny"))
    assert "--set" not in str(error.value)
