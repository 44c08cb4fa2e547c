"""The page of a training: time left, scorecard and loss terms by step; it is rewritten while the training runs, and reloads."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finjepa_pipeline.report.charts import Series, chart
from finjepa_pipeline.report.page import number, styled, write_page

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
_NO_CURVE = ("kind", "step", "samples_per_second", "gpu_memory_bytes")


def write_training_page(
    path: Path, checkpoint: str, records: Sequence[Mapping[str, Any]], state: str, *, live: bool
) -> None:
    """Write the page.

    Args:
        records: of `metrics.jsonl`, in order.
        state: in one sentence: the step, and the time left.
        live: whether the page reloads itself.
    """
    found = [record for record in records if record["kind"] in ("validation", "td_validation")]
    newest = {name: value for record in found for name, value in record.items()}
    scores = [
        (name, number(newest[name], "{:.4g}"), styled(words, "text"))
        for name, words in _SCORES.items()
        if name in newest
    ]
    write_page(
        path,
        "training.html",
        title=f"Training of {checkpoint}",
        state=state,
        reload_s=5 if live else 0,
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        collapse=newest.get("collapse"),
        scores=scores,
        charts=_charts(records),
    )


def _charts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart of each term and monitor, of training and validation, the loss first."""
    names = dict.fromkeys(
        name
        for record in records
        for name, value in record.items()
        if isinstance(value, float) and name not in _NO_CURVE
    )
    found = []
    for name in sorted(names, key=lambda name: name != "loss"):
        series = []
        for kind in dict.fromkeys(record["kind"] for record in records):
            points = [(r["step"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                series.append(Series(kind, steps, values))
        found.append(chart(series, y_label=name, x_label="step", height=190))
    return found
