"""The pages of prices (what was found in them), of a training, and of a decision."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from finjepa_model.config import FinJEPAConfig
from finjepa_model.decision import SAME_RETURN, SIGNALS
from finjepa_model.training.run_folder import METRICS_FILE, read_metrics
from finjepa_pipeline.report import figures as draw
from finjepa_pipeline.report.charts import Series, chart
from finjepa_pipeline.report.page import cell, duration, number, render, styled, table, write_page

HELD = 0.001  # share of wealth from which an asset counts as held
_NO_CURVE = ("kind", "step", "samples_per_second", "gpu_memory_bytes")
# Of the newest evaluation, on validation dates: what it is, and when it is good.
_SCORES = {
    "loss": "validation loss; the checkpoint is the model with the lowest one",
    "risk": "error of log volatility within a date and misfit of returns, lower is better",
    "copy_skill": "prediction beside no change: 1 is perfect, 0 is no better",
    "mean_skill": "prediction beside the mean latent: 1 is perfect, 0 is no better",
    "rollout_skill_1": "roll-out beside no change, first step",
    "effective_rank_assets": "dimensions that latents of assets use; a collapse below 2",
    "effective_rank_market": "dimensions that latents of the market use; a collapse below 2",
    "latent_std": "spread of latents of assets; a collapse below 0.02",
    "latent_std_market": "spread of latents of the market; a collapse below 0.02",
    "slowness": "correlation with the step before; slow features only above 0.995",
    "movement": "how far predictions move beside the truth; copies below 0.001",
    "relative_error": "prediction error beside the spread of the target; a collapse above 2",
    "score": "TD-JEPA: mean score of its policy on validation dates, higher is better",
}


# Prices


def write_quality_page(
    path: Path, findings: Sequence[Any], coverage: pl.DataFrame, quarantine: pl.DataFrame, revisions: pl.DataFrame
) -> None:
    """Write the page of the prices that the home shows.

    Args:
        findings: broken rules with `rule`, `severity`, `rows`, `allowed` (rows before it warns; None: any), `examples`, `reason`.
        coverage: `date` and `symbols` with a sound row.
        quarantine: `month`, `rule` and `rows`.
        revisions: `created_at`, and the rows of each revision of the feed: `sound`, `quarantined`, `new`, `restated`.
    """
    bars = [
        go.Bar(name=str(rule), x=one["month"].cast(pl.String).str.head(10).to_list(), y=one["rows"].to_list())
        for (rule,), one in quarantine.group_by("rule", maintain_order=True)
    ]
    when = revisions["created_at"].cast(pl.String).str.head(16).to_list()
    lines = [
        go.Scatter(name=f"{name} rows", x=when, y=revisions[name].to_list(), mode="lines+markers")
        for name in ("sound", "quarantined", "new", "restated")
    ]
    symbols = draw.line("symbols", coverage["symbols"], "sessions")
    figures = {
        "coverage": draw.of([symbols], yaxis={"rangemode": "tozero"}, showlegend=False),
        "revisions": draw.of(lines, xaxis={"type": "category"}, yaxis={"type": "log", "dtick": 1}),
    }
    if bars:
        figures["quarantine"] = draw.of(bars, barmode="stack", showlegend=True)
    rows = [
        (
            one.rule,
            one.severity,
            f"{one.rows:,}",
            "any" if one.allowed is None else f"{one.allowed:,}",
            styled(", ".join(one.examples), "text"),
            styled(one.reason, "text"),
        )
        for one in findings
    ]
    dates = {"sessions": coverage["date"].cast(pl.String).to_list()}
    columns, shown = ("rule", "severity", "rows", "allowed", "examples", "reason"), list(figures)
    title = "Quality of the prices"
    write_page(path, "prices.html", figures, dates, title=title, columns=columns, rows=rows, shown=shown)


# A training


def training_page(reports: Path, checkpoint: str) -> Path:
    """Where the page of a training lies."""
    return reports / f"{checkpoint}-training" / "training.html"


class TrainingPage:
    """The page of a training that runs, with time left, scorecard and loss terms by step: written when there is something new; it
    reloads itself.

    Args:
        path: as `training_page` gives it.
        run_folder: of the training, where its records come in.
    """

    def __init__(self, path: Path, run_folder: Path, config: FinJEPAConfig):
        self.path, self._run_folder = path, run_folder
        training = config.training
        self._steps = {"train": training.epochs * training.steps_per_epoch, "td": config.td.steps}
        self._size = self._measure()  # of records that were there before
        self._began: dict[str, tuple[float, int]] = {}  # when the first record of a kind was seen, and its step
        self._written = False

    def update(self) -> None:
        if (size := self._measure()) != self._size:
            self._size, self._written = size, True
            records = self._records()
            self._write(records, self._state(records), reload_s=5)

    def end(self, how: str) -> None:
        """Write it a last time, if anything was trained."""
        if self._written:
            records = self._records()
            last = [record for record in records if record["kind"] in self._steps][-1:]
            done = [f"Step {one['step']:,} of {self._steps[one['kind']]:,}." for one in last]
            self._write(records, " ".join((*done, how)), reload_s=0)

    def _state(self, records: list[dict[str, Any]]) -> str:
        """The step, and the time left."""
        newest = next((one for one in reversed(records) if one["kind"] in self._steps), None)
        if newest is None:
            return "No step is logged yet."
        kind, step = newest["kind"], newest["step"]
        steps, now = self._steps[kind], time.monotonic()
        since, first = self._began.setdefault(kind, (now, step))
        text = f"Step {step:,} of {steps:,}"
        if step == steps:
            return f"{text}: read-outs and forecasts of risk are being fitted."
        if step > first:  # evaluations included
            return f"{text}: at most {duration((steps - step) * (now - since) / (step - first))} left."
        return text

    def _write(self, records: list[dict[str, Any]], state: str, reload_s: int) -> None:
        found = [record for record in records if record["kind"] in ("validation", "td_validation")]
        newest = {name: value for record in found for name, value in record.items()}
        write_page(
            self.path,
            "training.html",
            title=f"Training of {self._run_folder.stem}",
            state=state,
            reload_s=reload_s,
            written=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            collapse=newest.get("collapse"),
            scores=[
                (name, number(newest[name], "{:.4g}"), styled(words, "text"))
                for name, words in _SCORES.items()
                if name in newest
            ],
            charts=[svg for svg, _ in curves(records)],
        )

    def _records(self) -> list[dict[str, Any]]:
        return [record for file in self._files() for record in read_metrics(file.parent)]

    def _files(self) -> list[Path]:
        """Of the world model, and of the branch td after it."""
        return [*self._run_folder.glob(METRICS_FILE), *self._run_folder.glob(f"*/{METRICS_FILE}")]

    def _measure(self) -> int:
        return sum(file.stat().st_size for file in self._files())


def curves(records: Sequence[Mapping[str, Any]], only: Collection[str] = ()) -> list[tuple[str, str]]:
    """(SVG, name) of each term and monitor over steps, of training and validation, the loss first."""
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, float) and name not in _NO_CURVE and (not only or name in only):
                lines.setdefault(name, {}).setdefault(record["kind"], []).append((record["step"], value))
    found = []
    for name, by_kind in sorted(lines.items(), key=lambda line: line[0] != "loss"):
        series = [Series(kind, *zip(*points, strict=True)) for kind, points in by_kind.items()]
        found.append((chart(series, y_label=name, x_label="step", height=190), name))
    return found


# A decision


def decision_page(decision: Mapping[str, Any], record: str = "") -> str:
    """The page of a decision or of a hold, as its JSON file has it: what to hold, why, and what changed.

    Args:
        record: what the live record says, in a sentence.
    """
    held, positions = decision["held"], decision["positions"]
    named = {name for name in decision["assets"] if abs(positions[name]) >= HELD / 2} | set(held)
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
        count=sum(abs(position) >= HELD for position in positions.values()),
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
