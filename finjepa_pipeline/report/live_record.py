"""The live record as a sentence, a section of a model card, and a static page that needs nothing but itself."""

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.live_record.chain import LEVELS, MODEL, QUANTILES, LiveRecord
from finjepa_model.live_record.drift import ALARM, BASELINE, Chart, control_charts, drift_of
from finjepa_model.live_record.scores import (
    BookReturns,
    Outcomes,
    ScoreLine,
    book_returns,
    gaps,
    inside_interval,
    read_scores,
    score_lines,
)
from finjepa_pipeline.report.charts import Series, chart, image
from finjepa_pipeline.report.markdown import table
from finjepa_pipeline.report.page import number, write_page

PAGE = "index.html"
OTHER_KINDS = {
    "portfolio": "Portfolios: 1/N, minimum variance, ten random ones",
    "1/N": "1/N",
    "book": "The book",
    "market": "All other eligible assets",
}
COLUMNS = (
    "forecast", "ahead", "outcomes", "closes", "in 50 %", "in 90 %", "interval", "in 98 %", "CRPS, %", "t", "QLIKE", "t",
    "ratio", "missing",
)  # fmt: skip
_WINDOW = 63  # sessions of the moving coverage
_MOST_ROWS = 12
_FANS = 6
_AHEAD = (0, 1, 5, 21)
_LONG: dict[str, Any] = {"width": 460, "height": 220}  # of charts over dates: legible on a phone


@dataclass(frozen=True)
class RecordSummary:
    """A live record and what follows from it."""

    record: LiveRecord
    scores: pl.DataFrame

    @classmethod
    def of(cls, record: LiveRecord) -> "RecordSummary":
        """With the scores that were written last."""
        return cls(record, read_scores(record))

    @cached_property
    def outcomes(self) -> Outcomes:
        return Outcomes.of(self.record)

    @cached_property
    def lines(self) -> list[ScoreLine]:
        return score_lines(self.scores)

    @cached_property
    def book(self) -> BookReturns:
        return book_returns(self.record, self.outcomes)

    @cached_property
    def charts(self) -> list[Chart]:
        return control_charts(self.scores)

    @cached_property
    def gaps(self) -> list[datetime.date]:
        return gaps(self.record, self.outcomes)

    @property
    def hindsight(self) -> list[datetime.date]:
        return self.record.nights.filter(pl.col("hindsight"))["session"].to_list()

    def line(self, forecast: str) -> ScoreLine | None:
        """Of the traded assets over one session."""
        wanted = ("asset", 1, forecast)
        return next((one for one in self.lines if (one.kind, one.horizon, one.forecast) == wanted), None)

    @property
    def words(self) -> str:
        """In one sentence, how often the intervals of one session held, beside those of 20-day history."""
        ours, theirs = self.line(MODEL), self.line(BASELINE)
        if ours is None or theirs is None:
            nights, late = self.record.nights.height, len(self.hindsight)
            return f"no forecast has an outcome that counts yet (nights: {nights}, in hindsight: {late})"
        since = self.scores.filter(pl.col("n") > 0)["session"].min()
        return (
            f"since {since} 90 % intervals held {100 * ours.coverage[0.9]:.1f} % of {ours.outcomes:,} outcomes "
            f"({BASELINE}: {100 * theirs.coverage[0.9]:.1f} %)"
        )

    @property
    def headline(self) -> str:
        return self.words[0].upper() + self.words[1:] + "."

    @cached_property
    def drifted(self) -> tuple[bool | None, str]:
        return drift_of(self.scores)

    @property
    def drift(self) -> str:
        drifted, why = self.drifted
        return f"Forecasts have drifted: {why}." if drifted else f"Control charts: {why}."

    @property
    def alarm_is_new(self) -> bool:
        """Whether a control chart has reached its alarm with the newest session that is scored."""
        return any(one.alarms[-1] == one.sessions_D[-1] for one in self.charts if one.alarms)

    @property
    def recent_gaps(self) -> list[datetime.date]:
        return [day for day in self.gaps if np.datetime64(day) in self.outcomes.days_D[-21:]]

    @property
    def numbers(self) -> dict[str, float]:
        """What the Dagster UI plots: % of outcomes within the 90 % intervals, scores, and the wealth of the book."""
        found: dict[str, float] = {"wealth_of_the_book": self.record.nights["wealth"][-1]}
        for name, forecast in (("", MODEL), ("_of_20_day_history", BASELINE)):
            if (line := self.line(forecast)) is not None:
                found |= {f"coverage_90{name}": 100 * line.coverage[0.9], f"crps{name}": 100 * line.crps}
                found["outcomes"] = line.outcomes
        return found

    @property
    def coverage_image(self) -> str:
        return image(_moving_coverage(self.scores), "outcomes within 90 % intervals")

    @property
    def earned(self) -> list[tuple[str, ...]]:
        """The book against 1/N and against 1/N of its risk: % a year with interval and t-value."""
        found = []
        for name, other in (("1/N", self.book.equal), ("1/N at the book's forecast volatility", self.book.matched)):
            mean, low, high, t_value = self.book.against(other)
            mean, low, high, t_value = (number(value, "{:+.1f}") for value in (mean, low, high, t_value))
            found.append((name, mean, f"{low} to {high}", t_value, str(len(self.book.book))))
        return found


