"""The page of a training: time left, scorecard and loss terms by step; it is rewritten while the training runs, and reloads."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from finjepa_model.config import FinJEPAConfig
from finjepa_model.training.run_folder import METRICS_FILE, read_metrics
from finjepa_pipeline.report.charts import Series, chart
from finjepa_pipeline.report.page import duration, number, styled, write_page

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
