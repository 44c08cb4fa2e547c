"""Checkpoints or strategies side by side: paired differences of their returns on the sessions that they have in common.

Shapes: T sessions, K sides, S samples of the bootstrap.
"""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.checkpoint import read_config
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.inference import block_length, bootstrap
from finjepa_pipeline.backtest.leaderboard import acting_planner
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, SHORTEST, sharpe
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import checkpoint_here

_TESTED = """
    SELECT checkpoint, strategy, max_by(data_version, date) AS data_version
    FROM main.backtest_returns WHERE block = $block GROUP BY ALL
    ORDER BY max(rowid) DESC"""
_RETURNS = """
    SELECT date, net_return FROM main.backtest_returns
    WHERE checkpoint = $checkpoint AND strategy = $strategy AND block = $block AND data_version = $data_version ORDER BY date"""


@dataclass(frozen=True)
class Side:
    """A strategy on a checkpoint; `label` is what tells it from the others."""

    checkpoint: str
    strategy: str
    data_version: str
    label: str = ""


@dataclass(frozen=True)
class Difference:
    """A side minus the first one: values with 95 % intervals of a paired stationary bootstrap, None where sessions are too few.

    Attributes:
        sharpe: annualised, of net returns. mean: of net returns, a year. volatility: ratio of standard deviations.
        correlation: of the daily returns.
    """

    label: str
    sharpe: tuple[float, float | None, float | None]
    mean: tuple[float, float | None, float | None]
    volatility: tuple[float, float | None, float | None]
    correlation: float


@dataclass(frozen=True)
class SideBySide:
    """Attributes:
    sides: the first is what the others are compared with. sharpe: of each. settings: what differs between the configs of the
    checkpoints, [name, value of each side]. dates, net: daily net returns by label.
    """

    block: str
    sides: tuple[Side, ...]
    sharpe: tuple[float, ...]
    differences: tuple[Difference, ...]
    settings: tuple[tuple[str, ...], ...]
    dates: tuple[str, ...]
    net: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        span = {"first": self.dates[0], "last": self.dates[-1], "sessions": len(self.dates)}
        sides = [asdict(side) | {"sharpe": value} for side, value in zip(self.sides, self.sharpe, strict=True)]
        differences = [asdict(one) for one in self.differences]
        return {"block": self.block, **span, "sides": sides, "differences": differences, "settings": self.settings}


def compare(con: duckdb.DuckDBPyConnection, home: Settings, names: Sequence[str], block: str = "test") -> SideBySide:
    """Compare by the stored results of backtests.

    Args:
        names: of strategies on the newest checkpoint, of checkpoints (whose acting planner stands for them), or
            CHECKPOINT/STRATEGY; the start of a name is enough.

    Raises:
        FinJEPAError: if one was not backtested, or they have no session in common.
    """
    tested = con.execute(_TESTED, {"block": block}).fetchall()
    if not tested:
        raise FinJEPAError(f"nothing was backtested on the {block} block of this home; run `finjepa backtest` first")
    sides = [_side(con, home, name, [Side(*row) for row in tested]) for name in names]
    if len(set(sides)) < len(sides):
        raise FinJEPAError("two names are of the same strategy on the same checkpoint; compare different ones")
    several = len({side.checkpoint for side in sides}) > 1
    labelled = [Side(s.checkpoint, s.strategy, s.data_version, _label(s, sides, several)) for s in sides]
    frame: pl.DataFrame | None = None
    for side in labelled:
        params = {name: getattr(side, name) for name in ("checkpoint", "strategy", "data_version")} | {"block": block}
        own = con.sql(_RETURNS, params=params).pl().rename({"net_return": side.label})
        frame = own if frame is None else frame.join(own, on="date", how="inner")
    assert frame is not None  # there is a side
    if frame.height < 2:
        raise FinJEPAError("they have no sessions in common: each was backtested on other ones")
    net_TK = frame.drop("date").to_numpy()
    return SideBySide(
        block=block,
        sides=tuple(labelled),
        sharpe=tuple(float(value) for value in sharpe(net_TK)),
        differences=tuple(_difference(net_TK[:, [0, k]], side.label) for k, side in enumerate(labelled) if k),
        settings=_settings(home, labelled) if several else (),
        dates=tuple(map(str, frame["date"].to_list())),
        net={side.label: net_TK[:, k] for k, side in enumerate(labelled)},
    )


