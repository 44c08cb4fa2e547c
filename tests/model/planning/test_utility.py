"""Utilities are read from text, mean what they say, and refuse what they do not know."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_model.planning.imagination import Ensemble
from finjepa_model.planning.objective import Objective, quantities
from finjepa_model.planning.utility import QUANTITIES, parse_utility
from tests.model.planning.markets import perfect_market, seeded, world_of


def test_a_utility_is_the_arithmetic_that_it_reads_as():
    values = {name: torch.rand(2, 3, generator=seeded(i)) for i, name in enumerate(QUANTITIES)}
    utility = parse_utility("log_growth - 5 * variance - (0.1*turnover + 0.02/2) - above(drawdown, 0.1)")
    expected = values["log_growth"] - 5 * values["variance"] - 0.1 * values["turnover"] - 0.01
    expected = expected - (values["drawdown"] - 0.1).clamp(min=0)
    assert torch.allclose(utility(values), expected)
    assert utility.names == {"log_growth", "variance", "turnover", "drawdown"}
    terms = utility.by_term(values)
    assert list(terms) == ["log_growth", "-(5*variance)", "-(0.1*turnover)", "-(0.02/2)", "-above(drawdown,0.1)"]
    assert torch.allclose(torch.stack(list(terms.values())).sum(0), expected)
    assert parse_utility(" log_growth  -  variance") == parse_utility("log_growth - variance")


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_the_slope_of_a_linear_utility_is_its_coefficient(a, b):
    utility = parse_utility(f"{a!r} * log_growth - ({b!r}) * variance + 3")
    slopes = utility.slopes(("log_growth", "variance", "turnover"))
    assert slopes == {"log_growth": pytest.approx(a), "variance": pytest.approx(-b), "turnover": 0}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("log_growth - 5*varianse", "'varianse'.*variance"),
        ("log_growth / 0", "divides by zero"),
        ("log_growth, gross <= 1/(2-2)", "divides by zero"),
        ("1e999 * log_growth", "too large"),
        ("log_growth * (1e11 * 1e11)", "too large"),
        ("log_growth - goal(exposure=1e999)", "no part of a goal"),
        ("log_growth - goal(exposure={[]: 1})", "cannot be part"),
        ("log_growth - goal(exposure.real)", "no goal"),
        ("ｌｏｇ_growth", "'ｌ' cannot be part"),
        ("log_growth - \x00", "cannot be part"),
        ("log_growth | tee x", "'|' cannot be part"),
        ("$(true) log_growth", r"'\$' cannot be part"),
        ("+".join(["cash"] * 200), "too deeply"),
        ("cash+" * 100_000, "characters"),
        ("log_growth -", "cannot be read"),
        ("", "cannot be read"),
        ("5", "no quantity"),
        ("__import__('os').system('true')", "cannot be part of a utility"),
        ("log_growth.__class__", "cannot be part of a utility"),
        ("above(drawdown)", "cannot be part of a utility"),
        ("log_growth, gross", "limit 'gross'.*gross <= 0.8"),
        ("(" * 5000 + "cash" + ")" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_utility_is_refused_with_the_part_that_is_wrong(text, names):
    with pytest.raises(FinJEPAError, match=names):
        parse_utility(text)


_NUMBERS = st.sampled_from(
    ["0", "1", "2.5", "0.1", "1e9", "1e12", "1e13", "1e-300", "1e999", "9" * 400, "0x10", "1_0", "1j"]
)
_TERMS = st.recursive(
    st.sampled_from(sorted(set(QUANTITIES) - {"goal_distance", "final_goal_distance", "disagreement"})) | _NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join)
        | st.tuples(
            st.sampled_from(["-({})", "({})", "abs({})", "above({}, 0.1)", "below({}, 0)", "above({})"]), inner
        ).map(lambda pair: pair[0].format(pair[1]))
    ),
    max_leaves=12,
)
_LIMITS = st.lists(st.tuples(_TERMS, st.sampled_from(["<=", ">=", "<"]), _NUMBERS).map(" ".join), max_size=2)
_TEXTS = st.tuples(_TERMS, _LIMITS).map(lambda pair: ", ".join([pair[0], *pair[1]]))
_SIGNS = [*"+-*/(),<>='\".|`$#&;{}[]\\ \n\t\x00", "goal(", "disagreement(", "above(", "lambda:", "**"]
_PARTS = st.sampled_from([*QUANTITIES, *_SIGNS])


def made_or_refused_in_one_line(make):
    """What `make` returns, or None where it raises an error of one line."""
    try:
        return make()
    except FinJEPAError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2600  # a utility may have 2000 characters
    return None


@given(st.text(max_size=300) | st.lists(_PARTS | _NUMBERS, max_size=40).map("".join))
def test_any_text_is_read_or_refused_in_one_line(text):
    made_or_refused_in_one_line(lambda: parse_utility(text))


@given(_TEXTS, st.sampled_from(["cem", "mppi", "gradient", "qp"]), st.floats(0, 1))
def test_any_utility_is_refused_in_one_line_or_leads_to_a_finite_plan(text, name, value):
    utility = made_or_refused_in_one_line(lambda: parse_utility(text))
    if utility is None:
        return
    assert utility(dict.fromkeys(utility.names, torch.tensor([value]))).shape == (1,)
    world, space = world_of(perfect_market(2, 2, 4))
    planner = make_planner(name, **({} if name == "qp" else {"iterations": 2}))
    plan = made_or_refused_in_one_line(lambda: planner.plan(Objective(world, utility), space, None, seeded()))
    if plan is not None:
        assert plan.cost_B.isfinite().all()
        assert plan.action.weights_XN.isfinite().all()


@pytest.mark.parametrize(
    "text",
    ["log_growth/volatility", "log_growth*gross", "log_growth*log_growth", "abs(log_growth) - variance", "1/variance"],
)
def test_the_qp_refuses_a_utility_that_is_not_linear_in_what_it_solves(text):
    world, space = world_of(perfect_market(2, 2, 4))
    with pytest.raises(FinJEPAError, match=r"not linear.*use mppi"):
        make_planner("qp").plan(Objective(world, parse_utility(text)), space)


def test_the_qp_keeps_a_limit_without_giving_up_what_it_allows():
    world, space = world_of(perfect_market(3, 2, 12))
    utility = parse_utility("log_growth - 5*variance, gross <= 0.5")
    plan = make_planner("qp").plan(Objective(world, utility), space)
    gross_B = plan.action.positions(False).sum(-1)
    assert (gross_B <= 0.5 + 1e-5).all()
    assert (gross_B > 0.2).all()


def test_every_quantity_of_a_rollout_has_its_value():
    world, _ = world_of(perfect_market(2, 3, 4))
    weights_BCHN = torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(2, 1, 3, 4)
    signals_BCHN = torch.tensor([1.0, 1.0, 0.0, 1.0]).expand(2, 1, 3, 4)
    rollout = world.roll(PortfolioAction(weights_BCHN, signals_BCHN, torch.zeros(2, 1, 3)))
    known = set(QUANTITIES) - {"goal_distance", "final_goal_distance", "disagreement"}
    values = quantities(world, rollout, known)
    assert {value.shape for value in values.values()} == {(2, 1, 3)}
    first = {name: value[0, 0, 0].item() for name, value in values.items()}
    assert first["gross"] == first["net"] == pytest.approx(0.8)
    assert first["cash"] == pytest.approx(0.2)
    assert first["short"] == 0
    assert first["concentration"] == pytest.approx(0.16 + 0.09 + 0.01)
    assert first["volatility"] ** 2 == pytest.approx(first["variance"], rel=1e-5)
    draws = first["volatility"] * torch.randn(400_000, generator=seeded()) + torch.expm1(values["log_growth"][0, 0, 0])
    assert first["cvar"] == pytest.approx(-draws.topk(20_000, largest=False).values.mean().item(), rel=0.01)
    assert first["drawdown"] == pytest.approx(-draws.quantile(0.05).item(), rel=0.05)
    assert (values["drawdown"].diff(dim=-1) > 0).all()  # what may be lost grows with time
    for name in ("goal_distance", "disagreement"):
        with pytest.raises(FinJEPAError, match=name):
            quantities(world, rollout, [name])


@pytest.mark.parametrize("name", ["cem", "mppi", "gradient", "qp", "random"])
@pytest.mark.parametrize("limit", ["gross <= 0.5", "beta <= 0.4", "volatility <= 0.01", "cash >= 0.35", "hedge >= 1"])
def test_a_plan_keeps_its_limits(name, limit):
    world, space = world_of(perfect_market(4, 2, 12), PortfolioConfig(cost_bps=5.0))
    utility = parse_utility(f"log_growth - 0.5*variance, {limit}")
    plan = make_planner(name).plan(Objective(world, utility), space, None, seeded())
    rollout = world.roll(plan.path.map(lambda x: x.unsqueeze(1)))
    [excess] = utility.excess(quantities(world, rollout, utility.names)).values()
    assert excess.max() <= 1e-5


def test_a_price_on_a_quantity_moves_the_plan_away_from_it():
    world, space = world_of(perfect_market(6, 2, 12))
    for term in ("cvar", "drawdown", "concentration", "above(gross,0.5)", "abs(beta-0.5)", "volatility"):
        found = []
        for price in (0.0, 3.0):
            utility = parse_utility(f"log_growth - 0.5*variance - {price}*{term}")
            plan = make_planner("cem").plan(Objective(world, utility), space, None, seeded())
            rollout = world.roll(plan.path.map(lambda x: x.unsqueeze(1)))
            priced = parse_utility(term)
            found.append(priced(quantities(world, rollout, priced.names)).sum(-1).mean().item())
        assert found[1] < found[0], term


def test_an_ensemble_is_held_back_where_its_models_disagree():
    one, two = perfect_market(4, 2, 10, seed=1), perfect_market(4, 2, 10, seed=1)
    gap_N = 0.02 * (torch.arange(10) < 5)
    one.mean_BHN, two.mean_BHN = one.mean_BHN + gap_N, two.mean_BHN - gap_N  # they disagree on the first five assets
    ensemble = Ensemble([one, two])
    assert torch.allclose(ensemble.mean_BHN, perfect_market(4, 2, 10, seed=1).mean_BHN, atol=1e-6)
    variances = [market.covariance_BHMM.diagonal(dim1=-2, dim2=-1) for market in (ensemble, one)]
    assert (variances[0][..., :5] > variances[1][..., :5]).all()
    world, space = world_of(ensemble)
    disputed = []
    for price in (0, 1):
        utility = parse_utility(f"log_growth - 0.1*variance - {price}*disagreement")
        plan = make_planner("cem", samples=300).plan(Objective(world, utility), space, None, seeded())
        disputed.append(plan.action.positions(False)[:, :5].sum(-1))
    assert (disputed[1] < 0.1).all()
    assert disputed[0].max() > 0.3
