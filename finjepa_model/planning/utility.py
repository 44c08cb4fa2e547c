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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from finjepa_model.errors import FinJEPAError

GOAL_EXAMPLE = "goal(exposure=0.3, volatility=0.1)"
_LARGEST_OF_GOAL = 1e3  # of a number of a goal


@dataclass(frozen=True)
class Target:
    """A state of the portfolio after a decision step that the user wants; None means the best one."""

    volatility: float | None = None  # a year, of the best holdings that have it; less where even the calmest have more
    exposure: float | None = None  # gross, share of wealth; beside a volatility it is what the holdings are scaled to
    growth: float | None = None  # log growth of wealth a year
    drawdown: float = 0.0  # from the highest wealth, share of it, not negative
    hedge: float | None = None  # 1 where the market proxy is sold, 0 where it is not

    def __post_init__(self) -> None:
        if not 0 <= self.drawdown < 1:
            raise FinJEPAError(f"goal drawdown={self.drawdown:g} must lie in [0, 1)")
        for name in ("volatility", "exposure"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FinJEPAError(f"goal {name}={value:g} must be positive")
        if self.hedge not in (None, 0, 1):
            raise FinJEPAError(f"goal hedge={self.hedge:g} must be 0 or 1")


def parse_goal(text: str) -> Target:
    """Read a goal as a utility names it: the state that is wanted.

    Raises:
        FinJEPAError: for what is no goal; it names what a goal may say.
    """
    known = [field.name for field in fields(Target)]
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    wanted: dict[str, float] = {}
    for keyword in call.keywords:
        try:
            number = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError):
            number = math.nan
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if keyword.arg not in known or not is_number or not abs(number) <= _LARGEST_OF_GOAL:
            raise FinJEPAError(
                f"{ast.unparse(keyword)[:100]!r} is no part of a goal, which has numbers for {', '.join(known)}"
            )
        wanted[keyword.arg] = float(number)
    if call.args or not wanted:
        raise FinJEPAError(f"{text[:100]!r} is no goal; write it like {GOAL_EXAMPLE}, of {', '.join(known)}")
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

EXAMPLE = "log_growth - 2.5*variance - 0.002*turnover - above(drawdown, 0.1), gross <= 0.8"
_ENSEMBLE = "disagreement('ID', 'ID')"
_GOALS = (
    f"{GOAL_EXAMPLE}: mean squared distance of the portfolio latent to that of a state that you name (volatility and\n"
    "growth a year, exposure, drawdown, hedge 0 or 1).\n"
    f"{_ENSEMBLE}: the same as disagreement, between the checkpoint that plans and others (ids of this home, folders,\n"
    "Hub repositories); plans are then made in the mixture of them all"
)
_KNOWN = f"known are {', '.join(QUANTITIES)} (finjepa decide --utility help)"
_HELP = "above(x, limit) = max(0, x - limit), below(x, limit) = max(0, limit - x), abs(x), + - * / and numbers"