def record_section(summary: RecordSummary) -> str:
    """The section of a model card, from its heading on."""
    nights = summary.record.nights
    found = [_cells(line) for line in summary.lines if line.kind == "asset"]
    parts = (
        f"## Live record since {summary.record.sessions[0]}",
        f"Every forecast is kept before its outcome and scored after it. {summary.headline} {summary.drift}",
        table(COLUMNS, found) if found else "",
        f"{nights.height} nights until {summary.record.sessions[-1]}, {len(summary.gaps)} sessions without one, "
        f"{len(summary.hindsight)} written in hindsight and not counted. Last hash `{summary.record.last_hash}`. "
        "`finjepa verify` recomputes the chain and every score from `live_record/`, and `index.html` shows them.",
    )
    return "\n\n".join(filter(None, parts))


def write_record_page(path: Path, summary: RecordSummary) -> None:
    """Write the static page."""
    record, nights = summary.record, summary.record.nights
    newest = nights.tail(10).reverse()
    write_page(
        path,
        "live_record.html",
        title=f"Live record since {record.sessions[0]}",
        headline=summary.headline,
        drift=summary.drift,
        drifted=bool(summary.drifted[0]),
        nights=nights.height,
        since=record.sessions[0],
        until=record.sessions[-1],
        last_hash=record.last_hash,
        left_out=nights["left_out"][-1],
        coverage=_moving_coverage(summary.scores),
        columns=COLUMNS,
        scores=[_cells(line) for line in summary.lines if line.kind == "asset"],
        others=[
            (title, rows)
            for kind, title in OTHER_KINDS.items()
            if (rows := [_cells(line) for line in summary.lines if line.kind == kind])
        ],
        bins=_bins(summary),
        fans=_fans(summary),
        earned=summary.earned,
        wealth=_wealth(summary.book),
        charts=_control(summary.charts),
        misses=_misses(summary.scores),
        restated=_restated(summary),
        gaps=[str(day) for day in summary.gaps],
        hindsight=[str(day) for day in summary.hindsight],
        chain=[
            (str(row["session"]), f"{row['written_at']:%Y-%m-%d %H:%M}", row["checkpoint"], row["data_version"], row["hash"][:16])
            for row in newest.iter_rows(named=True)
        ],
    )  # fmt: skip


def _cells(line: ScoreLine) -> tuple[str, ...]:
    interval = f"{100 * line.low:.1f}–{100 * line.high:.1f}" if line.low == line.low else "–"
    half, most, nearly_all = (f"{100 * line.coverage[level]:.1f}" for level in (0.5, 0.9, 0.98))
    return (
        line.forecast, str(line.horizon), f"{line.outcomes:,}", str(line.dates), half, most, interval, nearly_all,
        f"{100 * line.crps:.3f}", number(line.crps_t, "{:+.1f}"), f"{line.qlike:.3f}", number(line.qlike_t, "{:+.1f}"),
        f"{line.ratio:.2f}", str(line.missing),
    )  # fmt: skip


def _moving_coverage(scores: pl.DataFrame) -> str:
    """Share of the outcomes of the last 63 sessions within the 90 % intervals of one session."""
    found = []
    for forecast in (MODEL, BASELINE, "EWMA", "HAR"):
        rows = inside_interval(scores, "asset", 1, forecast)
        least = min(_WINDOW, rows.height) // 3 + 1
        inside, count = (rows[name].rolling_sum(_WINDOW, min_samples=least) for name in ("inside", "n"))
        if rows.height > 1:
            found.append(Series(forecast, rows["session"].to_numpy(), (100 * inside / count).to_numpy()))
    if found:
        ends = found[0].x[[0, -1]]
        found.append(Series("90 %", ends, np.array([90.0, 90.0])))
    return chart(found, y_label="% of outcomes", **_LONG)


