"""Checkpoints or strategies side by side: paired differences of their returns on the sessions that they have in common.

Shapes: T sessions, K sides, S samples of the bootstrap.
"""

import difflib
import functools
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
    """A strategy on a checkpoint, with results on these prices."""

    checkpoint: str
    strategy: str
    data_version: str


def compare(
    con: duckdb.DuckDBPyConnection, home: Settings, names: Sequence[str], block: str = "test"
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Compare by the stored results of backtests.

    Args:
        names: of strategies on the newest checkpoint, of checkpoints (whose acting planner stands for them), or
            CHECKPOINT/STRATEGY; the start of a name is enough.

    Returns:
        What can be said, for JSON: the `sides`, each with its `label` and Sharpe ratio; `differences` of each from the first, see
        `_difference`; `settings` that differ between the configs of the checkpoints, [name, value of each side]. And the daily
        net returns: `date`, and a column for each label.

    Raises:
        FinJEPAError: if one was not backtested, or they have no session in common.
    """
    tested = [Side(*row) for row in con.execute(_TESTED, {"block": block}).fetchall()]
    if not tested:
        raise FinJEPAError(f"nothing was backtested on the {block} block of this home; run `finjepa backtest` first")
    sides = [_side(con, home, name, tested) for name in names]
    if len(set(sides)) < len(sides):
        raise FinJEPAError("two names are of the same strategy on the same checkpoint; compare different ones")
    labels = _labels(sides)
    own = [
        con.sql(_RETURNS, params=asdict(side) | {"block": block}).pl().rename({"net_return": label})
        for side, label in zip(sides, labels, strict=True)
    ]
    returns = functools.reduce(lambda frame, other: frame.join(other, on="date", how="inner"), own)
    if returns.height < 2:
        raise FinJEPAError("they have no sessions in common: each was backtested on other ones")
    net_TK = returns.drop("date").to_numpy()
    several = len({side.checkpoint for side in sides}) > 1
    found = {
        "block": block,
        "first": str(returns["date"][0]),
        "last": str(returns["date"][-1]),
        "sessions": returns.height,
        "sides": [
            asdict(side) | {"label": label, "sharpe": float(ratio)}
            for side, label, ratio in zip(sides, labels, sharpe(net_TK), strict=True)
        ],
        "differences": [{"label": labels[k], **_difference(net_TK[:, [0, k]])} for k in range(1, len(sides))],
        "settings": _settings(home, sides) if several else [],
    }
    return found, returns


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


def _labels(sides: Sequence[Side]) -> list[str]:
    """What tells each side from the others."""
    if len({side.checkpoint for side in sides}) == 1:
        return [side.strategy for side in sides]
    same = len({side.strategy for side in sides}) == 1
    return [side.checkpoint[:12] + ("" if same else f"/{side.strategy}") for side in sides]


def _difference(net_T2: np.ndarray) -> dict[str, Any]:
    """Of the second column minus the first: annualised `sharpe` ratio of net returns, `mean` net return a year, and `volatility`,
    the ratio of standard deviations, each as (value, low, high) with a 95 % interval of a paired stationary bootstrap, None where
    sessions are too few; `correlation` of the daily returns."""
    values_3, low_3, high_3 = _gains(net_T2), (None,) * 3, (None,) * 3
    if len(net_T2) >= SHORTEST:
        block = block_length(net_T2[:, 1] - net_T2[:, 0])
        samples_S3 = bootstrap(net_T2, _gains, block=block, samples=2000)
        low_3, high_3 = np.nanpercentile(samples_S3, [2.5, 97.5], axis=0).tolist()
    moves = net_T2.std(0).min() > 1e-12
    correlation = float(np.corrcoef(net_T2.T)[0, 1]) if moves else float("nan")
    three = zip(("sharpe", "mean", "volatility"), zip(values_3.tolist(), low_3, high_3, strict=True), strict=True)
    return dict(three) | {"correlation": correlation}


def _gains(net_T2: np.ndarray) -> np.ndarray:
    """Sharpe ratio and mean a year, second minus first, and the ratio of standard deviations."""
    ratio_2, spread_2 = sharpe(net_T2), net_T2.std(axis=0, ddof=1)
    mean = SESSIONS_PER_YEAR * (net_T2[:, 1] - net_T2[:, 0]).mean()
    return np.array([ratio_2[1] - ratio_2[0], mean, spread_2[1] / spread_2[0] if spread_2[0] > 0 else np.nan])


def _settings(home: Settings, sides: Sequence[Side]) -> list[tuple[str, ...]]:
    flat = []
    for side in sides:
        folder = checkpoint_here(home, side.checkpoint)
        flat.append({} if folder is None else read_config(folder).by_key() | {"data_version": side.data_version})
    names = dict.fromkeys(name for one in flat for name in one)
    rows = [(name, *(str(one.get(name, "–")) for one in flat)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]
