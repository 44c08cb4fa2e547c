"""A leak of each kind is planted in one part of the product, and the audit catches it; the sound product passes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from handmade_panel import noise, write_panel

from finjepa_model.config import FinJEPAConfig
from finjepa_model.training.panel import Panel
from finjepa_pipeline.backtest import engine, trial
from finjepa_pipeline.backtest.audit import (
    Finding,
    Product,
    delay,
    fill_lag,
    label_alignment,
    model_labels,
    permutation,
)
from finjepa_pipeline.backtest.audit_markets import luckiest_mean
from finjepa_pipeline.backtest.baselines import EveryDecision, extreme_quintile
from finjepa_pipeline.backtest.strategies import long_only
from finjepa_pipeline.backtest.truncation import build_from_rows, retold, truncation
from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate
from finjepa_pipeline.prices.synthetic.bars import bars_of
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

CONFIG = FinJEPAConfig().override(
    {"model.window": "24", "model.stride": "5", "training.n_assets": "2", "training.batch_size": "8"}
)


def features_of_today(panel: Panel):
    """Weights by the newest value of every feature: whatever leaks into a feature leaks into the decision."""

    def rule(view):
        newest_NF = view.features(1)[0][:, -1]
        return np.exp(np.clip(newest_NF.sum(-1), -5, 5)) * view.present_N

    return EveryDecision("by_features", rule)


PRODUCT = Product(strategy=features_of_today, config=CONFIG, n_assets=6)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return bars_of(generate(SyntheticConfig(variant="drift", seed=3, assets=6, sessions=560))).select(
        "symbol", "date", "open", "high", "low", "close", "volume", "adj_close"
    )


@pytest.fixture
def panel(tmp_path) -> Panel:
    return write_panel(tmp_path / "noise", noise(700, 6, seed=2))


def rewritten(panel: Panel, name: str, array: np.ndarray) -> Panel:
    np.save(panel.folder / f"{name}.npy", array)
    return Panel.open(panel.folder)


def full_sample_scaler(folder: Path, rows: pl.DataFrame) -> Panel:
    panel = build_from_rows(folder, rows)
    features_RF = np.array(panel.features)
    scaled_RF = (features_RF - features_RF.mean(0)) / (features_RF.std(0) + 1e-6)
    return rewritten(panel, "features", scaled_RF.astype(np.float32))


def future_members(folder: Path, rows: pl.DataFrame) -> Panel:
    """Who is in the universe is who will have been the best by the end of the file."""
    panel = build_from_rows(folder, rows)
    growth = [np.log1p(panel.returns[o : o + n]).sum() for o, n in zip(panel.offsets, panel.lengths, strict=False)]
    chosen = np.argsort(growth)[-3:]
    eligible_R = np.array(panel.eligible)
    for asset in range(len(panel.assets)):
        mine = slice(panel.offsets[asset], panel.offsets[asset] + panel.lengths[asset])
        eligible_R[mine] &= asset in chosen
    return rewritten(panel, "eligible", eligible_R)


def adjusted_level(folder: Path, rows: pl.DataFrame) -> Panel:
    """A channel of log(adj_close / close): the product of all dividends and splits to come."""
    panel = build_from_rows(folder, rows)
    features_RF = np.array(panel.features)
    for asset, name in enumerate(panel.assets):
        mine = rows.filter(pl.col("symbol") == name.split("#")[0]).sort("date")
        level = dict(zip(mine["date"], np.log(mine["adj_close"] / mine["close"]), strict=True))
        for r in range(panel.lengths[asset]):
            features_RF[panel.offsets[asset] + r, 0] = level.get(str(panel.dates[panel.first[asset] + r]), 0.0)
    return rewritten(panel, "features", features_RF)


def test_the_sound_product_stays_as_it_was_with_another_future(rows, tmp_path):
    finding = truncation(PRODUCT, rows, tmp_path, dates=1, seed=1)
    assert finding.passed, finding.text


@pytest.mark.parametrize(
    ("leak", "future", "named"),
    [
        (full_sample_scaler, "cut", "the channel"),
        (future_members, "cut", "eligible"),
        (adjusted_level, "restated", "the channel log_return"),
    ],
)
def test_a_leak_from_the_future_of_the_rows_is_caught(leak, future, named, rows, tmp_path):
    finding = truncation(PRODUCT, rows, tmp_path, dates=1, seed=1, futures=(future,), build=leak)
    assert not finding.passed
    assert named in finding.text
    assert finding.of_data


def test_a_decision_that_moves_on_the_same_features_is_no_failure_of_the_data(rows, tmp_path):
    draws = np.random.default_rng(0)
    product = Product(
        lambda panel: EveryDecision("random", lambda view: draws.random(len(view.assets))), CONFIG, n_assets=6
    )
    finding = truncation(product, rows, tmp_path, dates=1, seed=1, futures=("cut",))
    assert not finding.passed
    assert not finding.of_data


def test_a_failure_of_the_data_in_an_audit_of_an_own_strategy_is_stored_for_all_planners(tmp_path, monkeypatch):
    found = {
        "truncation": Finding("truncation", False, 1.0, "x", of_data=True),
        "delay": Finding("delay", False, 1.0, "x"),
    }
    monkeypatch.setattr(trial, "raw_rows", lambda *_: None)
    monkeypatch.setattr(trial, "_hold_here", lambda *_: iter(found.items()))
    settings = Settings(home=tmp_path).ensure()
    warehouse, panel = Warehouse.from_settings(settings), write_panel(tmp_path / "panel", noise(60, 2)).folder
    monkeypatch.setattr(trial, "current_panel", lambda _: panel)
    scale = {"dates": 1, "seeds": 1, "symbols": 1, "sessions": 1}
    list(trial.hold_trial(warehouse, settings, tmp_path / "abcd", "mine.py:decide", "run1", print, **scale))
    with warehouse.connect() as con:
        rows = con.execute("SELECT test, strategy FROM audit_results ORDER BY test").fetchall()
    assert rows == [("delay", "mine.py:decide"), ("truncation", trial.ALL_PLANNERS)]


def same_close(strategy, court, views=None):
    """An engine that fills at the close of the decision: the session after it is earned at the new weights."""
    first = replace(court.universes[0], start=court.decisions[0] - 1)
    early = replace(court, decisions=tuple(d - 1 for d in court.decisions), universes=(first,))

    class Early:
        name = "early"

        def decide(self, view, state):
            return strategy.decide(court.views()[early.decisions.index(court.panel.date_index(view.date))], state)

    result = engine.walk(Early(), early)
    return replace(result, gross_T=result.gross_T[1:], net_T=result.net_T[1:], dates_T=result.dates_T[1:])


def test_a_fill_at_the_close_of_the_decision_is_caught(panel):
    assert fill_lag(PRODUCT, panel).passed
    caught = fill_lag(replace(PRODUCT, walk=same_close), panel)
    assert not caught.passed
    assert caught.value > 10


def one_bar_early(panel, config, dates_B, assets_BN):
    """The label begins in the session of the fill, which nobody is paid for."""
    labels_BSN = model_labels(panel, config, dates_B, assets_BN)
    steps = labels_BSN.shape[1]
    decided_S = dates_B[0] + config.model.stride * (np.arange(steps) - config.model.context_steps + 1)
    early = [panel.returns_after(np.array([d]), assets_BN, config.model.stride)[0][0] for d in decided_S]
    return np.expm1(np.log1p(np.array(early)).sum(-1))[None]


def test_labels_that_are_off_by_one_are_caught(panel):
    assert label_alignment(PRODUCT, panel).passed
    caught = label_alignment(replace(PRODUCT, labels=one_bar_early), panel)
    assert not caught.passed
    assert "session" in caught.text


def test_a_strategy_that_prefers_places_is_caught(panel):
    def to_the_first(panel: Panel):
        return EveryDecision("to_the_first", lambda view: np.arange(len(view.present_N), 0, -1.0))

    def random(panel: Panel):
        rng = np.random.default_rng(1)
        return EveryDecision("random", lambda view: rng.random(len(view.present_N)))

    assert permutation(PRODUCT, panel).value < 1e-6
    assert permutation(replace(PRODUCT, strategy=random), panel).passed
    assert not permutation(replace(PRODUCT, strategy=to_the_first), panel).passed


def test_a_strategy_that_reads_ahead_collapses_when_it_is_late(tmp_path):
    """It reads two sessions ahead, past the fill; a session late it reads one that it is not paid for."""
    panel = write_panel(tmp_path, noise(3000, 6, seed=2))

    class ReadsAhead:
        name = "reads_ahead"

        def decide(self, view, state):
            session = panel.date_index(view.date)
            rows_N = panel.rows(session + 2, view.asset_indices)
            chosen = int(np.argmax(np.where(rows_N >= 0, panel.returns[rows_N], -1)))
            return long_only(np.eye(len(rows_N))[chosen])

    def momentum(panel: Panel):
        return EveryDecision("momentum", lambda view: extreme_quintile(view, 60))

    assert delay(replace(PRODUCT, strategy=momentum), panel).passed
    assert not delay(replace(PRODUCT, strategy=lambda panel: ReadsAhead()), panel).passed


@pytest.mark.parametrize("markets", [2, 4, 30])
def test_a_strategy_without_an_edge_is_rarely_refused_however_few_the_null_markets(markets):
    gains = np.random.default_rng(markets).normal(0.0, 0.1, (4000, markets))
    refused = np.mean([row.mean() > luckiest_mean(row) for row in gains])
    assert 0.003 < refused < 0.02


def only_price(rows: pl.DataFrame) -> pl.DataFrame:
    """The same market of a vendor whose only prices are divided by later splits and dividends: about 8 dollars."""
    factor = pl.col("adj_close") / pl.col("close")
    level = 8 / pl.col("adj_close").median().over("symbol")
    return rows.with_columns(
        *((pl.col(name) * factor * level).alias(name) for name in ("open", "high", "low", "close")),
        (pl.col("volume") / factor / level).cast(pl.Int64),
        pl.lit(None, pl.Float64).alias("adj_close"),
    )


def test_a_source_whose_only_price_is_back_adjusted_passes(rows: pl.DataFrame, tmp_path: Path):
    """Membership must not ask how high a price is: half of it would mean a later split, not a cheaper share."""
    finding = truncation(PRODUCT, only_price(rows), tmp_path, dates=1, seed=1)
    assert finding.passed, finding.text


def test_a_later_split_restates_the_only_price_and_leaves_its_dollar_volume(rows: pl.DataFrame):
    """Costs have tiers of dollar volume: were it to move with the price, so would decisions, though nothing leaks."""
    one_price = only_price(rows)
    date = one_price["date"].sort()[len(one_price) // 2]
    before = pl.col("date") <= date
    ours, theirs = one_price, retold(one_price, date, "restated")
    assert ours.filter(~before).equals(theirs.filter(~before))
    ours, theirs = ours.filter(before), theirs.filter(before)
    assert theirs["close"].equals(ours["close"] / 2)
    assert (theirs["close"] * theirs["volume"]).equals(ours["close"] * ours["volume"])
