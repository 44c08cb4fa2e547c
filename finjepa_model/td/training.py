"""Trains the td branch of a world model: market paths from the panel, portfolios and actions drawn on the device.

A step is a function of the seed and its number, so training resumes to the bit. Every so often the policy is scored on the
validation block, the first time before the first step, and the best one is what is left of training. Transitions have no rewards;
the market of a batch is encoded once for many portfolios, since it does not depend on them.

Shapes: B decision dates, C portfolios or tasks on each, Y = B x C, R next states that are kept, O outcomes, Q quantities, Z task
features.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finjepa_model.actions import PortfolioAction
from finjepa_model.data.batches import PAST, BatchSource, MarketBatch
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.objective import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.td.branch import TDBranch, infer_task
from finjepa_model.td.demonstrations import PLAN_STEPS, PORTFOLIOS, Demonstration, Demonstrations, demonstrate, distance
from finjepa_model.td.networks import (
    CONSEQUENCES,
    OUTCOMES,
    QUANTITY_NAMES,
    REALISED,
    PolicyState,
    realised,
)
from finjepa_model.training import run_folder as files
from finjepa_model.training.behaviour import random_action, random_drawdown
from finjepa_model.training.trainer import Report, TrainingInterruptedError, falling, seed_of
from finjepa_model.world_model import Imagination, WorldModel

TD_FOLDER = "td"  # in the run folder of the world model
_STREAM, _DEMONSTRATED = 76, 77  # of random numbers, apart from those of the world model's training
_DECISIONS = 3  # of a path: one that leads to the first state, one that is learned from, and the state after it
_ACTED = 0.5  # share of actions that are the actor's own, so that its values are learned where they are used
_WAITS = 0.15  # share of portfolios that have bought nothing before the first state


@dataclass(frozen=True)
class Transition:
    """What is learned from; `quantities_YQ` are `QUANTITY_NAMES` of the step between the two states."""

    before: PolicyState
    action: PortfolioAction
    after: PolicyState
    quantities_YQ: Tensor

    @property
    def quantities(self) -> dict[str, Tensor]:
        """value_Y by name."""
        return dict(zip(QUANTITY_NAMES, self.quantities_YQ.unbind(-1), strict=True))


@dataclass(frozen=True)
class MarketPath:
    """`_DECISIONS` decisions of Y portfolios, each in a market of its own: row `rows_Y` of the batch."""

    model: WorldModel
    simulator: PortfolioSimulator
    imaginations: tuple[Imagination, ...]
    batch: MarketBatch
    rows_Y: Tensor

    def start(self) -> PortfolioState:
        """All in cash."""
        present_YN = self.imaginations[0].present_BN
        return self.simulator.start(tuple(present_YN.shape), dtype=torch.float32, device=present_YN.device)

    def state(self, decision: int, portfolio: PortfolioState, outcome_YO: Tensor | None = None) -> PolicyState:
        """Where portfolios stand at a decision."""
        imagination = self.imaginations[decision]
        world = PlanningWorld.of(imagination, self.simulator, portfolio, self.model.config.model.stride)
        return PolicyState.of(imagination, world, outcome_YO)

    def thinned(self, most: int) -> "MarketPath":
        """With at most about so many portfolios, of all dates."""
        some = slice(None, None, max(len(self.rows_Y) // most, 1))
        return replace(self, imaginations=tuple(one.take(some) for one in self.imaginations), rows_Y=self.rows_Y[some])

    @torch.no_grad()
    def hold(self, decision: int, s: PolicyState, action: PortfolioAction) -> PortfolioState:
        """What an action has led to at the next decision."""
        held = (self.batch.returns_BKTN, self.batch.market_returns_BKT, self.batch.tradable_BKTN)
        returns_YTN, market_YT, tradable_YTN = (x[:, decision - (_DECISIONS - 1)][self.rows_Y] for x in held)
        beta_YN = s.world.moments.beta_BN
        return self.simulator.step(s.world.state, action, returns_YTN, market_YT, beta_YN, tradable_YTN)[0]


class MarketPaths:
    """Those of a block of sessions; which are drawn is a function of the seed and a number alone.

    Args:
        block: half-open range of sessions.
        dates, portfolios: of a batch.
    """

    def __init__(self, model: WorldModel, panel: Panel, block: tuple[int, int], dates: int, portfolios: int):
        self.model = model
        self.device = next(model.parameters()).device
        training = replace(model.config.training, batch_size=dates)
        self._source = BatchSource(panel, replace(model.config, training=training), block, past=PAST)
        self._simulator = PortfolioSimulator(model.config.portfolio)
        self._rows_Y = torch.arange(dates, device=self.device).repeat_interleave(portfolios)
        self._drawn: tuple[int, MarketPath] | None = None  # the last one, since several steps use it

    def draw(self, number: int) -> MarketPath:
        """The path of that number; the portfolios of a date follow each other."""
        if self._drawn is None or self._drawn[0] != number:
            batch, stride = self._source.draw(number).to(self.device), self.model.config.model.stride
            steps = [batch.observation.step(k - _DECISIONS, stride) for k in range(_DECISIONS)]
            # plans that are imitated look ahead from the second decision
            seen = tuple(
                self.model.imagine(step, PLAN_STEPS if k == 1 else 1).take(self._rows_Y) for k, step in enumerate(steps)
            )
            self._drawn = number, MarketPath(self.model, self._simulator, seen, batch, self._rows_Y)
        return self._drawn[1]


def draw_transition(path: MarketPath, branch: TDBranch) -> Transition:
    """A transition of every portfolio of a path; what is random in it comes from torch's global generator."""
    leading = path.state(0, random_drawdown(path.start()))
    led_by = _some_wait(_behaviour(branch, leading, None))
    portfolio, quantities_YQ = _hold(path, 0, leading, led_by)
    before = path.state(1, portfolio, _outcome(quantities_YQ))
    action = _behaviour(branch, before, led_by)
    portfolio, quantities_YQ = _hold(path, 1, before, action)
    return Transition(before, action, path.state(2, portfolio, _outcome(quantities_YQ)), quantities_YQ)