def _bins(summary: RecordSummary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Where outcomes of one session fell among the quantiles: % by forecast, beside what is right."""
    found = [line for line in summary.lines if (line.kind, line.horizon) == ("asset", 1)]
    rows = []
    for k, (low, high) in enumerate(itertools.pairwise((0.0, *LEVELS, 1.0))):
        shares = [f"{100 * line.bins[k]:.1f}" for line in found]
        rows.append((f"{100 * low:g}–{100 * high:g} %", f"{100 * (high - low):.0f}", *shares))
    return ("between quantiles", "right", *(line.forecast for line in found)), rows if found else []


def _fans(summary: RecordSummary) -> list[tuple[str, str]]:
    """(title, chart) of 1/N, the book and the assets that it held most of, after the newest close whose 21 sessions are known;
    while there is none, after the oldest counted close."""
    record, days_D = summary.record, summary.outcomes.days_D
    counted = record.nights.filter(~pl.col("hindsight"))["session"].to_list()
    known = [day for day in counted if int((days_D > np.datetime64(day)).sum()) >= _AHEAD[-1]]
    if not counted or not len(days_D):
        return []
    close = known[-1] if known else counted[0]
    rows = record.table("forecasts", close).filter(pl.col("forecast") == MODEL, pl.col("kind") != "unit")
    weights = record.table("portfolios", close)
    held = weights.filter(portfolio="decision").sort(pl.col("weight").abs(), descending=True)["asset"]
    found = []
    for subject in dict.fromkeys(["1/N", "book", *held, *rows.filter(kind="asset")["name"]]):
        row = rows.filter(pl.col("name") == subject, pl.col("volatility_1") > 0)
        if row.height and len(found) < _FANS:
            mine = weights.filter(pl.col("portfolio") == subject) if row["kind"][0] == "portfolio" else None
            names = [subject] if mine is None else mine["asset"].to_list()
            shares = np.ones(1) if mine is None else mine["weight"].to_numpy()
            found.append((f"{subject}, after {close}", _fan(row, summary.outcomes, close, names, shares)))
    return found


def _fan(row: pl.DataFrame, outcomes: Outcomes, close: datetime.date, names: list[str], shares: np.ndarray) -> str:
    edges = 100 * np.array([np.zeros(len(LEVELS)), *(row.select(QUANTILES[h]).row(0) for h in _AHEAD[1:])], float)
    ahead = np.array(_AHEAD)
    place = {level: q for q, level in enumerate(LEVELS)}
    bands = [
        Series(name, ahead, edges[:, place[high]], edges[:, place[low]])
        for name, low, high in (("90 %", 0.05, 0.95), ("50 %", 0.25, 0.75))
    ]
    sessions = min(int((outcomes.days_D > np.datetime64(close)).sum()), _AHEAD[-1])
    came = [0.0]
    for horizon in range(1, sessions + 1):
        window = outcomes.window(close, horizon, names)
        assert window is not None  # it has so many sessions
        came.append(100 * float(shares @ (np.prod(1 + np.nan_to_num(window[0]), axis=0) - 1)))
    path = Series("what came", np.arange(len(came)), np.array(came))
    return chart([*bands, path], x_label="sessions after the close", width=400, height=180)


def _wealth(book: BookReturns) -> str:
    returns = {"book": book.book, "1/N": book.equal, "1/N at its risk": book.matched}
    days = np.array(book.sessions, "datetime64[D]")
    grown = [Series(name, days, np.cumprod(1 + value)) for name, value in returns.items()]
    return chart(grown, y_label="wealth", **_LONG)


def _control(charts: Sequence[Chart]) -> str:
    names = ("too narrow", "too wide", "log score")
    found = [Series(name, one.sessions_D, one.level_D) for name, one in zip(names, charts, strict=bool(charts))]
    if found:
        found.append(Series("alarm", found[0].x[[0, -1]], np.array([ALARM, ALARM])))
    return chart(found, y_label="CUSUM", from_zero=True, **_LONG)


def _misses(scores: pl.DataFrame) -> list[tuple[object, ...]]:
    """The outcomes that were furthest outside their 90 % intervals, by name."""
    bound = pl.when(pl.col("worst_return") > 0).then("worst_high").otherwise("worst_low")
    rows = (
        scores.filter(pl.col("n") > 0, pl.col("forecast") == MODEL, pl.col("kind").is_in(["asset", "market"]))
        .with_columns(times=(pl.col("worst_return") / bound))
        .filter(pl.col("times") > 1)
        .sort("times", descending=True)
        .unique(["worst", "horizon"], keep="first", maintain_order=True)
        .head(_MOST_ROWS)
    )
    return [
        (
            row["worst"], str(row["session"]), row["horizon"], f"{100 * row['worst_return']:+.1f}",
            f"{100 * row['worst_low']:+.1f} to {100 * row['worst_high']:+.1f}", f"{row['times']:.1f}",
        )
        for row in rows.iter_rows(named=True)
    ]  # fmt: skip


def _restated(summary: RecordSummary) -> list[tuple[str, ...]]:
    rows = summary.record.outcomes().filter(kind="restated").tail(_MOST_ROWS).reverse()
    percent = rows.with_columns(pl.col("recorded", "value") * 100)
    return [
        (
            row["asset"],
            str(row["session"]),
            *(number(row[name], "{:+.2f}") for name in ("recorded", "value")),
            str(row["night"]),
        )
        for row in percent.iter_rows(named=True)
    ]


_BEGIN, _END = "<!-- live record -->", "<!-- end of the live record -->"


def with_section(card: str, section: str) -> str:
    """A card with the section in the place of an older one, or at its end."""
    before, found, rest = card.partition(_BEGIN)
    after = rest.partition(_END)[2] if found else ""
    return f"{before.rstrip()}\n\n{_BEGIN}\n\n{section}\n\n{_END}\n{after}"
