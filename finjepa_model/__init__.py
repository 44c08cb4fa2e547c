"""FinJEPA: a JEPA world model for portfolio choice.

The names below are loaded when they are first used, so that a program which only reads a config or an error does not
wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finjepa_model.actions import ActionEmbedder, PortfolioAction
    from finjepa_model.config import FinJEPAConfig
    from finjepa_model.errors import FinJEPAError
    from finjepa_model.model import FinJEPA
    from finjepa_model.nn.encoder import ContextEncoder
    from finjepa_model.nn.layers import TimeSeriesTokenizer
    from finjepa_model.nn.losses import InverseDynamics, SIGReg
    from finjepa_model.nn.predictor import Predictor
    from finjepa_model.planning.search import CEMPlanner, MPPIPlanner
    from finjepa_model.portfolio import PortfolioSimulator
    from finjepa_model.td.algorithm import TDJEPA

_MODULES = {
    "actions": ["ActionEmbedder", "PortfolioAction"],
    "config": ["FinJEPAConfig"],
    "errors": ["FinJEPAError"],
    "nn.encoder": ["ContextEncoder"],
    "nn.layers": ["TimeSeriesTokenizer"],
    "nn.losses": ["InverseDynamics", "SIGReg"],
    "nn.predictor": ["Predictor"],
    "planning.search": ["CEMPlanner", "MPPIPlanner"],
    "portfolio": ["PortfolioSimulator"],
    "td.algorithm": ["TDJEPA"],
    "model": ["FinJEPA"],
}
__all__ = [
    "TDJEPA", "ActionEmbedder", "CEMPlanner", "ContextEncoder", "FinJEPA", "FinJEPAConfig", "FinJEPAError", "InverseDynamics",
    "MPPIPlanner", "PortfolioAction", "PortfolioSimulator", "Predictor", "SIGReg", "TimeSeriesTokenizer",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"finjepa_model.{module}"), name)
    raise AttributeError(f"module 'finjepa_model' has no attribute {name!r}")
