"""FinJEPA: a JEPA world model for portfolio choice."""

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.encoder import ContextEncoder
from finjepa_model.errors import FinJEPAError
from finjepa_model.layers import TimeSeriesTokenizer
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.predictor import Predictor
from finjepa_model.regularizers import InverseDynamics, SIGReg
from finjepa_model.world_model import FinJEPA

__all__ = [
    "ActionEmbedder",
    "ContextEncoder",
    "FinJEPA",
    "FinJEPAConfig",
    "FinJEPAError",
    "InverseDynamics",
    "PortfolioAction",
    "PortfolioSimulator",
    "Predictor",
    "SIGReg",
    "TimeSeriesTokenizer",
]
