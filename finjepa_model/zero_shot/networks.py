"""Encoders and predictors of TD-JEPA for portfolios. All are equivariant to the order of the assets and take any number of them.

Shapes: Y portfolios, N assets, D width of the world model, E width of the state latent, Z task features, O outcomes,
Q consequences, K members of an ensemble, U hidden width.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.config import TDConfig
from finjepa_model.portfolio import SCALARS
from finjepa_model.td_jepa import to_sphere
from finjepa_model.zero_shot.situation import OUTCOMES, Situation

# what people want more of, less of, or either; utilities are sums of such
_WISHES = dict.fromkeys(OUTCOMES, -1.0) | {
    "log_growth": 1.0, "realised_growth": 1.0, "net": 0.0, "beta": 0.0, "hedge": 0.0,
}  # fmt: skip
_GROWTH_ASKED = 0.7  # share of those sums that ask for growth


def branch(inputs: int, hidden: int) -> nn.Sequential:
    """Linear, LayerNorm and tanh: how TD-JEPA's networks begin."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.Tanh())


class OutcomeFeatures(nn.Module):
    """An invertible linear map of the outcomes of a step to features of unit variance that are not correlated.

    It is measured once, before the branch is trained, and stays: what an action does to the step that comes is then known, and
    only what follows that step is learned.
    """

    mean_O: Tensor
    scale_O: Tensor
    weight_OO: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_O", torch.zeros(len(OUTCOMES)))
        self.register_buffer("scale_O", torch.ones(len(OUTCOMES)))
        self.register_buffer("weight_OO", torch.eye(len(OUTCOMES)))

    @torch.no_grad()
    def calibrate(self, outcome_YO: Tensor) -> None:
        """Hardly varying directions stay small."""
        self.mean_O.copy_(outcome_YO.mean(0))
        self.scale_O.copy_(outcome_YO.std(0).clamp(min=1e-6))
        values_YO = self.standardised(outcome_YO)
        spread_O, axes_OO = torch.linalg.eigh(values_YO.T @ values_YO / len(values_YO))
        self.weight_OO.copy_((axes_OO / spread_O.clamp(min=1e-2).sqrt()).T)

    def standardised(self, outcome_YO: Tensor) -> Tensor:
        return (outcome_YO - self.mean_O) / self.scale_O

    def forward(self, outcome_YO: Tensor) -> Tensor:
        """features_YO."""
        return self.standardised(outcome_YO) @ self.weight_OO.T

    def expected(self, consequences_YQ: Tensor) -> Tensor:
        """features_YO that a step is expected to have, from what the mechanics and the moments say of it."""
        growth_Y1, variance_Y1 = consequences_YQ[:, :1], consequences_YQ[:, 1:2]
        return self(torch.cat([consequences_YQ, growth_Y1 - variance_Y1 / 2, variance_Y1], dim=-1))

    def prices(self, task_YZ: Tensor) -> Tensor:
        """What a unit of each consequence is worth to a task, in its first step: price_YQ."""
        outcomes = len(OUTCOMES)
        price_YO = task_YZ[:, :outcomes] @ self.weight_OO / self.scale_O
        growth_Y1, square_Y1 = price_YO[:, -2:-1], price_YO[:, -1:]
        realised_Y2 = torch.cat([growth_Y1, square_Y1 - growth_Y1 / 2], dim=-1)
        return torch.cat([price_YO[:, :2] + realised_Y2, price_YO[:, 2:-2]], dim=-1)

    @torch.no_grad()
    def draw_sums(self, count: int) -> Tensor:
        """Tasks of utilities that are sums of one to four outcomes, wanted or not as people do, with random weights in units
        of their spread: [Y, O].

        No utility is named: every outcome but growth is as likely as any other.
        """
        like = self.weight_OO
        rank_YO = torch.rand(count, len(OUTCOMES), device=like.device)
        rank_YO[:, 0] -= (torch.rand(count, device=like.device) < _GROWTH_ASKED).to(like.dtype)
        terms_Y1 = torch.randint(1, 5, (count, 1), device=like.device)
        wish_O = like.new_tensor([_WISHES[name] for name in OUTCOMES])
        size_YO = torch.randn(count, len(OUTCOMES), device=like.device)
        weight_YO = torch.where(wish_O == 0, size_YO, wish_O * size_YO.exp()) * (
            rank_YO.argsort(-1).argsort(-1) < terms_Y1
        )
        # psi = W x, so the reward u'x is the task that solves W'z = u
        return torch.linalg.solve(like.T, weight_YO.T).T


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

    The first O features are `OutcomeFeatures`, so that every utility that is linear in outcomes is expressed exactly; the others
    are free. TD-JEPA puts its features on a sphere, which would bend that map; here the orthonormality term alone sets the
    scale of the free ones.
    """

    def __init__(self, outcomes: OutcomeFeatures, width: int, dim: int, hidden: int):
        super().__init__()
        self.outcomes, self.free_dim = outcomes, dim - len(OUTCOMES)
        self.free = nn.Sequential(branch(len(OUTCOMES) + 2 * width, hidden), nn.Linear(hidden, self.free_dim))

    def draw_sums(self, count: int) -> Tensor:
        """Tasks of sums of a few outcomes: [Y, Z]."""
        return F.pad(self.outcomes.draw_sums(count), (0, self.free_dim))

    def forward(self, s: Situation) -> Tensor:
        """features_YZ."""
        values_YO = self.outcomes.standardised(s.outcome_YO)
        free = self.free(torch.cat([values_YO, s.market_YD, s.portfolio_YD], dim=-1))
        return torch.cat([self.outcomes(s.outcome_YO), free], dim=-1)


class SuccessorPredictor(nn.Module):
    """T: successor features of an action and then of pi_z.

    What the action does is given in two ways: its embedding beside the assets' latents, and its exact consequences, by the
    mechanics and the world model's moments. Of task features the step that comes is then known but for its noise and for the
    free features, so it is added as it is (`outcomes.expected`), and the networks learn the rest.
    """

    def __init__(
        self,
        outcomes: OutcomeFeatures,
        width: int,
        state_dim: int,
        task_dim: int,
        out: int,
        config: TDConfig,
        of_task_features: bool,
    ):
        super().__init__()
        self.outcomes, self.of_task_features = outcomes, of_task_features
        self.action = ActionEmbedder(width)
        self.aim = branch(state_dim + task_dim, config.hidden)
        self.deed = branch(state_dim + width + len(OUTCOMES), config.hidden)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * config.hidden, config.hidden), nn.GELU(), nn.Linear(config.hidden, out))
            for _ in range(config.members)
        )

    def forward(self, s: Situation, state_YE: Tensor, action: PortfolioAction, task_YZ: Tensor) -> Tensor:
        """successor_KYO of as many features as the predictor has."""
        expected_YO = self.outcomes.expected(s.quantities(action))
        embedded_YD = self.action(action, s.held_YN, s.assets_YND, s.present_YN)
        hidden_YU = torch.cat(
            [
                self.aim(torch.cat([state_YE, task_YZ], dim=-1)),
                self.deed(torch.cat([state_YE, embedded_YD, expected_YO], dim=-1)),
            ],
            dim=-1,
        )
        rest_KYO = torch.stack([head(hidden_YU) for head in self.heads])
        if not self.of_task_features:
            return rest_KYO
        return rest_KYO + F.pad(expected_YO, (0, rest_KYO.shape[-1] - expected_YO.shape[-1]))
