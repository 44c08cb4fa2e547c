"""The risk scorecard of a checkpoint, as a file and a page beside its reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from finjepa_model import FinJEPA
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits
from finjepa_model.files import from_json, read_json, to_json, write_text
from finjepa_model.training.risk_scorecard import scorecard
from finjepa_pipeline.report.risk import write_risk_page
from finjepa_pipeline.settings import Settings

_FILE, _PAGE = "scorecard.json", "risk.html"


def score_checkpoint(settings: Settings, checkpoint: Path, panel: Panel) -> tuple[dict[str, Any], Path]:
    """Score the forecasts of a checkpoint; returns the content of `scorecard.json` and where the page is."""
    found = scorecard(FinJEPA.from_pretrained(checkpoint), panel, checkpoint_splits(checkpoint, panel))
    text = to_json(asdict(found))
    folder = _folder(settings, checkpoint.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _FILE, text)
    card = from_json(text)  # as it is read again: without NaN
    write_risk_page(folder / _PAGE, checkpoint.name, card)
    return card, folder / _PAGE


def read_scorecard(settings: Settings, checkpoint: str) -> dict[str, Any] | None:
    """The scorecard of a checkpoint of this home; None where it was not scored here."""
    file = _folder(settings, checkpoint) / _FILE
    return read_json(file) if file.is_file() else None


def _folder(settings: Settings, checkpoint: str) -> Path:
    return settings.reports / f"{checkpoint}-risk"
