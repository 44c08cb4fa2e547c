"""The forecasts of a challenger beside those of the champion and of the analytic baseline, on validation sessions."""

from dataclasses import dataclass
from pathlib import Path

from finjepa_model import FinJEPA
from finjepa_model.checkpoint import read_config
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.forecast_comparison import (
    LEAST_DATES,
    ForecastComparison,
    ForecastLosses,
    compare_forecasts,
    forecast_losses,
)
from finjepa_model.training.risk_fit import RiskBlock
from finjepa_model.training.risk_scorecard import analytic_distribution
from finjepa_pipeline.backtest.metrics import SHORTEST
from finjepa_pipeline.backtest.results import NOT_ENOUGH_DATA


@dataclass(frozen=True)
class Match:
    """What came of a comparison, in words.

    Attributes:
        compared: the challenger's losses minus the other's; None where there was too little to compare.
    """

    text: str
    compared: ForecastComparison | None = None

    @property
    def t_value(self) -> float | None:
        return self.compared and self.compared.t_value

    @property
    def better(self) -> bool:
        return self.compared is not None and self.compared.better

    @property
    def worse(self) -> bool:
        return self.compared is not None and self.compared.worse


def against_baseline(checkpoint: Path, panel: Panel) -> Match:
    """On the checkpoint's own validation block."""
    try:
        sessions = checkpoint_splits(checkpoint, panel).validation
        ours = _losses(checkpoint, panel, sessions)
        baseline = forecast_losses(analytic_distribution, read_config(checkpoint), RiskBlock(panel, *sessions))
    except FinJEPAError as error:
        return Match(f"{NOT_ENOUGH_DATA}: {error}")
    compared = compare_forecasts(ours, baseline)
    if compared.dates < LEAST_DATES:
        length = sessions[1] - sessions[0]
        return Match(f"{NOT_ENOUGH_DATA}: the validation block has {length} sessions, {SHORTEST} are needed")
    words = "worse than" if compared.worse else "better than" if compared.better else "not known to be worse than"
    beside = "fixed HAR volatility with correlations of one factor and the sample"
    return Match(f"{words} {beside} ({_in_words(compared, ours, baseline)})", compared)


def against_champion(champion: Path, checkpoint: Path, panel: Panel) -> Match:
    """On the sessions that are in the validation blocks of both: neither was trained on them."""
    spans = [checkpoint_splits(folder, panel).validation for folder in (champion, checkpoint)]
    sessions = max(first for first, _ in spans), min(stop for _, stop in spans)
    if sessions[1] - sessions[0] < SHORTEST:
        return Match(
            f"only {max(sessions[1] - sessions[0], 0)} validation sessions in common with the champion {champion.name}; "
            f"{SHORTEST} are needed: train with training.train_share and training.validation_share that put the validation "
            "block on the champion's"
        )
    try:
        theirs, ours = _losses(champion, panel, sessions), _losses(checkpoint, panel, sessions)
    except FinJEPAError as error:
        return Match(f"its forecasts cannot be compared with those of the champion {champion.name}: {error}")
    compared = compare_forecasts(ours, theirs)
    if compared.dates < LEAST_DATES:
        return Match(
            f"only {compared.dates} dates in common with the champion {champion.name}; {LEAST_DATES} are needed"
        )
    words = "better than" if compared.better else "worse than" if compared.worse else "no better, beyond chance, than"
    numbers = _in_words(compared, ours, theirs)
    return Match(f"its forecasts are {words} those of the champion {champion.name} ({numbers})", compared)


def _losses(checkpoint: Path, panel: Panel, sessions: tuple[int, int]) -> ForecastLosses:
    model = FinJEPA.from_pretrained(checkpoint)
    return forecast_losses(
        lambda chunk: model.forecast_risk(chunk.observation), model.config, RiskBlock(panel, *sessions)
    )


def _in_words(compared: ForecastComparison, ours: ForecastLosses, other: ForecastLosses) -> str:
    """All scores of two forecasters; the first of each pair is the challenger's."""
    pairs = zip(ours.means.items(), other.means.values(), strict=True)
    scores = [f"{score} {value:.3f} and {beside:.3f}" for (score, value), beside in pairs]
    scores.append(f"90 % intervals cover {ours.coverage:.1%} and {other.coverage:.1%}")
    combined = f"combined t {compared.t_value:+.1f}, negative is better, beyond {compared.critical:.1f} is not chance"
    return f"{combined}; {'; '.join(scores)}; {compared.dates} dates"
