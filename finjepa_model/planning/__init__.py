"""Planners: they find actions of low cost, and know nothing but a cost function of candidates and a space of actions."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.gradient import GradientConfig, GradientPlanner
from finjepa_model.planning.imagination import Ensemble
from finjepa_model.planning.plan import Account, Cost, Plan, Planner
from finjepa_model.planning.qp import QPConfig, QPPlanner
from finjepa_model.planning.search import CEMConfig, CEMPlanner, MPPIConfig, MPPIPlanner, RandomConfig, RandomPlanner
from finjepa_model.planning.space import ActionSpace, project_to_simplex
from finjepa_model.planning.utility import QUANTITIES, Quantity, Utility, parse_utility, utility_help

__all__ = [
    "PLANNERS",
    "QUANTITIES",
    "Account",
    "ActionSpace",
    "CEMConfig",
    "CEMPlanner",
    "Cost",
    "Ensemble",
    "GradientConfig",
    "GradientPlanner",
    "MPPIConfig",
    "MPPIPlanner",
    "Plan",
    "Planner",
    "QPConfig",
    "QPPlanner",
    "Quantity",
    "RandomConfig",
    "RandomPlanner",
    "Utility",
    "make_planner",
    "parse_utility",
    "project_to_simplex",
    "utility_help",
]


def _td_planner(config: Any) -> Planner:
    from finjepa_model.td.planner import TDPlanner  # here: td is built on planning

    return TDPlanner(config)


PLANNERS: dict[str, tuple[Callable[[Any], Planner], type]] = {
    "cem": (CEMPlanner, CEMConfig),
    "mppi": (MPPIPlanner, MPPIConfig),
    "gradient": (GradientPlanner, GradientConfig),
    "qp": (QPPlanner, QPConfig),
    "random": (RandomPlanner, RandomConfig),
    "td": (_td_planner, QPConfig),
}


def make_planner(name: str, **overrides: Any) -> Planner:
    """A planner by name, with its defaults changed by keyword.

    Raises:
        FinJEPAError: for an unknown planner or setting.
    """
    if name not in PLANNERS:
        raise FinJEPAError(f"unknown planner {name!r}; choose one of {', '.join(sorted(PLANNERS))}")
    build, config = PLANNERS[name]
    known = {field.name for field in fields(config)}
    for key in overrides:
        if key not in known:
            raise FinJEPAError(f"planner {name!r} has no setting {key!r}; it has {', '.join(sorted(known))}")
    return build(config(**overrides))
