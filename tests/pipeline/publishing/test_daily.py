"""Who decides: the checkpoint that was champion in the night after a date, on as many assets as its backtest traded."""

import numpy as np
import pytest

from finjepa_pipeline.publishing import daily
from finjepa_pipeline.publishing.daily import MadeDecision, make_decision
from tests.pipeline.backtest.handmade_panel import write_panel


@pytest.fixture
def decided(home, tmp_path, monkeypatch):
    """A panel, and (checkpoint, book, name, assets) of every decision that is asked for."""
    panel = write_panel(tmp_path / "panel", np.random.default_rng(0).normal(0, 0.01, (14, 8)))
    made: list[tuple[str, str, str, int]] = []

    def note(settings, warehouse, panel, session, decider):
        made.append((decider.checkpoint.name, decider.book, decider.name, decider.n_assets))
        return MadeDecision({}, tmp_path, new=True)

    monkeypatch.setattr(daily, "current_panel", lambda settings: panel.folder)
    monkeypatch.setattr(daily, "_made", note)
    monkeypatch.setattr(daily, "_follow", note)
    return panel, made


def test_each_date_is_decided_by_the_champion_of_its_night(home, decided):
    panel, made = decided
    dates = [str(day) for day in panel.dates]
    for name in ("aaaa", "bbbb"):
        home.add_checkpoint(name)
    home.promote("aaaa", when=f"{dates[4]} 23:30:00")  # in the evening after the close of session 4, UTC
    home.promote("bbbb", when=f"{dates[8]} 23:30:00")
    for date in dates[2:11]:
        make_decision(home.settings, home.warehouse, as_of=date)
    assert {row[:2] for row in made[:2]} == {("bbbb", "trial")}  # before the first champion the present one decides
    assert {row[:2] for row in made[2:6]} == {("aaaa", "champion")}
    assert {row[:2] for row in made[6:]} == {("bbbb", "champion")}


def test_a_book_trades_as_many_assets_as_its_backtest_and_another_number_is_a_trial(home, decided):
    home.add_checkpoint("aaaa")
    home.promote("aaaa", when="2020-01-02 23:30:00")
    make_decision(home.settings, home.warehouse)
    with home.warehouse.connect() as con:
        con.execute(
            """INSERT INTO backtest_returns BY NAME SELECT 'aaaa' AS checkpoint, 'mppi' AS strategy, 'test' AS block,
            DATE '2020-01-05' AS date, 0 AS gross_return, 0 AS net_return, 0 AS cost, 0 AS turnover, 1 AS wealth, false AS hedge,
            'data1' AS data_version, '0123456789ab-5' AS setup"""
        )
    for n_assets in (None, 5, 3):
        make_decision(home.settings, home.warehouse, n_assets=n_assets)
    assert [row[1:] for row in decided[1]] == [
        ("champion", "mppi", 20),  # its backtest is of an older version
        ("champion", "mppi", 5),
        ("champion", "mppi", 5),
        ("trial", "mppi, 3 assets", 3),
    ]
