"""TD-JEPA for portfolios: what a state is, and encoders, predictors and the actor, equivariant to the order of the assets, whose
number is free.

Shapes: Y portfolios, each in a market of its own, N assets, D width of the world model, E width of the state latent, Z task
features, O outcomes, Q consequences, G portfolio scalars, V numbers that an asset has of its own, K members of an ensemble, U
hidden width.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.config import PortfolioConfig, TDConfig
from finjepa_model.planning.objective import PlanningWorld, quantities
from finjepa_model.planning.plan import ActionSpace, action_of_positions, project_to_exposure
from finjepa_model.portfolio import SCALARS, PortfolioState
from finjepa_model.td.algorithm import to_sphere

if TYPE_CHECKING:
    from finjepa_model.world_model import Imagination

# What a step is expected to bring by the mechanics and the world model's moments: quantities of `planning.utility`, without
# those that are linear in the others (gross = net + 2 short, cash = 1 - net, cvar)
CONSEQUENCES = ("log_growth", "variance", "volatility", "drawdown", "cost", "turnover", "net", "short", "beta",
                "concentration", "hedge")  # fmt: skip
# and what it brought: a reward must be linear in the task features, so the realised return is among them, and its square
REALISED = ("realised_growth", "realised_square")
OUTCOMES = (*CONSEQUENCES, *REALISED)
# every quantity that a utility of the branch may contain
EXPECTED = (*CONSEQUENCES, "gross", "cash", "cvar")
QUANTITY_NAMES = (*EXPECTED, *REALISED)

ASSET_NUMBERS = 5
_USUAL_VOLATILITY = 0.03  # of a share over a decision step


@dataclass(frozen=True)
class PolicyState:
    """The state s."""

    assets_YND: Tensor  # latents
    market_YD: Tensor
    portfolio_YD: Tensor
    own_YNV: Tensor  # of each asset: position, last signal, expected return over volatility, log volatility, beta
    scalars_YG: Tensor  # `PortfolioState.scalars`
    present_YN: Tensor  # bool
    outcome_YO: Tensor  # `OUTCOMES` of the step before, 0 at the start
    world: PlanningWorld  # the rules and moments by which an action has consequences

    @classmethod
    @torch.no_grad()
    def of(cls, imagination: "Imagination", world: PlanningWorld, outcome_YO: Tensor | None = None) -> "PolicyState":
        """Of the portfolios of a world, which is made of the imagination of Y markets; without outcomes they are 0."""
        # what the last trade cost says nothing of what comes, but would be taken for what it goes along with
        none_Y, moments, present_YN = torch.zeros_like(world.state.wealth_X), world.moments, imagination.present_BN
        state = replace(world.state, decided_wealth_X=world.state.wealth_X, step_cost_X=none_Y, step_turnover_X=none_Y)
        assets_YND, market_YD = imagination.tokens_BMD[:, :-1], imagination.tokens_BMD[:, -1]
        volatility_Y1 = imagination.volatility(
            state.holdings_XN.unsqueeze(1), (state.hedge_X / state.wealth_X).unsqueeze(1)
        )
        scalars_YG = state.scalars(moments.beta_BN, volatility_Y1.squeeze(1))
        mean_YN = imagination.mean_BHN[:, 0]
        volatility_YN = imagination.covariance_BHMM[:, 0].diagonal(dim1=-2, dim2=-1)[:, :-1].sqrt()
        volatilities = (mean_YN / volatility_YN, torch.log(volatility_YN / _USUAL_VOLATILITY))
        own = (state.holdings_XN, state.signals_XN, *volatilities, moments.beta_BN - 1)
        own_YNV = torch.stack(own, dim=-1) * present_YN.unsqueeze(-1)
        portfolio_YD = imagination.encode_portfolio(state.holdings_XN.unsqueeze(1), scalars_YG.unsqueeze(1)).squeeze(1)
        if outcome_YO is None:
            outcome_YO = scalars_YG.new_zeros(len(scalars_YG), len(OUTCOMES))
        return cls(assets_YND, market_YD, portfolio_YD, own_YNV, scalars_YG, present_YN, outcome_YO, world)

    @property
    def held_YN(self) -> Tensor:
        return self.world.state.holdings_XN

    def quantities(self, action: PortfolioAction, names: tuple[str, ...] = CONSEQUENCES) -> Tensor:
        """What an action is expected to bring: value_YQ, a column for each name."""
        rollout = self.world.roll(action.map(lambda x: x[:, None, None]))
        values = quantities(self.world, rollout, names)
        return torch.stack([values[name][:, 0, 0] for name in names], dim=-1)


def realised(before: PortfolioState, after: PortfolioState) -> Tensor:
    """`REALISED` of the step between two states: [Y, 2]."""
    growth_Y = torch.log(after.wealth_X.clamp(min=1e-6) / before.wealth_X.clamp(min=1e-6))
    return torch.stack([growth_Y, growth_Y.square()], dim=-1)


# Slope by which positions that are wanted are drawn towards what is allowed: outside of that, where all wealth is invested, the
# way to cash has no slope
_PULL = 1.0
_EXPLORE = 0.1  # standard deviation of what is added to positions, as shares of the largest gross exposure


def branch(inputs: int, hidden: int) -> nn.Sequential:
    """Linear, LayerNorm and tanh: how TD-JEPA's networks begin."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.Tanh())