def utility_help() -> str:
    """A table of what a utility may contain."""
    width, units = (max(len(getattr(q, a)) for q in QUANTITIES.values()) for a in ("name", "unit"))
    table = [f"{q.name:<{width}}  {q.unit:<{units}}  {q.formula}" for q in QUANTITIES.values()]
    begin = "A utility is arithmetic over these quantities of a decision step, and limits after commas, as in"
    return "\n".join((begin, "", f"  {EXAMPLE}", "", *table, "", _GOALS, "", _HELP))


Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Utility:
    """A parsed utility. Equal texts are equal utilities."""

    text: str
    names: frozenset[str] = field(compare=False)  # of the quantities, goals and disagreements that it contains
    addends: tuple[tuple[str, ast.expr], ...] = field(compare=False)  # source and syntax tree of each
    limits: tuple[tuple[str, ast.expr], ...] = field(compare=False)

    @property
    def goals(self) -> list[str]:
        """The goals among the names, as they are written; see `Target`."""
        return sorted(name for name in self.names if name.startswith("goal("))

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoints whose disagreement is priced, without the one that plans."""
        calls = [name for name in sorted(self.names) if name.startswith("disagreement(")]
        return list(dict.fromkeys(name for call in calls for name in ast.literal_eval(f"[{call[13:-1]}]")))

    def by_term(self, values: Values) -> dict[str, Tensor]:
        """Each addend, value_X; they add up to the utility."""
        return _evaluated(self.addends, values)

    def excess(self, values: Values) -> dict[str, Tensor]:
        """How far each limit is broken, excess_X; 0 where it is kept."""
        return _evaluated(self.limits, values)

    def __call__(self, values: Values) -> Tensor:
        """The utility of each step, without regard to its limits: utility_X."""
        return torch.stack(list(self.by_term(values).values())).sum(0)

    def most_gross(self) -> float:
        """The largest gross exposure that its limits on that alone allow; infinity where it has none."""
        alone = [limit for limit in self.limits if set().union(*map(_names, _sides(limit[1]))) == {"gross"}]
        far = torch.tensor(1e6, dtype=torch.float64)
        found = _evaluated(tuple(alone), {"gross": far}).values()
        return min((float(far - excess) for excess in found if excess > 0), default=math.inf)

    def slopes(self, names: Iterable[str]) -> dict[str, float] | None:
        """The coefficients of some quantities; None where the utility is not linear in them, whatever the others are."""
        chosen = sorted(self.names.intersection(names))
        generator = torch.Generator().manual_seed(0)
        values = {name: torch.rand(8, generator=generator, dtype=torch.float64) for name in sorted(self.names)}
        values |= {name: 4 * values[name] - 2 for name in chosen}
        without = values | {name: torch.zeros_like(values[name]) for name in chosen}
        rest_8, whole_8 = self(without), self(values)
        slopes = {name: self(without | {name: torch.ones_like(rest_8)}) - rest_8 for name in chosen}
        linear_8 = rest_8 + sum(slope_8 * values[name] for name, slope_8 in slopes.items())
        errors = [linear_8 - whole_8, *(slope_8 - slope_8.mean() for slope_8 in slopes.values())]
        tolerance = 1e-9 * max(float(rest_8.abs().max()), float(whole_8.abs().max()), 1.0)
        if not (tolerance < math.inf and all(float(error_8.abs().max()) <= tolerance for error_8 in errors)):
            return None
        return dict.fromkeys(names, 0.0) | {name: float(slope_8.mean()) for name, slope_8 in slopes.items()}


def parse_utility(text: str) -> Utility:
    """Read a utility.

    Raises:
        FinJEPAError: for what is not arithmetic over known quantities; it names the part and what is known.
    """
    text = " ".join(text.split())
    tree = _tree(text)
    body, *limits = tree.elts if isinstance(tree, ast.Tuple) and tree.elts else [tree]
    names = _names(body)
    if not names:
        raise FinJEPAError(f"the utility {_source(body)!r} contains no quantity; {_KNOWN}")
    for limit in limits:
        if not isinstance(limit, ast.Compare) or len(limit.ops) > 1 or not isinstance(limit.ops[0], ast.LtE | ast.GtE):
            raise FinJEPAError(
                f"the limit {_source(limit)!r} cannot be read; write it like gross <= 0.8 or cash >= 0.1"
            )
        names |= set().union(*map(_names, _sides(limit)))
    sourced = tuple((ast.unparse(limit).replace(" ", ""), limit) for limit in limits)
    return Utility(text, frozenset(names), tuple(_addends(body)), sourced)


_LONGEST, _DEEPEST = 2000, 60  # characters, and levels of the syntax tree
_LARGEST = 1e12  # of a number; single precision squares it
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_STRANGE = re.compile(r"[^A-Za-z0-9_ .+*/(),<>=\-]")


def _tree(text: str) -> ast.expr:
    """The syntax tree of a text of known characters, of bounded length and depth."""
    if len(text) > _LONGEST:
        raise FinJEPAError(f"a utility of {len(text)} characters cannot be read; at most {_LONGEST} are")
    if strange := _STRANGE.search(_QUOTED.sub("", text)):
        raise FinJEPAError(f"{strange[0]!r} cannot be part of a utility, which is made of {_HELP}")
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text, mode="eval").body
        layer, depth = [tree], 0
        while layer and depth <= _DEEPEST:
            layer, depth = [child for node in layer for child in ast.iter_child_nodes(node)], depth + 1
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FinJEPAError(f"the utility {text[:100]!r} cannot be read; write it like {EXAMPLE}") from error
    if layer:
        raise FinJEPAError(f"the utility {text[:100]!r} cannot be read: it is nested too deeply")
    return tree


_ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, tuple[int, Callable]] = {  # the number of arguments, and the function
    "above": (2, lambda x, limit: _positive(x - limit)),
    "below": (2, lambda x, limit: _positive(limit - x)),
    "abs": (1, abs),
}


def _names(tree: ast.expr) -> set[str]:
    """The quantities, goals and disagreements of a part.

    Raises:
        FinJEPAError: if it is no arithmetic over known ones; it names the part that is not.
    """
    match tree:
        case ast.Constant(value=int() | float()) if not isinstance(tree.value, bool):
            found = set()
        case ast.Name():
            if tree.id not in QUANTITIES:
                raise FinJEPAError(f"unknown quantity {_source(tree)!r} in a utility; {_KNOWN}")
            return {tree.id}
        case ast.Call(func=ast.Name("goal")):
            parse_goal(_key(tree))
            return {_key(tree)}
        case ast.Call(func=ast.Name("disagreement")):
            if not tree.args or tree.keywords or not all(_is_text(argument) for argument in tree.args):
                raise FinJEPAError(f"{_source(tree)!r} cannot be read; name the other checkpoints: {_ENSEMBLE}")
            return {_key(tree)}
        case ast.Call(func=ast.Name(name), args=parts, keywords=[]) if _FUNCTIONS.get(name, (0,))[0] == len(parts) > 0:
            found = set().union(*map(_names, parts))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            found = _names(tree.operand)
        case ast.BinOp() if type(tree.op) in _ARITHMETIC:
            divisor = _names(tree.right)
            if isinstance(tree.op, ast.Div) and not divisor and _evaluate(tree.right, {}) == 0:
                raise FinJEPAError(f"{_source(tree)!r} divides by zero")
            found = _names(tree.left) | divisor
        case _:
            raise FinJEPAError(f"{_source(tree)!r} cannot be part of a utility, which is made of {_HELP}")
    if not found and not abs(_evaluate(tree, {})) <= _LARGEST:
        raise FinJEPAError(f"{_source(tree)!r} is too large a number; at most {_LARGEST:g} is read")
    return found


def _evaluate(tree: ast.expr, values: Values) -> Tensor | float:
    """The value_X of a part; of a limit, how far it is broken. A number where it contains no quantity."""
    match tree:
        case ast.Constant():
            return tree.value  # type: ignore[return-value]
        case ast.UnaryOp():
            value = _evaluate(tree.operand, values)
            return -value if isinstance(tree.op, ast.USub) else value
        case ast.BinOp():
            return _ARITHMETIC[type(tree.op)](_evaluate(tree.left, values), _evaluate(tree.right, values))
        case ast.Call(func=ast.Name(name)) if name in _FUNCTIONS:
            return _FUNCTIONS[name][1](*(_evaluate(argument, values) for argument in tree.args))
        case ast.Compare():
            low, high = _sides(tree)
            return _positive(_evaluate(low, values) - _evaluate(high, values))
    return values[_key(tree)]


def _evaluated(parts: Sequence[tuple[str, ast.expr]], values: Values) -> dict[str, Tensor]:
    """value_X of each part; parts of one source are added."""
    like = next(iter(values.values()))
    shape = torch.broadcast_tensors(*values.values())[0].shape
    found: dict[str, Tensor] = {}
    for source, tree in parts:
        value = torch.as_tensor(_evaluate(tree, values), dtype=like.dtype, device=like.device).expand(shape)
        found[source] = found[source] + value if source in found else value
    return found


def _addends(tree: ast.expr, negative: bool = False) -> list[tuple[str, ast.expr]]:
    """Source and tree of each addend, its sign included."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub):
        return _addends(tree.left, negative) + _addends(tree.right, negative != isinstance(tree.op, ast.Sub))
    signed = ast.UnaryOp(ast.USub(), tree) if negative else tree
    return [(ast.unparse(signed).replace(" ", ""), signed)]


def _sides(limit: ast.expr) -> tuple[ast.expr, ast.expr]:
    """Of a limit: what must not exceed what."""
    assert isinstance(limit, ast.Compare)
    left, right = limit.left, limit.comparators[0]
    return (left, right) if isinstance(limit.ops[0], ast.LtE) else (right, left)


def _is_text(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Constant) and isinstance(tree.value, str)


def _key(tree: ast.expr) -> str:
    """The name under which values have a quantity, a goal or a disagreement."""
    source = ast.unparse(tree)
    return source if source.startswith("disagreement(") else source.replace(" ", "")


def _positive(value: Tensor | float) -> Tensor | float:
    return value.clamp(min=0) if isinstance(value, Tensor) else max(value, 0.0)


def _source(tree: ast.expr) -> str:
    text = ast.unparse(tree)
    return text if len(text) <= 100 else f"{text[:97]}..."
