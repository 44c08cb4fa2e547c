"""What the actor follows, held against the exact mechanics: slopes, the worth of the hedge, and the best portfolio."""

from dataclasses import replace

import pytest
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.zero_shot.ascent import Places, ascend
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


def _prices(**prices: float) -> torch.Tensor:
    return torch.tensor([[prices.get(name, 0.0) for name in CONSEQUENCES]], dtype=torch.float64).expand(ROWS, -1)


@pytest.mark.parametrize("hedged", [False, True])
@pytest.mark.parametrize("name", [n for n in CONSEQUENCES if n not in ("cost", "turnover", "short", "hedge")])
def test_slopes_are_the_derivatives_of_the_exact_mechanics(name, hedged):
    situation = _situation(FREE)
    torch.manual_seed(0)
    positions_YN = (0.15 * torch.rand(ROWS, ASSETS, dtype=torch.float64) + 0.02).requires_grad_()
    hedge_Y = torch.full((ROWS,), float(hedged), dtype=torch.float64)
    action = PortfolioAction(positions_YN, torch.ones_like(positions_YN), hedge_Y)
    values_YQ = situation.quantities(action)
    (true_YN,) = torch.autograd.grad(values_YQ[:, CONSEQUENCES.index(name)].sum(), positions_YN)
    found_HYN = Effects(situation.world, _prices(**{name: 1.0})).slopes(positions_YN.detach())
    # log growth is taken at small returns
    tolerance = 0.05 * float(true_YN.abs().max()) + 1e-12
    torch.testing.assert_close(found_HYN[int(hedged)], true_YN, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [n for n in CONSEQUENCES if n != "turnover"])
def test_the_worth_of_the_hedge_is_the_difference_that_it_makes(name):
    situation = _situation(PortfolioConfig(cost_bps=0.0, allow_short=True, borrow_rate=0.0))
    torch.manual_seed(1)
    positions, values = [], []
    for hedged in (0.0, 1.0):
        weights_YN = torch.rand(ROWS, ASSETS, dtype=torch.float64).softmax(-1)
        signals_YN = torch.randint(-1, 2, (ROWS, ASSETS)).double()
        hedge_Y = torch.full((ROWS,), hedged, dtype=torch.float64)
        positions.append(weights_YN * signals_YN)
        values.append(situation.quantities(PortfolioAction(weights_YN, signals_YN, hedge_Y)))
    found_Y = Effects(situation.world, _prices(**{name: 1.0})).of_hedge(*positions)[:, 0]
    true_Y = (values[1] - values[0])[:, CONSEQUENCES.index(name)]
    tolerance = 0.05 * float(true_Y.abs().max()) + 1e-4
    torch.testing.assert_close(found_Y, true_Y, atol=tolerance, rtol=0)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    "prices",
    [
        {"log_growth": 1.0, "variance": -2.5},
        {"log_growth": 1.0, "variance": -10.0, "turnover": -0.002},
        {"log_growth": 1.0, "volatility": -0.05},
        {"net": 0.01, "variance": -10.0},
    ],
)
def test_a_few_steps_reach_what_a_long_search_finds(prices, short):
    """By the exact mechanics, from cash and costs included: nearly all that subgradient ascent of many steps gains."""
    rules = PortfolioConfig(allow_hedge=False, allow_short=short)
    situation, price_YQ = _situation(rules), _prices(**prices)
    places = Places.of(situation.present_YN, rules)

    def worth(budget_YN: torch.Tensor) -> torch.Tensor:
        action = PortfolioAction(budget_YN, torch.ones_like(budget_YN), torch.zeros(ROWS, dtype=torch.float64))
        return (situation.quantities(action) * price_YQ).sum(-1)

    effects, held_YN = Effects(situation.world, price_YQ), situation.held_YN
    rate_HYN = torch.full((1, ROWS, ASSETS), 0.7, dtype=torch.float64)
    found_YN = ascend(effects, places, held_YN, situation.present_YN, rate_HYN, torch.zeros_like(rate_HYN))[0]

    best_Y, budget_YN = worth(held_YN), held_YN
    save_Y1 = 1 - held_YN.sum(-1, keepdim=True)
    for step in range(600):
        at_YN = budget_YN.detach().requires_grad_()
        (slope_YN,) = torch.autograd.grad(worth(at_YN).sum(), at_YN)
        reach_Y1 = 0.5 / (1 + step) ** 0.7 / slope_YN.abs().amax(-1, keepdim=True)
        budget_YN, save_Y1 = places.nearest(budget_YN + reach_Y1 * slope_YN, save_Y1)
        best_Y = torch.maximum(best_Y, worth(budget_YN))
    start_Y = worth(held_YN)
    gained, possible = float((worth(found_YN) - start_Y).sum()), float((best_Y - start_Y).sum())
    assert possible > 0
    assert gained > (0.9 if short else 0.98) * possible, (gained, possible)