def _side(con: duckdb.DuckDBPyConnection, home: Settings, name: str, tested: Sequence[Side]) -> Side:
    """`tested`: the newest first."""
    where, slash, strategy = name.partition("/")
    of = [side for side in tested if side.checkpoint.startswith(where)]
    if slash and of:
        of, name = [side for side in of if side.checkpoint == of[0].checkpoint], strategy
    elif of and len(where) >= 4:
        acting = acting_planner(con, of[0].checkpoint, of[0].data_version, home.planner).strategy
        mine = [side for side in of if side.checkpoint == of[0].checkpoint and side.strategy == acting]
        if not mine:
            raise FinJEPAError(f"no planner acts for {where}; name one, as {of[0].checkpoint}/{of[0].strategy}")
        return mine[0]
    else:
        of = list(tested)
    if ".py:" in name:  # as it was given to a backtest
        name = name.replace(".py:", ":").rpartition("/")[2]
    for side in (*(s for s in of if s.strategy == name), *(s for s in of if s.strategy.startswith(name))):
        return side
    there = list(dict.fromkeys([*(side.strategy for side in of), *(side.checkpoint for side in tested)]))
    near = difflib.get_close_matches(name, there, 1)
    hint = f"; is {near[0]} meant?" if near else f"; there are {', '.join(there[:12])}"
    raise FinJEPAError(f"{name} was not backtested here{hint} (`finjepa backtest` tests planners, --strategy your own)")


def _label(side: Side, sides: Sequence[Side], several: bool) -> str:
    if not several:
        return side.strategy
    same = all(other.strategy == side.strategy for other in sides)
    return side.checkpoint[:12] if same else f"{side.checkpoint[:12]}/{side.strategy}"


def _difference(net_T2: np.ndarray, label: str) -> Difference:
    """Of the second column minus the first."""
    values_3 = _gains(net_T2)
    low_3 = high_3 = (None, None, None)
    if len(net_T2) >= SHORTEST:
        block = block_length(net_T2[:, 1] - net_T2[:, 0])
        samples_S3 = bootstrap(net_T2, _gains, block=block, samples=2000)
        low_3, high_3 = (tuple(map(float, np.nanpercentile(samples_S3, level, axis=0))) for level in (2.5, 97.5))
    ratio, mean, spread = [(float(value), low, high) for value, low, high in zip(values_3, low_3, high_3, strict=True)]
    moves = net_T2.std(0).min() > 1e-12
    return Difference(label, ratio, mean, spread, float(np.corrcoef(net_T2.T)[0, 1]) if moves else float("nan"))


def _gains(net_T2: np.ndarray) -> np.ndarray:
    """Sharpe ratio and mean a year, second minus first, and the ratio of standard deviations."""
    ratio_2, spread_2 = sharpe(net_T2), net_T2.std(axis=0, ddof=1)
    mean = SESSIONS_PER_YEAR * (net_T2[:, 1] - net_T2[:, 0]).mean()
    return np.array([ratio_2[1] - ratio_2[0], mean, spread_2[1] / spread_2[0] if spread_2[0] > 0 else np.nan])


def _settings(home: Settings, sides: Sequence[Side]) -> tuple[tuple[str, ...], ...]:
    flat = []
    for side in sides:
        folder = checkpoint_here(home, side.checkpoint)
        flat.append({} if folder is None else read_config(folder).by_key() | {"data_version": side.data_version})
    names = dict.fromkeys(name for one in flat for name in one)
    rows = [(name, *(str(one.get(name, "–")) for one in flat)) for name in names]
    return tuple(row for row in rows if len(set(row[1:])) > 1)
