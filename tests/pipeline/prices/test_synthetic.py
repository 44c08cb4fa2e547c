"""The generated market is what it says: its truth explains its returns, its bars are sound, its oracle cannot be beaten."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources import PriceSourceConfig, make_feed
from finjepa_pipeline.prices.synthetic import (
    VARIANTS,
    SyntheticConfig,
    bars_of,
    expected_utility,
    generate,
    half_spread,
    oracle_weights,
)
from finjepa_pipeline.settings import Settings

AVERSION = 5.0


def listed_throughout(variant: str, seed: int, assets: int = 20):
    """A market, and the assets that are listed on all of its days."""
    market = generate(SyntheticConfig(variant, seed=seed, assets=2 * assets + 30))
    return market, np.flatnonzero(market.alive_DA.all(axis=0))[:assets]


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_seed_same_market_and_sound_bars(variant: str):
    config = SyntheticConfig(variant, seed=3, sessions=800)
    bars = bars_of(generate(config))
    assert bars.equals(bars_of(generate(config)))
    assert not bars.equals(bars_of(generate(SyntheticConfig(variant, seed=4, sessions=800))))
    top, bottom = pl.max_horizontal("open", "close"), pl.min_horizontal("open", "close")
    broken = bars.filter(
        (pl.col("high") < top * (1 - 1e-9)) | (pl.col("low") > bottom * (1 + 1e-9)) | (pl.col("low") <= 0)
    )
    assert broken.is_empty()
    assert bars.select(pl.struct("symbol", "date").is_unique().all()).item()
    assert 0.003 < bars.select((pl.col("volume") == 0).mean()).item() < 0.02


def test_adjusted_closes_give_the_true_returns():
    market = generate(SyntheticConfig("drift", seed=1, assets=60))
    bars = bars_of(market)
    whole = [asset for asset in range(60) if market.alive_DA[:, asset].all()][:20]
    for asset in whole:
        mine = bars.filter(pl.col("symbol") == f"SYN{asset:05d}").head(len(market.dates))
        traded = np.flatnonzero(mine["volume"].to_numpy() > 0)
        true = np.cumprod(1 + market.returns_DA[:, asset])[traded]
        adjusted = mine["adj_close"].to_numpy()[traded]
        np.testing.assert_allclose(adjusted / adjusted[0], true / true[0], rtol=1e-9)


def test_the_page_of_the_synthetic_market_does_what_it_says(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "docs" / "how-to" / "synthetic.md"
    monkeypatch.chdir(tmp_path)
    exec(page.read_text(encoding="utf-8").split("```python")[1].split("```")[0], {})
    assert 0.5 < float(capsys.readouterr().out) < 1  # utility is concave


@pytest.mark.parametrize("variant", VARIANTS)
def test_truth_explains_the_returns(variant: str):
    market, assets = listed_throughout(variant, 0, 40)
    surprise = market.returns_DA[1:, assets] - market.expected_DA[:-1, assets]
    covariance = market.covariance()[:-1][:, assets][:, :, assets]
    standard = surprise / np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert abs(standard.std() - 1) < 0.05
    portfolio = surprise.mean(axis=1) / np.sqrt(covariance.mean(axis=(1, 2)))
    assert abs(portfolio.std() - 1) < 0.1
    assert abs(portfolio.mean()) < 3 / np.sqrt(len(portfolio))


def test_splits_dividends_reused_tickers_and_ends_are_there():
    market = generate(SyntheticConfig("drift", seed=2, assets=200, sessions=1500))
    bars = bars_of(market)
    step = (pl.col("adj_close") / pl.col("close")).pct_change().over("symbol") + 1
    steps = bars.sort("symbol", "date").select(step=step).drop_nulls()["step"]
    assert ((steps > 1.9) & (steps < 2.1)).any()  # a split
    assert ((steps > 1.004) & (steps < 1.006)).sum() > 1000  # dividends
    assert bars["symbol"].n_unique() < 200, "no ticker was used again"
    assert market.delisted_A.any()


def feed_of(tmp_path: Path, **options):
    feed = make_feed(PriceSourceConfig(data_source="synthetic", **options), Settings(home=tmp_path))
    assert feed is not None
    return feed


def source_of(tmp_path: Path, **options):
    return feed_of(tmp_path, **options).source


def test_the_source_is_one_like_any_other(tmp_path: Path):
    source = source_of(tmp_path, synthetic_variant="null", synthetic_seed=5, synthetic_sessions=300)
    snapshot = source.snapshot()
    files = source.fetch(snapshot)
    assert files == source.fetch(snapshot)
    assert all(file.is_file() for file in files)
    with pytest.raises(FinJEPAError, match="drift, momentum, risk, null"):
        SyntheticConfig("bull")
    with pytest.raises(FinJEPAError, match="synthetic"):
        make_feed(PriceSourceConfig(data_source="sample", synthetic_assets=5), Settings(home=tmp_path))


def test_another_size_is_another_market_and_is_remembered(tmp_path: Path):
    usual, wide = source_of(tmp_path, synthetic_seed=3), source_of(tmp_path, synthetic_seed=3, synthetic_assets=7)
    assert usual.snapshot().version != wide.snapshot().version
    assert (usual.place, wide.place) == ("synthetic:drift:3", "synthetic:drift:3:assets=7")
    stored = feed_of(tmp_path, synthetic_seed=3, synthetic_assets=7).options_json
    again = make_feed(PriceSourceConfig(**json.loads(stored)), Settings(home=tmp_path))
    assert again is not None
    assert again.source == wide
    said = source_of(tmp_path, synthetic_seed=3, synthetic_assets=20, synthetic_sessions=2520)
    assert said.snapshot() == usual.snapshot()  # the usual size


def test_the_oracle_is_the_best_of_its_kind():
    market, assets = listed_throughout("drift", 0, 6)
    mean, covariance = market.expected_DA[:40, assets], market.covariance(slice(40))[:, assets][:, :, assets]
    best = expected_utility(oracle_weights(mean, covariance, AVERSION), mean, covariance, AVERSION)
    random = np.random.default_rng(0)
    for _ in range(200):
        weights = random.dirichlet(np.full(6, 0.3), 40)
        assert (expected_utility(weights, mean, covariance, AVERSION) <= best + 1e-7).all()
    # nothing beats the unconstrained optimum, mu' Sigma^-1 mu / (2 gamma)
    free = np.einsum("ta,ta->t", mean, np.linalg.solve(covariance, mean[..., None])[..., 0]) / (2 * AVERSION)
    assert (best <= free + 1e-7).all()


def test_hedging_pays_where_a_crash_is_announced():
    market, assets = listed_throughout("risk", 0)
    warned = market.warning_D
    assert (market.expected_DA[warned][:, assets].mean(axis=1) < 0).all()  # 1/N costs, and cash does not
    assert market.crash_D[1:][warned[:-1]].mean() > 10 * market.crash_D[1:][~warned[:-1]].mean()
    assert abs(market.expected_DA[:, assets].mean()) < 2e-4


def test_dispersion_shows_that_a_crash_is_announced():
    """At the close of a session its dispersion across assets tells whether the warning is on."""
    market, assets = listed_throughout("risk", 1)
    returns = market.returns_DA[:, assets]
    dispersion = np.abs(returns - np.median(returns, axis=1, keepdims=True)).mean(axis=1)
    warned, calm = dispersion[market.warning_D], dispersion[~market.warning_D]
    assert (warned[:, None] > calm).mean() > 0.95


def test_assets_come_and_go_as_often_as_they_should():
    market = generate(SyntheticConfig("null", seed=0, assets=1500))
    listed_years = market.alive_DA.sum() / 252.0
    assert 0.02 < market.delisted_A.sum() / listed_years < 0.045
    late = ~market.alive_DA[0]
    assert 0.15 < late.mean() < 0.25
    left = market.alive_DA[-1] == market.delisted_A
    assert not left.any()
    level = np.cumsum(np.log1p(market.returns_DA), axis=0)
    fallen = 1 - np.exp(level - np.maximum.accumulate(level, axis=0))
    old = market.alive_DA & (np.cumsum(market.alive_DA, axis=0) > 252)
    dies = old & ~np.vstack([market.alive_DA[1:], np.ones(1500, bool)])
    deep, shallow = old & (fallen > 0.7), old & (fallen < 0.3)
    assert dies[deep].mean() > 1.3 * dies[shallow].mean()


def test_a_spread_shows_between_high_and_low():
    """A cheap share has the wider spread, and every bar is at least as wide as buying and selling makes it."""
    bars = bars_of(generate(SyntheticConfig("null", seed=6, assets=60, sessions=600))).filter(pl.col("volume") > 0)
    width = (bars["high"] / bars["low"]).to_numpy() - 1
    spread = 2 * half_spread(bars["close"].to_numpy())
    assert (width > 0.999 * spread).all()
    assert half_spread(np.array([2.0])) > 5 * half_spread(np.array([100.0]))
