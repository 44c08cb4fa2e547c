"""The TD branch on portfolios: learned without rewards, resumed to the bit, kept in the checkpoint, asked for a utility."""

import copy
from dataclasses import replace

import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig, TDConfig, TrainingConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective, PlanningWorld
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.td.networks import CONSEQUENCES, OUTCOMES, PolicyState
from finjepa_model.td.rollouts import MarketPaths, Rollout, Transition, gain, policy_loss
from finjepa_model.td.training import TD_FOLDER, PolicyScore, TDTrainer, draw_transition
from finjepa_model.training.behaviour import random_action
from finjepa_model.training.run_folder import read_metrics
from finjepa_model.training.trainer import TrainingInterruptedError
from tests.model.markets import random_observation, small_config
from tests.model.training_runs import assert_equal, run_panel


@pytest.fixture(scope="module")
def panel(tmp_path_factory) -> Panel:
    return run_panel(tmp_path_factory.mktemp("panel"), sessions=300)


def _config(**td) -> FinJEPAConfig:
    small = small_config()
    settings = {"enabled": True, "steps": 6, "dates": 8, "portfolios": 4, "hidden": 16, "kept_states": 256, "reuse": 2}
    settings |= {"evaluate_every": 2, **td}
    return replace(
        small,
        model=replace(small.model, market_channels=("market",)),
        training=TrainingConfig(batch_size=8, n_assets=4, checkpoint_every=4, log_every=1),
        td=TDConfig(**settings),
    )


def _model(config: FinJEPAConfig) -> FinJEPA:
    torch.manual_seed(0)
    return FinJEPA(config)


@pytest.fixture(scope="module")
def trained(panel, tmp_path_factory) -> tuple[FinJEPA, dict]:
    """The world model is left as it was."""
    model = _model(_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = TDTrainer(model, panel, tmp_path_factory.mktemp("run")).train()
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"td"}
    return model, metrics


def _world(model: FinJEPA, dates: int = 3) -> PlanningWorld:
    observation = random_observation(model.config, dates=dates)
    weights_Z = torch.randn(len(model.readout.weights_Z), generator=torch.Generator().manual_seed(0))
    model.readout.set(0.3 * weights_Z, 0.0, 1.0)
    imagination = model.imagine(observation, 2)
    simulator = PortfolioSimulator(model.config.portfolio)
    return PlanningWorld.of(imagination, simulator, simulator.start((dates, 4), dtype=torch.float32), 2)


def test_resumed_training_equals_uninterrupted_training(panel, tmp_path):
    """It is interrupted after one score and before the next, and ends with the best policy or when its patience does."""
    variant = {"learning_rate": 0.1, "patience": 3, "steps": 12}
    whole = _model(_config(**variant))
    TDTrainer(whole, panel, tmp_path / "whole").train()
    broken = TDTrainer(_model(_config(**variant)), panel, tmp_path / "broken")
    broken.report = lambda record: setattr(broken, "stop_requested", record["step"] >= 5)
    with pytest.raises(TrainingInterruptedError):
        broken.train()
    resumed = _model(_config(**variant))
    TDTrainer(resumed, panel, tmp_path / "broken").train()
    assert_equal(whole.state_dict(), resumed.state_dict())
    records = [list(read_metrics(tmp_path / folder / TD_FOLDER)) for folder in ("whole", "broken")]
    assert records[0] == records[1]
    assert sum(record["kind"] == "td_validation" for record in records[0]) >= 3


def test_training_never_ends_below_its_start_and_keeps_the_best_policy(panel, tmp_path):
    model = _model(_config(learning_rate=0.03, steps=8))
    metrics = TDTrainer(model, panel, tmp_path).train()
    scores = {r["step"]: r["score"] for r in read_metrics(tmp_path / TD_FOLDER) if r["kind"] == "td_validation"}
    assert list(scores) == [0, 2, 4, 6, 8]
    assert PolicyScore(model, panel)() == max(scores.values()) == metrics["policy"]["score"] >= scores[0]
    assert scores[metrics["policy"]["step"]] == metrics["policy"]["score"]


def test_training_without_progress_stops(panel, tmp_path):
    metrics = TDTrainer(_model(_config(learning_rate=1e-9, steps=100, patience=3)), panel, tmp_path).train()
    assert metrics["steps"] == metrics["policy"]["step"] + 6 < 100


