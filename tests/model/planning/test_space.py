"""The projection onto the simplex, and refusals of impossible action spaces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning import ActionSpace, project_to_simplex


@st.composite
def projections(draw):
    """Points, who is present, and a cap that leaves room."""
    assets = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.01, 0.3, 3.0, 30.0]))
    points_XN = scale * torch.randn(5, assets, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        points_XN = (points_XN * 4 / scale).round() * scale / 4  # ties
    present_XN = torch.rand(5, assets, generator=generator) < 0.7
    present_XN[:, 0] = True
    fewest = int(present_XN.sum(-1).min())
    cap = draw(st.sampled_from([1.0, 0.5, 0.3, 1 / fewest]))
    return points_XN, present_XN, max(cap, 1 / fewest)


@given(projections())
def test_projection_is_feasible_idempotent_and_nearest(case):
    points_XN, present_XN, cap = case
    weights_XN = project_to_simplex(points_XN, present_XN, cap)
    assert torch.allclose(weights_XN.sum(-1), torch.ones(5, dtype=torch.float64), atol=1e-6)
    assert (weights_XN >= 0).all()
    assert (weights_XN <= cap + 1e-9).all()
    assert (weights_XN[~present_XN] == 0).all()
    assert torch.allclose(project_to_simplex(weights_XN, present_XN, cap), weights_XN, atol=1e-6)
    # the variational inequality of a projection, against the best vertex of a linear objective over the set
    gradient_XN = (points_XN - weights_XN).masked_fill(~present_XN, -torch.inf)
    order_XN = gradient_XN.argsort(-1, descending=True)
    budget_XN = (1 - cap * torch.arange(points_XN.shape[-1])).clamp(min=0, max=cap).expand_as(points_XN)
    vertex_XN = torch.zeros_like(points_XN).scatter(-1, order_XN, budget_XN.to(points_XN.dtype))
    gap_X = ((points_XN - weights_XN) * (vertex_XN - weights_XN)).sum(-1)
    assert (gap_X <= 1e-5 * (1 + points_XN.abs().amax())).all()


@given(projections(), st.randoms(use_true_random=False))
def test_projection_does_not_depend_on_the_order_of_assets(case, random):
    points_XN, present_XN, cap = case
    order = list(range(points_XN.shape[-1]))
    random.shuffle(order)
    weights_XN = project_to_simplex(points_XN, present_XN, cap)
    assert torch.allclose(
        project_to_simplex(points_XN[:, order], present_XN[:, order], cap), weights_XN[:, order], atol=1e-9
    )


def test_projection_in_float32_keeps_the_budget():
    points_XN = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    present_XN = torch.ones(1000, 20, dtype=torch.bool)
    for cap in (1.0, 0.2, 0.05):
        assert (project_to_simplex(points_XN, present_XN, cap).sum(-1) - 1).abs().max() < 1e-6


def test_impossible_spaces_are_refused_with_the_way_out():
    present_BN = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(FinJEPAError, match=r"max_weight=0.1 .* at least 0.2"):
        ActionSpace.from_config(PortfolioConfig(max_weight=0.1), present_BN, 2)
    with pytest.raises(FinJEPAError, match="no asset is present"):
        ActionSpace(torch.zeros(1, 5, dtype=torch.bool), 1)
    with pytest.raises(FinJEPAError, match="horizon"):
        ActionSpace(present_BN, 0)
