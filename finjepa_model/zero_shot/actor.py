"""The policy of the zero-shot branch.

Shapes: Y portfolios, N assets, P places of a projection, E width of the state latent, Z task features, Q consequences,
U hidden width.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig, TDConfig
from finjepa_model.planning.space import project_to_simplex
from finjepa_model.zero_shot.effects import Effects
from finjepa_model.zero_shot.networks import OutcomeFeatures, branch
from finjepa_model.zero_shot.situation import ASSET_NUMBERS, CONSEQUENCES, OUTCOMES, Situation

_ROUNDS = 3  # of refinement
_TASK_NUMBERS = 4  # of an asset in a round: budget, change from what is held, slope, share that trading takes
_CAUTION = 1.0  # the steps along the slope begin small
_TRUST = 20.0  # of the hedge in what it is worth at once
_NOISE = 0.02  # of exploring budgets
_LEAST = 1e-6  # a budget of less is none
_COST, _TURNOVER = (slice(i, i + 1) for i in (CONSEQUENCES.index("cost"), CONSEQUENCES.index("turnover")))


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
        blind_Y1 = (task_YZ[:, len(OUTCOMES) :].norm(dim=-1) / task_YZ.norm(dim=-1).clamp(min=1e-6)).unsqueeze(-1)
        if not self.rules.allow_hedge:
            open_Y = torch.zeros_like(state_YE[:, 0])
            budget_YN = self._refine(s, price_YQ, blind_Y1, asset_YNU, open_Y)
            return self._act(s, budget_YN, open_Y, sample)
        # budgets for either state of the hedge, for what is best with one is not with the other
        both_Y = torch.arange(2, device=state_YE.device).repeat_interleave(len(state_YE)).to(state_YE.dtype)
        open_YN, hedged_YN = self._refine(
            s, price_YQ.repeat(2, 1), blind_Y1.repeat(2, 1), asset_YNU.repeat(2, 1, 1), both_Y
        ).chunk(2)
        gross = self.rules.max_gross
        worth_YQ = Effects(s.world).of_hedge(gross * hedged_YN, gross * open_YN)
        worth_Y1 = (worth_YQ * price_YQ).sum(-1, keepdim=True)
        logit_Y1, trust_Y1 = self.hedge(torch.cat([context_YU, worth_Y1], dim=-1)).chunk(2, dim=-1)
        logit_Y1 = blind_Y1 * logit_Y1 + _TRUST * F.softplus(trust_Y1) * worth_Y1
        if sample:
            logit_Y1 = logit_Y1 + torch.empty_like(logit_Y1).uniform_(1e-6, 1 - 1e-6).logit()
        soft_Y1 = torch.sigmoid(logit_Y1 / self.temperature)
        hedge_Y1 = ((logit_Y1 > 0).to(soft_Y1.dtype) - soft_Y1).detach() + soft_Y1
        return self._act(s, torch.lerp(open_YN, hedged_YN, hedge_Y1), hedge_Y1.squeeze(-1), sample)

    def _act(self, s: Situation, budget_YN: Tensor, hedge_Y: Tensor, sample: bool) -> PortfolioAction:
        if sample:
            save_Y1 = 1 - budget_YN.abs().sum(-1, keepdim=True)
            budget_YN = self._budgets(budget_YN + _NOISE * torch.randn_like(budget_YN), save_Y1, s.present_YN)
        return PortfolioAction(*self._decode(budget_YN, s.present_YN), hedge_Y)

    def _read(self, s: Situation, state_YE: Tensor, task_YZ: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of each asset in the light of the task, asset_YNU, and of all, context_YU."""

        present_YN1 = s.present_YN.unsqueeze(-1).to(state_YE.dtype)
        asset_YNU = self.asset(torch.cat([s.assets_YND, s.own_YNV], dim=-1))
        pooled_YU = (asset_YNU * present_YN1).sum(1) / present_YN1.sum(1).clamp(min=1)
        context_YU = self.context(torch.cat([state_YE, task_YZ, pooled_YU], dim=-1))
        scale_Y1U, shift_Y1U = self.modulate(context_YU).unsqueeze(1).chunk(2, dim=-1)
        return asset_YNU * (1 + scale_Y1U) + shift_Y1U, context_YU

    def _refine(self, s: Situation, price_YQ: Tensor, blind_Y1: Tensor, asset_YNU: Tensor, hedge_Y: Tensor) -> Tensor:
        """budget_YN, from what is held; Y may go over the portfolios more than once."""
        times = len(hedge_Y) // len(s.held_YN)
        effects, present_YN = Effects(s.world, times), s.present_YN.repeat(times, 1)
        cost, gross, price_YQ1 = 1e-4 * self.rules.cost_bps, self.rules.max_gross, price_YQ.unsqueeze(-1)
        trading_Y1 = cost * (price_YQ[:, _COST] - price_YQ[:, :1]) + price_YQ[:, _TURNOVER] / 2
        held_YN = budget_YN = s.held_YN.repeat(times, 1) / gross
        bend_YN = (effects.curvatures(hedge_Y) @ price_YQ1).squeeze(-1).abs()
        for _ in range(_ROUNDS):
            slope_YN = (effects.of_positions(gross * budget_YN, hedge_Y) @ price_YQ1).squeeze(-1)
            # a step of Newton's in each position alone, at most 1
            steepest_Y1 = (slope_YN * present_YN).abs().amax(-1, keepdim=True).clamp(min=1e-6)
            step_YN = slope_YN / (bend_YN + steepest_Y1)
            # what is left of the slope after the price of trading, as a share of both
            paid_YN = trading_Y1 / (slope_YN.abs() + trading_Y1.abs()).clamp(min=1e-6)
            change_YN = budget_YN - held_YN
            numbers_YN4 = torch.stack([budget_YN, change_YN, slope_YN / steepest_Y1, paid_YN], dim=-1)
            rate_YN, move_YN = self.move(asset_YNU + self.numbers(numbers_YN4)).unbind(-1)
            raw_YN = budget_YN + F.softplus(rate_YN - _CAUTION) * step_YN + blind_Y1 * move_YN
            budget_YN = self._budgets(raw_YN, 1 - budget_YN.abs().sum(-1, keepdim=True), present_YN)
        return budget_YN

    def _budgets(self, raw_YN: Tensor, save_Y1: Tensor, present_YN: Tensor) -> Tensor:
        """Signed budgets nearest to raw ones, what is saved beside them; absolute values sum to 1 at most."""
        assets, shorts = raw_YN.shape[-1], self.rules.allow_short
        # cash may be all of the wealth, so under a cap on one place it has as many as that takes
        savings = math.ceil(1 / self.rules.max_weight)
        there_Y1 = torch.ones_like(present_YN[:, :1])
        places = [save_Y1 / savings] * savings + ([raw_YN, -raw_YN] if shorts else [raw_YN])
        present = [there_Y1] * savings + ([present_YN, present_YN] if shorts else [present_YN])
        share_YP = project_to_simplex(torch.cat(places, dim=-1), torch.cat(present, dim=-1), self.rules.max_weight)
        budget_YN = share_YP[:, savings : savings + assets]
        return budget_YN - share_YP[:, savings + assets :] if shorts else budget_YN

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