def test_a_score_is_what_the_policy_earns_beyond_never_trading(panel, tmp_path):
    """It is the same whatever random numbers were drawn in between, 0 for who never trades, and less for who trades at random."""
    model = _model(_config(steps=16, evaluate_every=8))
    TDTrainer(model, panel, tmp_path).train()
    torch.manual_seed(3)
    score, actor = PolicyScore(model, panel), model.td.algorithm.actor
    good = score()
    assert good == PolicyScore(model, panel)()
    wants = actor.wants
    actor.wants = lambda s, task_YZ: (torch.rand_like(s.held_YN), wants(s, task_YZ)[1])
    assert score() < good
    actor.act = lambda s, task_YZ: actor.action(s, s.held_YN, s.world.state.hedged_X)
    assert score() == 0


def test_the_world_model_begins_the_same_with_the_branch_and_without_it():
    with_branch, without = (_model(_config(enabled=enabled)).state_dict() for enabled in (True, False))
    assert_equal({name: with_branch[name] for name in without}, without)


def test_utilities_of_the_registry_are_expressed_exactly_and_features_do_not_collapse(trained):
    model, metrics = trained
    assert set(metrics["fit"]) == set(OUTCOMES) - {"short"}  # nothing is sold short here
    assert min(metrics["fit"].values()) > 0.999
    assert metrics["effective_rank"] > 5
    task = model.td.infer(parse_utility("log_growth - 5*variance - 0.1*turnover + 0.01*gross - cvar"))
    assert task.fit > 0.999
    assert task.advice is None
    callable_task = model.td.infer(lambda values: values["log_growth"] - 5 * values["variance"])
    same = model.td.infer(parse_utility("log_growth - 5*variance"))
    torch.testing.assert_close(callable_task.direction_Z, same.direction_Z, atol=1e-4, rtol=1e-3)


def test_decisions_do_not_depend_on_the_order_of_the_assets(trained):
    model, _ = trained
    world = _world(model)
    task = model.td.infer(parse_utility("log_growth - 5*variance"))
    action = model.td.decide(world.imagination, world, task)
    order, both = torch.tensor([2, 0, 3, 1]), torch.tensor([2, 0, 3, 1, 4])
    imagined = world.imagination
    mixed = replace(
        imagined,
        mean_BHN=imagined.mean_BHN[..., order],
        covariance_BHMM=imagined.covariance_BHMM[..., both[:, None], both],
        beta_BN=imagined.beta_BN[..., order],
        present_BN=imagined.present_BN[..., order],
        tokens_BMD=torch.cat([imagined.tokens_BMD[:, :-1][:, order], imagined.tokens_BMD[:, -1:]], dim=1),
    )
    turned = PlanningWorld.of(mixed, world.simulator, world.simulator.start((3, 4), dtype=torch.float32), 2)
    other = model.td.decide(mixed, turned, task)
    torch.testing.assert_close(other.weights_XN, action.weights_XN[:, order], atol=1e-5, rtol=0)
    assert torch.equal(other.signals_XN, action.signals_XN[:, order])


def _transition(model: FinJEPA, panel: Panel, number: int) -> Transition:
    td = model.config.td
    return draw_transition(MarketPaths(model, panel, (0, 200), td.dates, td.portfolios).draw(number), model.td)


def test_a_transition_is_a_function_of_its_number_and_keeps_money(panel):
    model = _model(_config()).eval()
    torch.manual_seed(1)
    one = _transition(model, panel, 3)
    torch.manual_seed(1)
    other = _transition(model, panel, 3)
    assert torch.equal(one.quantities_YQ, other.quantities_YQ)
    assert torch.equal(one.action.weights_XN, other.action.weights_XN)
    # the realised growth of the record is that of wealth
    before, after = one.before.world.state, one.after.world.state
    growth_Y = torch.log(after.wealth_X / before.wealth_X)
    torch.testing.assert_close(one.after.outcome_YO[:, OUTCOMES.index("realised_growth")], growth_Y)
    assert float(growth_Y.std()) > 1e-4


def test_the_td_planner_is_a_planner_like_the_others(trained):
    model, _ = trained
    world = _world(model)
    objective = Objective(world, parse_utility("log_growth - 2.5*variance"))
    space = ActionSpace.from_config(model.config.portfolio, world.imagination.present_BN, 2)
    plan = make_planner("td").plan(objective, space)
    assert plan.path.weights_XN.shape == (3, 2, 4)
    action = model.td.decide(world.imagination, world, model.td.infer(parse_utility("log_growth - 2.5*variance")))
    assert torch.equal(plan.action.weights_XN, action.weights_XN)
    assert plan.account is not None
    torch.testing.assert_close(torch.stack(list(plan.account.terms.values())).sum(0), plan.cost_B)
    with pytest.raises(FinJEPAError, match="--branch jepa,td"):
        make_planner("td").plan(lambda actions: actions.hedge_X.sum(-1), space)


