"""What trading and borrowing cost, asset by asset: commission, half-spread and borrow fee by tier of liquidity, impact.

Sources: the schedule of reference/finance.md 3.5; square-root impact from Almgren et al. (2005) and Toth et al. (2011).

Shapes: X any batch dimensions, N assets.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.config import PortfolioConfig

_MOST_IMPACT = 0.1  # of the traded value; beyond it the square-root law has not been measured


@dataclass(frozen=True)
class Liquidity:
    """How easily assets are traded, known at the close before the trade.

    Attributes:
        dollar_volume_XN: trailing mean, dollars a day; NaN where it is unknown.
        volatility_XN: trailing, of a day's return.
    """

    dollar_volume_XN: Tensor
    volatility_XN: Tensor

    def tier(self, config: PortfolioConfig) -> Tensor:
        """int64 [X, N]: 0 is the most liquid tier, and that of an asset of unknown volume."""
        bounds = torch.as_tensor(config.tier_dollar_volume, dtype=torch.float64, device=self.dollar_volume_XN.device)
        known_XN = self.dollar_volume_XN.double().nan_to_num(torch.inf)
        return (known_XN.unsqueeze(-1) < bounds).sum(-1)


@dataclass(frozen=True)
class Frictions:
    """The prices of trading. A number stands for all assets.

    Attributes:
        spread: commission and half-spread, share of the traded value.
        impact: trading x of money costs impact * x^1.5; None where there is none.
        borrow: fee on the value held short, a session.
        rounds: after which wealth after costs, a fixed point that contracts by the cost rate, is exact.
    """

    spread: Tensor | float
    impact: Tensor | None
    borrow: Tensor | float
    rounds: dict[torch.dtype, int]

    @classmethod
    def of(cls, config: PortfolioConfig, liquidity: Liquidity | None = None) -> "Frictions":
        """The schedule of a config; without a liquidity every asset is in the first tier and nothing has impact."""
        spread, daily_borrow = config.cost_bps * 1e-4, config.borrow_rate / config.sessions_per_year
        # a hedge moves with the positions times their beta, 3 at most
        rate, gross = spread + 3 * config.hedge_cost_bps * 1e-4, max(config.max_gross, 1.0)
        if liquidity is None:
            return cls(spread, None, daily_borrow, _rounds(rate * gross))
        tier_XN, like = liquidity.tier(config), liquidity.volatility_XN
        spread_XN = spread + 1e-4 * like.new_tensor(config.tier_spread_bps)[tier_XN]
        borrow_XN = daily_borrow + like.new_tensor(config.tier_borrow_rate)[tier_XN] / config.sessions_per_year
        share_XN = (config.capital / liquidity.dollar_volume_XN.clamp(min=1)).nan_to_num(0.0)
        impact_XN = config.impact * liquidity.volatility_XN * share_XN.sqrt().to(like.dtype)
        rate += 1e-4 * max(config.tier_spread_bps) + (0.02 if config.impact else 0.0)
        return cls(spread_XN, impact_XN if config.impact else None, borrow_XN, _rounds(rate * gross))

    def trading(self, traded_XN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of trading these amounts of money: commission and half-spread, impact, and the sum of the amounts; spread_X,
        impact_X, traded_X, money."""
        traded_X = traded_XN.sum(-1)
        spread_X = (self.spread * traded_XN).sum(-1) if isinstance(self.spread, Tensor) else self.spread * traded_X
        if self.impact is None:
            return spread_X, torch.zeros_like(spread_X), traded_X
        # the root's slope is infinite at 0, where nothing is traded
        rate_XN = (traded_XN.clamp(min=1e-30).sqrt() * self.impact).clamp(max=_MOST_IMPACT)
        return spread_X, (rate_XN * traded_XN).sum(-1), traded_X

    def map(self, function) -> "Frictions":
        """Apply a function of one tensor to each part that is one."""

        def part(value: Tensor | float) -> Tensor | float:
            return function(value) if isinstance(value, Tensor) else value

        impact = None if self.impact is None else function(self.impact)
        return Frictions(part(self.spread), impact, part(self.borrow), self.rounds)


def _rounds(rate: float) -> dict[torch.dtype, int]:
    def of(dtype: torch.dtype) -> int:
        return 1 if rate == 0 else math.ceil(math.log(torch.finfo(dtype).eps) / math.log(min(rate, 0.9)))

    return {dtype: of(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
