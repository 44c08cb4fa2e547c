"""A decision as one small page: what to hold, why, and what changed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from finjepa_model.decision import SAME_RETURN, SIGNALS
from finjepa_pipeline.report.charts import Series, chart
from finjepa_pipeline.report.markdown import search_charts
from finjepa_pipeline.report.page import render

HELD = 0.001  # share of wealth from which an asset counts as held


def decision_page(decision: Mapping[str, Any], record: str = "") -> str:
    """The page of a decision or of a hold, as its JSON file has it.

    Args:
        record: what the live record says, in a sentence.
    """
    held, positions = decision["held"], decision["positions"]
    named = {name for name in decision["assets"] if abs(positions[name]) >= HELD / 2} | set(held)
    names = sorted(named, key=lambda name: (-abs(positions.get(name, 0)), name))
    largest = max((abs(position) for position in positions.values()), default=0) or 1
    rows = [
        {
            "name": name,
            "weight": decision["weights"].get(name, 0.0),
            "signal": SIGNALS[decision["signals"].get(name, 0)],
            "position": positions.get(name, 0.0),
            "held": held.get(name, 0.0),
            "bar": 100 * abs(positions.get(name, 0.0)) / largest,
        }
        for name in names
    ]
    why = decision["why"]
    return render(
        "decision.html",
        drawing={},
        title=f"{'Hold' if decision['hold'] else 'Decision'} at the close of {decision['date']}",
        same_return=SAME_RETURN if decision["same_return"] else "",
        d=decision,
        record=record,
        invested=sum(abs(position) for position in positions.values()),
        count=sum(abs(position) >= HELD for position in positions.values()),
        rows=rows,
        flat=[name for name in decision["assets"] if name not in named],
        path=why and _path(why),
        search=search_charts(decision["search"]) if decision["search"] and len(decision["search"]["cost"]) > 1 else [],
    )


def _path(why: Mapping[str, Any]) -> str:
    """Forecast wealth, 1 today, with a band of one forecast standard deviation."""
    middle, variance, points = 0.0, 0.0, [(0.0, 0.0)]
    for growth, volatility in why["path"]:
        middle, variance = middle + growth, variance + volatility**2
        points.append((middle, math.sqrt(variance)))
    mean, spread = np.array(points).T
    ahead = np.arange(len(points)) * why["step_sessions"]
    band = Series("", ahead, np.exp(mean + spread), np.exp(mean - spread))
    label = "sessions ahead; the band is one forecast standard deviation"
    return chart([band, Series("", ahead, np.exp(mean))], y_label="wealth", x_label=label)
