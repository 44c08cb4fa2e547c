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
    from finjepa_model.nn.encoder import ContextEncoder
    from finjepa_model.nn.layers import TimeSeriesTokenizer
    from finjepa_model.nn.losses import InverseDynamics, SIGReg
    from finjepa_model.nn.predictor import Predictor
    from finjepa_model.planning import CEMPlanner, MPPIPlanner
    from finjepa_model.portfolio import PortfolioSimulator
    from finjepa_model.td.algorithm import TDJEPA
    from finjepa_model.world_model import FinJEPA

_HOMES = {
    "ActionEmbedder": "actions",
    "CEMPlanner": "planning",
    "ContextEncoder": "nn.encoder",
    "FinJEPA": "world_model",
    "FinJEPAConfig": "config",
    "FinJEPAError": "errors",
    "InverseDynamics": "nn.losses",
    "MPPIPlanner": "planning",
    "PortfolioAction": "actions",
    "PortfolioSimulator": "portfolio",
    "Predictor": "nn.predictor",
    "SIGReg": "nn.losses",
    "TDJEPA": "td.algorithm",
    "TimeSeriesTokenizer": "nn.layers",
}

__all__ = [
    "TDJEPA",
    "ActionEmbedder",
    "CEMPlanner",
    "ContextEncoder",
    "FinJEPA",
    "FinJEPAConfig",
    "FinJEPAError",
    "InverseDynamics",
    "MPPIPlanner",
    "PortfolioAction",
    "PortfolioSimulator",
    "Predictor",
    "SIGReg",
    "TimeSeriesTokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"finjepa_model.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'finjepa_model' has no attribute {name!r}")
