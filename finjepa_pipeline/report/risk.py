"""The risk scorecard as tables, a sentence and a page: how good forecasts of risk were beside textbook ones.

A scorecard is a dict as `finjepa_model.training.risk_scorecard.Scorecard` has its fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from finjepa_model.files import from_json, read_json, to_json, write_text
from finjepa_model.training.risk_scorecard import (
    LEAST,
    LEAST_LONG,
    PORTFOLIO_QLIKE,
    QLIKE,
    R2,
    STEP_RATIO,
    UTILITY,
    Scorecard,
)
from finjepa_pipeline.report import figures as draw
from finjepa_pipeline.report.page import number, styled, write_page

Card = Mapping[str, Any]
_FILE = "scorecard.json"
_INTERVALS = [f"{share} % interval of {kind} covers, %" for kind in ("assets", "portfolios") for share in (90, 98)]
_TABLES: tuple[tuple[str, dict[str, int], int], ...] = (  # title, scores with their digits, horizon in sessions
    ("Volatility over 21 sessions", {QLIKE: 4, R2: 3, UTILITY: 2}, 21),
    ("Portfolios held for 21 sessions", {LEAST: 2, LEAST_LONG: 2, PORTFOLIO_QLIKE: 3}, 21),
    (
        "Returns over 5 sessions, and % of them within forecast intervals",
        {"CRPS of portfolios, %": 3} | dict.fromkeys(_INTERVALS, 1),
        5,
    ),
)
_SHORT = {
    QLIKE: "QLIKE",
    UTILITY: "targeting utility, % a year",
    LEAST: "volatility, least variance, %",
    LEAST_LONG: "long-only, %",
    PORTFOLIO_QLIKE: "QLIKE",
    "CRPS of portfolios, %": "CRPS, portfolios, %",
}
_BETTER = 2.0  # t-value from which one forecast is called better than another


def tables(card: Card, block: str = "test") -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, columns, rows) of volatility over 21 sessions, of portfolios held for 21, and of intervals over 5, on a block.

    In brackets is the t-value of the model's advantage (Diebold and Mariano, Newey-West over dates): positive where the model is
    better, beyond chance from 2 on.
    """
    found = []
    for symbols in ("unseen", "seen"):
        rows = [one for one in card["scores"] if (one["block"], one["symbols"]) == (block, symbols)]
        for title, scores, horizon in _TABLES if rows else ():
            found.append((f"{title}, {block} block, {symbols} symbols", *_pivot(rows, scores, horizon)))
    return found


def _pivot(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, int], horizon: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["score"] in scores and row["horizon"] == horizon:
            text = number(row["value"], f"{{:.{scores[row['score']]}f}}")
            if row["t_value"] is not None:
                text += f" ({row['t_value']:+.1f})"
            cells.setdefault(row["forecast"], {})[row["score"]] = text
    shown = [score for score in scores if any(score in of_one for of_one in cells.values())]
    heads = [_SHORT.get(score, score.replace(" interval of", "").removesuffix(" covers, %")) for score in shown]
    return ("forecast", *heads), [(name, *(of.get(score, "–") for score in shown)) for name, of in cells.items()]


def in_words(card: Card, block: str = "test") -> str:
    """What was found, in two sentences, with t-values; why nothing was scored where nothing was."""
    rows = [one for one in card["scores"] if one["block"] == block]
    if not rows:
        return "Forecasts of risk were not scored: " + ("; ".join(card["left_out"]) or "too few sessions")
    rows = [one for one in rows if one["symbols"] == "unseen"] or rows
    first, last = card["dates"][block]
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        if (row["score"], row["horizon"]) == (QLIKE, 21) and row["t_value"] is not None:
            t_value = row["t_value"]
            kind = "better than" if t_value >= _BETTER else "worse than" if t_value <= -_BETTER else "no different from"
            verdicts.setdefault(kind, []).append(f"{row['forecast']} (t {t_value:+.1f})")
    said = "; ".join(f"{kind} {', '.join(names)}" for kind, names in verdicts.items())
    text = f"Forecasts of volatility over 21 sessions, {first} to {last}: {said or 'too few dates to compare'}."
    ours = [row for row in rows if (row["forecast"], row["horizon"]) == ("model", 5)]
    covered = [row for row in ours if row["score"].endswith("interval of portfolios covers, %")]
    if covered:
        parts = ", ".join(f"{row['score'].partition(' interval')[0]} intervals {row['value']:.1f} %" for row in covered)
        text += f" Of random portfolios over 5 sessions, {parts.replace(' intervals', ' intervals held', 1)}."
    return text