def draw_demonstration(path: MarketPath) -> Demonstration:
    """Of portfolios that a random action has led to: no parameter of a branch has a part in it."""
    leading = path.state(0, random_drawdown(path.start()))
    led_by = _some_wait(random_action(leading.present_YN, None, path.simulator.config))
    return demonstrate(path.state(1, path.hold(0, leading, led_by)))


def _some_wait(action: PortfolioAction) -> PortfolioAction:
    """Some portfolios stay in cash, as every one at its start."""
    waits_Y1 = torch.rand_like(action.signals_XN[:, :1]) < _WAITS
    return replace(action, signals_XN=torch.where(waits_Y1, 0.0, action.signals_XN))


@torch.no_grad()
def _behaviour(branch: TDBranch, s: PolicyState, last: PortfolioAction | None) -> PortfolioAction:
    """Some actions are random, some the actor's on random tasks."""
    algorithm = branch.algorithm
    acted = algorithm.actor(s, algorithm.state_encoder(s), algorithm.draw_tasks(algorithm.task_encoder(s)))
    other = random_action(s.present_YN, last, s.world.simulator.config)
    is_acted_Y = torch.rand(len(s.present_YN), device=s.present_YN.device) < _ACTED
    return acted.where(is_acted_Y, other)


@torch.no_grad()
def _hold(path: MarketPath, decision: int, s: PolicyState, action: PortfolioAction) -> tuple[PortfolioState, Tensor]:
    """Where an action has led, and the quantities_YQ of the step."""
    expected_YQ = s.quantities(action, QUANTITY_NAMES[: -len(REALISED)])
    moved = path.hold(decision, s, action)
    return moved, torch.cat([expected_YQ, realised(s.world.state, moved)], dim=-1)


def _outcome(quantities_YQ: Tensor) -> Tensor:
    """The `OUTCOMES` among the quantities."""
    return torch.cat([quantities_YQ[:, : len(CONSEQUENCES)], quantities_YQ[:, -len(REALISED) :]], dim=-1)


