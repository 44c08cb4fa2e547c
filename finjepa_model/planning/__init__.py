"""Plans: what a planner and a cost function are, the planners that search and solve, utilities and goals.

`finjepa_model.planners` makes them by name.
"""

from finjepa_model.planning.gradient import GradientPlanner
from finjepa_model.planning.imagination import Ensemble
from finjepa_model.planning.plan import Account, Cost, Plan, Planner
from finjepa_model.planning.qp import QPPlanner
from finjepa_model.planning.search import CEMPlanner, MPPIPlanner, RandomPlanner
from finjepa_model.planning.space import ActionSpace, project_to_simplex
from finjepa_model.planning.utility import QUANTITIES, Quantity, Utility, parse_utility, utility_help

__all__ = [
    "QUANTITIES",
    "Account",
    "ActionSpace",
    "CEMPlanner",
    "Cost",
    "Ensemble",
    "GradientPlanner",
    "MPPIPlanner",
    "Plan",
    "Planner",
    "QPPlanner",
    "Quantity",
    "RandomPlanner",
    "Utility",
    "parse_utility",
    "project_to_simplex",
    "utility_help",
]
