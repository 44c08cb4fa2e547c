"""What a portfolio is wanted for, written as one line: "log_growth - 5*variance - 0.1*turnover, gross <= 0.8".

A utility is arithmetic over quantities of a decision step (`QUANTITIES`: name, unit, formula), and after commas limits on
them. Planners maximise its sum over the steps of a plan; the TD branch takes it as the reward of a step. It is parsed, never
evaluated as code.

Shapes: X any batch dimensions (dates, candidates, steps).
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning import target


@dataclass(frozen=True)
class Quantity:
    """Something that a decision step of a portfolio has, and that a utility may speak of."""

    name: str
    unit: str
    formula: str


# fmt: off
QUANTITIES = {q.name: q for q in (
    Quantity("log_growth", "log return a step", "log(wealth after / wealth before), costs included"),
    Quantity("variance", "squared return a step", "variance of the step's simple return; 2.5 of it is a risk aversion of 5"),
    Quantity("volatility", "return a step", "root of the variance"),
    Quantity("cvar", "share of wealth", "mean loss in the worst 5 % of cases, as if returns were Gaussian"),
    Quantity("drawdown", "share of wealth", "fall from the highest wealth so far on a path at the worst 5 % (Gaussian)"),
    Quantity("cost", "share of wealth", "commissions, spreads, impact and borrow fees of the step"),
    Quantity("turnover", "share of wealth", "half of what is bought and sold, one-way"),
    Quantity("gross", "share of wealth", "sum of absolute positions after the trade"),
    Quantity("net", "share of wealth", "sum of positions after the trade"),
    Quantity("short", "share of wealth", "sum of positions held short"),
    Quantity("cash", "share of wealth", "1 - net, the cash that is the investor's own"),
    Quantity("beta", "1", "to the market proxy, hedge included"),
    Quantity("concentration", "1", "sum of squared positions"),
    Quantity("hedge", "0 or 1", "whether the market proxy is sold"),
    Quantity("disagreement", "return a step", "deviation of the expected return over an ensemble of models"),
    Quantity("goal_distance", "1", "mean squared distance of the portfolio latent to the goal's"),
    Quantity("final_goal_distance", "1", "the same at the last step, 0 before"),
)}
# fmt: on

_ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable] = {
    "above": lambda x, limit: (x - limit).clamp(min=0),
    "below": lambda x, limit: (limit - x).clamp(min=0),
    "abs": lambda x: x.abs(),
}
EXAMPLE = "log_growth - 2.5*variance - 0.1*turnover - above(drawdown, 0.1), gross <= 0.8"
_ENSEMBLE = "disagreement('ID', 'ID')"
_GOALS = (
    f"{target.EXAMPLE}: mean squared distance of the portfolio latent to that of a state that you name (volatility and\n"
    "growth a year, exposure, drawdown, hedge 0 or 1), and "
    f"{target.REALISED} to what went best in similar markets on training dates.\n"
    f"{_ENSEMBLE}: the same as disagreement, between the checkpoint that plans and others (ids of this home, folders,\n"
    "Hub repositories); plans are then made in the mixture of them all"
)
_HELP = "above(x, limit) = max(0, x - limit), below(x, limit) = max(0, limit - x), abs(x), + - * / and numbers"

Values = Mapping[str, Tensor]
_Part = Callable[[Values], Tensor | float]


@dataclass(frozen=True)
class Utility:
    """A parsed utility. Equal texts are equal utilities.

    Attributes:
        text: as written.
        names: the quantities that it speaks of.
        addends: text and function of each addend; limits: the same of each limit, the excess over it.
    """

    text: str
    names: frozenset[str]
    addends: tuple[tuple[str, _Part], ...]
    limits: tuple[tuple[str, _Part], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Utility) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def goals(self) -> list[str]:
        """The goals among the names, as they are written; see `planning.target`."""
        return sorted(name for name in self.names if name.startswith("goal("))

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoints whose disagreement is priced, without the one that plans."""
        calls = [ast.parse(name, mode="eval").body for name in sorted(self.names) if name.startswith("disagreement(")]
        found = [argument.value for call in calls for argument in call.args]  # type: ignore[attr-defined]
        return list(dict.fromkeys(found))

    def by_term(self, values: Values) -> dict[str, Tensor]:
        """Each addend, value_X; they add up to the utility."""
        return _evaluated(self.addends, values)

    def excess(self, values: Values) -> dict[str, Tensor]:
        """How far each limit is broken, excess_X; 0 where it is kept."""
        return _evaluated(self.limits, values)

    def __call__(self, values: Values) -> Tensor:
        """The utility of each step, without regard to its limits: utility_X."""
        return torch.stack(list(self.by_term(values).values())).sum(0)

    def slope(self, name: str) -> float:
        """How the utility of a step moves with one quantity where all others are 0: its coefficient if it is linear."""
        zero = dict.fromkeys(self.names, torch.zeros((), dtype=torch.float64))
        if name not in zero:
            return 0.0
        return float(self(zero | {name: torch.ones((), dtype=torch.float64)}) - self(zero))


def parse_utility(text: str) -> Utility:
    """Read a utility.

    Raises:
        FinJEPAError: for what is not arithmetic over known quantities; it names the part and what is known.
    """
    text = " ".join(text.split())
    body, *limits = _split(text)
    names: set[str] = set()
    tree = _tree(body)
    addends = [(source, _compiled(part, names)) for source, part in _addends(tree, "")]
    if not names:
        raise FinJEPAError(f"the utility {body!r} speaks of no quantity; {_known()}")
    kept = tuple(_limit(limit, names) for limit in limits)
    return Utility(text, frozenset(names), tuple(addends), kept)


def utility_help() -> str:
    """A table of what a utility may speak of."""
    width, units = (max(len(getattr(q, a)) for q in QUANTITIES.values()) for a in ("name", "unit"))
    lines = [f"{q.name:<{width}}  {q.unit:<{units}}  {q.formula}" for q in QUANTITIES.values()]
    return "\n".join(
        (
            "A utility is arithmetic over these quantities of a decision step, and limits after commas, as in",
            "",
            f"  {EXAMPLE}",
            "",
            *lines,
            "",
            _GOALS,
            "",
            _HELP,
        )
    )


def _split(text: str) -> list[str]:
    """At the commas that are outside of parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FinJEPAError(f"the utility {text!r} cannot be read; write it like log_growth - 5*variance") from error


def _addends(tree: ast.expr, sign: str) -> list[tuple[str, ast.expr]]:
    """Source and tree of each addend, its sign included."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub):
        flip = {"": "-", "-": ""}[sign]
        return _addends(tree.left, sign) + _addends(tree.right, sign if isinstance(tree.op, ast.Add) else flip)
    signed = ast.UnaryOp(ast.USub(), tree) if sign else tree
    return [(ast.unparse(signed).replace(" ", ""), signed)]


def _limit(text: str, names: set[str]) -> tuple[str, _Part]:
    tree = _tree(text)
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or not isinstance(tree.ops[0], ast.LtE | ast.GtE):
        raise FinJEPAError(f"the limit {text!r} cannot be read; write it like gross <= 0.8 or cash >= 0.1")
    low, high = _compiled(tree.left, names), _compiled(tree.comparators[0], names)
    if isinstance(tree.ops[0], ast.GtE):
        low, high = high, low
    return text.replace(" ", ""), lambda values: torch.as_tensor(low(values) - high(values)).clamp(min=0)


def _compiled(tree: ast.expr, names: set[str]) -> _Part:
    """A function of the values; the names that it reads are added to `names`."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float) and not isinstance(tree.value, bool):
        number = float(tree.value)
        return lambda values: number
    if isinstance(tree, ast.Name):
        name = tree.id
        if name not in QUANTITIES:
            raise FinJEPAError(f"a utility knows no {name!r}; {_known()}")
        names.add(name)
        return lambda values: values[name]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "goal":
        goal = ast.unparse(tree).replace(" ", "")
        target.parse_goal(goal)
        names.add(goal)
        return lambda values: values[goal]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "disagreement":
        named = [argument.value for argument in tree.args if isinstance(argument, ast.Constant)]
        if not named or len(named) < len(tree.args) or tree.keywords or not all(isinstance(n, str) for n in named):
            raise FinJEPAError(f"{ast.unparse(tree)!r} cannot be read; name the other checkpoints: {_ENSEMBLE}")
        call = ast.unparse(tree)
        names.add(call)
        return lambda values: values[call]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub | ast.UAdd):
        inner, sign = _compiled(tree.operand, names), -1.0 if isinstance(tree.op, ast.USub) else 1.0
        return lambda values: sign * inner(values)
    if isinstance(tree, ast.BinOp) and type(tree.op) in _ARITHMETIC:
        left, right = _compiled(tree.left, names), _compiled(tree.right, names)
        combine = _ARITHMETIC[type(tree.op)]
        return lambda values: combine(left(values), right(values))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _FUNCTIONS:
        function = _FUNCTIONS[tree.func.id]
        arguments = [_compiled(argument, names) for argument in tree.args]
        if len(arguments) == function.__code__.co_argcount and not tree.keywords:
            return lambda values: function(*(_as_tensor(argument(values)) for argument in arguments))
    raise FinJEPAError(f"{ast.unparse(tree)!r} cannot be part of a utility, which is made of {_HELP}")


def _as_tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value)


def _evaluated(parts: tuple[tuple[str, _Part], ...], values: Values) -> dict[str, Tensor]:
    like = next(iter(values.values()))
    shape = torch.broadcast_shapes(*(value.shape for value in values.values()))
    found: dict[str, Tensor] = {}
    for source, part in parts:
        value = torch.as_tensor(part(values), dtype=like.dtype, device=like.device).expand(shape)
        found[source] = found[source] + value if source in found else value
    return found


def _known() -> str:
    return f"known are {', '.join(QUANTITIES)} (finjepa decide --utility help)"
