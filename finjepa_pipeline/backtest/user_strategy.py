"""A strategy of the user's own, judged by the same court: any callable `decide(panel_view) -> PortfolioAction`."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import PortfolioState
from finjepa_pipeline.backtest.market_view import MarketView


class UserStrategy:
    """A callable of a view, or of a view and the portfolio's state, under a name that changes with its source.

    Another source is another trial: the deflated Sharpe ratio counts every version that was ever judged.
    """

    def __init__(self, spec: str, function: Callable[..., Any]):
        self.name = f"{spec}@{_source_hash(function)}"
        self._function = function
        self._wants_state = len(inspect.signature(function).parameters) > 1

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        return self._function(view, state) if self._wants_state else self._function(view)


def load_strategy(spec: str) -> UserStrategy:
    """The strategy that `module:callable` or `path/to/file.py:callable` names; a class is made an instance of, and its
    `decide` is taken, so that it may keep memory from one decision to the next.

    Raises:
        FinJEPAError: if there is no such module or callable.
    """
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        raise FinJEPAError(f"strategy {spec!r} is not of the form module:callable or file.py:callable")
    function: Any = getattr(_module(place, spec), attribute, None)
    if inspect.isclass(function):
        function = function()
    decide: Any = getattr(function, "decide", function)
    if not callable(decide):
        raise FinJEPAError(f"strategy {spec!r}: {place} has no callable {attribute!r}")
    return UserStrategy(f"{Path(place).stem}:{attribute}", decide)


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
    except Exception as error:
        raise FinJEPAError(f"strategy {spec!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _source_hash(function: Callable) -> str:
    """Of the whole file: what a callable does may depend on anything beside it."""
    try:
        source = Path(inspect.getfile(inspect.unwrap(function))).read_bytes()
    except (OSError, TypeError):
        source = repr(function).encode()
    return hashlib.sha256(source).hexdigest()[:6]
