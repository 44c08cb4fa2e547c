"""A strategy of the user's own, judged by the same court: any callable `decide(panel_view) -> PortfolioAction`."""

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
from typing import Any

from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import PortfolioState
from finjepa_pipeline.backtest.market_view import MarketView

_from_command_line = False


class UserStrategy:
    """A callable of a view, or of a view and the portfolio's state, under a name that changes with its source.

    Another source is another trial: the deflated Sharpe ratio counts every version that was ever judged.
    """

    def __init__(self, spec: str, function: Callable[..., Any]):
        self.name = f"{spec}@{_source_hash(function)}"
        self._function, self._file = function, _source_file(function)
        self._wants_state = len(inspect.signature(function).parameters) > 1

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        """
        Raises:
            FinJEPAError: if the callable fails, with the user's file and line, or returns something else than an action.
        """
        try:
            action = self._function(view, state) if self._wants_state else self._function(view)
        except FinJEPAError:
            raise
        except (Exception, SystemExit) as error:
            raise FinJEPAError(f"{self.name} fails on {view.date} at {_blamed(error, self._file)}") from error
        parts = (action.weights_XN, action.signals_XN, action.hedge_X) if isinstance(action, PortfolioAction) else ()
        if action is not None and (not parts or not all(isinstance(part, Tensor) for part in parts)):
            raise FinJEPAError(
                f"{self.name} returned {type(action).__name__} on {view.date}: return a PortfolioAction of three tensors "
                "(weights, signals, hedge), or None to keep what is held"
            )
        return action


def load_strategy(spec: str) -> UserStrategy:
    """The strategy that `module:callable` or `path/to/file.py:callable` names; a class is made an instance of, and its
    `decide` is taken, so that it may keep memory from one decision to the next.

    A strategy is code: it may do what the user may. The Hub token leaves the environment of its process.

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
    for spec in specs:
        if spec is not None and not _from_command_line and not _is_allowed(spec.rpartition(":")[0]):
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
    try:
        return Path(inspect.getfile(inspect.unwrap(function)))
    except TypeError:
        return None


def _source_hash(function: Callable) -> str:
    """Of the whole file: what a callable does may depend on anything beside it."""
    file = _source_file(function)
    try:
        source = repr(function).encode() if file is None else file.read_bytes()
    except OSError:
        source = repr(function).encode()
    return hashlib.sha256(source).hexdigest()[:6]


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
