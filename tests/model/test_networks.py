"""What networks may depend on: rotary offsets, the order of assets, absent ones, masks, actions, never later steps."""

from dataclasses import replace

import pytest
import torch

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.config import ModelConfig
from finjepa_model.nn.encoder import ContextEncoder, PortfolioEncoder, draw_masks, gather_patches
from finjepa_model.nn.layers import SelfAttention, TimeSeriesTokenizer, rotate
from finjepa_model.planning.imagination import Rollout
from finjepa_model.portfolio import SCALARS, PortfolioSimulator
from tests.model.markets import in_double, model_of, random_actions, random_batch, random_observation, small_config


def _product(query, key, i, j):
    at = lambda x, p: rotate(x.unsqueeze(0), torch.tensor([p]))  # noqa: E731
    return float((at(query, i) * at(key, j)).sum())


def test_rotary_products_depend_on_the_offset_only():
    torch.manual_seed(1)
    query, key = torch.randn(2, 16, dtype=torch.float64)
    products = [_product(query, key, shift + 3, shift) for shift in (0, 1, 5, 50)]
    assert max(products) - min(products) < 1e-10
    assert abs(_product(query, key, 4, 0) - products[0]) > 1e-3  # and on the offset they do depend
    turned = rotate(query.unsqueeze(0), torch.tensor([7]))
    assert abs(float(turned.norm() / query.norm()) - 1) < 1e-12


def test_a_token_sees_its_own_patch_only():
    config = ModelConfig()
    torch.manual_seed(0)
    tokenizer = TimeSeriesTokenizer(3, config.window, config.patch, 16)
    features, observed = torch.randn(2, config.window, 3), torch.ones(2, config.window, dtype=torch.bool)
    before = tokenizer(features, observed)
    features[:, config.patch : 2 * config.patch] += 1
    changed = (tokenizer(features, observed) - before).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, True] + [False] * (config.patches - 2)


def test_every_session_of_a_window_reaches_its_token():
    """TS-JEPA drops what is left of a patch after its last whole kernel: the newest sessions."""
    torch.manual_seed(0)
    for patch in (4, 8, 9):
        tokenizer = TimeSeriesTokenizer(3, 2 * patch, patch, 16)
        features = torch.randn(1, 2 * patch, 3, requires_grad=True)
        tokenizer(features, torch.ones(1, 2 * patch, dtype=torch.bool)).square().sum().backward()
        assert features.grad is not None
        assert (features.grad.abs().amax((0, 2)) > 0).all()


@pytest.mark.parametrize("length", [8, 70])
@pytest.mark.parametrize("form", [None, "pairs", "keys of a batch", "keys of a part of it"])
def test_attention_is_its_definition(length, form):
    """Over several batch dimensions, with masks of every form in use."""
    torch.manual_seed(0)
    attention = SelfAttention(16, 2).double()
    x = torch.randn(3, 2, length, 16, dtype=torch.float64, requires_grad=True)
    seen = torch.rand(3, 2, 1, 1, length) < 0.7
    seen[..., -1] = True
    mask = {
        None: None,
        "pairs": torch.ones(length, length, dtype=torch.bool).tril(),
        "keys of a batch": seen,
        "keys of a part of it": seen[:, :1],
    }[form]
    parts = attention.qkv(x).unflatten(-1, (3, 2, 8)).permute(3, 0, 1, 4, 2, 5)
    logits = parts[0] @ parts[1].transpose(-1, -2) / 8**0.5
    if mask is not None:
        logits = logits.where(mask, -torch.inf)
    expected = attention.out((logits.softmax(-1) @ parts[2]).transpose(2, 3).flatten(-2))
    got = attention(x, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0] for y in (got, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-11)


def _encoder():
    torch.manual_seed(0)
    return ContextEncoder(small_config().model).double()


def _windows(assets):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, assets, 16, 3, generator=generator, dtype=torch.float64)
    market = torch.randn(2, 16, 2, generator=generator, dtype=torch.float64)
    observed, present = torch.ones(2, assets, 16, dtype=torch.bool), torch.ones(2, assets, dtype=torch.bool)
    return features, observed, market, present