class OutcomeFeatures(nn.Module):
    """The outcomes of a step in standard deviations from their mean, which are measured once, before the branch is trained."""

    mean_O: Tensor
    scale_O: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_O", torch.zeros(len(OUTCOMES)))
        self.register_buffer("scale_O", torch.ones(len(OUTCOMES)))

    @torch.no_grad()
    def calibrate(self, outcome_YO: Tensor) -> None:
        self.mean_O.copy_(outcome_YO.mean(0))
        self.scale_O.copy_(outcome_YO.std(0).clamp(min=1e-6))

    def forward(self, outcome_YO: Tensor) -> Tensor:
        """features_YO."""
        return (outcome_YO - self.mean_O) / self.scale_O

    def expected(self, consequences_YQ: Tensor) -> Tensor:
        """features_YO that a step is expected to have, from what the mechanics and the moments say of it."""
        growth_Y1, variance_Y1 = consequences_YQ[:, :1], consequences_YQ[:, 1:2]
        return self(torch.cat([consequences_YQ, growth_Y1 - variance_Y1 / 2, variance_Y1], dim=-1))


class StateEncoder(nn.Module):
    """phi: from the world model's market and portfolio latents to the sphere of radius sqrt(E)."""

    def __init__(self, width: int, dim: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(branch(2 * width + len(SCALARS), hidden), nn.Linear(hidden, dim))

    def forward(self, s: PolicyState) -> Tensor:
        """state_YE."""
        return to_sphere(self.net(torch.cat([s.market_YD, s.portfolio_YD, s.scalars_YG], dim=-1)))


class TaskEncoder(nn.Module):
    """psi: features of a state in which utilities are to be linear.

    The first O features are `OutcomeFeatures`, so that every utility that is linear in outcomes is expressed exactly; the others
    are free. TD-JEPA puts its features on a sphere, which would bend that map; here the orthonormality term alone sets the
    scale of the free ones.
    """

    def __init__(self, outcomes: OutcomeFeatures, width: int, dim: int, hidden: int):
        super().__init__()
        self.outcomes = outcomes
        self.free = nn.Sequential(branch(len(OUTCOMES) + 2 * width, hidden), nn.Linear(hidden, dim - len(OUTCOMES)))

    def forward(self, s: PolicyState) -> Tensor:
        """features_YZ."""
        outcome_YO = self.outcomes(s.outcome_YO)
        free = self.free(torch.cat([outcome_YO, s.market_YD, s.portfolio_YD], dim=-1))
        return torch.cat([outcome_YO, free], dim=-1)


class SuccessorPredictor(nn.Module):
    """T: successor features of an action and then of pi_z.

    What the action does is an input in two ways: its embedding beside the assets' latents, and its exact outcomes, by the
    mechanics and the world model's moments. The outcomes of the next step are thus known but for noise; the predictor of task
    features adds them (`OutcomeFeatures.expected`), and its networks learn the rest, which is zero at the start.
    """

    def __init__(self, outcomes: OutcomeFeatures, width: int, state_dim: int, out: int, config: TDConfig, back: bool):
        """
        Args:
            back: whether it predicts state features (of which no outcome is known) rather than task features.
        """
        super().__init__()
        self.outcomes, self.back = outcomes, back
        self.action = ActionEmbedder(width)
        self.intent = branch(state_dim + config.task_dim, config.hidden)
        self.step = branch(state_dim + width + len(OUTCOMES), config.hidden)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * config.hidden, config.hidden), nn.GELU(), nn.Linear(config.hidden, out))
            for _ in range(config.members)
        )
        for name, parameter in self.heads.named_parameters():
            if not back and ".2." in name:  # the last layers
                nn.init.zeros_(parameter)

    def forward(self, s: PolicyState, state_YE: Tensor, action: PortfolioAction, task_YZ: Tensor) -> Tensor:
        """successor_KYO of as many features as the predictor has."""
        expected_YO = self.outcomes.expected(s.quantities(action))
        embedded_YD = self.action(action, s.held_YN, s.assets_YND, s.present_YN)
        intent_YU = self.intent(torch.cat([state_YE, task_YZ], dim=-1))
        step_YU = self.step(torch.cat([state_YE, embedded_YD, expected_YO], dim=-1))
        hidden_YU = torch.cat([intent_YU, step_YU], dim=-1)
        rest_KYO = torch.stack([head(hidden_YU) for head in self.heads])
        if self.back:
            return rest_KYO
        return rest_KYO + F.pad(expected_YO, (0, rest_KYO.shape[-1] - expected_YO.shape[-1]))


