"""The world model as a strategy: it imagines the market, and a planner searches for the action.

Shapes: B decision dates (1), N assets of a view, H decision steps, D latent width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.checkpoint import resolve_checkpoint
from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView
from finjepa_model.planners import TDPlanner, make_planner
from finjepa_model.planning.goals import goal_latent, target_latent
from finjepa_model.planning.imagination import Ensemble, ImaginedMarket
from finjepa_model.planning.objective import CUMULATIVE, GOAL, GOAL_DISTANCES, Objective, PlanningWorld
from finjepa_model.planning.plan import Account, ActionSpace, Plan, tie
from finjepa_model.planning.utility import Utility, parse_goal, parse_utility
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.world_model import Imagination, WorldModel

HORIZON = 2  # decision steps


class Imagined(Protocol):
    """What a planner plans in: the market of a decision."""

    config: FinJEPAConfig
    simulator: PortfolioSimulator

    def at(self, view: MarketView) -> ImaginedMarket: ...


class MarketImagination:
    """The market as a checkpoint imagines it, whatever is held: every planner of the checkpoint shares it.

    Each date is imagined by itself: in a batch the last digits depend on the other dates, and a search turns last digits into
    another plan.
    """

    def __init__(self, checkpoint: str | Path | WorldModel):
        """
        Args:
            checkpoint: a folder, a repository, or a model that is loaded.
        """
        self.place: Path | None = None  # where it lies, if it lies anywhere
        if isinstance(checkpoint, WorldModel):
            self.model = checkpoint
        else:
            torch.set_num_threads(1)  # on a busy machine a second thread costs ten times the time of so small a plan
            self.place = resolve_checkpoint(checkpoint)
            self.model = WorldModel.from_pretrained(self.place)
        self.config = self.model.config
        self.simulator = PortfolioSimulator(self.config.portfolio)
        self._imagined: WeakKeyDictionary[MarketView, Imagination] = WeakKeyDictionary()

    @property
    def folder(self) -> Path:
        assert self.place is not None  # who asks has named it
        return self.place

    def at(self, view: MarketView) -> Imagination:
        if view not in self._imagined:
            self._imagined[view] = self.model.imagine(view.observation(self.config), HORIZON)
        return self._imagined[view]

    def forecast(self, view: MarketView) -> np.ndarray:
        """Expected simple return of each asset over the next decision step, [N]."""
        return self.at(view).mean_BHN[0, 0].numpy()


class EnsembleImagination:
    """Plans in the mixture of its members, whose latents are side by side; the first one gives the rules of trading.
    The others are ids beside it in its home, folders, or Hub repositories."""

    def __init__(self, first: Imagined, others: Sequence[str]):
        """
        Raises:
            FinJEPAError: if another checkpoint is not there, or reads other channels or steps than the first.
        """
        if not isinstance(first, MarketImagination):
            raise FinJEPAError("a control has no checkpoint, so there is nothing to disagree with")
        self.config, self.simulator, self.members = first.config, first.simulator, [first]
        for name in others:
            other = MarketImagination(checkpoint_beside(first.place, name))
            for part in ("channels", "market_channels", "stride"):
                if getattr(first.config.model, part) != getattr(other.config.model, part):
                    raise FinJEPAError(
                        f"checkpoint {name} has another model.{part}; an ensemble must see the same market"
                    )
            self.members.append(other)

    def at(self, view: MarketView) -> Ensemble:
        return Ensemble([member.at(view) for member in self.members])


def checkpoint_beside(checkpoint: Path | None, name: str) -> Path:
    """The folder of another checkpoint, see `EnsembleImagination`."""
    beside = checkpoint and checkpoint.parent / name
    return beside if beside and beside.is_dir() else resolve_checkpoint(name)


TIED = "Another portfolio costs the same by the model's own account: this choice between them says nothing."
WITH_UTILITY = " | "  # between the names of a planner and of its utility


@dataclass(frozen=True)
class Expectation:
    """What a plan expects, by the model's own account; shares of wealth over a decision step, not annualised.

    Attributes:
        path: (log growth after costs, volatility) of each decision step ahead.
        terms: cost of the plan, by term; lower is better.
    """

    path: tuple[tuple[float, float], ...]
    terms: dict[str, float]

    @classmethod
    def of(cls, account: Account) -> "Expectation":
        """Of a plan of one date."""
        path = zip(account.growth_BH[0].tolist(), account.volatility_BH[0].tolist(), strict=True)
        return cls(tuple(path), {name: float(cost_1[0]) for name, cost_1 in account.terms.items()})

    def a_year(self, config: FinJEPAConfig) -> dict[str, float]:
        """`expected_return` and `expected_volatility` of the first decision step, a year."""
        steps = config.portfolio.sessions_per_year / config.model.stride
        return {"expected_return": self.growth * steps, "expected_volatility": self.volatility * steps**0.5}

    @property
    def growth(self) -> float:
        """Of the first decision step."""
        return self.path[0][0]

    @property
    def volatility(self) -> float:
        return self.path[0][1]


def strategy_name(planner: str, utility: str | None) -> str:
    """How a planner with a utility of its own is called, on leaderboards and by the champion.

    Raises:
        FinJEPAError: for a utility that cannot be read.
    """
    return planner if utility is None else f"{planner}{WITH_UTILITY}{parse_utility(utility).text}"


def planner_of(name: str) -> str:
    """The planner of a strategy that is called so."""
    return name.partition(WITH_UTILITY)[0]


def checkpoints_of(name: str) -> tuple[str, ...]:
    """The other checkpoints that the utility of a strategy names."""
    utility = name.partition(WITH_UTILITY)[2]
    return tuple(parse_utility(utility).checkpoints) if utility else ()


class FinJEPAStrategy:
    """One planner on one checkpoint, warm-started from decision to decision.

    Without a utility of its own, CEM moves the portfolio latent towards a goal latent (JEPA-WMs), and every other planner
    maximises predicted growth after exact costs with a price on risk (EB-JEPA).
    """

    def __init__(self, planner: str, imagination: Imagined, name: str | None = None, seed: int | None = None):
        """
        Args:
            planner: its name, alone or with " | " and a utility; see `strategy_name`.
            seed: of what is sampled; by default that of the training.

        Raises:
            FinJEPAError: for an unknown planner or a utility that cannot be read.
        """
        self.name = name or planner
        self.expected: list[tuple[np.datetime64, Expectation]] = []  # of each decision so far
        searcher, _, utility = planner.partition(WITH_UTILITY)
        self._planner = make_planner(searcher)
        self._utility: Utility = parse_utility(utility) if utility else GOAL if searcher == "cem" else CUMULATIVE
        others = self._utility.checkpoints
        self._seed = imagination.config.training.seed if seed is None else seed
        self._imagination = EnsembleImagination(imagination, others) if others else imagination
        self.last: tuple[tuple[str, ...], Plan] | None = None  # assets and plan of the newest decision
        self.held = ""  # why the newest decision has no orders; empty where it has some

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the newest decision must know of its plan."""
        tied_B = self.last[1].tied_B if self.last else None
        return (TIED,) if tied_B is not None and bool(tied_B.any()) else ()

    def resume(self, assets: tuple[str, ...], path: PortfolioAction) -> None:
        """Go on after a decision on these assets that another process made: its path warm-starts the next one."""
        empty_01N = path.weights_XN.new_zeros(0, 1, len(assets))
        cost_01 = empty_01N[..., 0]
        self.last = assets, Plan(path, torch.zeros(1), cost_01, empty_01N, cost_01)

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        """Plan, and take the first step. No orders while no asset is present, and where by the model's own account the plan is
        worth no more, after its costs, than what is held: `held` says so."""
        self.held = ""
        if not view.present_N.any():
            return None
        same_assets = self.last is not None and self.last[0] == view.assets
        objective, plan = self._planned(view, state)
        account = plan.account
        assert account is not None  # an objective always gives one
        if same_assets:  # what has left the universe is sold
            with torch.no_grad():
                holding = objective.account_of_holding(HORIZON)
            gain, least = float(holding.cost_B - plan.cost_B), float(tie(holding.cost_B))
            if gain <= least:
                account = holding
                self.held = (
                    f"by the model's own account the best trade is worth {1e4 * gain:+.2f} bp of utility over {HORIZON} decision "
                    "steps after its costs, which is no reason to trade"
                )
        self.expected.append((view.date, Expectation.of(account)))
        return None if self.held else action_of(plan)

    def plan(self, view: MarketView, state: PortfolioState) -> Plan:
        """The whole plan, with its account.

        Raises:
            FinJEPAError: if the forecast is not finite, or the first plan breaks a limit of the utility.
        """
        return self._planned(view, state)[1]

    def _planned(self, view: MarketView, state: PortfolioState) -> tuple[Objective, Plan]:
        config = self._imagination.config
        imagination = self._imagination.at(view)
        simulator, stride = self._imagination.simulator, config.model.stride
        _refuse_odd_forecasts(imagination, view)
        world = PlanningWorld.of(
            imagination,
            simulator,
            state,
            stride,
            torch.from_numpy(view.tradable_N)[None],
            view.liquidity(),
            goal_latent(imagination, simulator, stride) if self._utility.names & GOAL_DISTANCES else None,
            {name: target_latent(imagination, simulator, stride, parse_goal(name)) for name in self._utility.goals},
        )
        space = ActionSpace.from_config(config.portfolio, imagination.present_BN, HORIZON)
        warm_start = self.last[1] if self.last is not None and self.last[0] == view.assets else None
        # the noise of a date is its own, so that a decision needs nothing of those before it but their plan
        generator = torch.Generator().manual_seed(_seed(self._seed, view.date))
        objective = Objective(world, self._utility)
        plan = self._planner.plan(objective, space, warm_start, generator)
        # at the first decision: later a limit may be out of reach for a while, because something cannot be traded
        for name, _ in self._utility.limits if self.last is None and not isinstance(self._planner, TDPlanner) else ():
            assert plan.account is not None
            if float(plan.account.terms[name].max()) > 0:  # the TD planner prices limits, and keeps none for sure
                raise FinJEPAError(
                    f"the planner {planner_of(self.name)} finds no portfolio that keeps the limit {name}; loosen it"
                )
        self.last = (view.assets, plan)
        return objective, plan