class TDTrainer:
    """Trains `model.td` and nothing else of the model.

    Args:
        model: a trained world model whose config has `td.enabled`.
        run_folder: the one of the world model's training.
        report: called with every record that goes to its `metrics.jsonl`.
    """

    def __init__(self, model: WorldModel, panel: Panel, run_folder: Path, report: Report | None = None):
        assert model.td is not None
        self.model, self.branch, self.config = model, model.td, model.config
        self.run_folder, self.report = run_folder / TD_FOLDER, report
        model.eval()
        self.device, self.panel = next(model.parameters()).device, panel
        td, block = self.config.td, split_dates(len(panel.dates), self.config).train
        self.paths = MarketPaths(model, panel, block, td.dates, td.portfolios)
        self._demonstrations = Demonstrations(self._demonstrate)
        self.optimizer = torch.optim.Adam(self.branch.parameters(), lr=td.learning_rate)
        self.step, self.best = 0, files.Best()
        self.stop_requested = False

    def train(self) -> dict[str, Any]:
        """Train to the end, or until `td.patience` evaluations have brought nothing better; the branch is then the best one,
        and keeps next states to infer rewards on.

        Returns:
            What `metrics.json` has under "td".

        Raises:
            TrainingInterruptedError: after `stop_requested` was set; the state is saved.
            FinJEPAError: if the loss is no longer a number; the last good state is kept.
        """
        td, training, started = self.config.td, self.config.training, time.monotonic()
        terms: dict[str, Tensor] = {}
        score = self._begin()
        with tqdm(total=td.steps, initial=self.step, desc="td", unit="step", mininterval=0.5) as bar:
            while self.step < td.steps and not (0 < td.patience <= self.best.evaluations_since):
                terms = self.train_step()
                self.step += 1
                bar.update()
                last = self.step == td.steps
                if self.step % training.log_every == 0 or last:
                    self._record("td", {name: float(value) for name, value in terms.items()})
                if self.step % td.evaluate_every == 0 or last:
                    self._keep_if_best(score())
                if self.stop_requested:
                    self._save()
                    raise TrainingInterruptedError(f"training of td stopped at step {self.step} of {td.steps}")
                if self.step % training.checkpoint_every == 0 or last:
                    self._save()
        policy = files.load_best(self.run_folder, self.branch)
        self._keep_states()
        return self.evaluate() | {
            "policy": policy,
            "training": {name: float(value) for name, value in terms.items()},
            "steps": self.step,
            "seconds": round(time.monotonic() - started, 3),
        }

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimiser; returns every term of the loss."""
        torch.manual_seed(seed_of(self.config.training.seed, self.step, _STREAM))
        for group in self.optimizer.param_groups:
            group["lr"] = falling(self.config.td.learning_rate, self.step, self.config.td.steps)
        transition = draw_transition(self.paths.draw(self.step // self.config.td.reuse), self.branch)
        terms = self.branch.algorithm.losses(transition.before, transition.action, transition.after)
        if self.config.td.cloning:
            terms["cloning"] = self._demonstrations.error(self.step // self.config.td.reuse, transition, self.branch)
            terms["loss"] = terms["loss"] + self.config.td.cloning * terms["cloning"]
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.branch.parameters(), 10 * self.config.training.gradient_clip)
        if not torch.isfinite(norm):
            raise FinJEPAError(
                f"the loss of td is no longer a number at step {self.step}; the last good state is in {self.run_folder}: "
                "lower td.learning_rate"
            )
        self.optimizer.step()
        self.branch.algorithm.update_targets()
        return {name: value.detach() for name, value in terms.items()}

    def _demonstrate(self, number: int) -> Demonstration:
        """On the market path of that number."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.config.training.seed, number, _DEMONSTRATED))
            return draw_demonstration(self.paths.draw(number).thinned(PORTFOLIOS))

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Eigenvalues of the covariance of the task features, which show a collapse, and R2 of each outcome on them."""
        features_RZ, quantities = self.branch.kept_RZ, self.branch.quantities
        eigenvalues_Z = torch.linalg.eigvalsh(features_RZ.double().T.cov())
        share_Z = eigenvalues_Z.clamp(min=1e-12) / eigenvalues_Z.sum().clamp(min=1e-12)
        varying = [name for name in OUTCOMES if float(quantities[name].std()) > 0]
        return {
            "eigenvalues": eigenvalues_Z.flip(0).tolist(),
            "effective_rank": float(torch.exp(-(share_Z * share_Z.log()).sum())),
            "fit": {n: infer_task(lambda values, n=n: values[n], features_RZ, quantities).fit for n in varying},
        }

    @torch.no_grad()
    def _keep_states(self) -> None:
        """Next states of fresh portfolios, half of them led there by the actor."""
        drawn = self._draw(self.config.td.steps)
        features_RZ = torch.cat([self.branch.algorithm.task_encoder(transition.after) for transition in drawn])
        quantities_RQ = torch.cat([transition.quantities_YQ for transition in drawn])
        kept = slice(self.config.td.kept_states)
        self.branch.kept_RZ.copy_(features_RZ[kept])
        self.branch.kept_RQ.copy_(quantities_RQ[kept])

    def _draw(self, first_step: int) -> list[Transition]:
        """As many transitions as states are kept, or a few more, each batch on a market of its own."""
        td = self.config.td
        drawn = []
        for number in range(math.ceil(td.kept_states / (td.dates * td.portfolios))):
            torch.manual_seed(seed_of(self.config.training.seed, first_step + number, _STREAM))
            drawn.append(draw_transition(self.paths.draw(first_step + number), self.branch))
        return drawn

    def _keep_if_best(self, score: float) -> None:
        self._record("td_validation", {"score": score})
        if -score < self.best.loss:
            self.best = files.Best(-score, self.step)
            files.save_best(self.run_folder, self.branch, {"score": score, "step": self.step})
        else:
            self.best.evaluations_since += 1

    def _record(self, kind: str, values: dict[str, float]) -> None:
        record = {"kind": kind, "step": self.step, **values}
        files.append_record(self.run_folder, record)
        if self.report:
            self.report(record)

    def _save(self) -> None:
        files.save_state(self.run_folder, self.step, self.best, self.branch, self.optimizer)

    def _begin(self) -> "PolicyScore":
        """Go on where an interrupted run was, or begin with the units of the outcomes, in which tasks are inferred."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.step, self.best = files.load_state(self.run_folder, self.branch, self.optimizer)
        if self.step > 0:
            files.forget_after(self.run_folder, self.step)
            return PolicyScore(self.model, self.panel)
        files.forget_after(self.run_folder, -1)  # an earlier run that saved nothing
        self.branch.calibrate(torch.cat([transition.after.outcome_YO for transition in self._draw(0)]))
        score = PolicyScore(self.model, self.panel)
        self._keep_if_best(score())
        return score


_DATES, _PLANS = 32, 8  # of a score
_SEED = 2011  # of its portfolios and utilities


class PolicyScore:
    """Minus the policy's distance from plans that look ahead, for random utilities and portfolios on fixed dates of the
    validation block; more is better. It is the same for the same policy.
    """

    def __init__(self, model: WorldModel, panel: Panel):
        """After the branch has been calibrated: tasks are in its units."""
        assert model.td is not None
        self._branch, rules = model.td, model.config.portfolio
        block = split_dates(len(panel.dates), model.config).validation
        paths = MarketPaths(model, panel, block, _DATES, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self._plans = [draw_demonstration(paths.draw(number)) for number in range(_PLANS)]
            path = MarketPaths(model, panel, block, _DATES, 8).draw(0)
            before = path.state(0, random_drawdown(path.start()))
            action = random_action(before.present_YN, None, rules)
            portfolio, quantities_YQ = _hold(path, 0, before, action)
            after = path.state(1, portfolio, _outcome(quantities_YQ))
            self._steps = Transition(before, action, after, quantities_YQ)

    @torch.no_grad()
    def __call__(self) -> float:
        return -float(torch.stack([distance(self._branch, one, self._steps) for one in self._plans]).mean())