def write_scorecard(reports: Path, checkpoint: str, scorecard: Scorecard) -> tuple[Card, Path]:
    """Write a scorecard as a file and as a page; returns it as it is read again, without NaN, and where the page is."""
    folder, text = _folder(reports, checkpoint), to_json(asdict(scorecard))
    write_text(folder / _FILE, text)
    card = from_json(text)
    _write_page(folder / "risk.html", checkpoint, card)
    return card, folder / "risk.html"


def read_scorecard(reports: Path, checkpoint: str) -> Card | None:
    """The scorecard of a checkpoint of this home; None where it was not scored here."""
    file = _folder(reports, checkpoint) / _FILE
    return read_json(file) if file.is_file() else None


def _folder(reports: Path, checkpoint: str) -> Path:
    return reports / f"{checkpoint}-risk"


def _write_page(path: Path, checkpoint: str, card: Card) -> None:
    """Tables of both blocks, calibration, term structure, a fan chart and correlations."""
    rows = [
        (title, columns, [(styled(name, "text"), *cells) for name, *cells in found])
        for block in ("test", "validation")
        for title, columns, found in tables(card, block)
    ]
    figures = _figures(card) if card["scores"] else {}
    write_page(
        path,
        "risk.html",
        figures,
        title=f"Forecasts of risk: {checkpoint}",
        words=in_words(card),
        tables=rows,
        left_out=card["left_out"],
        shown=list(figures),
        example=card["example"],
    )


def _figures(card: Card) -> dict[str, go.Figure]:
    middle = [f"{10 * i}–{10 * i + 10} %" for i in range(10)]
    histograms = [go.Bar(name=name, x=middle, y=shares) for name, shares in card["pit"].items()]
    figures = {"calibration": draw.of(histograms, barmode="group", yaxis={"tickformat": ".0%", "title": "of outcomes"})}
    terms = []
    for block in ("validation", "test"):
        of_block = [row for row in card["scores"] if (row["block"], row["score"]) == (block, STEP_RATIO)]
        if steps := [(row["horizon"], row["value"]) for row in of_block]:
            sessions, ratios = zip(*sorted(steps), strict=True)
            terms.append(go.Scatter(name=block, x=sessions, y=ratios, mode="lines+markers"))
    figures["steps"] = draw.of(
        terms, xaxis={"title": "sessions ahead"}, yaxis={"title": "realised / forecast variance", "rangemode": "tozero"}
    )
    example = card["example"]
    if example is None:
        return figures
    path = example["portfolio"]
    fan = [
        go.Scatter(name=f"{100 * float(name):g} % quantile", x=[0, 1, 5, 21], y=[0, *values], mode="lines")
        for name, values in path.items()
        if name != "realised"
    ]
    came, thick = [0, *path["realised"]], {"width": 3, "color": "#db2777"}
    fan.append(go.Scatter(name="what came", x=list(range(22)), y=came, mode="lines", line=thick))
    figures["fan"] = draw.of(fan, xaxis={"title": "sessions after the close"}, yaxis={"tickformat": ".0%"})
    for name, values in (("forecast", example["forecast_NN"]), ("realised", example["realised_NN"])):
        heat = go.Heatmap(z=values, x=example["assets"], y=example["assets"], zmin=-1, zmax=1, colorscale="RdBu_r")
        figures[name] = draw.of([heat], yaxis={"autorange": "reversed"})
    return figures