def _refuse_odd_forecasts(imagination: ImaginedMarket, view: MarketView) -> None:
    variance_BHM = imagination.covariance_BHMM.diagonal(dim1=-2, dim2=-1)
    parts = (imagination.mean_BHN, variance_BHM[..., :-1], imagination.beta_BN.unsqueeze(1))
    odd_N = torch.stack([~part.isfinite().all(1)[0] for part in parts]).any(0) & imagination.present_BN[0]
    if odd_N.any() or not variance_BHM[..., -1].isfinite().all():
        of = view.assets[int(odd_N.nonzero()[0])] if odd_N.any() else "the market"
        raise FinJEPAError(f"the model's forecast of {of} on {view.date} is not finite; train the checkpoint again")


def _seed(seed: int, date: np.datetime64) -> int:
    days = int(date.astype("datetime64[D]").astype(np.int64))  # since 1970
    return int(np.random.SeedSequence([seed % 2**64, days % 2**64]).generate_state(1, np.uint64)[0])


def action_of(plan: Plan) -> PortfolioAction:
    """What is traded of a plan, in float64."""
    action = plan.action.map(lambda x: x.double())
    weights_1N = action.weights_XN / action.weights_XN.sum(-1, keepdim=True)  # exact again after float32
    signals_1N = action.signals_XN * (weights_1N > 0)  # an asset without a budget is flat
    return PortfolioAction(weights_1N, signals_1N, action.hedge_X)
