"""The decode rule, and what the embedding of an action may depend on."""

import torch

from finjepa_model.actions import ActionEmbedder, PortfolioAction


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
