"""Walk-forward folds: when each model learns, chooses and is judged, and the last block that stays shut.

    |------- train -------| gap |- validation -| gap |- test -|                              fold 1
    |------- train ---------------| gap |- validation -| gap |- test -|                      fold 2 (expanding)
              |------- train -----| gap |- validation -| gap |- test -|   ...  |- held back -|   (rolling)

Every test block follows the one before; the gap purges what a label could reach and is a month at least.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import duckdb
import numpy as np

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import cut_by_shares, shortage, shortest_block, split_dates, unseen
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.backtest.docket import Block
from finjepa_pipeline.backtest.store import ensure_tables, insert, now, transaction
from finjepa_pipeline.warehouse import sql

SCHEMES = ("expanding", "rolling")
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
class Plan:
    """A walk-forward: its folds in time order, and the block that is held back from all of them."""

    name: str
    folds: tuple[Fold, ...]
    held_back: tuple[int, int]

    def fold(self, name: str) -> Fold:
        """
        Raises:
            FinJEPAError: if there is no such fold.
        """
        for fold in self.folds:
            if fold.name == name:
                return fold
        raise FinJEPAError(f"there is no fold {name!r}; the plan has {', '.join(fold.name for fold in self.folds)}")


def make_plan(panel: Panel, config: FinJEPAConfig, *, count: int, scheme: str, held_back: int) -> Plan:
    """Cut a panel's calendar into folds.

    Test blocks are a year long where the history allows it, and shorter where it does not; validation blocks likewise.

    Args:
        count: folds; held_back: sessions at the end that no fold sees.

    Raises:
        FinJEPAError: for an unknown scheme, or a history that is too short for so many folds.
    """
    if scheme not in SCHEMES:
        raise FinJEPAError(f"unknown walk-forward scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    if count < 1 or held_back < 0:
        raise FinJEPAError("a walk-forward needs one fold or more, and a held-back block of zero sessions or more")
    sessions = len(panel.dates)
    folds = _folds(sessions, config, count, scheme, held_back)
    if not folds:
        fewer = next((n for n in range(count - 1, 0, -1) if _folds(sessions, config, n, scheme, held_back)), None)
        less = next((n for n in range(held_back - 1, -1, -1) if _folds(sessions, config, count, scheme, n)), None)
        ways = [f"--{name} {n}" for name, n in (("folds", fewer), ("held-back", less)) if n is not None]
        found = f"ask for {' or '.join(ways)}" if ways else "bring a longer history"
        raise FinJEPAError(f"{sessions} sessions are too few for {count} folds with {held_back} held back; {found}")
    name = _plan_name(panel, folds, held_back)
    return Plan(name, tuple(folds), (sessions - held_back, sessions))


def _folds(sessions: int, config: FinJEPAConfig, count: int, scheme: str, held_back: int) -> list[Fold]:
    """Nothing where one of them has a block that is too short."""
    length = min(YEAR, (sessions - held_back) // (2 * count + 2))
    folds = []
    for k in range(count):
        test_end = sessions - held_back - (count - 1 - k) * length
        fold = _fold(sessions, config, f"{scheme}-{k + 1}-of-{count}", test_end, length, scheme == "rolling")
        if fold is None:
            return []
        folds.append(fold)
    return folds


def _fold(sessions: int, config: FinJEPAConfig, name: str, test_end: int, length: int, rolling: bool) -> Fold | None:
    gap = _gap(config)
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


def _gap(config: FinJEPAConfig) -> int:
    """What `split_dates` leaves out between two blocks."""
    splits = split_dates(10**6, config)
    return splits.validation[0] - splits.train[1]


def _plan_name(panel: Panel, folds: list[Fold], held_back: int) -> str:
    made_of = [panel.content_hash, held_back, *((fold.name, fold.config.to_dict(), fold.test) for fold in folds)]
    return "walk-forward-" + hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()[:10]


def fold_blocks(panel: Panel, fold: Fold) -> list[Block]:
    """What a fold's model is judged on: its validation and test block, and the test sessions with the symbols that training
    never saw, where there are any."""
    blocks = [Block("validation", *fold.validation), Block("test", *fold.test)]
    share = fold.config.training.unseen_symbols
    unseen_A = np.array([unseen(symbol, share) for symbol in panel.assets])
    if unseen_A.sum() >= 2:
        blocks.append(Block("unseen_symbols", *fold.test, unseen_A))
    return blocks


def store_plan(con: duckdb.DuckDBPyConnection, panel: Panel, plan: Plan) -> None:
    """Write the folds of a plan, unless they are there."""
    con.execute(sql("walk_forward_folds"))
    if con.execute("SELECT 1 FROM main.walk_forward_folds WHERE plan = ?", [plan.name]).fetchone():
        return
    columns: dict[str, list] = {"fold": [fold.name for fold in plan.folds]}
    for block in ("train", "validation", "test"):
        spans = [getattr(fold, block) for fold in plan.folds]
        columns[f"{block}_start"] = [panel.dates[lo].item() for lo, _ in spans]
        columns[f"{block}_end"] = [panel.dates[hi - 1].item() for _, hi in spans]
    columns["config_json"] = [fold.config.to_json() for fold in plan.folds]
    with transaction(con):
        insert(
            con, "walk_forward_folds", {"plan": plan.name, "data_version": str(panel.manifest["data_version"])}, columns
        )


def stored_plan(con: duckdb.DuckDBPyConnection, panel: Panel, name: str) -> Plan:
    """A plan as it was stored, on the panel that it was made for.

    Raises:
        FinJEPAError: if there is no such plan, or the panel has changed since.
    """
    con.execute(sql("walk_forward_folds"))
    rows = con.execute(
        "SELECT data_version, fold, config_json, train_start, train_end, validation_start, validation_end, test_start, test_end "
        "FROM main.walk_forward_folds WHERE plan = ? ORDER BY test_start",
        [name],
    ).fetchall()
    if not rows or rows[0][0] != panel.manifest["data_version"]:
        made_for = f"the prices {rows[0][0]}" if rows else "nothing"
        raise FinJEPAError(
            f"the plan {name} was made for {made_for}, and another command has made this home's panel one of "
            f"{panel.manifest['feed']} ({panel.manifest['data_version']}); run finjepa backtest --folds again"
        )
    folds = []
    for _, fold, text, *days in rows:
        places = [panel.date_index(np.datetime64(day)) for day in days]
        train, validation, test = ((first, last + 1) for first, last in zip(places[::2], places[1::2], strict=True))
        folds.append(Fold(fold, FinJEPAConfig.from_json(text), train, validation, test))
    return Plan(name, tuple(folds), (folds[-1].test[1], len(panel.dates)))


def judged_plan(con: duckdb.DuckDBPyConnection, plan: str | None = None) -> tuple[str, list[tuple[str, str]]]:
    """A plan, the one that was judged last where None, and the name and checkpoint of each of its folds.

    Raises:
        FinJEPAError: if there is none.
    """
    con.execute(sql("walk_forward_folds"))
    ensure_tables(con)
    row = con.execute(
        "SELECT plan FROM main.walk_forward_folds JOIN main.backtest_trials USING (checkpoint) "
        "WHERE $plan IS NULL OR plan = $plan ORDER BY created_at DESC, walk_forward_folds.rowid DESC LIMIT 1",
        {"plan": plan},
    ).fetchone()
    if row is None:
        raise FinJEPAError("no walk-forward was judged yet; run finjepa backtest --folds 5")
    query = "SELECT fold, checkpoint FROM main.walk_forward_folds WHERE plan = ? ORDER BY test_start"
    return row[0], con.execute(query, [row[0]]).fetchall()


def pool(con: duckdb.DuckDBPyConnection, plan: str) -> str:
    """Chain the test blocks of a plan's folds under the plan's name, as if it were a checkpoint; returns their data version.

    Raises:
        FinJEPAError: if a fold was not judged yet.
    """
    ensure_tables(con)
    folds = con.execute(
        "SELECT fold, checkpoint, data_version FROM main.walk_forward_folds WHERE plan = ?", [plan]
    ).fetchall()
    judged = {
        c
        for (c,) in con.execute("SELECT DISTINCT checkpoint FROM main.backtest_returns WHERE block = 'test'").fetchall()
    }
    missing = [fold for fold, checkpoint, _ in folds if checkpoint not in judged]
    if missing or not folds:
        raise FinJEPAError(f"{plan}: not judged yet: {', '.join(missing) or 'every fold'}")
    with transaction(con):
        for table in ("backtest_returns", "backtest_decisions"):
            con.execute(f"DELETE FROM main.{table} WHERE checkpoint = ?", [plan])
        for name in ("pool_folds", "pool_decisions"):
            con.execute(sql(name), {"plan": plan, "court": f"{plan}@{_state(con, plan)}"})
    return str(folds[0][2])


def _state(con: duckdb.DuckDBPyConnection, plan: str) -> str:
    """Changes when a fold is judged anew or somebody joins."""
    query = (
        "SELECT DISTINCT court, strategy FROM main.backtest_returns JOIN main.walk_forward_folds USING (checkpoint) "
        "WHERE plan = ? AND block = 'test' ORDER BY ALL"
    )
    return hashlib.sha256(to_json(con.execute(query, [plan]).fetchall()).encode()).hexdigest()[:8]


def record_opening(con: duckdb.DuckDBPyConnection, panel: Panel, plan: Plan, checkpoint: str, run_id: str) -> int:
    """Note that the held-back block was looked at; returns how often it has been on these prices."""
    ensure_tables(con)
    lo, hi = plan.held_back
    version = str(panel.manifest["data_version"])
    row = {"checkpoint": checkpoint, "data_version": version, "run_id": run_id, "opened_at": now()}
    insert(
        con,
        "held_back_openings",
        row,
        {"start_date": [panel.dates[lo].item()], "end_date": [panel.dates[hi - 1].item()]},
    )
    count = con.execute("SELECT count(*) FROM main.held_back_openings WHERE data_version = ?", [version]).fetchone()
    return int(count[0]) if count else 0