def test_a_branch_that_was_not_trained_is_refused():
    with pytest.raises(FinJEPAError, match="has not been trained"):
        _model(_config()).td.infer(parse_utility("log_growth"))


def test_a_utility_that_is_hardly_expressed_is_logged_once_with_advice(trained, caplog):
    model, _ = trained
    world = _world(model)
    space = ActionSpace.from_config(model.config.portfolio, world.imagination.present_BN, 2)
    planner, odd = make_planner("td"), parse_utility("above(turnover, 0.9)*hedge - above(concentration, 0.8)*hedge")
    for _ in range(2):
        planner.plan(Objective(world, odd), space)
    assert model.td.infer(odd).fit < 0.9
    assert [record.message for record in caplog.records if "task features explain only" in record.message] != []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("rules", [{}, {"allow_short": True}, {"max_weight": 0.4}, {"allow_hedge": False}])
def test_every_rule_of_trading_is_kept_by_what_the_policy_does(panel, rules):
    config = _config()
    model = _model(replace(config, portfolio=replace(config.portfolio, **rules))).eval()
    before = _transition(model, panel, 0).before
    algorithm = model.td.algorithm
    with torch.no_grad():
        algorithm.actor.region[-1].weight.normal_(0, 1)
    allowed = model.config.portfolio
    for sample in (False, True):
        task_YZ = algorithm.draw_tasks(algorithm.task_encoder(before))
        action = algorithm.actor(before, algorithm.state_encoder(before), task_YZ, sample=sample)
        torch.testing.assert_close(action.weights_XN.sum(-1), torch.ones(len(task_YZ)), atol=1e-5, rtol=0)
        weights_YN = action.weights_XN.detach()
        assert float(weights_YN.min()) >= 0
        assert float(weights_YN.max()) <= allowed.max_weight + 1e-5
        assert set(action.signals_XN.unique().tolist()) <= ({-1.0, 0.0, 1.0} if allowed.allow_short else {0.0, 1.0})
        assert set(action.hedge_X.unique().tolist()) <= ({0.0, 1.0} if allowed.allow_hedge else {0.0})
        (action.weights_XN * action.signals_XN).square().sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in algorithm.actor.parameters())


def test_what_lies_in_its_region_is_not_traded(trained):
    model, _ = trained
    actor, world = copy.deepcopy(model.td.algorithm.actor), _fresh_world(model)
    state = PolicyState.of(world.imagination, world)
    task_YZ = torch.randn(len(state.present_YN), model.config.td.task_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actor.region[-1].weight.zero_()
        actor.region[-1].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))  # regions that hold every position
        held = actor.act(state, task_YZ).positions(allow_short=False)
    torch.testing.assert_close(held, state.held_YN, atol=1e-3, rtol=0)


def test_cash_is_kept_by_dropping_the_smallest_position(trained):
    """Cash lies on flat assets: a policy that wants a little of every asset must not end fully invested."""
    model, _ = trained
    actor, world = model.td.algorithm.actor, _fresh_world(model)
    state = PolicyState.of(world.imagination, world)
    raw_YN = torch.tensor([0.1, 0.02, 0.15, 0.05, 0.1, 0.08]).expand_as(state.held_YN)
    held_YN = actor.action(state, raw_YN, torch.zeros(len(raw_YN))).positions(allow_short=False)
    torch.testing.assert_close(held_YN, torch.where(raw_YN == 0.02, 0.0, raw_YN))


@pytest.mark.parametrize("hedge", [True, False])
def test_a_step_along_the_slope_of_the_roll_outs_raises_what_the_policy_earns(panel, hedge):
    """On the same paths, for the same utilities."""
    config = _config()
    model = _model(replace(config, portfolio=replace(config.portfolio, allow_hedge=hedge))).eval()
    torch.manual_seed(5)
    path, transition = MarketPaths(model, panel, (0, 200), 8, 4).draw(0), _transition(model, panel, 1)
    model.td.calibrate(transition.after.outcome_YO)
    rollout, branch = Rollout.draw(path, 0.9), model.td
    before, optimizer = (
        gain(rollout, branch, transition),
        torch.optim.Adam(branch.algorithm.actor.parameters(), lr=0.01),
    )
    for _ in range(5):
        optimizer.zero_grad()
        policy_loss(rollout, branch, transition).backward()
        optimizer.step()
    assert gain(rollout, branch, transition) > before


