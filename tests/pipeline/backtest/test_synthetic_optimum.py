"""What planners reach in the synthetic market when the model of it is perfect: its true moments."""

import numpy as np
import pytest
import torch

from finjepa_model.planners import make_planner
from finjepa_model.planning.plan import ActionSpace
from finjepa_pipeline.prices.synthetic import oracle
from finjepa_pipeline.prices.synthetic.market import SyntheticConfig, generate

AVERSION, DATES = 5.0, np.arange(300, 2500, 150)
PLANNERS = pytest.mark.parametrize("name", ["cem", "mppi"])


def moments_of(variant: str, assets: int) -> tuple[np.ndarray, np.ndarray]:
    """True mean_TA and covariance_TAA of the next session's returns, on dates far apart."""
    market = generate(SyntheticConfig(variant=variant, assets=assets, seed=3, strength=0.1))
    return market.expected_DA[DATES], market.covariance(DATES)


def planned(name: str, mean_TA: np.ndarray, covariance_TAA: np.ndarray, allow_short: bool) -> np.ndarray:
    """Positions_TA of a planner that knows the true moments and nothing else."""
    mean_BN, covariance_BNN = torch.from_numpy(mean_TA).float(), torch.from_numpy(covariance_TAA).float()

    def cost(actions):
        x_BCN = actions.positions(allow_short)[:, :, 0]
        risk_BC = torch.einsum("bcn,bnm,bcm->bc", x_BCN, covariance_BNN, x_BCN)
        return AVERSION / 2 * risk_BC - torch.einsum("bcn,bn->bc", x_BCN, mean_BN)

    space = ActionSpace(torch.ones(mean_TA.shape, dtype=torch.bool), 1, allow_short=allow_short, allow_hedge=False)
    planner = make_planner(name, samples=300, iterations=15)
    plan = planner.plan(cost, space, None, torch.Generator().manual_seed(0))
    return plan.action.positions(allow_short).double().numpy()


@PLANNERS
@pytest.mark.parametrize("variant", ["drift", "momentum"])
def test_twenty_assets_reach_the_exact_optimum_of_the_simplex(name, variant):
    mean_TA, covariance_TAA = moments_of(variant, 20)
    best_T = oracle.utility(oracle.simplex(mean_TA, covariance_TAA, AVERSION), mean_TA, covariance_TAA, AVERSION)
    reached_T = oracle.utility(planned(name, mean_TA, covariance_TAA, False), mean_TA, covariance_TAA, AVERSION)
    # where little can be gained a share of it says nothing: measure against the span from 1/N to the optimum as well
    equal_T = oracle.utility(np.full_like(mean_TA, 0.05), mean_TA, covariance_TAA, AVERSION)
    assert ((reached_T - equal_T) / (best_T - equal_T)).min() >= 0.97
    assert reached_T.mean() / best_T.mean() >= 0.97


@PLANNERS
def test_eight_assets_reach_the_exact_optimum_of_long_short_flat(name):
    mean_TA, covariance_TAA = moments_of("drift", 8)
    found_TA = planned(name, mean_TA, covariance_TAA, True)
    reached_T = oracle.utility(found_TA, mean_TA, covariance_TAA, AVERSION)
    # the best of all choices of signals with the best weights for each, which is the convex problem with gross <= 1
    best_TA = oracle.long_short_flat(mean_TA, covariance_TAA, AVERSION)
    best_T = oracle.utility(best_TA, mean_TA, covariance_TAA, AVERSION)
    assert (reached_T / best_T).min() >= 0.95
