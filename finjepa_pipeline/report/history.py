"""The leaderboard of everything that was ever judged in a home, as one page with filters."""

import os
from pathlib import Path
from typing import Any

import duckdb

from finjepa_pipeline.backtest.claim import has_skill
from finjepa_pipeline.backtest.page import Link, heading, table, write_page
from finjepa_pipeline.backtest.store import ensure_tables
from finjepa_pipeline.warehouse import sql

_COLUMNS = (
    ("strategy", "strategy", "{}"),
    ("sharpe", "Sharpe", "{:.2f}"),
    ("excess_sharpe", "minus 1/N", "{:+.2f}"),
    ("excess_low", "95 % from", "{:+.2f}"),
    ("excess_high", "to", "{:+.2f}"),
    ("dsr", "DSR", "{:.2f}"),
    ("skill", "evidence of skill", "{}"),
    ("pbo", "PBO", "{:.2f}"),
    ("trials", "trials", "{}"),
    ("kind", "kind", "{}"),
    ("block", "block", "{}"),
    ("fold", "fold", "{}"),
    ("start_date", "first day", "{}"),
    ("end_date", "last day", "{}"),
    ("feed", "prices", "{}"),
    ("checkpoint", "checkpoint", "{}"),
    ("run_id", "run", "{}"),
    ("data_version", "data version", "{}"),
    ("created_at", "judged", "{:%Y-%m-%d %H:%M}"),
    ("annual_return", "return", "{:.1%}"),
    ("max_drawdown", "drawdown", "{:.1%}"),
    ("annual_turnover", "turnover/yr", "{:.1f}"),
)
_FILTERS = ("kind", "block", "fold", "checkpoint", "feed")


def write_history(con: duckdb.DuckDBPyConnection, path: Path, checkpoints: Path, ui_url: str) -> int:
    """Write the page, and say how many rows it has.

    Args:
        checkpoints: folder of the home, where a checkpoint's lineage is.
        ui_url: of the Dagster UI, where runs are.
    """
    ensure_tables(con)
    found = con.sql(sql("leaderboard_history")).pl().to_dicts()
    rows = [row | {"skill": "yes" if has_skill(row) else "no"} for row in found]
    labels = {key: label for key, label, _ in _COLUMNS}
    filters = " ".join(
        f'<select class="filter" data-column="{labels[key]}" aria-label="{labels[key]}"><option value="">{labels[key]}: all'
        "</option></select>"
        for key in _FILTERS
    )
    cells = [
        [_linked(row, key, _cell(row, key, form), path.parent, checkpoints, ui_url) for key, _, form in _COLUMNS]
        for row in rows
    ]
    parts = [
        "<h1>Everything that was ever judged here</h1>",
        '<p class="dim">Every strategy, fold, config and checkpoint, the newest first. A checkpoint leads to its lineage: '
        "config, seed, source revision, data version. A run and a data version lead to the Dagster UI, while it is running.</p>",
        f'<p><input id="text" placeholder="any text" aria-label="any text"> {filters} ',
        '<span class="dim" id="count"></span></p>',
        heading("Leaderboard"),
        table(list(labels.values()), cells, "history"),
    ]
    script = Path(__file__).with_name("history.js").read_text(encoding="utf-8")
    write_page(path, "FinJEPA: leaderboard", parts, {}, {}, script)
    return len(rows)


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    return "–" if row[key] is None else form.format(row[key])


def _linked(row: dict[str, Any], key: str, text: str, here: Path, checkpoints: Path, ui_url: str) -> str | Link:
    if row[key] is None:
        return text
    lineage = checkpoints / text / "lineage.json"
    if key == "checkpoint" and lineage.is_file():  # a walk-forward plan has none of its own: its folds have
        return Link(text, Path(os.path.relpath(lineage, here)).as_posix())
    if key == "run_id":
        return Link(text[:8], f"{ui_url}/runs/{text}")
    if key == "data_version":
        return Link(text, f"{ui_url}/assets/feature_panel")
    return text
