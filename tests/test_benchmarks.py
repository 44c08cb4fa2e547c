"""Benchmarks: markets on which the future counts against their optimum; what machines are not here for runs at a toy size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import multi_step
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.planning.qp import QPPlanner

# The most of the optimal gain that the best decision for the next step has, over seeds and utilities
MYOPIC = {"quadratic costs": 0.9, "proportional costs": 0.8, "drawdown limit": 0.8}
MYOPIC |= {"slow regime": 0.05, "crash season": 0.05}


@pytest.mark.parametrize("name", MYOPIC)
def test_the_optimum_gains_more_than_what_is_best_for_the_next_step(name):
    market = multi_step.MULTI_STEP_MARKETS[name](11)
    problem = multi_step.MultiStepProblem(market, market.utilities[0])
    _, best = problem.optimum
    assert problem.share(problem.value_of(best)) == pytest.approx(1.0)
    held_S, hedged_S = torch.tensor(problem.held_S), torch.tensor(problem.hedged_S)
    assert problem.share(problem.value_of(multi_step.actions_of(held_S, hedged_S))) == pytest.approx(0.0, abs=1e-9)
    assert problem.share(problem.myopic) <= MYOPIC[name]


def test_with_quadratic_costs_the_optimum_is_the_closed_form_of_garleanu_and_pedersen():
    market = multi_step.quadratic_costs(12)
    problem = multi_step.MultiStepProblem(market, market.utilities[1])
    signals_ZF = market.signals_ZF
    strength_F = np.linalg.lstsq(signals_ZF, market.mean_Z, rcond=None)[0]
    ahead_ZF = market.chance_ZZ @ signals_ZF
    persistence_F = (ahead_ZF * signals_ZF).sum(0) / (signals_ZF**2).sum(0)
    np.testing.assert_allclose(ahead_ZF, persistence_F * signals_ZF, atol=1e-12)
    assert persistence_F[1] > 2 * persistence_F[0]

    aversion = 2 * 9 * market.variance_Z[0]
    rate, weight_F = multi_step.garleanu_pedersen(aversion, market.impact, persistence_F)
    assert weight_F[1] > weight_F[0]  # the aim follows what stays
    position_S = rate * problem.held_S + (signals_ZF * strength_F * weight_F).sum(1)[problem.z_S]
    inside_S = np.abs(problem.held_S) <= 0.5
    found_S = problem.optimum[1].positions(allow_short=True)[:, 0].numpy()
    np.testing.assert_allclose(
        found_S[inside_S], position_S[inside_S], atol=0.007
    )  # the grid of actions is 0.00625 apart
    closed = multi_step.actions_of(torch.tensor(position_S.clip(-1, 1)), torch.zeros(len(position_S)))
    assert problem.share(problem.value_of(closed)) == pytest.approx(1.0, abs=0.005)


def test_the_value_of_a_policy_is_what_a_simulation_earns():
    """Where drawdowns count, so that realised returns matter; what lies between two points of a grid is one of them by chance."""
    market, random = multi_step.drawdown_limit(13), np.random.default_rng(0)
    problem = multi_step.MultiStepProblem(market, market.utilities[0])
    value, action = problem.optimum
    grids = market.drawdowns_D, problem.grid_X
    best_ZDX = action.positions(allow_short=False)[:, 0].numpy().reshape(len(market.mean_Z), *map(len, grids))
    paths, steps = 4000, 200

    def rounded(value_P: np.ndarray, grid: np.ndarray) -> np.ndarray:
        place_P = value_P.clip(grid[0], grid[-1]) / (grid[1] - grid[0])
        return np.minimum((place_P + random.random(paths)).astype(int), len(grid) - 1)

    z_P = random.choice(len(market.mean_Z), paths, p=market.stationary_Z)
    deep_P, held_P, earned_P = np.zeros(paths, int), np.zeros(paths, int), np.zeros(paths)
    for step in range(steps):
        position_P, drawdown_P = best_ZDX[z_P, deep_P, held_P], grids[0][deep_P]
        portfolio = market.portfolio(grids[1][held_P], np.zeros(paths), drawdown_P)
        path = multi_step.actions_of(torch.tensor(position_P)[:, None, None], torch.zeros(paths, 1, 1))
        cost_P = Objective(market.world(market.imagined(z_P, 1), portfolio), problem.utility)(path)[:, 0].numpy()
        earned_P -= (1 - multi_step.DISCOUNT) * multi_step.DISCOUNT**step * cost_P
        return_P = market.mean_Z[z_P] + np.sqrt(market.variance_Z[z_P]) * random.standard_normal(paths)
        deep_P = rounded(1 - np.minimum((1 - drawdown_P) * (1 + position_P * return_P), 1), grids[0])
        held_P = rounded(position_P, grids[1])
        z_P = (random.random(paths)[:, None] > market.chance_ZZ[z_P].cumsum(1)[:, :-1]).sum(1)
    error = earned_P.std() / paths**0.5
    assert earned_P.mean() == pytest.approx(value, abs=4 * error)


def test_a_planner_that_looks_ahead_gains_what_one_that_does_not_leaves():
    market = multi_step.slow_regime(14)
    problem = multi_step.MultiStepProblem(market, market.utilities[0])
    shares = []
    for horizon in (1, 8):
        world = problem.world(horizon)
        space = ActionSpace.from_config(market.rules, world.moments.present_BN, horizon)
        plan = QPPlanner().plan(Objective(world, problem.utility), space)
        shares.append(problem.share(problem.value_of(plan.action)))
    assert shares[0] < 0.05
    assert shares[1] > 0.8


ROOT = Path(__file__).parent.parent
_ALONE = """
import runpy, sys
sys.path.insert(0, "benchmarks")
sys.argv[1:] = ["--toy"]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
print(*sorted({"dagster", "duckdb", "finjepa_pipeline"} & sys.modules.keys()), "imported")
"""


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_runs_every_part_on_a_cpu_with_the_model_package_alone():
    done = subprocess.run([sys.executable, "-c", _ALONE], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, imported = done.stdout.splitlines()
    assert imported.strip() == "imported"
    for row in (
        "| `tiny` | 16 x 24 | bfloat16 |",
        "float8, `tiny`",
        "| mppi, `tiny`",
        "QLIKE of volatility | fixed HAR |",
    ):
        assert row in done.stdout