def test_latents_follow_the_order_of_the_assets():
    encoder, (features, observed, context, present) = _encoder(), _windows(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    assets, market = encoder(features, observed, context, present)
    permuted, same_market = encoder(features[:, order], observed[:, order], context, present[:, order])
    torch.testing.assert_close(permuted, assets[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(same_market, market, rtol=0, atol=1e-12)


def test_absent_assets_are_not_seen():
    encoder, (features, observed, context, present) = _encoder(), _windows(5)
    alone = encoder(features[:, :3], observed[:, :3], context, present[:, :3])
    present[:, 3:] = False
    features[:, 3:] = 1e3
    beside = encoder(features, observed, context, present)
    torch.testing.assert_close(beside[0][:, :3], alone[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(beside[1], alone[1], rtol=0, atol=1e-12)


def test_portfolio_latent_does_not_depend_on_order_but_on_who_is_held():
    torch.manual_seed(0)
    encoder = PortfolioEncoder(small_config().model).double()
    latents = torch.randn(1, 4, 16, dtype=torch.float64)
    held = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    present, scalars = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, len(SCALARS), dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    carriers = encoder.carriers(latents, present)
    latent = encoder(held, scalars, carriers)
    mixed = encoder(held[:, order], scalars, encoder.carriers(latents[:, order], present))
    torch.testing.assert_close(mixed, latent, rtol=0, atol=1e-12)
    assert (encoder(held[:, order], scalars, carriers) - latent).abs().max() > 1e-3


def test_two_portfolios_are_as_far_apart_as_their_holdings_and_scalars():
    """As long as there are no more assets than dimensions that carry them; absent assets carry nothing."""
    torch.manual_seed(0)
    encoder = PortfolioEncoder(replace(small_config().model, dim=32)).double()
    latents, present = torch.randn(1, 20, 32, dtype=torch.float64), torch.arange(20)[None] < 18
    held = torch.rand(50, 20, dtype=torch.float64) * present
    scalars = torch.randn(50, len(SCALARS), dtype=torch.float64)
    carriers = encoder.carriers(latents, present)
    found = torch.cdist(*[encoder(held, scalars, carriers)] * 2)
    weighted = scalars * encoder.weights_G
    expected = (4 * torch.cdist(held, held).square() + torch.cdist(weighted, weighted).square()).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    moved = encoder(held + (~present).double(), scalars, carriers)
    torch.testing.assert_close(moved, encoder(held, scalars, carriers))


def test_gather_takes_each_samples_own_patches():
    """TS-JEPA's own gather gives every row the patches of sample 0."""
    tokens = torch.randn(4, 10, 8)
    visible, _ = draw_masks((4,), 10, 0.7, torch.device("cpu"))
    gathered = gather_patches(tokens, visible)
    upstream = torch.cat([tokens[:1].gather(1, index[None, :, None].expand(1, -1, 8)) for index in visible])
    right = [[torch.equal(got[row], tokens[row, visible[row]]) for row in range(4)] for got in (gathered, upstream)]
    assert right == [[True] * 4, [True, False, False, False]]


def test_masks_are_uniform_distinct_and_of_the_right_size():
    torch.manual_seed(0)
    visible, masked = draw_masks((10_000,), 10, 0.7, torch.device("cpu"))
    assert visible.shape == (10_000, 3)
    assert masked.shape == (10_000, 7)
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(10).expand(10_000, 10))
    share = torch.zeros(10).index_add(0, masked.flatten(), torch.ones(70_000)) / 10_000
    assert (share - 0.7).abs().max() < 3 * (0.7 * 0.3 / 10_000) ** 0.5


def action_of(generator, shape):
    weights_XN = torch.softmax(torch.randn(shape, generator=generator), -1)
    signals_XN = torch.randint(-1, 2, shape, generator=generator).float()
    return PortfolioAction(weights_XN, signals_XN, torch.randint(0, 2, shape[:-1], generator=generator).float())


def test_positions_follow_the_decode_rule():
    action = action_of(torch.Generator().manual_seed(0), (50, 6))
    for allow_short in (True, False):
        positions_XN = action.positions(allow_short)
        assert (positions_XN[action.signals_XN == 0] == 0).all()
        assert (positions_XN.abs().sum(-1) <= 1 + 1e-6).all()
        assert torch.equal(positions_XN[action.signals_XN > 0], action.weights_XN[action.signals_XN > 0])
        short_XN = positions_XN[action.signals_XN < 0]
        assert (short_XN < 0).all() if allow_short else (short_XN == 0).all()


def test_embedding_ignores_the_order_of_assets_and_absent_ones():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    embedder = ActionEmbedder(16)
    action, held_XN = action_of(generator, (4, 6)), torch.randn(4, 6, generator=generator)
    assets_XND, present_XN = torch.randn(4, 6, 16, generator=generator), torch.ones(4, 6, dtype=torch.bool)
    embedding_XD = embedder(action, held_XN, assets_XND, present_XN)
    order = torch.randperm(6, generator=generator)
    shuffled = PortfolioAction(action.weights_XN[:, order], action.signals_XN[:, order], action.hedge_X)
    shuffled_XD = embedder(shuffled, held_XN[:, order], assets_XND[:, order], present_XN)
    assert torch.allclose(embedding_XD, shuffled_XD, atol=1e-5)

    present_XN[:, 4:] = False
    fewer = PortfolioAction(action.weights_XN[:, :4], action.signals_XN[:, :4], action.hedge_X)
    masked_XD = embedder(action, held_XN, assets_XND, present_XN)
    assert torch.allclose(masked_XD, embedder(fewer, held_XN[:, :4], assets_XND[:, :4], present_XN[:, :4]), atol=1e-5)


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
    torch.nn.init.normal_(model.predictor.portfolio_out[1].weight)
    token = torch.randn(8, 1, 2, 16, dtype=torch.float64)
    ahead, _ = model.predictor.portfolio(token, condition, token, 3, memory)
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
    """So that none sees a later one."""
    observation = in_double(random_batch(model.config)[0].observation)
    assets, market = model.encode(observation)
    _, memory = model.predict(torch.cat([assets, market.unsqueeze(-2)], dim=-2), observation.present_BN)
    token = torch.randn(8, 3, 2, 16, dtype=torch.float64)
    condition = torch.randn_like(token)
    torch.nn.init.normal_(model.predictor.portfolio_out[1].weight)
    together, _ = model.predictor.portfolio(token, condition, token, 2, memory)
    first, past = model.predictor.portfolio(token[:, :, :1], condition[:, :, :1], token[:, :, :1], 2, memory)
    second, _ = model.predictor.portfolio(token[:, :, 1:], condition[:, :, 1:], token[:, :, 1:], 3, memory, past)
    torch.testing.assert_close(torch.cat([first, second], 2), together)


def test_imagining_many_candidates_equals_imagining_each_alone(model):
    """The factored roll-out, where the market is shared, costs what the full one costs."""
    imagination = model.imagine(in_double(random_observation(model.config, steps=3)), horizon=2)
    state = PortfolioSimulator(model.config.portfolio).start((8, 4))
    torch.nn.init.normal_(model.predictor.portfolio_out[1].weight)
    planned = _planned(8, 5, 2, 4)
    together = imagination.portfolio_path(state, planned)
    for c in range(5):
        alone = imagination.portfolio_path(state, _some(planned, lambda x, c=c: x[:, c : c + 1]))
        torch.testing.assert_close(alone[:, 0], together[:, c])
    one = slice(3, 4)
    path = imagination.take(one).portfolio_path(state.map(lambda x: x[one]), _some(planned, lambda x: x[one]))
    torch.testing.assert_close(path[0], together[3])


def test_actions_have_an_effect_from_the_start(model):
    imagination = model.imagine(in_double(random_observation(model.config, steps=3)), horizon=1)
    state = PortfolioSimulator(model.config.portfolio).start((8, 4))
    one, other = (imagination.portfolio_path(state, _planned(8, 1, 1, 4, seed=seed)) for seed in (0, 1))
    assert bool((one - other).abs().max() > 0)


def _planned(*shape: int, seed: int = 0) -> Rollout:
    actions = _doubled(shape, seed)
    held, small = 0.1 * torch.rand(shape, dtype=torch.float64), 0.01 * torch.rand(shape[:-1], dtype=torch.float64)
    return Rollout(actions, held, actions.weights_XN * actions.signals_XN, -actions.hedge_X, small, small, small)


def _some(planned: Rollout, chosen) -> Rollout:
    """Some of the dates or candidates."""
    parts = vars(planned) | {"actions": None}
    return Rollout(planned.actions.map(chosen), *(chosen(part) for part in parts.values() if part is not None))