class PortfolioActor(nn.Module):
    """pi: one network for every asset, modulated by state and task (FiLM), gives the region in which its position is left
    alone, and how much of the way to it is traded; another network the hedge. It has a state encoder of its own, which
    predictions do not move.

    Who pays in proportion to what is traded trades to the nearest edge of a region, and not at all inside it (Davis and
    Norman 1990); who pays its square trades a part of the way (Garleanu and Pedersen 2013). Positions are the Euclidean
    projection of that onto what is allowed, so that zeros are reached exactly. The hedge is a relaxed Bernoulli variable
    (Maddison, Mnih and Teh 2017).
    """

    mean_Z: Tensor
    scale_Z: Tensor

    def __init__(self, width: int, state_dim: int, task_dim: int, config: TDConfig, rules: PortfolioConfig):
        super().__init__()
        self.rules, hidden = rules, config.hidden
        self.see = StateEncoder(width, state_dim, hidden)
        self.context = branch(state_dim + task_dim, hidden)
        self.asset = nn.Linear(width + ASSET_NUMBERS, hidden)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.region = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 3))
        self.hedge = nn.Linear(hidden, 1)
        self.register_buffer("mean_Z", torch.zeros(task_dim))  # of the tasks of random utilities
        self.register_buffer("scale_Z", torch.ones(task_dim))

    def forward(self, s: PolicyState, state_YE: Tensor, task_YZ: Tensor, sample: bool = True) -> PortfolioAction:
        """The action; where it is not a sample, without noise. The state latent of predictions is not used."""
        raw_YN, logit_Y = self.wants(s, task_YZ)
        if sample:
            raw_YN = raw_YN + _EXPLORE * torch.randn_like(raw_YN)
            logit_Y = logit_Y + torch.empty_like(logit_Y).uniform_(1e-6, 1 - 1e-6).logit()
        soft_Y = torch.sigmoid(logit_Y)
        return self.action(s, raw_YN, ((logit_Y > 0).to(soft_Y.dtype) - soft_Y).detach() + soft_Y)

    def act(self, s: PolicyState, task_YZ: Tensor) -> PortfolioAction:
        """The action without noise, with its gradient."""
        return self(s, None, task_YZ, sample=False)

    def wants(self, s: PolicyState, task_YZ: Tensor) -> tuple[Tensor, Tensor]:
        """Positions, as shares of the largest gross exposure, before they are made allowed ones, and the logit of the hedge."""
        context_YU = self.context(torch.cat([self.see(s), (task_YZ - self.mean_Z) / self.scale_Z], dim=-1))
        scale_Y1U, shift_Y1U = self.modulate(context_YU).unsqueeze(1).chunk(2, dim=-1)
        asset_YNU = self.asset(torch.cat([s.assets_YND, s.own_YNV], dim=-1))
        centre_YN, width_YN, pace_YN = self.region(asset_YNU * (1 + scale_Y1U) + shift_Y1U).unbind(-1)
        width_YN, held_YN = F.softplus(width_YN - 2), s.held_YN / self.rules.max_gross  # narrow at the start
        edge_YN = torch.maximum(centre_YN - width_YN, torch.minimum(centre_YN + width_YN, held_YN))
        return held_YN + torch.sigmoid(pace_YN + 2) * (edge_YN - held_YN), self.hedge(context_YU).squeeze(-1)

    def action(self, s: PolicyState, raw_YN: Tensor, hedge_Y: Tensor) -> PortfolioAction:
        """The nearest allowed action."""
        space = ActionSpace.from_config(self.rules, s.present_YN, horizon=1)
        allowed_YN = _with_cash_on_flat_assets(project_to_exposure(raw_YN.unsqueeze(1), space).squeeze(1), space)
        if raw_YN.requires_grad:
            beyond_YN = (raw_YN - allowed_YN).detach()
            raw_YN.register_hook(lambda slope_YN: slope_YN + _PULL * beyond_YN / len(beyond_YN))
        action = action_of_positions(allowed_YN.unsqueeze(1), space, 0.0)
        return replace(action.map(lambda x: x[:, 0, 0]), hedge_X=hedge_Y * float(self.rules.allow_hedge))


def _with_cash_on_flat_assets(position_YN: Tensor, space: ActionSpace) -> Tensor:
    """Without as many of the smallest positions as it takes to put the cash on flat assets; were they kept, `action_of_positions`
    would be fully invested."""
    size_YN, order_YN = position_YN.detach().abs().masked_fill(~space.present_BN, 9.0).sort(dim=-1)
    dropped_YK = F.pad(size_YN.cumsum(-1), (1, 0))
    cash_YK = 1 - position_YN.detach().abs().sum(-1, keepdim=True) + dropped_YK
    count_K = torch.arange(cash_YK.shape[-1], device=cash_YK.device)
    fits_YK = (cash_YK <= count_K * space.max_weight + 1e-6) & (count_K <= space.present_BN.sum(-1, keepdim=True))
    fewest_Y1 = fits_YK.to(torch.uint8).argmax(-1, keepdim=True)  # 0 where none fits
    return torch.where(order_YN.argsort(-1) < fewest_Y1, 0.0, position_YN)
