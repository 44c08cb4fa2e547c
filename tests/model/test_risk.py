"""The risk model on a market whose volatilities are known; scores of forecasts against closed forms and simulations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from finjepa_model import FinJEPA
from finjepa_model.data.batches import BatchSource, Observation, observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import Splits
from finjepa_model.nn.risk import HORIZONS, RiskModel, factor_surprise
from finjepa_model.planning.imagination import Moments
from finjepa_model.training import risk_scorecard, textbook
from finjepa_model.training import risk_scores as scores
from finjepa_model.training.behaviour import sample_path
from finjepa_model.training.risk_fit import Chunk, RiskBlock, fit_trained
from finjepa_model.training.trainer import Trainer
from tests.model.training_runs import run_config
from tests.pipeline.backtest.handmade_panel import write_panel

CONFIG = run_config()
SESSIONS, ASSETS, SPLIT = 1300, 16, 900


def market(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Daily returns [D, A] with one factor and volatilities that move together and apart; and those volatilities."""
    random = np.random.default_rng(seed)

    def slow(shape: tuple[int, ...], pace: float, size: float) -> np.ndarray:
        state, path = np.zeros(shape[1:]), np.empty(shape)
        for day in range(shape[0]):
            state = pace * state + size * np.sqrt(1 - pace**2) * random.standard_normal(shape[1:])
            path[day] = state
        return path

    log_DA = np.log(0.01) + slow((SESSIONS, 1), 0.98, 0.3) + slow((SESSIONS, ASSETS), 0.98, 0.35)
    log_DA = log_DA + np.linspace(-0.5, 0.5, ASSETS)
    shocks_DA = np.sqrt(0.3) * random.standard_normal((SESSIONS, 1)) + np.sqrt(0.7) * random.standard_normal(
        log_DA.shape
    )
    return np.exp(log_DA) * shocks_DA, np.exp(log_DA)


def panel_of(folder: Path, returns_DA: np.ndarray, scale: float = 1.0, alive_DA: np.ndarray | None = None) -> Panel:
    channels_DAF = np.stack([100 * returns_DA, np.abs(100 * returns_DA), np.ones_like(returns_DA)], -1)
    return write_panel(folder, scale * returns_DA, features_DAF=channels_DAF, alive_DA=alive_DA)


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return panel_of(tmp_path_factory.mktemp("market"), market()[0])


@pytest.fixture(scope="module")
def block(panel: Panel) -> RiskBlock:
    return RiskBlock(panel, 0, SPLIT)


