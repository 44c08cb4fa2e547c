"""The utility of a plan, written as one line: "log_growth - 2.5*variance - 0.002*turnover, gross <= 0.8".

A utility is arithmetic over quantities of a decision step (`QUANTITIES`: name, unit, formula), and after commas limits on
them. A goal such as goal(exposure=0.3, volatility=0.1) names a state of the portfolio. Planners maximise the sum over the
steps of a plan; the TD branch takes it as the reward of a step. It is parsed, never evaluated as code.

Shapes: X any batch dimensions (dates, candidates, steps).
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from finjepa_model.errors import FinJEPAError

REALISED = "goal(realised)"
GOAL_EXAMPLE = "goal(exposure=0.3, volatility=0.1)"
_LARGEST_OF_GOAL = 1e3  # of a number of a goal


@dataclass(frozen=True)
class Target:
    """A state of the portfolio after a decision step that the user wants; None means the best one.

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
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST_OF_GOAL:
            number = None
        if keyword.arg not in known or number is None:
            raise FinJEPAError(
                f"{ast.unparse(keyword)[:100]!r} is no part of a goal, which has numbers for {', '.join(known)}"
            )
        wanted[keyword.arg] = float(number)
    if tree.args or not wanted:
        raise FinJEPAError(
            f"{text[:100]!r} is no goal; write it like {GOAL_EXAMPLE}, of {', '.join(known)}, or as {REALISED}"
        )
    return Target(**wanted)


@dataclass(frozen=True)
class Quantity:
    """A quantity of a decision step that a utility may contain."""

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
EXAMPLE = "log_growth - 2.5*variance - 0.002*turnover - above(drawdown, 0.1), gross <= 0.8"
_ENSEMBLE = "disagreement('ID', 'ID')"
_GOALS = (
    f"{GOAL_EXAMPLE}: mean squared distance of the portfolio latent to that of a state that you name (volatility and\n"
    "growth a year, exposure, drawdown, hedge 0 or 1), and "
    f"{REALISED} to what went best in similar markets on training dates.\n"
    f"{_ENSEMBLE}: the same as disagreement, between the checkpoint that plans and others (ids of this home, folders,\n"
    "Hub repositories); plans are then made in the mixture of them all"
)
_HELP = "above(x, limit) = max(0, x - limit), below(x, limit) = max(0, limit - x), abs(x), + - * / and numbers"

_LONGEST, _DEEPEST = 2000, 60  # characters, and levels of the syntax tree
_LARGEST = 1e12  # of a number; single precision squares it
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_STRANGE = re.compile(r"[^A-Za-z0-9_ .+*/(),<>=\-]")
# What no portfolio can go beyond, whatever its rules.
_LEAST: dict[str, float] = dict.fromkeys(
    ("variance", "volatility", "drawdown", "cost", "turnover", "gross", "short", "concentration", "hedge",
     "disagreement", "goal_distance", "final_goal_distance"), 0.0,
)  # fmt: skip
_MOST = {"drawdown": 1.0, "hedge": 1.0}

Values = Mapping[str, Tensor]
_Part = Callable[[Values], Tensor | float] | float


