"""What the actor reads of the effects of its positions, held against the derivatives of the exact mechanics."""

from dataclasses import replace

import pytest
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.zero_shot.effects import Effects
from finjepa_model.zero_shot.situation import CONSEQUENCES, Situation
from tests.model.markets import handmade_moments

ROWS, ASSETS = 16, 5
FREE = PortfolioConfig(cost_bps=0.0, hedge_cost_bps=0.0, borrow_rate=0.0, allow_short=True)


def _situation(config: PortfolioConfig) -> Situation:
    simulator = PortfolioSimulator(config)
    state = simulator.start((ROWS, ASSETS), dtype=torch.float64)
    state = replace(state, peak_X=state.peak_X * 1.05)
    world = PlanningWorld.of(handmade_moments(ROWS, ASSETS, dtype=torch.float64), simulator, state, 5)
    nothing = torch.zeros(ROWS, 1)
    return Situation(nothing, nothing, nothing, nothing, nothing, world.moments.present_BN, nothing, world)


@pytest.mark.parametrize("hedged", [0.0, 1.0])
def test_slopes_are_the_derivatives_of_the_exact_mechanics(hedged):
    situation = _situation(FREE)
    torch.manual_seed(0)
    positions_YN = (0.15 * torch.rand(ROWS, ASSETS, dtype=torch.float64) + 0.02).requires_grad_()
    hedge_Y = torch.full((ROWS,), hedged, dtype=torch.float64)
    action = PortfolioAction(positions_YN, torch.ones_like(positions_YN), hedge_Y)
    values_YQ = situation.quantities(action)
    slopes_YNQ = Effects(situation.world).of_positions(positions_YN.detach(), hedge_Y)
    for q, name in enumerate(CONSEQUENCES):
        if name in ("cost", "turnover", "short", "hedge"):
            continue
        (true_YN,) = torch.autograd.grad(values_YQ[:, q].sum(), positions_YN, retain_graph=True)
        # log growth is taken at small returns
        tolerance = 0.05 * float(true_YN.abs().max()) + 1e-12
        torch.testing.assert_close(
            slopes_YNQ[..., q], true_YN, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_effect_of_the_hedge_is_the_difference_that_it_makes():
    situation = _situation(PortfolioConfig(cost_bps=0.0, allow_short=True, borrow_rate=0.0))
    torch.manual_seed(1)
    positions, values = [], []
    for hedged in (1.0, 0.0):
        weights_YN = torch.rand(ROWS, ASSETS, dtype=torch.float64).softmax(-1)
        signals_YN = torch.randint(-1, 2, (ROWS, ASSETS)).double()
        hedge_Y = torch.full((ROWS,), hedged, dtype=torch.float64)
        positions.append(weights_YN * signals_YN)
        values.append(situation.quantities(PortfolioAction(weights_YN, signals_YN, hedge_Y)))
    found_YQ, true_YQ = Effects(situation.world).of_hedge(*positions), values[0] - values[1]
    for q, name in enumerate(CONSEQUENCES):
        if name == "turnover":
            continue
        tolerance = 0.05 * float(true_YQ[:, q].abs().max()) + 1e-4
        torch.testing.assert_close(
            found_YQ[:, q], true_YQ[:, q], atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )
