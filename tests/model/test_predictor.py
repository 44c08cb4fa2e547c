"""The market does not listen to the investor, nothing listens to the future, and caching changes nothing."""

import pytest
import torch

from finjepa_model.portfolio import PortfolioSimulator
from tests.model.markets import in_double, model_of, random_actions, random_batch, random_observation


@pytest.fixture
def model():
    return model_of().double()


@pytest.fixture
def seen(model):
    """An observation, and its tokens [B, S, N + 1, D]: the assets and the market."""
    observation = in_double(random_observation(model.config))
    assets, market = model.encode(observation)
    return observation, torch.cat([assets, market.unsqueeze(-2)], dim=-2).detach()


def _doubled(shape, seed=0):
    return random_actions(shape, seed).map(lambda x: x.double())


def test_market_latents_have_no_derivative_with_respect_to_an_action(model, seen):
    observation, tokens = seen
    actions = _doubled((8, 1, 2, 4)).map(lambda x: x.requires_grad_())
    predicted, memory = model.predict(tokens, observation.present_BN)
    held = torch.zeros(8, 1, 2, 4, dtype=torch.float64)
    condition = model.action_embedder(actions, held, tokens[:, None, -2:, :-1], observation.present_BN[:, None, None])
    ahead, _ = model.predictor.portfolio(torch.randn(8, 1, 2, 16, dtype=torch.float64), condition, 3, memory)
    parts = (actions.weights_XN, actions.signals_XN, actions.hedge_X)
    market_gradients = torch.autograd.grad(predicted.sum() + 0 * ahead.sum(), parts, retain_graph=True)
    assert all(not gradient.any() for gradient in market_gradients)
    portfolio_gradients = torch.autograd.grad(ahead.square().sum(), parts)
    assert all(gradient.abs().max() > 0 for gradient in portfolio_gradients)


def test_predictions_do_not_see_later_steps(model, seen):
    observation, tokens = seen
    before, _ = model.predict(tokens, observation.present_BN)
    tokens[:, 3:] += torch.randn_like(tokens[:, 3:])
    after, _ = model.predict(tokens, observation.present_BN)
    assert torch.equal(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().max() > 1e-3


def test_portfolio_steps_one_by_one_equal_all_at_once(model):
    observation = in_double(random_batch(model.config)[0].observation)
    assets, market = model.encode(observation)
    _, memory = model.predict(torch.cat([assets, market.unsqueeze(-2)], dim=-2), observation.present_BN)
    token = torch.randn(8, 3, 2, 16, dtype=torch.float64)
    condition = torch.randn_like(token)
    together, _ = model.predictor.portfolio(token, condition, 2, memory)
    first, past = model.predictor.portfolio(token[:, :, :1], condition[:, :, :1], 2, memory)
    second, _ = model.predictor.portfolio(token[:, :, 1:], condition[:, :, 1:], 3, memory, past)
    torch.testing.assert_close(torch.cat([first, second], 2), together)


def test_imagining_many_candidates_equals_imagining_each_alone(model):
    """The factored roll-out, where the market is shared, costs what the full one costs."""
    imagination = model.imagine(in_double(random_observation(model.config, steps=3)), horizon=2)
    state = PortfolioSimulator(model.config.portfolio).start((8, 4))
    actions, held = _doubled((8, 5, 2, 4)), 0.1 * torch.rand(8, 5, 2, 4, dtype=torch.float64)
    together = imagination.portfolio_path(state, held, actions)
    for c in range(5):
        alone = imagination.portfolio_path(state, held[:, c : c + 1], actions.map(lambda x, c=c: x[:, c : c + 1]))
        torch.testing.assert_close(alone[:, 0], together[:, c])
    one = slice(3, 4)
    path = imagination.take(one).portfolio_path(state.map(lambda x: x[one]), held[one], actions.map(lambda x: x[one]))
    torch.testing.assert_close(path[0], together[3])


def test_actions_have_an_effect_from_the_start(model):
    imagination = model.imagine(in_double(random_observation(model.config, steps=3)), horizon=1)
    state, held = PortfolioSimulator(model.config.portfolio).start((8, 4)), torch.zeros(8, 1, 1, 4, dtype=torch.float64)
    one, other = (imagination.portfolio_path(state, held, _doubled((8, 1, 1, 4), seed)) for seed in (0, 1))
    assert bool((one - other).abs().max() > 0)