@dataclass(frozen=True)
class Utility:
    """A parsed utility. Equal texts are equal utilities.

    Attributes:
        text: as written.
        names: the quantities that it contains.
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
        """The goals among the names, as they are written; see `Target`."""
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

    def slopes(self, names: Iterable[str]) -> dict[str, float] | None:
        """The coefficients of some quantities; None where the utility is not linear in them, whatever the others are."""
        chosen = sorted(self.names.intersection(names))
        generator = torch.Generator().manual_seed(0)
        draws = torch.rand(2, 8, len(self.names), generator=generator, dtype=torch.float64)
        values = dict(zip(sorted(self.names), draws.unbind(-1), strict=True))
        for name in chosen:  # from 0 in the first row; the second has the same values of the others
            values[name] = torch.stack([torch.zeros(8, dtype=torch.float64), 4 * values[name][0] - 2])
        for name in self.names.difference(chosen):
            values[name] = values[name][:1].expand(2, -1)
        before, after = self(values)
        points = torch.stack([values[name][1] for name in chosen], -1) if chosen else torch.zeros(8, 0).double()
        if not (before.isfinite() & after.isfinite()).all():
            return None
        slopes = torch.linalg.lstsq(points, (after - before).unsqueeze(-1)).solution[:, 0]
        error = (points @ slopes - (after - before)).abs().max()
        if error > 1e-9 * max(float(after.abs().max()), float(before.abs().max()), 1.0):
            return None
        return dict.fromkeys(names, 0.0) | dict(zip(chosen, slopes.tolist(), strict=True))


def parse_utility(text: str) -> Utility:
    """Read a utility.

    Raises:
        FinJEPAError: for what is not arithmetic over known quantities, and for a limit that no portfolio can keep; it names
            the part and what is known.
    """
    text = " ".join(text.split())
    tree = _tree(text)
    body, *limits = tree.elts if isinstance(tree, ast.Tuple) and tree.elts else [tree]
    names: set[str] = set()
    addends = [(source, _compiled(part, names)) for source, part in _addends(body, "")]
    if not names:
        raise FinJEPAError(f"the utility {_short(ast.unparse(body))!r} contains no quantity; {_known()}")
    kept = tuple(_limit(limit, names) for limit in limits)
    _refuse_impossible(limits)
    return Utility(text, frozenset(names), tuple(addends), kept)


def utility_help() -> str:
    """A table of what a utility may contain."""
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


def _tree(text: str) -> ast.expr:
    """The syntax tree of a text of known characters, of bounded length and depth."""
    if len(text) > _LONGEST:
        raise FinJEPAError(
            f"the utility {_short(text)!r} cannot be read: it has {len(text)} characters, at most {_LONGEST}"
        )
    if strange := _STRANGE.search(_QUOTED.sub("", text)):
        raise FinJEPAError(f"{strange[0]!r} cannot be part of a utility, which is made of {_HELP}")
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text, mode="eval").body
        layer, depth = [tree], 0
        while layer and depth <= _DEEPEST:
            layer, depth = [child for node in layer for child in ast.iter_child_nodes(node)], depth + 1
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FinJEPAError(
            f"the utility {_short(text)!r} cannot be read; write it like log_growth - 5*variance"
        ) from error
    if layer:
        raise FinJEPAError(f"the utility {_short(text)!r} cannot be read: it is nested too deeply")
    return tree


def _addends(tree: ast.expr, sign: str) -> list[tuple[str, ast.expr]]:
    """Source and tree of each addend, its sign included."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub):
        flip = {"": "-", "-": ""}[sign]
        return _addends(tree.left, sign) + _addends(tree.right, sign if isinstance(tree.op, ast.Add) else flip)
    signed = ast.UnaryOp(ast.USub(), tree) if sign else tree
    return [(ast.unparse(signed).replace(" ", ""), signed)]


def _limit(tree: ast.expr, names: set[str]) -> tuple[str, _Part]:
    source = ast.unparse(tree)
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or not isinstance(tree.ops[0], ast.LtE | ast.GtE):
        raise FinJEPAError(f"the limit {_short(source)!r} cannot be read; write it like gross <= 0.8 or cash >= 0.1")
    low, high = _compiled(tree.left, names), _compiled(tree.comparators[0], names)
    if isinstance(tree.ops[0], ast.GtE):
        low, high = high, low
    return source.replace(" ", ""), lambda values: torch.as_tensor(_at(low, values) - _at(high, values)).clamp(min=0)


def _refuse_impossible(limits: Iterable[ast.expr]) -> None:
    """Limits on one quantity, or on none, that contradict what the quantity can be or each other."""
    least, most = dict(_LEAST), dict(_MOST)
    for tree in limits:
        assert isinstance(tree, ast.Compare)
        left, right, source = tree.left, tree.comparators[0], _short(ast.unparse(tree))
        low, high = (left, right) if isinstance(tree.ops[0], ast.LtE) else (right, left)
        numbers = [None if isinstance(side, ast.Name) else _number(side) for side in (low, high)]
        if isinstance(low, ast.Name) and numbers[1] is not None:
            name, most[low.id] = low.id, min(most.get(low.id, math.inf), numbers[1])
        elif isinstance(high, ast.Name) and numbers[0] is not None:
            name, least[high.id] = high.id, max(least.get(high.id, -math.inf), numbers[0])
        elif numbers[0] is not None and numbers[1] is not None and numbers[0] > numbers[1]:
            raise FinJEPAError(f"the limit {source} can never be kept; write it like gross <= 0.8")
        else:
            continue
        if least.get(name, -math.inf) > most.get(name, math.inf):
            raise FinJEPAError(
                f"the limit {source} cannot be kept: {name} would have to be at least {least[name]:g} and at most "
                f"{most[name]:g}"
            )


def _number(tree: ast.expr) -> float | None:
    """The value of a part without quantities."""
    names: set[str] = set()
    part = _compiled(tree, names)
    return None if callable(part) else part


def _compiled(tree: ast.expr, names: set[str]) -> _Part:
    """A function of the values, or a number where there is no quantity; the names that it reads are added to `names`."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float) and not isinstance(tree.value, bool):
        number = tree.value
        return _bounded(tree, lambda: float(number))
    if isinstance(tree, ast.Name):
        name = tree.id
        if name not in QUANTITIES:
            raise FinJEPAError(f"unknown quantity {_short(name)!r} in a utility; {_known()}")
        names.add(name)
        return lambda values: values[name]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "goal":
        goal = ast.unparse(tree).replace(" ", "")
        parse_goal(goal)
        names.add(goal)
        return lambda values: values[goal]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "disagreement":
        named = [argument.value for argument in tree.args if isinstance(argument, ast.Constant)]
        if not named or len(named) < len(tree.args) or tree.keywords or not all(isinstance(n, str) for n in named):
            raise FinJEPAError(f"{_short(ast.unparse(tree))!r} cannot be read; name the other checkpoints: {_ENSEMBLE}")
        call = ast.unparse(tree)
        names.add(call)
        return lambda values: values[call]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub | ast.UAdd):
        inner, sign = _compiled(tree.operand, names), -1.0 if isinstance(tree.op, ast.USub) else 1.0
        return (lambda values: sign * inner(values)) if callable(inner) else sign * inner
    if isinstance(tree, ast.BinOp) and type(tree.op) in _ARITHMETIC:
        left, right = _compiled(tree.left, names), _compiled(tree.right, names)
        combine = _ARITHMETIC[type(tree.op)]
        if isinstance(tree.op, ast.Div) and right == 0:
            raise FinJEPAError(f"{_short(ast.unparse(tree))!r} divides by zero")
        if not callable(left) and not callable(right):
            return _bounded(tree, lambda: combine(left, right))
        return lambda values: combine(_at(left, values), _at(right, values))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _FUNCTIONS:
        function = _FUNCTIONS[tree.func.id]
        arguments = [_compiled(argument, names) for argument in tree.args]
        if len(arguments) == function.__code__.co_argcount and not tree.keywords:
            if not any(map(callable, arguments)):
                return _bounded(tree, lambda: float(function(*map(_exact, arguments))))
            return lambda values: function(*(_as_tensor(_at(argument, values)) for argument in arguments))
    raise FinJEPAError(f"{_short(ast.unparse(tree))!r} cannot be part of a utility, which is made of {_HELP}")


def _bounded(tree: ast.expr, number: Callable[[], float]) -> float:
    try:
        value = number()
    except OverflowError:
        value = math.inf
    if not abs(value) <= _LARGEST:
        raise FinJEPAError(f"{_short(ast.unparse(tree))!r} is too large a number; at most {_LARGEST:g} is read")
    return value


def _at(part: _Part, values: Values) -> Tensor | float:
    return part(values) if callable(part) else part


def _as_tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value)


def _exact(value: _Part) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _evaluated(parts: tuple[tuple[str, _Part], ...], values: Values) -> dict[str, Tensor]:
    like = next(iter(values.values()))
    shape = torch.broadcast_shapes(*(value.shape for value in values.values()))
    found: dict[str, Tensor] = {}
    for source, part in parts:
        value = torch.as_tensor(_at(part, values), dtype=like.dtype, device=like.device).expand(shape)
        found[source] = found[source] + value if source in found else value
    return found


def _known() -> str:
    return f"known are {', '.join(QUANTITIES)} (finjepa decide --utility help)"
