"""What the UI shows of a training: its curves and its numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finjepa_pipeline.pictures import as_markdown, new_figure

_CURVES = (("loss", "loss"), ("prediction", "prediction"), ("effective_rank_assets", "effective rank"))


def curves_picture(records: Sequence[Mapping[str, Any]]) -> str:
    """Loss, prediction loss and effective rank over steps, of training and validation, as a Markdown image."""
    figure = new_figure(2.6)
    for axes, (key, label) in zip(figure.subplots(1, len(_CURVES)), _CURVES, strict=True):
        for kind in ("train", "validation"):
            own = [record for record in records if record["kind"] == kind]
            points = [(record["step"], record[key]) for record in own if record.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, linewidth=1, marker="." if len(points) < 20 else None)
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.legend(frameon=False, fontsize=7)
    return as_markdown(figure, "training curves")


def numbers_table(values: Mapping[str, Any]) -> str:
    """Markdown table of names and values."""
    rows = [
        f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {'–' if value is None else value} |"
        for name, value in values.items()
    ]
    return "\n".join(["| | value |", "|---|--:|", *rows])


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
