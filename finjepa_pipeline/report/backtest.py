"""The pages of the backtest: the report of a checkpoint, the leaderboard of everything that was ever backtested in
a home, and strategies side by side."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finjepa_pipeline.report import figures as draw
from finjepa_pipeline.report.markdown import cell, table
from finjepa_pipeline.report.page import link, number, styled, write_page
from finjepa_pipeline.report.risk import in_words
from finjepa_pipeline.report.risk import tables as tables_of

Row = Mapping[str, Any]
# Column of the leaderboard, its label, its format; an interval is two columns, _low and _high. The first so many are shown until
# the reader asks for more.
SHOWN_FIRST = 10
COLUMNS = (
    ("strategy", "strategy", "{}"),
    ("excess_sharpe", "Sharpe − 1/N", "{:+.2f}"),
    ("excess_interval", "95 % interval", "{:+.2f} to {:+.2f}"),
    ("skill", "skill", "{}"),
    ("sharpe", "Sharpe", "{:.2f}"),
    ("annual_return", "return", "{:.1%}"),
    ("annual_volatility", "volatility", "{:.1%}"),
    ("max_drawdown", "drawdown", "{:.1%}"),
    ("annual_turnover", "turnover/yr", "{:.1f}"),
    ("dsr", "DSR", "{:.2f}"),
    ("kind", "kind", "{}"),
    ("sharpe_interval", "Sharpe, 95 % interval", "{:.2f} to {:.2f}"),
    ("best_excess", "minus the best baseline", "{:+.2f}"),
    ("psr", "PSR", "{:.2f}"),
    ("sharpe_lo", "Sharpe, Lo", "{:.2f}"),
    ("sortino", "Sortino", "{:.2f}"),
    ("calmar", "Calmar", "{:.2f}"),
    ("cvar_95", "CVaR 95 % of a day", "{:.2%}"),
    ("hit_rate", "days up", "{:.0%}"),
    ("months_better", "months above 1/N", "{:.0%}"),
    ("cost_drag", "cost/yr", "{:.2%}"),
    ("break_even_bps", "break-even, bp", "{:.0f}"),
    ("effective_n", "effective N", "{:.1f}"),
    ("gross_exposure", "gross", "{:.0%}"),
    ("net_exposure", "net", "{:.0%}"),
    ("hedged", "hedged", "{:.0%}"),
)


PART_COLUMNS = ("part", "difference", "net utility a year (95 %)", "realised volatility (95 %)")


@dataclass(frozen=True)
class BacktestReport:
    """All that the tables hold of a checkpoint on one version of the data; the blocks are kept apart by a column.

    Attributes:
        headline: what is said first, everywhere.
        rows: of the leaderboard, with `skill`: "yes" or "no".
        acting: the planner that acts for the checkpoint, and `why_acting` in words; benchmark: the strategy that stands for 1/N.
        too_short: why there are no intervals; None where there are.
        calibration: by strategy, of its forecasts of its own growth: `correlation`, `slope`, `covered`.
        parts: what each part of the acting planner is worth, as text.
        audit: findings in the order of their making, with `verdict`: passed, failed, not enough data or not run.
        quality: rule, severity, rows and examples of what was found in the prices.
        traded: how many assets were traded, of how many.
        cost_grid: one-way costs in basis points.
    """

    headline: str
    rows: list[dict[str, Any]]
    acting: str | None
    why_acting: str
    benchmark: str
    returns: pl.DataFrame
    too_short: str | None
    decisions: pl.DataFrame
    inference: pl.DataFrame
    replays: pl.DataFrame
    expectations: pl.DataFrame
    calibration: Mapping[str, Row]
    forecasts: pl.DataFrame
    audit: list[dict[str, Any]]
    parts: list[tuple[str, ...]]
    quality: list[tuple[str, ...]]
    traded: str
    cost_grid: Sequence[float]

    def of(self, table: str) -> pl.DataFrame:
        """Of the test block."""
        return getattr(self, table).filter(pl.col("block") == "test")

    @property
    def test(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["block"] == "test"]

    @property
    def planners(self) -> list[str]:
        """Strategies of the user among them; the one that acts comes first."""
        found = [row["strategy"] for row in self.test if row["kind"] in ("planner", "user")]
        return sorted(found, key=lambda name: name != self.acting)

    @property
    def shown(self) -> list[str]:
        """The strategies that every picture shows: the planner that acts, other planners, 1/N and the best baseline."""
        by_sharpe = sorted(self.test, key=lambda row: -(row["sharpe"] if row["sharpe"] is not None else -1e9))
        best = [row["strategy"] for row in by_sharpe if row["kind"] == "baseline"][:1]
        return list(dict.fromkeys([*self.planners[:4], self.benchmark, *best]))


def page_of(reports: Path, checkpoint: str, data_version: str) -> Path:
    """Where the page of a checkpoint on one version of the data lies."""
    return reports / f"{checkpoint}-{data_version}" / "index.html"


def write_report(path: Path, checkpoint: str, report: BacktestReport, scorecard: Mapping[str, Any] | None) -> None:
    """The page of a checkpoint: its forecasts of risk, its test block, and what was found besides."""
    net, first = _net(report), report.shown[0]
    names = [name for name in report.shown if name in report.planners]
    inference = next(iter(report.of("inference").to_dicts()), None)
    figures = _figures(report, net, names)
    tables = {"test": report.of("returns"), "decisions": report.of("decisions")}
    dates = {name: [str(day) for day in frame["date"].unique().sort()] for name, frame in tables.items()}
    write_page(
        path,
        "backtest.html",
        figures,
        dates,
        title=f"FinJEPA {checkpoint}",
        report=report,
        risk=in_words(scorecard) if scorecard else "",
        risk_tables=tables_of(scorecard)[:3] if scorecard else [],
        risk_page=f"../{checkpoint}-risk/risk.html" if scorecard else "",
        shown=list(figures),
        first=first,
        drawdowns=draw.worst_drawdowns(dates["test"], net[first]),
        against=draw.against(net, [name for name in report.shown if name != report.benchmark], report.benchmark),
        heads={"drawdowns": draw.DRAWDOWNS, "against": draw.AGAINST},
        labels=[label for _, label, _ in COLUMNS],
        shown_first=SHOWN_FIRST,
        test=cells(report.test, report.benchmark),
        validation=cells([row for row in report.rows if row["block"] == "validation"], report.benchmark),
        part_columns=PART_COLUMNS,
        circumstances=_circumstances(report, inference),
        economics="costs" in figures,
        forecasts=[
            (one["forecaster"], number(one["mean"]), f"{number(one['low'])} to {number(one['high'])}")
            for one in report.of("forecasts").filter(measure="rank_ic").to_dicts()
        ],
        names=names,
        inference=inference,
        calibration=[[name, *map(number, found.values())] for name, found in report.calibration.items()],
        audit=_audit(report.audit),
    )


def columns_of(*names: str) -> list[tuple[str, str, str]]:
    """Some columns of the leaderboard."""
    known = {column[0]: column for column in COLUMNS}
    return [known[name] for name in names]


# What cards, the Dagster UI and the terminal show.
SHORT = columns_of(
    "strategy", "sharpe", "sharpe_interval", "excess_sharpe", "excess_interval", "dsr", "annual_return", "annual_volatility",
    "max_drawdown", "annual_turnover",
)  # fmt: skip


def cells(rows: Sequence[Row], benchmark: str, shown: Sequence[tuple[str, str, str]] = COLUMNS) -> list[list[str]]:
    """Rows of the leaderboard as text; 1/N is not compared with itself."""
    return [
        [
            "–" if row["strategy"] == benchmark and key.startswith("excess") else _cell(row, key, form)
            for key, _, form in shown
        ]
        for row in rows
    ]


def leaderboard_table(rows: Sequence[Row], benchmark: str) -> str:
    """Rows of the leaderboard in Markdown, for model cards and the Dagster UI."""
    _, *labels = [label for _, label, _ in SHORT]
    return table(("strategy", *labels), [(cell(name), *rest) for name, *rest in cells(rows, benchmark, SHORT)])


def _cell(row: Row, key: str, form: str) -> str:
    name, is_interval, _ = key.partition("_interval")
    if not is_interval:
        return number(row.get(key), form)
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if low is None or high is None else form.format(low, high)


def _circumstances(report: BacktestReport, inference: Row | None) -> str:
    """What was tested, under which conditions, and what a block of this length can show."""
    first = report.test[0]
    lines = [
        f"Test block {first['start_date']} to {first['end_date']}, {first['n_days']} sessions, net of costs. Decided at a "
        "close, filled at the next one.",
        f"No interval, p-value or claim: {report.too_short}."
        if report.too_short
        else "Intervals are 95 % of a paired stationary bootstrap.",
        report.traded,
    ]
    if inference:
        if not report.too_short:
            lines.append(
                f"{inference['years']:.1f} years measure a Sharpe ratio to ±{inference['sharpe_error']:.2f} (standard error)."
            )
        lines.append(
            f"Configurations ever tried on some of these sessions in this home: {inference['trials']}; different bets among "
            f"those still stored: {inference['effective_trials']}."
        )
    detectable = next((row["detectable"] for row in report.test if row["strategy"] == report.acting), None)
    if detectable:
        lines.append(f"Power: only a true gain of {detectable:.1f} or more over 1/N is found in four of five cases.")
    return " ".join(filter(None, lines))


def _net(report: BacktestReport) -> dict[str, np.ndarray]:
    """Daily net returns on the test block by strategy."""
    by_name = report.of("returns").group_by("strategy", maintain_order=True)
    return {str(name): one["net_return"].to_numpy() for (name,), one in by_name}


def _figures(report: BacktestReport, net: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    first = report.shown[0]
    of_first, expected = (report.of(table).filter(strategy=first) for table in ("returns", "expectations"))
    made = {name: report.of("decisions").filter(strategy=name) for name in names}
    figures: dict[str, Any] = {
        "forest": draw.forest([row for row in report.test if row["strategy"] != report.benchmark]),
        "months": draw.months(of_first),
        "distribution": draw.distribution(net, list(dict.fromkeys([first, report.benchmark]))),
    }
    figures["wealth"], figures["drawdown"] = draw.wealth_and_drawdown(net, report.shown)
    figures["rolling_sharpe"], figures["rolling_volatility"] = draw.rolling(net, report.shown)
    if expected.height > 1:
        figures["forecast_volatility"] = draw.forecast_volatility(expected, of_first)
    if made:
        figures["hedge"] = draw.hedge_share(made)
    for place, frame in enumerate(made.values()):
        figures |= {f"held_{place}": draw.held(frame), f"signals_{place}": draw.signals(frame)}
    return figures | _economics(report)


def _economics(report: BacktestReport) -> dict[str, Any]:
    """The same decisions with one part after the other switched on, and at other costs."""
    replays = report.of("replays").to_dicts()
    growth = {(row["strategy"], row["replay"]): row["annual_return"] for row in replays}
    ratio = {(row["strategy"], row["replay"]): row["sharpe"] for row in replays}
    strategies = [row["strategy"] for row in report.test]
    names = [name for name in strategies if (name, "weights") in growth and name != "cash"]
    if (report.benchmark, "hedge") not in growth or not names:
        return {}
    others = [name for name in names if name != report.benchmark]
    return {
        "attribution": draw.attribution(growth, others, report.benchmark),
        "costs": draw.cost_curves(ratio, names, report.cost_grid, report.shown),
    }


def _audit(rows: Sequence[Row]) -> list[list[Any]]:
    """Each finding with its verdict; where the same test failed before, the failure stands."""
    failed: set[tuple[str, str]] = set()
    found = []
    for row in rows:
        test, verdict = (row["test"], row["strategy"]), row["verdict"]
        style = {"passed": "good", "failed": "bad"}.get(verdict, "dim")
        shown_as = styled("FAILED" if verdict == "failed" else verdict, style)
        if test in failed and verdict != "failed":
            shown_as = styled(f"{verdict}, after a failure that stands", "bad")
        if verdict == "failed":
            failed.add(test)
        found.append([*test, shown_as, styled(row["finding"], "text")])
    return found


_COLUMNS = (
    *columns_of("strategy", "sharpe", "excess_sharpe", "excess_interval", "dsr", "skill"),
    ("pbo", "PBO", "{:.2f}"),
    ("trials", "trials", "{}"),
    *columns_of("kind"),
    ("block", "block", "{}"),
    ("fold", "fold", "{}"),
    ("start_date", "first day", "{}"),
    ("end_date", "last day", "{}"),
    ("feed", "prices", "{}"),
    ("checkpoint", "checkpoint", "{}"),
    ("run_id", "run", "{}"),
    ("data_version", "data version", "{}"),
    ("created_at", "made", "{:%Y-%m-%d %H:%M}"),
    *columns_of("annual_return", "max_drawdown", "annual_turnover"),
)
_FILTERS = ("kind", "block", "fold", "checkpoint", "feed")


def write_history(path: Path, rows: Sequence[Mapping[str, Any]], checkpoints: Path, ui_url: str) -> None:
    """Write the page of every leaderboard, the newest row first, with links to lineages below `checkpoints` and to the Dagster
    UI."""
    labels = {key: label for key, label, _ in _COLUMNS}
    place = path.parent, checkpoints, ui_url
    linked = [[_linked(key, row.get(key), _cell(row, key, form), *place) for key, _, form in _COLUMNS] for row in rows]
    filters = [labels[key] for key in _FILTERS]
    title = "FinJEPA: leaderboard of every backtest"
    write_page(path, "history.html", title=title, filters=filters, labels=list(labels.values()), cells=linked)


def _linked(key: str, value: Any, text: str, here: Path, checkpoints: Path, ui_url: str) -> Any:
    if value is None:
        return text
    lineage = checkpoints / text / "lineage.json"
    if key == "checkpoint" and lineage.is_file():  # a walk-forward plan has none of its own: its folds have
        return link(text, Path(os.path.relpath(lineage, here)).as_posix())
    if key == "run_id":
        return link(text[:8], f"{ui_url}/runs/{text}")
    return link(text, f"{ui_url}/assets/feature_panel") if key == "data_version" else text


# Strategies side by side

SIDE_COLUMNS = ("strategy", "Sharpe", "Sharpe − first", "return a year − first", "volatility / first", "corr.")


def side_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each side of a comparison, as `compare` has it."""
    first, *others = found["sides"]
    rows = [[first["label"], number(first["sharpe"]), "–", "–", "–", "–"]]
    for side, one in zip(others, found["differences"], strict=True):
        forms = {"sharpe": "{:+.2f}", "mean": "{:+.1%}", "volatility": "{:.2f}"}
        parts = (_interval(one[name], form) for name, form in forms.items())
        rows.append([side["label"], number(side["sharpe"]), *parts, number(one["correlation"])])
    return rows


def write_comparison(path: Path, found: Mapping[str, Any], returns: pl.DataFrame) -> None:
    """Write the page of a comparison: differences with their intervals, settings that differ, and the curves on one plot, from
    `returns`: `date`, and daily net returns by label."""
    net = {column.name: column.to_numpy() for column in returns.drop("date")}
    wealth, drawdown = draw.wealth_and_drawdown(net, list(net))
    write_page(
        path,
        "compare.html",
        {"wealth": wealth, "drawdown": drawdown},
        {"test": returns["date"].cast(pl.String).to_list()},
        title="FinJEPA: " + ", ".join(net),
        found=found,
        columns=SIDE_COLUMNS,
        rows=side_rows(found),
        settings_columns=("setting", *net),
    )


def _interval(value: Sequence[float | None], form: str) -> str:
    middle, low, high = value
    shown = "too short" if low is None else f"{number(low, form)} to {number(high, form)}"
    return f"{number(middle, form)} ({shown})"
