"""Strategies: the interface, the baselines that every model stands beside, and strategies of the user.

Baselines are from skfolio wherever it has them. All have the universe, lag, costs and dates of the planners. What is fitted is
fitted once a month on trailing returns and left to drift in between.

Shapes: N assets of the view, T sessions, V assets whose window has no gap; a leading 1 is the batch of one portfolio.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView
from finjepa_model.portfolio import PortfolioState
from finjepa_pipeline.backtest.metrics import BENCHMARK

CONTROLS = ("untrained", "ewma", "ledoit_wolf", "shuffled_actions")
WITH = " with "  # between the names of a planner and of the control that replaces a part of it
WINDOWS = (504, 252, 126, 63)  # sessions; the longest in which enough assets have no gap
Rule = Callable[[MarketView], np.ndarray]
_from_command_line = False


class Strategy(Protocol):
    """Decides at a close; the engine fills at the next one."""

    @property
    def name(self) -> str: ...

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        """From what is known and the portfolio at that close, a batch of one over the view's assets: weights [1, N], signals
        [1, N] and hedge [1]; None for no orders."""
        ...


class EveryDecision:
    """Trades to the weights of a rule. Weights need not be normalised; where the rule knows nothing (all zero), 1/N.

    Args:
        period: of a view; within one there are no orders after the first. Orders at every decision where None.
    """

    def __init__(self, name: str, rule: Rule, period: Callable[[MarketView], Any] | None = None):
        self.name = name
        self._rule, self._period, self._done = rule, period, None

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        period = self._period(view) if self._period else None
        if period is not None and period == self._done:
            return None
        self._done = period
        weights_N = self._rule(view)
        return long_only(weights_N if weights_N.sum() > 0 else equal_weights(view))


def monthly(name: str, rule: Rule) -> EveryDecision:
    """At the first decision of a month, and when the universe is chosen again."""
    return EveryDecision(name, rule, lambda view: (view.date.astype("datetime64[M]"), view.assets))


def one_over_n() -> EveryDecision:
    """1/N over the assets that are present."""
    return EveryDecision(BENCHMARK, equal_weights)


def buy_and_hold() -> EveryDecision:
    """1/N once, and again when the universe is chosen again."""
    return EveryDecision("buy_and_hold", equal_weights, lambda view: view.assets)


class Cash:
    """Every asset flat."""

    name = "cash"

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
        action = long_only(equal_weights(view))
        return PortfolioAction(action.weights_XN, torch.zeros_like(action.signals_XN), action.hedge_X)


def long_only(weights_N: np.ndarray) -> PortfolioAction:
    """Hold these weights, unhedged. They are normalised to sum to 1."""
    weights_1N = torch.from_numpy(weights_N / weights_N.sum())[None]
    return PortfolioAction(weights_1N, torch.ones_like(weights_1N), torch.zeros(1, dtype=torch.float64))


def equal_weights(view: MarketView) -> np.ndarray:
    """1/N over the present assets. With none, over everything: the orders are then dropped at the fill."""
    chosen_N = view.present_N if view.present_N.any() else np.ones_like(view.present_N)
    return chosen_N / chosen_N.sum()


def baselines() -> list[Strategy]:
    """The strategies that need no model, new ones for each simulation."""
    return [
        one_over_n(),
        buy_and_hold(),
        Cash(),
        monthly("equal_weight_monthly", equal_weights),
        monthly("cap_proxy", _dollar_volume),
        monthly("inverse_volatility", _fitted("InverseVolatility")),
        monthly("min_variance", _fitted("MeanRisk", shrunk=True)),
        monthly("max_sharpe", _fitted("MeanRisk", shrunk=True, maximise_ratio=True)),
        monthly("hierarchical_risk_parity", _fitted("HierarchicalRiskParity")),
        monthly("risk_parity", _fitted("RiskBudgeting")),
        monthly("max_diversification", _fitted("MaximumDiversification")),
        monthly("momentum_60", lambda view: extreme_quintile(view, 60)),
        monthly("momentum_252_21", lambda view: extreme_quintile(view, 252, skip=21)),
        EveryDecision("reversal_5", lambda view: extreme_quintile(view, 5, losers=True)),
        monthly("random_simplex", _random_simplex),
    ]


def not_planners() -> list[str]:
    """Strategies that are tested beside planners and never chosen as a champion; controls stand for those of every planner, and
    those of the user have a colon in their name."""
    return [strategy.name for strategy in baselines()] + list(CONTROLS)


def control_of(strategy: str) -> tuple[str, str] | None:
    """The control and the planner whose part it replaces, by the name of a strategy; None where it is no control."""
    planner, _, control = strategy.rpartition(WITH)
    return (control, planner) if control in CONTROLS else None


def planner_in(strategy: str) -> str:
    """The planner of a control, or the strategy itself."""
    found = control_of(strategy)
    return found[1] if found else strategy


def kind(strategy: str) -> str:
    """`planner`, `baseline`, `control` or `user`, by the name of a strategy."""
    if ":" in strategy:
        return "user"
    if control_of(strategy):
        return "control"
    return "baseline" if strategy in {s.name for s in baselines()} else "planner"


def extreme_quintile(view: MarketView, sessions: int, skip: int = 0, losers: bool = False) -> np.ndarray:
    """Equal weights on the fifth of the present assets that rose most (or fell most) over `sessions` sessions, of which the
    last `skip` are left out."""
    returns_TN, _ = view.returns(sessions)
    growth_N = np.log1p(returns_TN[: sessions - skip]).sum(0) * (-1 if losers else 1)
    growth_N = np.where(view.present_N, growth_N, -np.inf)
    count = max(1, round(int(view.present_N.sum()) / 5))
    weights_N = np.zeros(len(growth_N))
    weights_N[np.argsort(-growth_N, kind="stable")[:count]] = 1.0
    return weights_N * view.present_N


def _dollar_volume(view: MarketView) -> np.ndarray:
    """Trailing mean dollar volume stands in for capitalisation, which prices do not tell; nothing is known without volumes."""
    liquidity = view.liquidity()
    if liquidity is None:
        return np.zeros(len(view.present_N))
    return np.nan_to_num(liquidity.dollar_volume_XN[0].numpy()) * view.present_N


def _random_simplex(view: MarketView) -> np.ndarray:
    """Uniform on the simplex, drawn by the date so that a simulation can be repeated."""
    random = np.random.default_rng(int(view.date.astype(np.int64)))
    return random.exponential(size=len(view.present_N)) * view.present_N


def _fitted(estimator: str, shrunk: bool = False, maximise_ratio: bool = False) -> Rule:
    """The weights of an estimator of skfolio; nothing is known where it finds no solution.

    Args:
        shrunk: Ledoit-Wolf covariance. maximise_ratio: of the shrunk mean to risk, in place of the least risk.
    """

    def weights(view: MarketView) -> np.ndarray:
        from skfolio import moments, optimization, prior  # two seconds, which a definition need not wait for

        options: dict[str, Any] = {}
        if maximise_ratio:
            options["objective_function"] = optimization.ObjectiveFunction.MAXIMIZE_RATIO
        if shrunk:
            mean = moments.ShrunkMu() if maximise_ratio else None
            options["prior_estimator"] = prior.EmpiricalPrior(
                mu_estimator=mean, covariance_estimator=moments.LedoitWolf()
            )
        returns_TV, complete_N = complete_returns(view)
        weights_N = np.zeros(len(complete_N))
        if returns_TV.shape[1] == 1:
            weights_N[complete_N] = 1.0
        elif returns_TV.shape[1] > 1:
            with contextlib.suppress(Exception):  # such as a best ratio where every mean is negative
                fitted = getattr(optimization, estimator)(**options).fit(returns_TV)
                weights_N[complete_N] = np.maximum(np.asarray(fitted.weights_), 0.0)
        return weights_N

    return weights


def complete_returns(view: MarketView) -> tuple[np.ndarray, np.ndarray]:
    """Trailing returns of the assets without a gap, since skfolio takes no NaN: returns_TV and which of the N they are. The
    window is the longest in which at least half of the present assets are complete."""
    for sessions in WINDOWS:
        returns_TN, known_TN = view.returns(sessions)
        complete_N = view.present_N & known_TN.all(0) & (returns_TN.std(0) > 0)
        if complete_N.sum() * 2 >= max(view.present_N.sum(), 1):
            return returns_TN[:, complete_N], complete_N
    return np.zeros((0, 0)), np.zeros(len(view.present_N), bool)


class UserStrategy:
    """A callable of a view, or of a view and the portfolio's state, which returns shares by symbol or an action. Its name changes
    with its source: the deflated Sharpe ratio counts every version that was ever tested."""

    def __init__(self, spec: str, function: Callable[..., Any]):
        self._function, self._file = function, _source_file(function)
        source = repr(function).encode() if self._file is None or not self._file.is_file() else self._file.read_bytes()
        self.name = f"{spec}@{hashlib.sha256(source).hexdigest()[:6]}"  # of all that may be beside the callable
        self._wants_state = len(inspect.signature(function).parameters) > 1

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        try:
            action = self._function(view, state) if self._wants_state else self._function(view)
        except FinJEPAError:
            raise
        except (Exception, SystemExit) as error:
            raise FinJEPAError(f"{self.name} fails on {view.date} at {_blamed(error, self._file)}") from error
        try:
            return _action_of(action, view)
        except FinJEPAError as error:
            code = getattr(inspect.unwrap(self._function), "__code__", None)
            place = f"{self._file}:{code.co_firstlineno}" if self._file and code else self.name
            raise FinJEPAError(f"{self.name} on {view.date}, {place}: {error}") from error


def _action_of(given: Any, view: MarketView) -> PortfolioAction | None:
    """An action, None, or shares by symbol (a mapping or a Series), negative where short; the rest is cash.

    Raises:
        FinJEPAError: for anything else.
    """
    if given is None or isinstance(given, PortfolioAction):
        parts = () if given is None else (given.weights_XN, given.signals_XN, given.hedge_X)
        if not all(isinstance(part, Tensor) for part in parts):
            raise FinJEPAError("the parts of a PortfolioAction are three tensors: weights, signals, hedge")
        return given
    if not hasattr(given, "items") or hasattr(given, "columns"):
        raise FinJEPAError(
            f"it returned {type(given).__name__}; return shares by symbol, as {{'AAPL': 0.5}} or a Series, a PortfolioAction, or "
            "None to keep what is held"
        )
    shares = {str(name): float(share) for name, share in given.items()}
    for name in shares.keys() - set(view.assets):
        near = difflib.get_close_matches(name, view.assets, 1)
        raise FinJEPAError(f"{name} cannot be traded then" + (f"; is {near[0]} meant?" if near else ""))
    shares_N = np.array([shares.get(name, 0.0) for name in view.assets])
    gross = float(np.abs(shares_N).sum())
    if not gross <= 1 + 1e-9:  # NaN as well
        raise FinJEPAError(
            f"the shares add up to {gross:.6g}; their absolute values must be numbers that add up to at most 1"
        )
    weights_N = np.abs(shares_N) / gross if gross else np.full(len(shares_N), 1 / len(shares_N))
    weights_1N = torch.from_numpy(weights_N)[None]
    signals_1N = torch.from_numpy(np.sign(shares_N) * min(gross, 1.0))[None]
    return PortfolioAction(weights_1N, signals_1N, torch.zeros(1, dtype=torch.float64))


def load_strategy(spec: str) -> UserStrategy:
    """The strategy that `module:callable` or `path/to/file.py:callable` names; of a class, the `decide` of an instance, which may
    keep memory from one decision to the next. It may do what the user may; the Hub token leaves the environment of its process.

    Raises:
        FinJEPAError: if there is no such module or callable.
    """
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        raise FinJEPAError(f"strategy {spec!r} is not of the form module:callable or file.py:callable")
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(secret, None)
    function: Any = getattr(_module(place, spec), attribute, None)
    if inspect.isclass(function):
        try:
            function = function()
        except (Exception, SystemExit) as error:
            raise FinJEPAError(f"strategy {spec!r} cannot be made: {_blamed(error, _source_file(function))}") from error
    decide: Any = getattr(function, "decide", function)
    if not callable(decide):
        raise FinJEPAError(f"strategy {spec!r}: {place} has no callable {attribute!r}")
    return UserStrategy(f"{Path(place).stem}:{attribute}", decide)


def refuse_untrusted(specs: Iterable[str | None]) -> None:
    """A command line names any strategy; a run of the UI or of a schedule only a file below FINJEPA_STRATEGIES.

    Raises:
        FinJEPAError: for the first that may not be named here.
    """
    for spec in specs if not _from_command_line else ():
        if spec is not None and not _is_allowed(spec.rpartition(":")[0]):
            raise FinJEPAError(
                f"strategy {spec!r} is code, and only a file below FINJEPA_STRATEGIES may be named outside of the command line; "
                "set it to a folder that you trust, or run `finjepa backtest --strategy ...`"
            )


def trust_command_line() -> None:
    """Whoever started this process named its strategies."""
    global _from_command_line
    _from_command_line = True


def _is_allowed(place: str) -> bool:
    folder = os.environ.get("FINJEPA_STRATEGIES")
    file = Path(place).expanduser().resolve()  # so that no link leads out
    return bool(folder) and place.endswith(".py") and file.is_relative_to(Path(folder).expanduser().resolve())


def _module(place: str, spec: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
            if found is None or found.loader is None:
                raise ImportError(f"no file {place}")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
            return module
        if "" not in sys.path:
            sys.path.insert(0, "")  # the folder that the command was given in
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise FinJEPAError(f"strategy {spec!r} cannot be loaded: {_blamed(error, Path(place).expanduser())}") from error


def _source_file(function: Any) -> Path | None:
    with contextlib.suppress(TypeError):
        return Path(inspect.getfile(inspect.unwrap(function)))
    return None


def _blamed(error: BaseException, file: Path | None) -> str:
    """An error of a user's code with its place: the innermost line of the user's file, or of the code that it called."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if file is not None and Path(frame.filename).resolve() == file.resolve()]
    outside = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    blamed = (own or outside)[-1:]
    return f"{blamed[0].filename}:{blamed[0].lineno}: {text}" if blamed else text
