"""What the UI shows of a panel: the channel table, its coverage, and a few channels of one asset."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from finjepa_model.data.panel import Panel
from finjepa_pipeline.pictures import as_markdown, new_figure

SHOWN = ("log_return", "realised_volatility_21", "momentum_252_21", "volume_shock", "drawdown_252")


def channel_table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown table of channels, as the manifest has them."""
    head = "| channel | unit | source | needs | lookback |\n|---|---|---|---|---|"
    lines = (f"| {c['name']} | {c['unit']} | {c['source']} | {', '.join(c['needs'])} | {c['lookback']} |" for c in rows)
    return "\n".join([head, *lines])


def coverage_picture(panel: Panel) -> str:
    """Assets observed and eligible on each session, as a Markdown image."""
    observed_D = np.zeros(len(panel.dates), np.int64)
    eligible_D = np.zeros(len(panel.dates), np.int64)
    for start, first, length in zip(panel.offsets, panel.first, panel.lengths, strict=False):
        observed_D[first : first + length] += panel.observed[start : start + length]
        eligible_D[first : first + length] += panel.eligible[start : start + length]
    figure = new_figure(2.6)
    axes = figure.subplots()
    axes.plot(panel.dates, observed_D, label="observed", linewidth=1)
    axes.plot(panel.dates, eligible_D, label="eligible", linewidth=1)
    axes.set_ylabel("assets")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return as_markdown(figure, "coverage")


def channel_picture(panel: Panel) -> str:
    """A few channels of the asset with the longest history, last two years, as a Markdown image."""
    asset = int(np.argmax(panel.lengths))
    stop = int(panel.offsets[asset] + panel.lengths[asset])
    start = max(int(panel.offsets[asset]), stop - 504)
    last = int(panel.first[asset] + panel.lengths[asset])
    shown = [name for name in SHOWN if name in panel.channels] or list(panel.channels[:3])
    figure = new_figure(1.2 * len(shown))
    for axes, name in zip(np.atleast_1d(figure.subplots(len(shown), sharex=True)), shown, strict=True):
        column = panel.channels.index(name)
        axes.plot(panel.dates[last - (stop - start) : last], panel.features[start:stop, column], linewidth=0.8)
        axes.set_ylabel(name, rotation=0, ha="right", fontsize=7)
    figure.suptitle(panel.assets[asset], fontsize=9)
    return as_markdown(figure, f"channels of {panel.assets[asset]}")
