"""The networks of TD-JEPA for portfolios. All are equivariant to the order of the assets and take any number of them.

Shapes: Y portfolios, N assets, D width of the world model, E width of the state latent, Z task features, O outcomes,
Q consequences, K members of an ensemble, V numbers of an asset, U hidden width.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.config import PortfolioConfig, TDConfig
from finjepa_model.planning.space import project_to_simplex
from finjepa_model.portfolio import SCALARS
from finjepa_model.td_jepa import to_sphere
from finjepa_model.zero_shot.situation import ASSET_NUMBERS, CONSEQUENCES, OUTCOMES, Situation

_WEIGHT_NOISE = 0.1  # of exploring weights before the projection, in shares of wealth


def branch(inputs: int, hidden: int) -> nn.Sequential:
    """Linear, LayerNorm and tanh: how TD-JEPA's networks begin."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.Tanh())


class Outcomes(nn.Module):
    """Puts outcomes into units of their own spread, which is measured once, before the branch is trained."""

    mean_O: Tensor
    scale_O: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_O", torch.zeros(len(OUTCOMES)))
        self.register_buffer("scale_O", torch.ones(len(OUTCOMES)))

    def calibrate(self, outcome_YO: Tensor) -> None:
        self.mean_O.copy_(outcome_YO.mean(0))
        self.scale_O.copy_(outcome_YO.std(0).clamp(min=1e-6))

    def forward(self, outcome_YO: Tensor) -> Tensor:
        """Standardised outcomes, or the first columns of them (`CONSEQUENCES`)."""
        columns = outcome_YO.shape[-1]
        return (outcome_YO - self.mean_O[:columns]) / self.scale_O[:columns]


class StateEncoder(nn.Module):
    """phi: from the world model's market and portfolio latents to the sphere of radius sqrt(E)."""

    def __init__(self, width: int, dim: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(branch(2 * width + len(SCALARS), hidden), nn.Linear(hidden, dim))

    def forward(self, s: Situation) -> Tensor:
        """state_YE."""
        return to_sphere(self.net(torch.cat([s.market_YD, s.portfolio_YD, s.scalars_YG], dim=-1)))


class TaskEncoder(nn.Module):
    """psi: features of a situation in which utilities are to be linear.

    The first O features are an invertible linear map of the step's outcomes, so that every utility that is linear in these is
    expressed exactly; the others are free. TD-JEPA puts its features on a sphere, which would bend that map; here the
    orthonormality term alone sets their scale.
    """

    def __init__(self, outcomes: Outcomes, width: int, dim: int, hidden: int):
        super().__init__()
        self.outcomes, self.dim = outcomes, dim
        self.linear = nn.Linear(len(OUTCOMES), len(OUTCOMES), bias=False)
        inputs = len(OUTCOMES) + 2 * width
        self.free = nn.Sequential(branch(inputs, hidden), nn.Linear(hidden, dim - len(OUTCOMES)))

    @torch.no_grad()
    def whiten(self, outcome_YO: Tensor) -> None:
        """Start from features of unit variance that are not correlated; hardly varying directions stay small."""
        values_YO = self.outcomes(outcome_YO)
        spread_O, axes_OO = torch.linalg.eigh(values_YO.T @ values_YO / len(values_YO))
        self.linear.weight.copy_((axes_OO / spread_O.clamp(min=1e-2).sqrt()).T)

    @torch.no_grad()
    def draw_sums(self, count: int) -> Tensor:
        """Tasks of utilities that are sums of one to three outcomes with random weights, in units of their spread: [Y, Z].

        No utility is named: every outcome and either sign is as likely as any other.
        """
        weight_OO = self.linear.weight
        order_YO = torch.rand(count, len(OUTCOMES), device=weight_OO.device).argsort(-1)
        terms_Y1 = torch.randint(1, 4, (count, 1), device=weight_OO.device)
        wanted_YO = torch.randn(count, len(OUTCOMES), device=weight_OO.device) * (order_YO < terms_Y1)
        # psi = W x, so the reward u'x is the task that solves W'z = u
        task_YO = torch.linalg.solve(weight_OO.T, wanted_YO.T).T
        return F.pad(task_YO, (0, self.dim - len(OUTCOMES)))

    def forward(self, s: Situation) -> Tensor:
        """features_YZ."""
        outcome_YO = self.outcomes(s.outcome_YO)
        free = self.free(torch.cat([outcome_YO, s.market_YD, s.portfolio_YD], dim=-1))
        return torch.cat([self.linear(outcome_YO), free], dim=-1)


class SuccessorPredictor(nn.Module):
    """T: successor features of an action and then of pi_z.

    What the action does is given in two ways: its embedding beside the assets' latents, and its exact consequences, by the
    mechanics and the world model's moments. What these say of the first step is passed on linearly.
    """

    def __init__(self, outcomes: Outcomes, width: int, state_dim: int, task_dim: int, out: int, config: TDConfig):
        super().__init__()
        self.outcomes = outcomes
        self.action = ActionEmbedder(width)
        self.aim = branch(state_dim + task_dim, config.hidden)
        self.deed = branch(state_dim + width + len(CONSEQUENCES), config.hidden)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * config.hidden, config.hidden), nn.GELU(), nn.Linear(config.hidden, out))
            for _ in range(config.members)
        )
        self.first_step = nn.Linear(len(CONSEQUENCES), out)

    def forward(self, s: Situation, state_YE: Tensor, action: PortfolioAction, task_YZ: Tensor) -> Tensor:
        """successor_KYO of as many features as the predictor has."""
        consequences_YQ = self.outcomes(s.quantities(action))
        embedded_YD = self.action(action, s.held_YN, s.assets_YND, s.present_YN)
        hidden_YU = torch.cat(
            [
                self.aim(torch.cat([state_YE, task_YZ], dim=-1)),
                self.deed(torch.cat([state_YE, embedded_YD, consequences_YQ], dim=-1)),
            ],
            dim=-1,
        )
        first = self.first_step(consequences_YQ)
        return torch.stack([head(hidden_YU) + first for head in self.heads])


