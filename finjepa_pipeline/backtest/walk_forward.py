"""Walk-forward folds: when each model is trained, validated and tested, and the last block, which is held back.

    |------- train -------| gap |- validation -| gap |- test -|                              fold 1
    |------- train ---------------| gap |- validation -| gap |- test -|                      fold 2 (expanding)
              |------- train -----| gap |- validation -| gap |- test -|   ...  |- held back -|   (rolling)

Every test block follows the one before; the gap purges what a label could reach and is a month at least.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import duckdb

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import cut_by_shares, seen_assets, shortage, shortest_block, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.backtest.blocks import BacktestBlock
from finjepa_pipeline.warehouse import insert, now, sql, transaction

Scheme = Literal["expanding", "rolling"]
YEAR = 252
ROLLING_YEARS = 8


@dataclass(frozen=True)
class Fold:
    """One model's part of a plan. Sessions are half-open ranges of the panel's.

    Attributes:
        config: of the model: its training block ends where the fold's does.
    """

    name: str
    config: FinJEPAConfig
    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True)
class WalkForwardPlan:
    """A walk-forward: its folds in time order, and the block that is held back from all of them."""

    name: str
    folds: tuple[Fold, ...]
    held_back: tuple[int, int]


def make_plan(panel: Panel, config: FinJEPAConfig, *, count: int, scheme: Scheme, held_back: int) -> WalkForwardPlan:
    """Cut a panel's calendar into folds. Test and validation blocks are a year long where the history allows it, or shorter.

    Args:
        count: folds; held_back: sessions at the end that no fold sees.

    Raises:
        FinJEPAError: if the history is too short for so many folds.
    """
    sessions = len(panel.dates)
    folds = _folds(sessions, config, count, scheme, held_back)
    if not folds:
        fewer = (f"--folds {n}" for n in range(count - 1, 0, -1) if _folds(sessions, config, n, scheme, held_back))
        less = (f"--held-back {n}" for n in range(held_back - 1, -1, -1) if _folds(sessions, config, count, scheme, n))
        ways = " or ".join(filter(None, (next(fewer, None), next(less, None))))
        found = f"ask for {ways}" if ways else "bring a longer history"
        raise FinJEPAError(f"{sessions} sessions are too few for {count} folds with {held_back} held back; {found}")
    made_of = [panel.content_hash, held_back, *((fold.name, fold.config.to_dict(), fold.test) for fold in folds)]
    name = "walk-forward-" + hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()[:10]
    return WalkForwardPlan(name, tuple(folds), (sessions - held_back, sessions))


def _folds(sessions: int, config: FinJEPAConfig, count: int, scheme: Scheme, held_back: int) -> list[Fold]:
    """Nothing where one of them has a block that is too short."""
    length = min(YEAR, (sessions - held_back) // (2 * count + 2))
    ends = [sessions - held_back - (count - 1 - k) * length for k in range(count)]
    folds = [
        _fold(sessions, config, f"{scheme}-{k}-of-{count}", end, length, scheme == "rolling")
        for k, end in enumerate(ends, 1)
    ]
    return [fold for fold in folds if fold is not None] if all(folds) else []


def _fold(sessions: int, config: FinJEPAConfig, name: str, test_end: int, length: int, rolling: bool) -> Fold | None:
    purged = split_dates(10**6, config)
    gap = purged.validation[0] - purged.train[1]
    validation_end = test_end - length - gap
    train_end = validation_end - length - gap
    train_from = max(0, train_end - ROLLING_YEARS * YEAR) if rolling else 0
    if train_end <= train_from:
        return None
    half = 0.5 / sessions  # so that the share of a session falls into the session
    shares = {
        "train_from": train_from / sessions + half if train_from else 0.0,
        "train_share": train_end / sessions + half,
        "validation_share": (validation_end - train_end) / sessions,
    }
    own = dataclasses.replace(config, training=dataclasses.replace(config.training, **shares))
    splits = cut_by_shares(sessions, own)
    if shortage(splits, own) or test_end - splits.test[0] < shortest_block(own):
        return None
    return Fold(name, own, splits.train, splits.validation, (splits.test[0], test_end))


def fold_blocks(panel: Panel, fold: Fold) -> list[BacktestBlock]:
    """What a fold's model is tested on: its validation and test block, and the test sessions with the symbols that training
    never saw, where there are any."""
    blocks = [BacktestBlock("validation", *fold.validation), BacktestBlock("test", *fold.test)]
    unseen_A = ~seen_assets(panel, fold.config)
    if unseen_A.sum() >= 2:
        blocks.append(BacktestBlock("unseen_symbols", *fold.test, unseen_A))
    return blocks


def store_fold(
    con: duckdb.DuckDBPyConnection, panel: Panel, plan: WalkForwardPlan, fold: Fold, checkpoint: str
) -> None:
    """Write a fold of a plan, with its model."""
    columns: dict[str, list[Any]] = {"checkpoint": [checkpoint], "config_json": [fold.config.to_json()]}
    for block in ("train", "validation", "test"):
        first, stop = getattr(fold, block)
        columns[f"{block}_start"] = [panel.dates[first].item()]
        columns[f"{block}_end"] = [panel.dates[stop - 1].item()]
    key = {"plan": plan.name, "fold": fold.name}
    with transaction(con):
        con.execute("DELETE FROM main.walk_forward_folds WHERE plan = $plan AND fold = $fold", key)
        insert(con, "walk_forward_folds", key | {"data_version": str(panel.manifest["data_version"])}, columns)


def pool(con: duckdb.DuckDBPyConnection, plan: str) -> None:
    """Chain the test blocks of a plan's folds under the plan's name, as if it were a checkpoint."""
    of_folds = (  # changes when a fold is tested again or a strategy joins
        "SELECT DISTINCT setup, strategy FROM main.backtest_returns JOIN main.walk_forward_folds USING (checkpoint) "
        "WHERE plan = ? AND block = 'test' ORDER BY ALL"
    )
    state = hashlib.sha256(to_json(con.execute(of_folds, [plan]).fetchall()).encode()).hexdigest()[:8]
    with transaction(con):
        for table in ("backtest_returns", "backtest_decisions"):
            con.execute(f"DELETE FROM main.{table} WHERE checkpoint = ?", [plan])
        for statement in sql("backtest/pool_folds").split(";"):
            con.execute(statement, {"plan": plan, "setup": f"{plan}@{state}"})


def record_opening(
    con: duckdb.DuckDBPyConnection, panel: Panel, plan: WalkForwardPlan, checkpoint: str, run_id: str
) -> int:
    """Note that the held-back block was opened; returns how often it has been on these prices."""
    lo, hi = plan.held_back
    version = str(panel.manifest["data_version"])
    row = {"checkpoint": checkpoint, "data_version": version, "run_id": run_id, "opened_at": now()}
    span = {"start_date": [panel.dates[lo].item()], "end_date": [panel.dates[hi - 1].item()]}
    insert(con, "held_back_openings", row, span)
    [(count,)] = con.execute(
        "SELECT count(*) FROM main.held_back_openings WHERE data_version = ?", [version]
    ).fetchall()
    return int(count)
