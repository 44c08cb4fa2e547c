"""Markets of a panel to plan in, as a model imagines them: what the tables of `benchmarks/decisions.py` share."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Literal

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.market_view import panel_liquidity
from finjepa_model.planning.goals import goal_latent
from finjepa_model.planning.imagination import Ensemble
from finjepa_model.planning.objective import PlanningWorld
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.portfolio import Liquidity, PortfolioSimulator
from finjepa_model.world_model import WorldModel

HORIZON = 2  # decision steps
Book = Literal["cash", "1/N", "uneven"]
Place = tuple[PlanningWorld, ActionSpace]


def dates_and_assets(model: WorldModel, panel: Panel, dates: int, assets: int) -> tuple[np.ndarray, np.ndarray]:
    """dates_B, spread over the last half of the panel, and as many assets of each, assets_BN."""
    dates_B = np.linspace(len(panel.dates) // 2, len(panel.dates) - 1, dates).astype(int)
    eligible = [panel.eligible_assets(int(date), history_needed(model.config)) for date in dates_B]
    count = min(assets, *map(len, eligible))
    return dates_B, np.stack([some[np.linspace(0, len(some) - 1, count).astype(int)] for some in eligible])


def world_of(
    model: WorldModel,
    panel: Panel,
    dates_B: np.ndarray,
    assets_BN: np.ndarray,
    rules: PortfolioConfig,
    book: Book,
    others: Sequence[WorldModel] = (),
) -> Place:
    """The market of some dates at once, with what is held in it; that of an ensemble where there are other models."""
    seen = observe(panel, dates_B, assets_BN, model.config.model.context_steps, model.config)
    imagination, stride = model.imagine(seen, HORIZON), model.config.model.stride
    if others:
        imagination = Ensemble([imagination, *(other.imagine(seen, HORIZON) for other in others)])
    simulator, size = PortfolioSimulator(rules), assets_BN.shape
    state = simulator.start(size, dtype=torch.float32)
    if book != "cash":
        held_N = torch.linspace(2 if book == "uneven" else 0, 0, size[1]).softmax(0)
        action = PortfolioAction(held_N.expand(size), torch.ones(size), torch.zeros(size[0]))
        state, _ = simulator.trade(state, action, torch.ones(size), torch.ones(size, dtype=torch.bool))
    known = [panel_liquidity(panel, int(date), assets_N) for date, assets_N in zip(dates_B, assets_BN, strict=True)]
    found = [one for one in known if one is not None]  # all or none
    liquidity = Liquidity(*(torch.cat(x) for x in zip(*map(astuple, found), strict=True))) if found else None
    goal = goal_latent(imagination, simulator, stride)
    everyone = torch.ones(size, dtype=torch.bool)
    world = PlanningWorld.of(imagination, simulator, state, stride, everyone, liquidity, goal)
    return world, ActionSpace.from_config(rules, imagination.present_BN, HORIZON)


def worlds(
    model: WorldModel,
    panel: Panel,
    dates: int,
    assets: int,
    rules: PortfolioConfig,
    book: Book,
    others: Sequence[WorldModel] = (),
) -> Iterator[Place]:
    """Date by date, with the liquidity of the assets where the panel knows it."""
    for date, assets_N in zip(*dates_and_assets(model, panel, dates, assets), strict=True):
        yield world_of(model, panel, np.array([date]), assets_N[None], rules, book, others)
