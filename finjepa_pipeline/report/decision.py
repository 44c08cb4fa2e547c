"""The page of a decision, and its holdings in Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finjepa_model.decision import SAME_RETURN, SIGNALS
from finjepa_pipeline.report.charts import Series, chart
from finjepa_pipeline.report.markdown import cell, table
from finjepa_pipeline.report.page import render

_HELD = 0.001  # share of wealth from which an asset counts as held


def decision_page(decision: Mapping[str, Any], record: str = "") -> str:
    """The page of a decision or of a hold, as its JSON file has it: what to hold, why, and what changed.

    Args:
        record: what the live record says, in a sentence.
    """
    held, positions = decision["held"], decision["positions"]
    named = {name for name in decision["assets"] if abs(positions[name]) >= _HELD / 2} | set(held)
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
        for name in sorted(named, key=lambda name: (-abs(positions.get(name, 0)), name))
    ]
    return render(
        "decision.html",
        drawing={},
        title=f"{'Hold' if decision['hold'] else 'Decision'} at the close of {decision['date']}",
        same_return=SAME_RETURN if decision["same_return"] else "",
        d=decision,
        record=record,
        invested=sum(abs(position) for position in positions.values()),
        count=sum(abs(position) >= _HELD for position in positions.values()),
        rows=rows,
        flat=[name for name in decision["assets"] if name not in named],
        path=decision["why"] and _path(decision["why"]),
    )


def _path(why: Mapping[str, Any]) -> str:
    """Forecast wealth, 1 today, with a band of one forecast standard deviation."""
    growth, volatility = np.array([(0.0, 0.0), *why["path"]]).T
    mean, spread = growth.cumsum(), np.sqrt((volatility**2).cumsum())
    ahead = np.arange(len(mean)) * why["step_sessions"]
    band = Series("", ahead, np.exp(mean + spread), np.exp(mean - spread))
    label = "sessions ahead; the band is one forecast standard deviation"
    return chart([band, Series("", ahead, np.exp(mean))], y_label="wealth", x_label=label)


def holdings(decision: Mapping[str, Any]) -> str:
    """What is held and what is to be held, as shares of wealth, in Markdown."""
    sides = [decision["held"], decision["positions"]]
    rows = [(cell(name), *(f"{side.get(name, 0.0):.1%}" for side in sides)) for name in sorted({*sides[0], *sides[1]})]
    return table(("asset", "held at the close", "to hold after the next"), rows)