@pytest.fixture(scope="module")
def fitted(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> FinJEPA:
    """A world model that had sixty steps, with learned factors; its blocks end before session SPLIT."""
    training = {"epochs": 2, "steps_per_epoch": 30, "n_assets": 12, "train_share": 0.54, "validation_share": 0.14}
    config = run_config(learning_rate=3e-3, **training)
    config = replace(config, model=replace(config.model, factors=2))
    trainer = Trainer(config, panel, tmp_path_factory.mktemp("run"))
    report = trainer.train()["risk"]
    assert report["rows"] > 5000
    assert report["learned_factors"] > 0
    return trainer.model.eval()


def seen_at(panel: Panel, date: int, assets: np.ndarray) -> Observation:
    return observe(panel, np.array([date]), assets[None], 1, CONFIG)


EVERY = np.arange(ASSETS)


def test_forecasts_beat_history_on_later_dates(panel: Panel, fitted: FinJEPA):
    later = RiskBlock(panel, SPLIT, SESSIONS)

    def model(chunk: Chunk) -> torch.Tensor:
        return fitted.forecast_risk(chunk.observation).volatility_BNV.log()

    scores = risk_scorecard.score_volatility(later, CONFIG, {"model": model, "history": textbook.history_volatility})
    for ours, theirs in zip(scores["model"], scores["history"], strict=True):
        assert ours.qlike_D.mean() < 0.9 * theirs.qlike_D.mean()
        assert ours.r2 > theirs.r2 + 0.02
    covariances = {
        "model": lambda chunk: fitted.forecast_risk(chunk.observation).covariance(),
        "product": textbook.ewma_one_factor,
        "five": textbook.har_with_shrunk_correlations,
        "linear": textbook.sample_shrinkage,
    }
    least = risk_scorecard.score_portfolios(later, CONFIG, covariances, assets=12, draws=2, every=10)
    assert all(least["model"].volatility(False) < least[name].volatility(False) for name in ("product", "linear"))
    distributions = {
        "model": lambda chunk: fitted.forecast_risk(chunk.observation),
        "history": textbook.history_distribution,
    }
    found = risk_scorecard.score_tails(later, CONFIG, distributions, every=3)
    tails = found["model"]
    assert len(tails) == 6
    # over a month a portfolio's returns hardly tell forecasts apart
    assert all(row.crps_D.mean() < 1.002 * found["history"][key].crps_D.mean() for key, row in tails.items())
    for row in tails.values():
        assert 0.84 < row.coverage[0.9] < 0.95
        assert sum(row.pit) == pytest.approx(1)


def test_twice_the_returns_are_twice_the_volatility(panel: Panel, fitted: FinJEPA, tmp_path: Path):
    twice = panel_of(tmp_path, market()[0], scale=2.0)
    one, two = (fitted.forecast_risk(seen_at(x, 1000, EVERY)) for x in (panel, twice))
    torch.testing.assert_close(two.volatility_BNV, 2 * one.volatility_BNV, rtol=1e-4, atol=0)
    torch.testing.assert_close(two.covariance(), 4 * one.covariance(), rtol=1e-3, atol=1e-7)


def test_assets_are_treated_alike_and_absent_ones_change_nothing(panel: Panel, fitted: FinJEPA):
    order = np.random.default_rng(0).permutation(ASSETS)
    plain = fitted.forecast_risk(seen_at(panel, 1000, EVERY))
    mixed = fitted.forecast_risk(seen_at(panel, 1000, order))
    torch.testing.assert_close(mixed.volatility_BNV, plain.volatility_BNV[:, order])
    torch.testing.assert_close(mixed.covariance(), plain.covariance()[:, order][:, :, order], rtol=1e-3, atol=1e-8)
    padded = fitted.forecast_risk(seen_at(panel, 1000, np.concatenate([EVERY, [-1, -1]])))
    torch.testing.assert_close(padded.volatility_BNV[:, :ASSETS], plain.volatility_BNV)
    torch.testing.assert_close(padded.covariance()[:, :ASSETS, :ASSETS], plain.covariance(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("assets", [1, 2, ASSETS])
def test_covariances_are_positive_definite_and_quantiles_in_order(panel: Panel, fitted: FinJEPA, assets: int):
    found = fitted.forecast_risk(seen_at(panel, 1000, EVERY[:assets]))
    for horizon in HORIZONS:
        assert torch.linalg.cholesky_ex(found.covariance(horizon).double())[1].item() == 0
    for horizon in (1, 5, 21):
        quantiles_BNQ = found.quantiles((0.01, 0.05, 0.5, 0.95, 0.99), horizon)
        assert (quantiles_BNQ.diff(dim=-1) > 0).all()
        alone_BCQ = found.portfolio_quantiles(torch.eye(assets)[None], (0.05, 0.95), horizon)
        assert (alone_BCQ[..., 0] < 0).all()


def test_a_young_asset_and_one_without_a_past(fitted: FinJEPA, tmp_path: Path):
    alive_DA = np.ones((SESSIONS, ASSETS), bool)
    alive_DA[:980, 0] = False
    found = fitted.forecast_risk(seen_at(panel_of(tmp_path, market()[0], alive_DA=alive_DA), 1000, EVERY))
    assert found.volatility_BNV.isfinite().all()
    assert torch.linalg.cholesky_ex(found.covariance().double())[1].item() == 0


def test_before_it_is_fitted_the_model_is_fixed_har(panel: Panel):
    observation = seen_at(panel, 1000, EVERY)
    assert observation.past_BNR is not None
    found = RiskModel(len(CONFIG.model.channels))(observation)
    windows = [observation.past_BNR[..., -n:].square().mean(-1).sqrt().log() for n in (5, 21, 63, 252)]
    torch.testing.assert_close(found.volatility_BNV[..., 1].log(), torch.stack(windows).mean(0))


def test_targets_end_with_their_block(panel: Panel):
    chunk = RiskBlock(panel, 0, 900).chunk(np.array([870, 890]), np.stack([EVERY, EVERY]), CONFIG)
    known = chunk.target_BNV.isfinite().any(1)
    assert known.tolist() == [[True, True, False], [True, False, False]]


def test_the_likelihood_of_a_cross_section_is_that_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    loading_BNL = 0.4 * torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    loading_BNL = loading_BNL / (1 + loading_BNL.square().sum(-1, keepdim=True)).sqrt()
    unit_BNR = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    whole_BNN = loading_BNL @ loading_BNL.mT
    whole_BNN = whole_BNN + torch.diag_embed(1 - whole_BNN.diagonal(dim1=-2, dim2=-1))
    for b in range(2):
        normal = torch.distributions.MultivariateNormal(torch.zeros(7, dtype=torch.float64), whole_BNN[b])
        dense = -normal.log_prob(unit_BNR[b].T).mean() - 3.5 * np.log(2 * np.pi)
        assert float(factor_surprise(loading_BNL, unit_BNR)[b]) == pytest.approx(float(dense))


def test_observations_of_earlier_steps_do_not_carry_the_past(panel: Panel):
    observation = observe(panel, np.array([1000]), EVERY[None], 3, CONFIG)
    assert observation.step(-1).past_BNR is not None
    assert observation.step(0).past_BNR is None
    earlier = observe(panel, np.array([1000 - 2 * CONFIG.model.stride]), EVERY[None], 1, CONFIG)
    assert torch.equal(observation.step(0, CONFIG.model.stride).past_BNR[..., -400:], earlier.past_BNR[..., -400:])
    assert replace(observation, past_BNR=None, market_past_BR=None).to("cpu").past_BNR is None


# -- in the world model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world_model(panel: Panel) -> FinJEPA:
    torch.manual_seed(0)
    model = FinJEPA(CONFIG).eval()
    report = fit_trained(model, panel)
    assert report["rows"] > 5000
    assert report["share_of_network_21"] < 0.5  # nobody has trained it
    return model


def test_planners_get_the_covariance_of_the_risk_model(panel: Panel, world_model: FinJEPA):
    absent = np.array([*range(10), -1])
    observation = observe(panel, np.array([1000]), absent[None], CONFIG.model.context_steps, CONFIG)
    imagination = world_model.imagine(observation, 3)
    moments = Moments.of(imagination)
    forecast = world_model.forecast_risk(observation)
    present = [*range(10), 11]
    for step in range(3):
        assert torch.linalg.cholesky_ex(moments.covariance_BHMM[0, step][present][:, present].double())[1].item() == 0
    assert moments.covariance_BHMM[:, :, 10].abs().max() == 0
    stride, weights_1CN = CONFIG.model.stride, torch.full((1, 1, 11), 0.1)
    weights_1CN[..., 10] = 0
    first = moments.variance(weights_1CN)
    short = (weights_1CN @ forecast.covariance(5) * weights_1CN).sum(-1)
    torch.testing.assert_close(first, stride * short, rtol=1e-3, atol=0)  # shorter than 5 sessions: the volatility of 5
    hedged = moments.variance(weights_1CN, torch.tensor([[-0.9]]))
    assert 0 < float(hedged) < float(first)


def test_variances_of_steps_add_up_to_those_of_longer_horizons(panel: Panel, world_model: FinJEPA):
    forecast = world_model.forecast_risk(observe(panel, np.array([1000]), EVERY[None], 1, CONFIG))
    by_steps = forecast.step_covariance(21, 3).diagonal(dim1=-2, dim2=-1)[..., :-1].cumsum(1)
    for step, horizon in ((0, 21), (2, 63)):
        torch.testing.assert_close(by_steps[:, step], horizon * forecast.covariance(horizon).diagonal(dim1=-2, dim2=-1))


def test_labels_of_risk_teach_the_encoder(panel: Panel):
    torch.manual_seed(0)
    model = FinJEPA(CONFIG)
    batch = BatchSource(panel, CONFIG, (0, SPLIT)).draw(0)
    torch.nn.init.normal_(model.risk.head.mlp[-1].weight)  # it begins at nothing
    model.loss(batch, sample_path(batch, CONFIG.portfolio), seed=0)["risk"].backward()
    assert model.encoder.pool.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.predictor.parameters())


def test_a_checkpoint_keeps_the_risk_model_and_an_older_one_has_none(
    panel: Panel, world_model: FinJEPA, tmp_path: Path
):
    observation = observe(panel, np.array([1000]), EVERY[None], 1, CONFIG)
    world_model.save_pretrained(tmp_path / "new")
    ours = world_model.forecast_risk(observation)
    again = FinJEPA.from_pretrained(tmp_path / "new").forecast_risk(observation)
    torch.testing.assert_close(again.covariance(), ours.covariance())
    weights = load_file(tmp_path / "new" / "model.safetensors")
    old = {name: tensor for name, tensor in weights.items() if not name.startswith("risk.")}
    save_file(old, tmp_path / "new" / "model.safetensors")
    plain = FinJEPA.from_pretrained(tmp_path / "new").forecast_risk(observation)
    torch.testing.assert_close(plain.volatility_BNV, RiskModel(len(CONFIG.model.channels))(observation).volatility_BNV)


def test_the_scorecard_of_a_checkpoint_has_every_row(panel: Panel, world_model: FinJEPA):
    splits = Splits((0, 700), (700, SPLIT), (SPLIT, SESSIONS))
    card = risk_scorecard.scorecard(world_model, panel, splits)
    assert not card.left_out
    assert len(card.scores) == len({(s.block, s.symbols, s.score, s.horizon, s.forecast) for s in card.scores})
    assert all(np.isfinite(one.value) for one in card.scores)
    for block in ("validation", "test"):
        volatilities = [s for s in card.scores if (s.block, s.score, s.horizon) == (block, risk_scorecard.QLIKE, 21)]
        assert [s.forecast for s in volatilities][:3] == ["model", "without network", "HAR with market"]
        assert all(np.isnan(s.t_value) == (s.forecast == "model") for s in volatilities)
        name = (block, "90 % interval of portfolios covers, %", 5, "model")
        (covered,) = (s.value for s in card.scores if (s.block, s.score, s.horizon, s.forecast) == name)
        assert 80 < covered < 97
    values = {
        s.forecast: s.value for s in card.scores if (s.block, s.score, s.horizon) == ("test", risk_scorecard.QLIKE, 21)
    }
    assert values["model"] < values["20-day history"]
    assert card.example is not None
    assert all(abs(sum(shares) - 1) < 1e-6 for shares in card.pit.values())
    short = risk_scorecard.scorecard(world_model, panel, Splits((0, 700), (700, 710), (SPLIT, SESSIONS)))
    assert len(short.left_out) == 1


def test_har_with_the_market_is_least_squares_and_unbiased(block: RiskBlock):
    forecast = textbook.har_volatility(textbook.fit_har(block, CONFIG))
    ratios = [
        torch.exp(2 * (chunk.target_BNV - forecast(chunk)))[chunk.target_BNV.isfinite().all(-1)]
        for chunk in block.chunks(CONFIG, 5)
    ]
    torch.testing.assert_close(torch.cat(ratios).mean(0), torch.ones(3), atol=1e-3, rtol=0)


LEVELS = np.arange(0.005, 1.0, 0.005)


def test_qlike_is_least_at_the_mean_of_the_variance():
    realised = np.random.default_rng(0).chisquare(5, 100_000) / 5
    losses = [scores.qlike(realised, np.full_like(realised, level)).mean() for level in (0.8, 1.0, 1.25)]
    assert losses[1] < min(losses[0], losses[2])
    assert scores.qlike(realised, realised).max() == pytest.approx(0, abs=1e-12)


def test_r2_within_dates_ignores_the_level_of_a_date():
    random = np.random.default_rng(0)
    date = np.repeat(np.arange(50), 20)
    target = random.standard_normal(1000) + 5 * random.standard_normal(50)[date]
    assert scores.r2_within_dates(target, target + np.sin(date), date) == pytest.approx(1)
    assert scores.r2_within_dates(target, np.zeros(1000), date) == pytest.approx(0)


def test_t_values_count_what_is_correlated_once():
    random = np.random.default_rng(0)
    alone = random.standard_normal(2000) + 0.1
    assert scores.newey_west_t(alone, 0) == pytest.approx(stats.ttest_1samp(alone, 0).statistic, rel=1e-3)
    found = []
    for _ in range(300):
        noise = random.standard_normal(404)
        found.append(scores.newey_west_t(np.lib.stride_tricks.sliding_window_view(noise, 5).mean(1), 10))
    assert np.mean(np.abs(found) > 1.96) < 0.13
    assert np.isnan(scores.newey_west_t(alone[:5], 1))


def test_calibrated_quantiles_are_found_calibrated():
    outcome = np.random.default_rng(0).standard_normal(4000)
    quantile = np.broadcast_to(stats.norm.ppf(LEVELS), (4000, len(LEVELS)))
    # the closed form of the normal distribution (Gneiting and Raftery 2007, section 4.2)
    exact = outcome * (2 * stats.norm.cdf(outcome) - 1) + 2 * stats.norm.pdf(outcome) - 1 / np.sqrt(np.pi)
    assert scores.crps(outcome, quantile, LEVELS).mean() == pytest.approx(exact.mean(), rel=0.01)
    assert stats.kstest(scores.probability_integral(outcome, quantile, LEVELS), "uniform").pvalue > 0.01
    assert scores.coverage(outcome, quantile[:, 9], quantile[:, -10]) == pytest.approx(0.9, abs=0.015)


def test_breaches_are_counted_and_found_in_clusters():
    random = np.random.default_rng(0)
    right, often = random.random(1000) < 0.05, random.random(1000) < 0.09
    ratio = 2 * (stats.binom.logpmf(often.sum(), 1000, often.mean()) - stats.binom.logpmf(often.sum(), 1000, 0.05))
    assert scores.kupiec(often, 0.05) == pytest.approx(stats.chi2.sf(ratio, 1))
    assert scores.kupiec(right, 0.05) > 0.05 > scores.kupiec(often, 0.05)
    assert scores.christoffersen(right) > 0.05 > scores.christoffersen(np.repeat(right[:250], 4))


def test_targeting_utility_of_a_perfect_forecast_is_four_percent():
    realised = np.random.default_rng(0).chisquare(5, 1000)
    assert scores.targeting_utility(realised, realised) == pytest.approx(4.0)
    assert scores.targeting_utility(realised, np.full(1000, realised.mean())).mean() < 4
