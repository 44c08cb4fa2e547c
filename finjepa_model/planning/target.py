"""What a utility calls a goal: goal(exposure=0.3, volatility=0.1), or goal(realised)."""

import ast
from dataclasses import dataclass, fields

from finjepa_model.errors import FinJEPAError

REALISED = "goal(realised)"
EXAMPLE = "goal(exposure=0.3, volatility=0.1)"
_LARGEST = 1e3  # of a number of a goal


@dataclass(frozen=True)
class Target:
    """A state of the portfolio after a decision step that the user wants; None is left to what is best.

    Attributes:
        volatility: a year; the best holdings that have it are wanted, and less where even the calmest have more.
        exposure: gross, share of wealth. Beside a volatility it is what the holdings are scaled to.
        growth: log growth of wealth a year.
        drawdown: from the highest wealth, share of it, not negative.
        hedge: 1 where the market proxy is sold, 0 where it is not.
    """

    volatility: float | None = None
    exposure: float | None = None
    growth: float | None = None
    drawdown: float = 0.0
    hedge: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.drawdown < 1:
            raise FinJEPAError(f"goal drawdown={self.drawdown:g} must lie in [0, 1)")
        for name in ("volatility", "exposure"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FinJEPAError(f"goal {name}={value:g} must be positive")
        if self.hedge not in (None, 0, 1):
            raise FinJEPAError(f"goal hedge={self.hedge:g} must be 0 or 1")


def parse_goal(text: str) -> Target | None:
    """Read a goal as a utility names it: the state that is wanted, or None for what went best on training dates.

    Raises:
        FinJEPAError: for what is no goal; it names what a goal may say.
    """
    known = [field.name for field in fields(Target)]
    tree = ast.parse(text, mode="eval").body
    assert isinstance(tree, ast.Call)
    if len(tree.args) == 1 and not tree.keywords and ast.unparse(tree.args[0]) == "realised":
        return None
    wanted: dict[str, float] = {}
    for keyword in tree.keywords:
        try:
            number = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError):
            number = None
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST:
            number = None
        if keyword.arg not in known or number is None:
            raise FinJEPAError(
                f"{ast.unparse(keyword)[:100]!r} is no part of a goal, which has numbers for {', '.join(known)}"
            )
        wanted[keyword.arg] = float(number)
    if tree.args or not wanted:
        raise FinJEPAError(
            f"{text[:100]!r} is no goal; write it like {EXAMPLE}, of {', '.join(known)}, or as {REALISED}"
        )
    return Target(**wanted)
