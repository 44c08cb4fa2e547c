"""The leaderboard of everything that was ever backtested in a home, as one page with filters."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finjepa_pipeline.report.backtest import COLUMNS
from finjepa_pipeline.report.page import link, number, write_page

_OF_A_REPORT = {column[0]: column for column in COLUMNS}
_COLUMNS = (
    *(
        _OF_A_REPORT[key]
        for key in ("strategy", "sharpe", "excess_sharpe", "excess_low", "excess_high", "dsr", "skill")
    ),
    ("pbo", "PBO", "{:.2f}"),
    ("trials", "trials", "{}"),
    _OF_A_REPORT["kind"],
    ("block", "block", "{}"),
    ("fold", "fold", "{}"),
    ("start_date", "first day", "{}"),
    ("end_date", "last day", "{}"),
    ("feed", "prices", "{}"),
    ("checkpoint", "checkpoint", "{}"),
    ("run_id", "run", "{}"),
    ("data_version", "data version", "{}"),
    ("created_at", "made", "{:%Y-%m-%d %H:%M}"),
    *(_OF_A_REPORT[key] for key in ("annual_return", "max_drawdown", "annual_turnover")),
)
_FILTERS = ("kind", "block", "fold", "checkpoint", "feed")


def write_history(path: Path, rows: Sequence[Mapping[str, Any]], checkpoints: Path, ui_url: str) -> None:
    """Write the page.

    Args:
        rows: of every leaderboard, the newest first, with `skill`: "yes" or "no".
        checkpoints: folder of the home, where a checkpoint's lineage is.
        ui_url: of the Dagster UI, where runs are.
    """
    labels = {key: label for key, label, _ in _COLUMNS}
    cells = [
        [_linked(key, row[key], number(row[key], form), path.parent, checkpoints, ui_url) for key, _, form in _COLUMNS]
        for row in rows
    ]
    filters = [labels[key] for key in _FILTERS]
    title = "FinJEPA: leaderboard of every backtest"
    write_page(path, "history.html", title=title, filters=filters, labels=list(labels.values()), cells=cells)


def _linked(key: str, value: Any, text: str, here: Path, checkpoints: Path, ui_url: str) -> Any:
    if value is None:
        return text
    lineage = checkpoints / text / "lineage.json"
    if key == "checkpoint" and lineage.is_file():  # a walk-forward plan has none of its own: its folds have
        return link(text, Path(os.path.relpath(lineage, here)).as_posix())
    if key == "run_id":
        return link(text[:8], f"{ui_url}/runs/{text}")
    return link(text, f"{ui_url}/assets/feature_panel") if key == "data_version" else text
