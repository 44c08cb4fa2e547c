"""Rotary attention is a rotation, patches do not see each other, blocks do not see later steps."""

import pytest
import torch

from finjepa_model.config import ModelConfig
from finjepa_model.nn.layers import SelfAttention, TimeSeriesTokenizer, rotate
from finjepa_model.nn.predictor import PortfolioBlock


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


def test_the_convolution_is_one():
    torch.manual_seed(0)
    tokenizer = TimeSeriesTokenizer(3, 18, 9, 16)
    kernel = tokenizer.convolution.weight.view(16, 3, 4).transpose(1, 2)
    x = torch.cat([torch.randn(1, 18, 3), torch.ones(1, 18, 1)], -1)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), kernel, tokenizer.convolution.bias, stride=3)
    hidden = tokenizer.activation(expected).transpose(1, 2).reshape(1, 2, 3 * 16)
    got = tokenizer(x[..., :3], torch.ones(1, 18, dtype=torch.bool))
    torch.testing.assert_close(got, tokenizer.project(hidden) + tokenizer.position_PD)


def test_a_conditioned_block_feels_nothing_of_later_steps():
    torch.manual_seed(0)
    block, step = PortfolioBlock(ModelConfig(dim=16, heads=2)), torch.arange(3)
    x, condition = torch.randn(2, 1, 3, 16), torch.randn(2, 1, 3, 16)
    market = block.remember_market(torch.randn(2, 3, 4, 16), step.repeat_interleave(4))
    own_mask, market_mask = step[:, None] >= step, (step[:, None] >= step.repeat_interleave(4)).expand(2, 3, 12)
    run = lambda: block(x, condition, step, own_mask, None, market, market_mask)[0]  # noqa: E731
    before = run().detach()
    with torch.no_grad():
        x[:, :, 2] += torch.randn(2, 1, 16)
        condition[:, :, 2] += torch.randn(2, 1, 16)
    after = run().detach()
    assert torch.equal(after[:, :, :2], before[:, :, :2])
    assert not torch.equal(after[:, :, 2], before[:, :, 2])


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
