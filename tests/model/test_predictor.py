"""The market does not listen to the investor, nothing listens to the future, and caching changes nothing."""

from dataclasses import replace

import pytest
import torch

from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.world_model import FinJEPA
from tests.model.markets import random_actions, random_batch, random_observation, small_config


def _model(**loss):
    torch.manual_seed(0)
    return FinJEPA(small_config(**loss)).double().eval()


def _double(observation):
    return replace(
        observation,
        features_BSNTF=observation.features_BSNTF.double(),
        market_BSTQ=observation.market_BSTQ.double(),
        volatility_BSN=observation.volatility_BSN.double(),
        market_volatility_BS=observation.market_volatility_BS.double(),
        beta_BSN=observation.beta_BSN.double(),
    )


def _tokens(model, observation):
    assets, market = model.encode(observation)
    return torch.cat([assets, market.unsqueeze(-2)], dim=-2)


def test_market_latents_have_no_derivative_with_respect_to_an_action():
    model = _model()
    observation = _double(random_observation(model.config))
    tokens = _tokens(model, observation).detach()
    actions = random_actions((8, 1, 2, 4)).map(lambda x: x.double().requires_grad_())
    predicted, memory = model.predict(tokens, observation.present_BN)
    held = torch.zeros(8, 1, 2, 4, dtype=torch.float64)
    condition = model.action_embedder(actions, held, tokens[:, None, -2:, :-1], observation.present_BN[:, None, None])
    token = torch.randn(8, 1, 2, 16, dtype=torch.float64)
    ahead, _ = model.predictor.portfolio(token, condition, 3, memory)
    parts = (actions.weights_XN, actions.signals_XN, actions.hedge_X)
    market_gradients = torch.autograd.grad(predicted.sum() + 0 * ahead.sum(), parts, retain_graph=True)
    assert all(not gradient.any() for gradient in market_gradients)
    portfolio_gradients = torch.autograd.grad(ahead.square().sum(), parts)
    assert all(gradient.abs().max() > 0 for gradient in portfolio_gradients)


def test_predictions_do_not_see_later_steps():
    model = _model()
    observation = _double(random_observation(model.config))
    tokens = _tokens(model, observation).detach()
    before, _ = model.predict(tokens, observation.present_BN)
    tokens[:, 3:] += torch.randn_like(tokens[:, 3:])
    after, _ = model.predict(tokens, observation.present_BN)
    assert torch.equal(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().max() > 1e-3


def test_one_layer_sees_no_further_back_than_its_context():
    model = FinJEPA(replace(small_config(), model=replace(small_config().model, predictor_layers=1))).double().eval()
    observation = _double(random_observation(model.config))
    tokens = _tokens(model, observation).detach()
    before, _ = model.predict(tokens, observation.present_BN)
    tokens[:, 0] += torch.randn_like(tokens[:, 0])  # a constant would be lost in the norm
    after, _ = model.predict(tokens, observation.present_BN)
    reach = model.config.model.context_steps
    assert torch.equal(after[:, reach:], before[:, reach:])
    assert (after[:, reach - 1] - before[:, reach - 1]).abs().max() > 1e-4


def test_one_step_rollout_is_the_teacher_forced_prediction():
    model = _model()
    observation = _double(random_observation(model.config))
    tokens = _tokens(model, observation)
    forced, _ = model.predict(tokens, observation.present_BN)
    torch.testing.assert_close(model.rollout(tokens, observation.present_BN, 1)[:, 0], forced[:, -1])


def test_portfolio_steps_one_by_one_equal_all_at_once():
    model = _model()
    batch, _ = random_batch(model.config)
    observation = _double(batch.observation)
    tokens = _tokens(model, observation)
    _, memory = model.predict(tokens, observation.present_BN)
    token = torch.randn(8, 3, 2, 16, dtype=torch.float64)
    condition = torch.randn_like(token)
    together, _ = model.predictor.portfolio(token, condition, 2, memory)
    first, past = model.predictor.portfolio(token[:, :, :1], condition[:, :, :1], 2, memory)
    second, _ = model.predictor.portfolio(token[:, :, 1:], condition[:, :, 1:], 3, memory, past)
    torch.testing.assert_close(torch.cat([first, second], 2), together)


def test_imagining_many_candidates_equals_imagining_each_alone():
    """The factored roll-out, where the market is shared, costs what the full one costs."""
    model = _model()
    observation = _double(random_observation(model.config, steps=3))
    imagination = model.imagine(observation, horizon=2)
    state = PortfolioSimulator(model.config.portfolio).start((8, 4))
    actions = random_actions((8, 5, 2, 4)).map(lambda x: x.double())
    held = 0.1 * torch.rand(8, 5, 2, 4, dtype=torch.float64)
    together = imagination.portfolio_path(state, held, actions)
    for c in range(5):
        alone = imagination.portfolio_path(state, held[:, c : c + 1], actions.map(lambda x, c=c: x[:, c : c + 1]))
        torch.testing.assert_close(alone[:, 0], together[:, c])
    b = 3
    one = imagination.date(b).portfolio_path(
        state.map(lambda x: x[b : b + 1]), held[b : b + 1], actions.map(lambda x: x[b : b + 1])
    )
    torch.testing.assert_close(one[0], together[b])


@pytest.mark.parametrize("init", ["zero", "normal"])
def test_action_effect_at_the_start_follows_the_initialisation(init):
    config = small_config()
    torch.manual_seed(0)
    model = FinJEPA(replace(config, model=replace(config.model, adaln_init=init))).double().eval()
    observation = _double(random_observation(config, steps=3))
    imagination = model.imagine(observation, horizon=1)
    state = PortfolioSimulator(config.portfolio).start((8, 4))
    held = torch.zeros(8, 1, 1, 4, dtype=torch.float64)
    one, other = (
        imagination.portfolio_path(state, held, random_actions((8, 1, 1, 4), seed).map(lambda x: x.double()))
        for seed in (0, 1)
    )
    assert bool((one - other).abs().max() > 0) == (init == "normal")
