"""What networks may depend on: rotary offsets, the order of assets, absent ones, masks, actions, never later steps."""

from dataclasses import replace

import pytest
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.nn.encoder import PortfolioEncoder, draw_masks, gather_patches
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


@pytest.mark.parametrize("patch", [4, 8, 9])
def test_a_token_sees_every_session_of_its_own_patch_and_no_other(patch):
    """TS-JEPA drops what is left of a patch after its last whole kernel: the newest sessions."""
    torch.manual_seed(0)
    tokenizer, features = TimeSeriesTokenizer(3, 3 * patch, patch, 16), torch.randn(1, 3 * patch, 3, requires_grad=True)
    tokens = tokenizer(features, torch.ones(1, 3 * patch, dtype=torch.bool))
    for number in range(3):
        (slope,) = torch.autograd.grad(tokens[:, number].square().sum(), features, retain_graph=True)
        assert (slope.abs().amax((0, 2)) > 0).tolist() == [t // patch == number for t in range(3 * patch)]


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
    assert all(torch.equal(gathered[row], tokens[row, visible[row]]) for row in range(4))


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


@pytest.mark.parametrize("index", [[2, 0, 3, 1], [0, 1, 2, 3, 0, 2]], ids=["another order", "beside absent ones"])
def test_what_is_imagined_follows_its_assets_and_absent_ones_are_not_seen(model, index):
    """Latents, expected returns, covariances and the paths of portfolios; places of an index after the fourth are absent."""
    model.readout.set(torch.randn_like(model.readout.weights_Z) / 10, 0.05, 0.5)
    torch.nn.init.normal_(model.predictor.portfolio_out[1].weight)
    plain = in_double(random_observation(model.config, steps=3))
    present = torch.arange(len(index)) < 4
    chosen = {
        name: getattr(plain, name)[:, :, index] for name in vars(plain) if name.partition("_")[2].startswith("BSN")
    }
    chosen["features_BSNTF"][:, :, ~present] = 1e3
    chosen |= {"past_BNR": plain.past_BNR[:, index], "present_BN": present.expand(8, -1)}
    planned, simulator, found = _planned(8, 2, 2, 4), PortfolioSimulator(model.config.portfolio), []
    for seen, path in (
        (plain, planned),
        (replace(plain, **chosen), _some(planned, lambda x: x[..., index] * present if x.ndim == 4 else x)),
    ):
        imagined = model.imagine(seen, horizon=2)
        paths = imagined.portfolio_path(simulator.start((8, len(seen.present_BN[0]))), path)
        found.append((imagined, paths))
    (one, path), (other, same_path) = found
    own, both = index[:4], [*index[:4], -1]  # the market is the last
    torch.testing.assert_close(same_path, path)
    torch.testing.assert_close(other.tokens_BMD[:, [0, 1, 2, 3, -1]], one.tokens_BMD[:, both])
    torch.testing.assert_close(other.mean_BHN[..., :4], one.mean_BHN[..., own])
    covariance_BHMM = other.covariance_BHMM[..., [0, 1, 2, 3, -1], :][..., [0, 1, 2, 3, -1]]
    torch.testing.assert_close(covariance_BHMM, one.covariance_BHMM[..., both, :][..., both], rtol=1e-3, atol=1e-8)


def _planned(*shape: int, seed: int = 0) -> Rollout:
    actions = _doubled(shape, seed)
    held, small = 0.1 * torch.rand(shape, dtype=torch.float64), 0.01 * torch.rand(shape[:-1], dtype=torch.float64)
    return Rollout(actions, held, actions.weights_XN * actions.signals_XN, -actions.hedge_X, small, small, small)


def _some(planned: Rollout, chosen) -> Rollout:
    """Some of the dates or candidates."""
    parts = vars(planned) | {"actions": None}
    return Rollout(planned.actions.map(chosen), *(chosen(part) for part in parts.values() if part is not None))
