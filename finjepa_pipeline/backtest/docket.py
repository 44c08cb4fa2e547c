"""Who is judged, and on which sessions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_pipeline.backtest.baselines import baselines
from finjepa_pipeline.backtest.finjepa_strategy import strategy_name
from finjepa_pipeline.backtest.user_strategy import load_strategy

# It only chooses among planners; rivals are met on the test block.
ON_VALIDATION = ("equal_weight", "buy_and_hold", "cash")
FILLS = ("close", "open")


@dataclass(frozen=True)
class Docket:
    """Who is judged, and how.

    Attributes:
        planners: on the checkpoint's world model; controls: names in `CONTROLS`; specs: strategies of the user.
        fill: orders are filled at the next `close` or the next `open`.
        only: names of the strategies to walk; everybody where empty.
    """

    planners: tuple[str, ...] = ("cem", "mppi")
    controls: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()
    n_assets: int = 20
    fill: str = "close"
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise FinJEPAError(f"fill={self.fill!r} is unknown; choose one of {', '.join(FILLS)}")

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the strategies of the user."""
        return tuple(load_strategy(spec).name for spec in self.specs)

    def names(self, block: str) -> list[str]:
        """Who is judged on a block, in the order of walking."""
        on_validation = block == "validation"
        rivals = [s.name for s in baselines() if not on_validation or s.name in ON_VALIDATION]
        names = [*rivals, *self.planners, *(() if on_validation else self.controls), *self.own]
        return [name for name in names if not self.only or name in (*self.only, "equal_weight")]


@dataclass(frozen=True)
class Block:
    """Sessions to be judged on, [start, stop), and which assets may be traded there (all where None)."""

    name: str
    start: int
    stop: int
    allowed: Any = field(default=None, compare=False)


def parse_names(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names out of a comma list, each once; `all` and `none` are understood.

    Raises:
        FinJEPAError: for an unknown name.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if names in (("all",), ("none",)):
        return tuple(known) if names == ("all",) else ()
    for name in names:
        if name not in known:
            raise FinJEPAError(f"unknown {what} {name!r}; choose some of {', '.join(sorted(known))}, or all, or none")
    return names


def parse_planners(text: str, utility: str | None = None) -> tuple[str, ...]:
    """Names of the strategies out of a comma list of planners, each once; all with the utility where one is given.

    Raises:
        FinJEPAError: for an unknown name, an empty list, or a utility that cannot be read.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise FinJEPAError("no planner was named; try --planner cem,mppi")
    for name in names:
        make_planner(name)
    return tuple(strategy_name(name, utility) for name in names)
