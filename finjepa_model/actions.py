"""What a portfolio manager decides, the one rule that turns it into positions, and its embedding.

Shapes: X any batch dimensions, N assets, D latent width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

DUST = 1e-4  # of wealth: a position below is flat


@dataclass(frozen=True)
class PortfolioAction:
    """A decision. Signals and hedges in between are relaxed, for planners that follow gradients."""

    weights_XN: Tensor  # budget of each asset as a share of wealth; non-negative, sums to 1 over the assets
    signals_XN: Tensor  # what is done with the budget: 1 long, 0 flat (it stays in cash), -1 short
    hedge_X: Tensor  # 1 to short the market proxy by the portfolio's beta, 0 not to

    def positions(self, allow_short: bool, max_gross: float = 1.0) -> Tensor:
        """The decode rule, the same in training, planning and backtest: position = max_gross x weight x signal.

        A flat asset is not held; where short selling is not allowed a short signal means flat.

        Returns:
            positions_XN, signed shares of wealth; gross exposure is at most `max_gross`.
        """
        signals_XN = self.signals_XN if allow_short else self.signals_XN.clamp(min=0)
        positions_XN = self.weights_XN * signals_XN
        return positions_XN if max_gross == 1.0 else max_gross * positions_XN

    def without_idle_hedge(self) -> "PortfolioAction":
        """The same action with the hedge off where nothing is held long: it would hedge nothing."""
        long_X = (self.weights_XN * self.signals_XN).clamp(min=0).sum(-1)
        return replace(self, hedge_X=torch.where(long_X > DUST, self.hedge_X, 0.0))

    def first_step(self) -> "PortfolioAction":
        """What is traded now of a path, whose parts have a dimension of steps before that of assets: [X, H, N] and [X, H]."""
        now = PortfolioAction(self.weights_XN[..., 0, :], self.signals_XN[..., 0, :], self.hedge_X[..., 0])
        return now.without_idle_hedge()

    def map(self, function) -> "PortfolioAction":
        """Apply a function of one tensor to each part; it must act on batch dimensions only."""
        return PortfolioAction(function(self.weights_XN), function(self.signals_XN), function(self.hedge_X))

    def where(self, condition_B: Tensor, other: "PortfolioAction") -> "PortfolioAction":
        """This action in the rows of the first dimension where the condition holds, and the other one elsewhere."""

        def pick(one: Tensor, two: Tensor) -> Tensor:
            return torch.where(condition_B.view(-1, *[1] * (one.ndim - 1)), one, two)

        return PortfolioAction(*map(pick, vars(self).values(), vars(other).values()))


class AllocationEmbedder(nn.Module):
    """Embeds an amount and a signal for each asset, bound to it by its latent: the order of the assets does not matter, and
    their number is free."""

    def __init__(self, dim: int):
        super().__init__()
        self.amount = nn.Linear(dim, dim, bias=False)
        self.signal = nn.Linear(3, dim)
        self.gate = nn.Linear(dim, dim)

    def forward(self, amount_XN: Tensor, signals_XN: Tensor, assets_XND: Tensor, present_XN: Tensor) -> Tensor:
        """embedding_XD of signed shares of wealth and signals, among the latents of the assets that are present."""
        present_XN = present_XN.to(assets_XND.dtype)
        exposure_XD = torch.einsum("...n,...nd->...d", amount_XN * present_XN, assets_XND)
        # a relaxed signal is a mixture of its two neighbours
        mixture_XN3 = torch.stack([1 - (signals_XN - s).abs().clamp(max=1) for s in (-1.0, 0.0, 1.0)], dim=-1)
        share_XN = present_XN / present_XN.sum(-1, keepdim=True).clamp(min=1)
        gate_XND = torch.sigmoid(self.gate(assets_XND)) * share_XN.unsqueeze(-1)
        gated_X3D = torch.einsum("...nk,...nd->...kd", mixture_XN3, gate_XND)
        return (
            self.amount(exposure_XD) + torch.einsum("...kd,dk->...d", gated_X3D, self.signal.weight) + self.signal.bias
        )


class ActionEmbedder(nn.Module):
    """Embeds an action relative to what is held: linear maps of the change of position, of the signals and of the hedge, summed
    (JEPA-WMs, section 3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.allocation = AllocationEmbedder(dim)
        self.hedge = nn.Linear(1, dim)

    def forward(self, action: PortfolioAction, held_XN: Tensor, assets_XND: Tensor, present_XN: Tensor) -> Tensor:
        """embedding_XD; `held_XN` are signed shares of wealth after drift, before the trade."""
        change_XN = action.weights_XN * action.signals_XN - held_XN
        allocation_XD = self.allocation(change_XN, action.signals_XN, assets_XND, present_XN)
        return allocation_XD + self.hedge(action.hedge_X.unsqueeze(-1))