class PortfolioActor(nn.Module):
    """pi: weights by the exact projection onto the capped simplex, which reaches zeros; signals by straight-through
    Gumbel-softmax (Jang et al. 2017); the hedge by a relaxed Bernoulli variable (Maddison et al. 2017)."""

    def __init__(self, width: int, state_dim: int, task_dim: int, config: TDConfig, rules: PortfolioConfig):
        super().__init__()
        self.rules, self.temperature = rules, config.temperature
        hidden = config.hidden
        self.asset = nn.Sequential(nn.Linear(width + ASSET_NUMBERS, hidden), nn.GELU())
        self.context = branch(state_dim + task_dim + hidden, hidden)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 4))
        self.hedge = nn.Linear(hidden, 1)

    def forward(self, s: Situation, state_YE: Tensor, task_YZ: Tensor, sample: bool = True) -> PortfolioAction:
        asset_YNU = self.asset(torch.cat([s.assets_YND, s.own_YNV], dim=-1))
        present_YN1 = s.present_YN.unsqueeze(-1).to(asset_YNU.dtype)
        pooled_YU = (asset_YNU * present_YN1).sum(1) / present_YN1.sum(1).clamp(min=1)
        context_YU = self.context(torch.cat([state_YE, task_YZ, pooled_YU], dim=-1))
        scale_Y1U, shift_Y1U = self.modulate(context_YU).unsqueeze(1).chunk(2, dim=-1)
        out_YN4 = self.out(asset_YNU * (1 + scale_Y1U) + shift_Y1U)
        raw_YN, signal_YN3, hedge_Y = out_YN4[..., 0], out_YN4[..., 1:], self.hedge(context_YU).squeeze(-1)
        if not self.rules.allow_short:
            signal_YN3 = torch.cat([torch.full_like(signal_YN3[..., :1], -1e9), signal_YN3[..., 1:]], dim=-1)
        if sample:
            raw_YN = raw_YN + _WEIGHT_NOISE * torch.randn_like(raw_YN)
            choice_YN3 = F.gumbel_softmax(signal_YN3, self.temperature, hard=True)
            hedge_Y = hedge_Y + torch.empty_like(hedge_Y).uniform_(1e-6, 1 - 1e-6).logit()
        else:
            choice_YN3 = F.one_hot(signal_YN3.argmax(-1), 3).to(raw_YN.dtype)
        soft_Y = torch.sigmoid(hedge_Y / self.temperature)
        return PortfolioAction(
            project_to_simplex(raw_YN, s.present_YN, self.rules.max_weight),
            (choice_YN3[..., 2] - choice_YN3[..., 0]) * s.present_YN,
            ((hedge_Y > 0).to(soft_Y.dtype) - soft_Y).detach() + soft_Y if self.rules.allow_hedge else 0 * soft_Y,
        )

    def imitation(self, action: PortfolioAction, shown: PortfolioAction) -> Tensor:
        """Mean squared distance of weights, signals and hedge."""
        pairs = zip(vars(action).values(), vars(shown).values(), strict=True)
        return torch.stack([F.mse_loss(one, other) for one, other in pairs]).sum()
