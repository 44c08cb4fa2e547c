"""Windows of a panel never read a neighbour; batches come from eligible pairs only and go on where a run stopped; blocks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import preset
from finjepa_model.data.batches import DateSampler, EligibleIndex, subsets, volatility
from finjepa_model.data.panel import FORMAT, Panel
from finjepa_model.data.splits import shortage, split_dates, ways_out
from finjepa_model.errors import FinJEPAError

SESSIONS, CHANNELS = 40, 3
FIRST = np.array([0, 25, 10, 39])
LENGTHS = np.array([40, 15, 12, 1])
SPARE = 2  # rows between two assets, filled with poison


@pytest.fixture
def panel(tmp_path: Path) -> Panel:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS + SPARE)])
    size = int(offsets[-1])
    arrays = {
        "features": rng.normal(size=(size, CHANNELS)).astype(np.float32),
        "returns": rng.normal(size=size).astype(np.float32),
        "beta": np.ones(size, np.float32),
        "market_returns": np.zeros(SESSIONS, np.float32),
        "market_features": rng.normal(size=(SESSIONS, 2)).astype(np.float32),
    }
    arrays |= {name: rng.random(size) < 0.8 for name in ("observed", "tradable", "eligible")}
    for offset, length in zip(offsets, LENGTHS, strict=False):
        for name in ("features", "returns"):
            arrays[name][offset + length : offset + length + SPARE] = np.nan
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    manifest = {
        "format": FORMAT,
        "content_hash": "test",
        "channels": [{"name": f"c{i}"} for i in range(CHANNELS)],
        "market_channels": [{"name": "m0"}, {"name": "m1"}],
        "assets": ["A", "B", "C", "D"],
        "dates": [str(np.datetime64("2020-01-01") + day) for day in range(SESSIONS)],
        "offsets": offsets.tolist(),
        "first": FIRST.tolist(),
        "lengths": LENGTHS.tolist(),
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Panel.open(tmp_path)


def _row(panel: Panel, asset: int, day: int) -> int | None:
    """The row of an asset on a day, by the definition."""
    listed = asset >= 0 and FIRST[asset] <= day < FIRST[asset] + LENGTHS[asset]
    return int(panel.offsets[asset] + day - FIRST[asset]) if listed else None


@pytest.mark.parametrize("length", [1, 5, 16, 40])
def test_windows_equal_a_loop_over_days(panel: Panel, length: int):
    dates, assets = np.arange(SESSIONS), np.tile(np.array([0, 1, 2, 3, -1]), (SESSIONS, 1))
    features, observed = panel.windows(dates, assets, length)
    assert features.shape == (SESSIONS, 5, length, CHANNELS)
    assert features.dtype == np.float32
    for (b, n), asset in np.ndenumerate(assets):
        for t in range(length):
            row = _row(panel, asset, b - length + 1 + t)
            np.testing.assert_array_equal(features[b, n, t], 0 if row is None else panel.features[row])
            assert observed[b, n, t] == (row is not None and panel.observed[row])


def test_windows_in_other_channels_are_the_panels_and_unknown_where_it_lacks_them(panel: Panel):
    dates, assets = np.arange(SESSIONS), np.tile(np.array([0, 3, -1]), (SESSIONS, 1))
    whole, observed = panel.windows(dates, assets, 5)
    features, same = panel.windows(dates, assets, 5, ("c1", "volume", "c0"))
    np.testing.assert_array_equal(features, np.stack([whole[..., 1], 0 * whole[..., 0], whole[..., 0]], axis=-1))
    np.testing.assert_array_equal(same, observed)


def test_returns_after_equal_a_loop_over_days(panel: Panel):
    dates, assets = np.array([0, 8, 20, 30, 39]), np.tile(np.array([3, 2, 1, 0, -1]), (5, 1))
    returns, traded = panel.returns_after(dates, assets, 6)
    for (b, n), asset in np.ndenumerate(assets):
        for h in range(6):
            row = _row(panel, asset, dates[b] + 1 + h)
            assert returns[b, n, h] == (0 if row is None else panel.returns[row])
            assert traded[b, n, h] == (row is not None and panel.tradable[row])


def test_eligible_assets_have_a_whole_window(panel: Panel):
    for date in range(SESSIONS):
        for window in (1, 4, 12):
            whole = [a for a in range(4) if None not in (_row(panel, a, date - window + 1), _row(panel, a, date))]
            expected = [asset for asset in whole if panel.eligible[_row(panel, asset, date)]]
            assert panel.eligible_assets(date, window).tolist() == expected


def test_market_windows_equal_a_loop_over_days(panel: Panel):
    assert panel.market_channels == ("m0", "m1")
    windows = panel.market_windows(np.arange(SESSIONS), 6)
    assert windows.shape == (SESSIONS, 6, 2)
    assert windows.dtype == np.float32
    for b, t in np.ndindex(SESSIONS, 6):
        day = b - 5 + t
        np.testing.assert_array_equal(windows[b, t], panel.market_features[day] if day >= 0 else np.zeros(2))


def test_rows_and_dates(panel: Panel):
    assert panel.rows([0, 24, 25, 39], 1).tolist() == [-1, -1, panel.offsets[1], panel.offsets[1] + 14]
    assert panel.date_index("2020-01-03") == 2
    assert panel.date_index("2030-01-01") == SESSIONS - 1
    with pytest.raises(FinJEPAError, match="before the first session"):
        panel.date_index("2019-01-01")


def test_a_folder_that_is_no_panel_is_named(tmp_path: Path):
    with pytest.raises(FinJEPAError, match=str(tmp_path)):
        Panel.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(FinJEPAError, match="format other"):
        Panel.open(tmp_path)


@pytest.fixture
def index() -> EligibleIndex:
    sizes = np.array([3, 5, 4, 9, 3])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    assets = np.concatenate([np.arange(size) * 2 for size in sizes]).astype(np.int32)
    return EligibleIndex(np.array([10, 11, 13, 17, 20]), starts, assets)


def test_index_is_what_the_panel_says_session_by_session(panel: Panel):
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


def test_an_index_of_nothing_says_what_to_do(panel: Panel):
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


@pytest.mark.parametrize(("sessions", "block", "shorter_steps"), [(513, "validation", True), (120, "training", False)])
def test_a_message_names_the_block_that_is_too_short_and_only_what_lengthens_it(sessions, block, shorter_steps):
    """Shorter steps do nothing for a history of half a year."""
    with pytest.raises(FinJEPAError, match=f"{sessions} sessions are too few: the {block} block has") as error:
        split_dates(sessions, preset("tiny"))
    assert ("--set model.stride=" in str(error.value)) == shorter_steps


def test_a_steady_market_has_the_volatility_that_it_has():
    returns_XT = 0.01 * torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    assert volatility(returns_XT).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.02)
