"""What networks may depend on: the order of assets, absent ones, masks; and the decode rule of an action."""

import torch

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.nn.encoder import ContextEncoder, PortfolioEncoder, draw_masks, gather_patches
from finjepa_model.portfolio import SCALARS
from tests.model.markets import small_config


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
    signals, present = torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    scalars = torch.zeros(1, len(SCALARS), dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    latent = encoder(held, signals, scalars, latents, present)
    torch.testing.assert_close(
        encoder(held[:, order], signals, scalars, latents[:, order], present), latent, rtol=0, atol=1e-12
    )
    assert (encoder(held[:, order], signals, scalars, latents, present) - latent).abs().max() > 1e-3


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
