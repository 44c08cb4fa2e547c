"""Markdown for model cards and the Dagster UI, whose texts may hold any character."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any


def cell(text: object) -> str:
    """Text for a table or a sentence of Markdown."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\|*_`\[\]~#])", r"\\\1", escaped)


def code(text: object) -> str:
    """Text as a code span."""
    line = " ".join(str(text).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: bool = True) -> str:
    """A table; its first column is text, the others are numbers unless said otherwise. Cells must be escaped already."""
    head = [f"| {' | '.join(columns)} |", "|---" + ("|--:" if numbers else "|---") * (len(columns) - 1) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def numbers_table(values: Mapping[str, Any]) -> str:
    """Names and values."""
    return table(("", "value"), [(cell(name), cell(plain(value))) for name, value in values.items()])


def plain(value: Any) -> str:
    """A value of JSON in a sentence; four digits of a number."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def channel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The channels of a panel, as its manifest has them."""
    return table(
        ("channel", "unit", "source", "needs", "lookback"),
        [(c["name"], c["unit"], c["source"], ", ".join(c["needs"]), c["lookback"]) for c in rows],
        numbers=False,
    )
