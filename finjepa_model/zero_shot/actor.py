"""The policy of the zero-shot branch.

Shapes: Y portfolios, N assets, P places of a projection, E width of the state latent, Z task features, Q consequences,
U hidden width.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig, TDConfig
from finjepa_model.planning.space import project_to_simplex
from finjepa_model.zero_shot.ascent import Places, ascend
from finjepa_model.zero_shot.effects import Effects
from finjepa_model.zero_shot.networks import OutcomeFeatures, branch
from finjepa_model.zero_shot.situation import ASSET_NUMBERS, OUTCOMES, Situation

_TASK_NUMBERS = 3  # of an asset: what is held, slope, share that trading takes
_TRUST = 20.0  # of the hedge in what it is worth at once
_NOISE = 0.02  # of exploring budgets
_LEAST = 1e-6  # a budget of less is none


class PortfolioActor(nn.Module):
    """pi: from what is held, a few learned steps along what the task asks for.

    Weights and signals come from one Euclidean projection of the budgets, with a place for cash beside the assets: it reaches
    zeros exactly, so an asset's signal is flat where its budget is nothing, and every choice has an exact gradient. (Signals by
    Gumbel-softmax were worse; docs/results/zero-shot.md.) The hedge is a relaxed Bernoulli variable (Maddison et al. 2017).
    """

    def __init__(
        self,
        outcomes: OutcomeFeatures,
        width: int,
        state_dim: int,
        task_dim: int,
        config: TDConfig,
        rules: PortfolioConfig,
    ):
        super().__init__()
        self.outcomes, self.rules, self.temperature = outcomes, rules, config.temperature
        hidden = config.hidden
        self.asset = nn.Sequential(nn.Linear(width + ASSET_NUMBERS, hidden), nn.GELU())
        self.context = branch(state_dim + task_dim + hidden, hidden)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.numbers = nn.Linear(_TASK_NUMBERS, hidden)
        self.move = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 2))
        self.hedge = nn.Sequential(nn.Linear(hidden + 1, hidden), nn.GELU(), nn.Linear(hidden, 2))
        for network in (self.move, self.hedge):  # begins with steps along the slope alone
            for parameter in network[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, s: Situation, state_YE: Tensor, task_YZ: Tensor, sample: bool = True) -> PortfolioAction:
        """Weights and signals, and the hedge: 0 or 1 with the gradient of its relaxation."""
        asset_YNU, context_YU = self._read(s, state_YE, task_YZ)
        price_YQ = self.outcomes.prices(task_YZ) / task_YZ.shape[-1] ** 0.5
        # how much of the task is about free features, of which the slopes say nothing
        blind_Y1 = task_YZ[:, len(OUTCOMES) :].norm(dim=-1, keepdim=True) / task_YZ.norm(dim=-1, keepdim=True)
        effects, places = Effects(s.world, price_YQ), Places.of(s.present_YN, self.rules)
        # budgets for either state of the hedge, for what is best with one is not with the other
        budget_HYN = self._refine(s, effects, blind_Y1, asset_YNU, places)
        if not self.rules.allow_hedge:
            return self._act(s, budget_HYN[0], torch.zeros_like(state_YE[:, 0]), places, sample)
        open_YN, hedged_YN = budget_HYN.unbind(0)
        worth_Y1 = effects.of_hedge(self.rules.max_gross * open_YN, self.rules.max_gross * hedged_YN)
        logit_Y1, trust_Y1 = self.hedge(torch.cat([context_YU, worth_Y1], dim=-1)).chunk(2, dim=-1)
        logit_Y1 = blind_Y1 * logit_Y1 + _TRUST * F.softplus(trust_Y1) * worth_Y1
        if sample:
            logit_Y1 = logit_Y1 + torch.empty_like(logit_Y1).uniform_(1e-6, 1 - 1e-6).logit()
        soft_Y1 = torch.sigmoid(logit_Y1 / self.temperature)
        hedge_Y1 = ((logit_Y1 > 0).to(soft_Y1.dtype) - soft_Y1).detach() + soft_Y1
        return self._act(s, torch.lerp(open_YN, hedged_YN, hedge_Y1), hedge_Y1.squeeze(-1), places, sample)

    def _act(self, s: Situation, budget_YN: Tensor, hedge_Y: Tensor, places: Places, sample: bool) -> PortfolioAction:
        if sample:
            save_Y1 = 1 - budget_YN.abs().sum(-1, keepdim=True)
            budget_YN, _ = places.nearest(budget_YN + _NOISE * torch.randn_like(budget_YN), save_Y1)
        return PortfolioAction(*self._decode(budget_YN, s.present_YN), hedge_Y)

    def _read(self, s: Situation, state_YE: Tensor, task_YZ: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of each asset in the light of the task, asset_YNU, and of all, context_YU."""
        present_YN1 = s.present_YN.unsqueeze(-1).to(state_YE.dtype)
        asset_YNU = self.asset(torch.cat([s.assets_YND, s.own_YNV], dim=-1))
        pooled_YU = (asset_YNU * present_YN1).sum(1) / present_YN1.sum(1).clamp(min=1)
        context_YU = self.context(torch.cat([state_YE, task_YZ, pooled_YU], dim=-1))
        scale_Y1U, shift_Y1U = self.modulate(context_YU).unsqueeze(1).chunk(2, dim=-1)
        return asset_YNU * (1 + scale_Y1U) + shift_Y1U, context_YU

    def _refine(
        self,
        s: Situation,
        effects: Effects,
        blind_Y1: Tensor,
        asset_YNU: Tensor,
        places: Places,
    ) -> Tensor:
        """budget_HYN, from what is held; see `ascend`."""
        held_YN = s.held_YN / self.rules.max_gross
        slope_HYN = effects.slopes(s.held_YN)
        steepest_HY1 = (slope_HYN * s.present_YN).abs().amax(-1, keepdim=True).clamp(min=1e-6)
        relative_HYN = slope_HYN / steepest_HY1
        paid_HYN = effects.traded_YN / (slope_HYN.abs() + effects.traded_YN).clamp(min=1e-6)
        numbers_HYN3 = torch.stack([held_YN.expand_as(slope_HYN), relative_HYN, paid_HYN], dim=-1)
        rate_HYN, move_HYN = self.move(asset_YNU + self.numbers(numbers_HYN3)).unbind(-1)
        rate_HYN, move_HYN = F.softplus(rate_HYN), blind_Y1 * move_HYN
        return ascend(effects, places, held_YN, s.present_YN, rate_HYN, move_HYN)

    def _decode(self, budget_YN: Tensor, present_YN: Tensor) -> tuple[Tensor, Tensor]:
        """The action's weights_YN and signals_YN: what is saved is the weight of flat assets.

        Where every asset is held and something is saved, the smallest budget is given up for it, or, where it is more than the
        savings, these are invested.
        """
        size_YN = budget_YN.abs() * present_YN
        savings_Y1 = (1 - size_YN.sum(-1, keepdim=True)).clamp(min=0)
        held_YN = size_YN > _LEAST
        smallest_Y1 = torch.where(present_YN, size_YN, torch.inf).amin(-1, keepdim=True)
        given_up_YN = (size_YN <= smallest_Y1) & (savings_Y1 > smallest_Y1)
        held_YN = held_YN & ~given_up_YN
        flat_YN = (present_YN & ~held_YN).to(size_YN.dtype)
        flats_Y1 = flat_YN.sum(-1, keepdim=True)
        held_size_YN = size_YN * held_YN
        left_Y1 = (1 - held_size_YN.sum(-1, keepdim=True)).clamp(min=0)
        weights_YN = held_size_YN + left_Y1 * torch.where(
            flats_Y1 > 0, flat_YN / flats_Y1.clamp(min=1), held_YN / held_YN.sum(-1, keepdim=True).clamp(min=1)
        )
        if self.rules.max_weight < 1:
            weights_YN = project_to_simplex(weights_YN, present_YN, self.rules.max_weight)
        return weights_YN, budget_YN.sign().detach() * held_YN

    def imitation(self, action: PortfolioAction, shown: PortfolioAction) -> Tensor:
        """Mean squared distance of positions and hedge."""
        pairs = [(one.weights_XN * one.signals_XN, one.hedge_X) for one in (action, shown)]
        return torch.stack([F.mse_loss(one, other) for one, other in zip(*pairs, strict=True)]).sum()