def test_the_step_that_comes_is_known_exactly_to_a_task(trained):
    """Of any action: the expected features along the task are the utility, but for its unit and origin."""
    model, _ = trained
    world = _world(model, dates=64)
    state, outcomes = PolicyState.of(world.imagination, world), model.td.algorithm.task_encoder.outcomes
    torch.manual_seed(0)
    action = random_action(state.present_YN, None, model.config.portfolio)
    utility = parse_utility("log_growth - 5*variance - 0.1*turnover + 0.01*beta")
    values = dict(zip(CONSEQUENCES, state.quantities(action).double().unbind(-1), strict=True))
    wanted_Y = utility({name: value[:, None, None] for name, value in values.items()})[:, 0, 0]
    direction_Z = model.td.infer(utility).direction_Z.double()
    features_YO = copy.deepcopy(outcomes).double().expected(torch.stack([*values.values()], -1))
    found_Y = features_YO @ direction_Z[: features_YO.shape[-1]]
    assert float(torch.corrcoef(torch.stack([wanted_Y, found_Y]))[0, 1]) > 0.99999


AVERSIONS = ("log_growth - 0.5*variance", "log_growth - 5*variance", "log_growth - 50*variance")
PRICES = ("log_growth - variance", "log_growth - variance - 0.003*turnover", "log_growth - variance - 0.03*turnover")


def _fresh_world(model: FinJEPA) -> PlanningWorld:
    """Markets and portfolios that no training has seen."""
    config = model.config
    imagination = model.imagine(random_observation(config, dates=128, assets=6, seed=1000), 1)
    simulator = PortfolioSimulator(config.portfolio)
    state = simulator.start((128, 6), dtype=torch.float32)
    torch.manual_seed(0)
    held = random_action(imagination.present_BN, None, config.portfolio)
    state, _ = simulator.trade(state, held, imagination.beta_BN)
    state = replace(state, step_cost_X=0 * state.step_cost_X, step_turnover_X=0 * state.step_turnover_X)
    return PlanningWorld.of(imagination, simulator, state, config.model.stride)


def _measured(model: FinJEPA, world: PlanningWorld, utility: str, quantity: str) -> float:
    action: PortfolioAction = model.td.decide(world.imagination, world, model.td.infer(parse_utility(utility)))
    return float(PolicyState.of(world.imagination, world).quantities(action, (quantity,)).mean())


def _share_of_gain(model: FinJEPA, world: PlanningWorld, utility: str) -> float:
    objective = Objective(world, parse_utility(utility))
    space = ActionSpace.from_config(model.config.portfolio, world.imagination.present_BN, 1)
    equal = PortfolioAction(space.equal_weights()[:, None], torch.ones(128, 1, 1, 6), torch.zeros(128, 1, 1))
    before, plans = objective(equal)[:, 0], [make_planner(name).plan(objective, space) for name in ("td", "qp")]
    learned, exact = ((before - plan.cost_B).mean() for plan in plans)
    return float(learned / exact)


@pytest.mark.slow
def test_utilities_order_the_behaviour_and_gain_over_equal_weights(tmp_path):
    """By the model's own account of the next step, and after costs. 1/N gains 0 and the QP, which is exact, 1. Forecasts are
    random functions of what the model sees (docs/results/td.md)."""
    config = _config(steps=200, dates=32, portfolios=16, hidden=32, kept_states=512, reuse=8, evaluate_every=100)
    training = replace(config.training, n_assets=6, checkpoint_every=200)
    model = _model(replace(config, model=replace(config.model, stride=5), training=training))
    model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.1, 1.0)
    TDTrainer(model, run_panel(tmp_path / "panel", 1200, 6), tmp_path / "run").train()
    world = _fresh_world(model)
    volatility = [_measured(model, world, utility, "volatility") for utility in AVERSIONS]
    turnover = [_measured(model, world, utility, "turnover") for utility in PRICES]
    assert volatility[0] > volatility[1] > volatility[2], volatility
    assert volatility[2] < 0.5 * volatility[0]
    assert turnover[0] > turnover[1] > turnover[2], turnover
    assert turnover[2] < 0.9 * turnover[0]
    shares = [_share_of_gain(model, world, utility) for utility in AVERSIONS]
    assert min(shares) > 0.1, shares
