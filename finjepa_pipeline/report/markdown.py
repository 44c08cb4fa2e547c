"""Markdown: text that is shown as it is written, tables, and what the Dagster UI shows of an asset."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.data.panel import Panel
from finjepa_pipeline.report.charts import Series, chart, image, lines


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


_CHANNELS = ("log_return", "realised_volatility_21", "momentum_252_21", "volume_shock", "drawdown_252")
_LEADING = 8  # assets with a line of their own


def channel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The channels of a panel, as its manifest has them."""
    return table(
        ("channel", "unit", "source", "needs", "lookback"),
        [(c["name"], c["unit"], c["source"], ", ".join(c["needs"]), c["lookback"]) for c in rows],
        numbers=False,
    )


def panel_coverage(panel: Panel) -> str:
    """Assets observed and eligible on each session."""
    counts = {name: np.zeros(len(panel.dates), np.int64) for name in ("observed", "eligible")}
    for start, first, length in zip(panel.offsets, panel.first, panel.lengths, strict=False):
        for name, count_D in counts.items():
            count_D[first : first + length] += getattr(panel, name)[start : start + length]
    return image(chart(lines(panel.dates, counts), y_label="assets", from_zero=True), "coverage")


def panel_channels(panel: Panel) -> str:
    """A few channels of the asset with the longest history, last two years."""
    asset = int(np.argmax(panel.lengths))
    stop = int(panel.offsets[asset] + panel.lengths[asset])
    start = max(int(panel.offsets[asset]), stop - 504)
    last = int(panel.first[asset] + panel.lengths[asset])
    dates = panel.dates[last - (stop - start) : last]
    shown = [name for name in _CHANNELS if name in panel.channels] or list(panel.channels[:3])
    columns = {name: panel.features[start:stop, panel.channels.index(name)] for name in shown}
    charts = [
        (chart([Series("", dates, values)], y_label=name, height=110), f"{name} of {panel.assets[asset]}")
        for name, values in columns.items()
    ]
    return stacked(charts)


def wealth(returns: pl.DataFrame) -> str:
    """Wealth net of costs by strategy on the test block, on a logarithmic axis."""
    walks = returns.filter(block="test").group_by("strategy", maintain_order=True)
    series = [Series(str(name), one["date"].to_numpy(), one["wealth"].to_numpy()) for (name,), one in walks]
    return image(chart(series, y_label="wealth, net of costs", log=True, height=260), "wealth on the test block")


def holdings(decision: Mapping[str, Any]) -> str:
    """What is held and what is to be held, as shares of wealth."""
    sides = [decision["held"], decision["positions"]]
    rows = [(cell(name), *(f"{side.get(name, 0.0):.1%}" for side in sides)) for name in sorted({*sides[0], *sides[1]})]
    return table(("asset", "held at the close", "to hold after the next"), rows)


def search_charts(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(SVG, title) of the lowest cost and of the largest weights by iteration, of a decision's `search`."""
    iterations = np.arange(1, len(search["cost"]) + 1)
    largest = sorted(search["weights"], key=lambda name: (-search["weights"][name][-1], name))[:_LEADING]
    weights = {name: search["weights"][name] for name in largest}
    cost = chart(lines(iterations, {"": search["cost"]}), y_label="lowest cost seen", x_label="iteration")
    return [
        (cost, "lowest cost by iteration"),
        (chart(lines(iterations, weights), y_label="share of budget", x_label="iteration"), "weights by iteration"),
    ]


def stacked(charts: Sequence[tuple[str, str]]) -> str:
    """Charts, (SVG, title) each, one below the other."""
    return "\n\n".join(image(svg, title) for svg, title in charts)
