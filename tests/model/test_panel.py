"""Windows of a panel are what a loop over days would collect, and never read a neighbour."""

import json
from pathlib import Path

import numpy as np
import pytest

from finjepa_model.data.panel import FORMAT, Panel
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
