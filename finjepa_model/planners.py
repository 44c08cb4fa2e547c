"""Every planner by name: `planning` has those that search and solve, `td` the one that has learned what to do."""

from dataclasses import fields
from typing import Any

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning import CEMPlanner, GradientPlanner, MPPIPlanner, Planner, QPPlanner, RandomPlanner
from finjepa_model.td.planner import TDPlanner

# Each is a dataclass whose fields are its settings; a new one needs a line here and nothing else.
PLANNERS: dict[str, type] = {
    "cem": CEMPlanner,
    "mppi": MPPIPlanner,
    "gradient": GradientPlanner,
    "qp": QPPlanner,
    "random": RandomPlanner,
    "td": TDPlanner,
}


def make_planner(name: str, **settings: Any) -> Planner:
    """A planner by name, with its defaults changed by keyword.

    Raises:
        FinJEPAError: for an unknown planner or setting.
    """
    if name not in PLANNERS:
        raise FinJEPAError(f"unknown planner {name!r}; choose one of {', '.join(sorted(PLANNERS))}")
    known = {field.name for field in fields(PLANNERS[name]) if field.init}
    for key in settings:
        if key not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise FinJEPAError(f"planner {name!r} has no setting {key!r}; {has}")
    return PLANNERS[name](**settings)
