"""The page of a comparison: differences with their intervals, settings that differ, and the curves on one plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finjepa_pipeline.report.figures import wealth_and_drawdown
from finjepa_pipeline.report.page import number, write_page

COLUMNS = (
    "strategy",
    "Sharpe",
    "Sharpe minus",
    "return a year minus",
    "volatility /",
    "corr.",
)  # minus, over: the first


def rows_of(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each side of a comparison, as `SideBySide.to_dict` has it."""
    first, *others = found["sides"]
    rows = [[first["label"], number(first["sharpe"]), "–", "–", "–", "–"]]
    for side, one in zip(others, found["differences"], strict=True):
        parts = (
            _interval(one["sharpe"], "{:+.2f}"),
            _interval(one["mean"], "{:+.1%}"),
            _interval(one["volatility"], "{:.2f}"),
        )
        rows.append([side["label"], number(side["sharpe"]), *parts, number(one["correlation"])])
    return rows


def write_comparison(path: Path, found: Mapping[str, Any], dates: Sequence[str], net: Mapping[str, np.ndarray]) -> None:
    """Write the page."""
    wealth, drawdown = wealth_and_drawdown(net, None, list(net))
    write_page(
        path,
        "compare.html",
        {"wealth": wealth, "drawdown": drawdown},
        {"test": list(dates)},
        title="FinJEPA: " + ", ".join(net),
        found=found,
        columns=COLUMNS,
        rows=rows_of(found),
        settings_columns=("setting", *net),
    )


def _interval(value: Sequence[float | None], form: str) -> str:
    middle, low, high = value
    shown = "too short" if low is None else f"{number(low, form)} to {number(high, form)}"
    return f"{number(middle, form)} ({shown})"
