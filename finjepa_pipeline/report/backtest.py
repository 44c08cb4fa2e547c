"""The tear sheet: one HTML page that needs nothing but itself, says in words what was found, and shows why."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from finjepa_pipeline.backtest import figures as draw
from finjepa_pipeline.backtest.baselines import kind
from finjepa_pipeline.backtest.charges import verdict_of
from finjepa_pipeline.backtest.claim import TOO_SHORT, has_skill, headline, same_return_for_all
from finjepa_pipeline.backtest.evidence import Expectations, calibration
from finjepa_pipeline.backtest.leaderboard import leaderboard_rows, stored_returns, traded_assets
from finjepa_pipeline.backtest.metrics import SHORTEST
from finjepa_pipeline.backtest.page import figure, heading, table, write_page
from finjepa_pipeline.backtest.replay import COST_GRID
from finjepa_pipeline.backtest.store import best_planner
from finjepa_pipeline.backtest.strategies import BENCHMARK
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.prices.quality import quality_summary
from finjepa_pipeline.warehouse import sql

COLUMNS = (
    ("strategy", "strategy", "{}"),
    ("kind", "kind", "{}"),
    ("sharpe", "Sharpe", "{:.2f}"),
    ("sharpe_low", "95 % from", "{:.2f}"),
    ("sharpe_high", "to", "{:.2f}"),
    ("excess_sharpe", "minus 1/N", "{:+.2f}"),
    ("excess_low", "95 % from", "{:+.2f}"),
    ("excess_high", "to", "{:+.2f}"),
    ("best_excess", "minus the best baseline", "{:+.2f}"),
    ("psr", "PSR", "{:.2f}"),
    ("dsr", "DSR", "{:.2f}"),
    ("skill", "evidence of skill", "{}"),
    ("annual_return", "return", "{:.1%}"),
    ("annual_volatility", "volatility", "{:.1%}"),
    ("max_drawdown", "drawdown", "{:.1%}"),
    ("sharpe_lo", "Sharpe, Lo", "{:.2f}"),
    ("sortino", "Sortino", "{:.2f}"),
    ("calmar", "Calmar", "{:.2f}"),
    ("cvar_95", "CVaR 95 % of a day", "{:.2%}"),
    ("hit_rate", "days up", "{:.0%}"),
    ("months_better", "months above 1/N", "{:.0%}"),
    ("annual_turnover", "turnover/yr", "{:.1f}"),
    ("cost_drag", "cost/yr", "{:.2%}"),
    ("break_even_bps", "break-even, bp", "{:.0f}"),
    ("effective_n", "effective N", "{:.1f}"),
    ("gross_exposure", "gross", "{:.0%}"),
    ("net_exposure", "net", "{:.0%}"),
    ("hedged", "hedged", "{:.0%}"),
)


@dataclass(frozen=True)
class Exhibits:
    """All that the tables hold of a checkpoint on one version of the data; the blocks are kept apart by a column.

    Attributes:
        acting: the planner that acts for the checkpoint.
        remark: what has to be known of the model before anything else.
    """

    rows: list[dict[str, Any]]
    returns: pl.DataFrame
    decisions: pl.DataFrame
    inference: pl.DataFrame
    replays: pl.DataFrame
    expectations: pl.DataFrame
    forecasts: pl.DataFrame
    audit: pl.DataFrame
    quality: list[tuple[str, ...]]
    traded: str
    acting: str | None
    remark: str | None

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection, folder: Path, data_version: str) -> "Exhibits":
        """
        Args:
            folder: of the checkpoint; the plan of a walk-forward has a name and no folder.
        """
        checkpoint, metrics = folder.name, folder / "metrics.json"
        key = {"checkpoint": checkpoint, "data_version": data_version}

        def all_of(name: str, order: str) -> pl.DataFrame:
            query = f"FROM main.{name} WHERE checkpoint = $checkpoint AND data_version = $data_version ORDER BY {order}"
            return con.sql(query, params=key).pl()

        shown = current_revision(con)  # another run may have changed it
        found = quality_summary(con) if shown is not None and shown.data_version == data_version else []
        quality = [(f.rule, f.severity, f"{f.rows:,}", ", ".join(f.examples[:3])) for f in found]
        return cls(
            rows=leaderboard_rows(con, checkpoint),
            returns=stored_returns(con, checkpoint, data_version),
            decisions=con.sql(sql("backtest_decisions"), params=key).pl(),
            inference=all_of("court_inference", "block"),
            replays=all_of("backtest_replays", "strategy, replay"),
            expectations=all_of("backtest_expectations", "strategy, date"),
            forecasts=all_of("forecast_quality", "forecaster, measure"),
            audit=all_of("audit_results", "created_at"),
            quality=quality,
            traded=traded_assets(con, checkpoint),
            acting=best_planner(con, checkpoint, data_version),
            remark=same_return_for_all(json.loads(metrics.read_text(encoding="utf-8"))) if metrics.is_file() else None,
        )

    @property
    def headline(self) -> str:
        """What is said first, everywhere."""
        return " ".join(filter(None, (self.remark, headline(self.rows, self.acting))))


def report_of(reports: Path, checkpoint: str, data_version: str) -> Path:
    """Where the page of a checkpoint on one version of the data lies."""
    return reports / f"{checkpoint}-{data_version}" / "index.html"


def write_report(path: Path, title: str, exhibits: Exhibits) -> None:
    """The page of a checkpoint: its test block, and what was found besides."""
    test = [row for row in exhibits.rows if row["block"] == "test"]
    planners = [row["strategy"] for row in test if kind(row["strategy"]) in ("planner", "user")]
    if exhibits.acting in planners:  # it comes first in every picture
        planners = [exhibits.acting, *(name for name in planners if name != exhibits.acting)]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict">{html.escape(exhibits.headline)}</p>',
        f'<p class="dim">{html.escape(_circumstances(test, exhibits))}</p>',
    ]
    pictures: dict[str, draw.Figure] = {}
    days: dict[str, list[str]] = {}
    for section in (_standings, _paths, _decisions, _economics, _inference, _foresight):
        parts += section(exhibits, test, planners, pictures, days)
    parts += _proofs(exhibits)
    write_page(path, title, parts, pictures, days)


_INTERVALS = "Intervals are 95 % of a paired stationary bootstrap."


def _circumstances(test: list[dict[str, Any]], exhibits: Exhibits) -> str:
    words = (
        f"Test block {test[0]['start_date']} to {test[0]['end_date']}, {test[0]['n_days']} sessions, net of costs. Decided at a "
        "close, filled at the next one. "
    )
    short = test[0]["n_days"] < SHORTEST
    words += f"No interval, p-value or claim: {TOO_SHORT}." if short else _INTERVALS
    words += f" {exhibits.traded}" if exhibits.traded else ""
    said = exhibits.inference.filter(pl.col("block") == "test").to_dicts()
    if said:
        one = said[0]
        if not short:
            words += f" {one['years']:.1f} years measure a Sharpe ratio to ±{one['sharpe_error']:.2f} (standard error)."
        words += (
            f" Configurations ever tried on some of these sessions in this home: {one['trials']}; different bets among those "
            f"still stored: {one['effective_trials']}."
        )
    detectable = next((row["detectable"] for row in test if row["strategy"] == exhibits.acting), None)
    if detectable:
        words += f" Power: only a true gain of {detectable:.1f} or more over 1/N is found in four of five cases."
    return words


Section = list[str]


def _standings(exhibits: Exhibits, test: list, planners: list[str], pictures: dict, days: dict) -> Section:
    pictures["forest"] = draw.forest([row for row in test if row["strategy"] != BENCHMARK])
    validation = [row for row in exhibits.rows if row["block"] == "validation"]
    interval = TOO_SHORT if test[0]["n_days"] < SHORTEST else "with its 95 % interval"
    note = f"Sharpe ratio minus that of 1/N; {interval}."
    parts = [heading("Leaderboard, test block", note), figure("forest"), standings_table(test)]
    if validation:
        parts += [heading("Validation block", "It chooses the champion."), standings_table(validation)]
    return parts


def standings_table(rows: list[dict[str, Any]]) -> str:
    shown = [row | {"skill": "yes" if has_skill(row) else "no"} for row in rows]
    return table(
        [label for _, label, _ in COLUMNS], [[_cell(row, key, form) for key, _, form in COLUMNS] for row in shown]
    )


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    against_itself = row["strategy"] == BENCHMARK and key.startswith("excess")
    return "–" if row.get(key) is None or against_itself else form.format(row[key])


def _paths(exhibits: Exhibits, test: list, planners: list[str], pictures: dict, days: dict) -> Section:
    returns = exhibits.returns.filter(pl.col("block") == "test")
    days["test"] = [str(day) for day in returns["date"].unique().sort().to_list()]
    net = {
        str(name): one["net_return"].to_numpy() for (name,), one in returns.group_by("strategy", maintain_order=True)
    }
    shown = _shown(test, planners)
    pictures["wealth"], pictures["drawdown"] = draw.wealth_and_drawdown(net, shown[0], shown)
    pictures["rolling_sharpe"] = draw.rolling(net, shown, "Sharpe ratio")
    pictures["rolling_volatility"] = draw.rolling(net, shown, "volatility")
    pictures["turnover"] = draw.turnover_and_costs(returns, [name for name in shown if name != "cash"][:4])
    note = f"The band is where {shown[0]} could have ended up with the same returns in another order and number."
    return [
        heading("Wealth", note), figure("wealth"),
        heading("Drawdown"), figure("drawdown"),
        heading("A year at a time"), figure("rolling_sharpe"), figure("rolling_volatility"),
        heading("Turnover and costs"), figure("turnover"),
    ]  # fmt: skip


def _shown(test: list[dict[str, Any]], planners: list[str]) -> list[str]:
    """The planner that acts first, the other planners, 1/N and the best baseline."""
    by_sharpe = sorted(test, key=lambda row: -(row["sharpe"] if row["sharpe"] is not None else -1e9))
    ordered = [row["strategy"] for row in by_sharpe]
    best = [name for name in ordered if kind(name) == "baseline"][:1]
    return list(dict.fromkeys([*planners[:4], BENCHMARK, *best])) or ordered[:1]


def _decisions(exhibits: Exhibits, test: list, planners: list[str], pictures: dict, days: dict) -> Section:
    made = exhibits.decisions.filter(pl.col("block") == "test")
    days["decisions"] = [str(day) for day in made["date"].unique().sort().to_list()]
    parts, hedges = [], {}
    for k, name in enumerate(name for name in _shown(test, planners) if name in planners):
        mine = made.filter(pl.col("strategy") == name)
        hedges[name] = mine
        pictures[f"held_{k}"] = draw.held(mine, "decisions")
        pictures[f"signals_{k}"] = draw.signals(mine, "decisions")
        parts += [
            heading(f"What {name} held"), figure(f"held_{k}"),
            heading(f"Signals of {name}", "Blue is long, orange short, grey flat."), figure(f"signals_{k}"),
        ]  # fmt: skip
    if hedges:
        pictures["hedge"] = draw.hedge_share(hedges, "decisions")
        parts += [heading("Hedge"), figure("hedge")]
    return parts


def _economics(exhibits: Exhibits, test: list, planners: list[str], pictures: dict, days: dict) -> Section:
    replays = exhibits.replays.filter(pl.col("block") == "test").to_dicts()
    growth = {(row["strategy"], row["replay"]): row["annual_return"] for row in replays}
    ratio = {(row["strategy"], row["replay"]): row["sharpe"] for row in replays}
    names = [row["strategy"] for row in test if (row["strategy"], "weights") in growth and row["strategy"] != "cash"]
    if (BENCHMARK, "hedge") not in growth or not names:
        return []
    pictures["attribution"] = draw.attribution(growth, [name for name in names if name != BENCHMARK], BENCHMARK)
    pictures["costs"] = draw.cost_curves(ratio, names, COST_GRID)
    return [
        heading("Where the return came from", "The same decisions with one part after the other switched on."),
        figure("attribution"),
        heading("What costs would do", "The same decisions at other commissions and spreads of the most liquid tier."),
        figure("costs"),
    ]


def _inference(exhibits: Exhibits, test: list, planners: list[str], pictures: dict, days: dict) -> Section:
    said = exhibits.inference.filter(pl.col("block") == "test").to_dicts()
    if not said or not said[0]["pbo_logits"]:
        return []
    one = said[0]
    pictures["logits"] = draw.histogram(one["pbo_logits"], "logit of the out-of-sample rank of the in-sample winner")
    spa = "–" if one["spa_p"] is None else f"{one['spa_p']:.2f}"
    note = (
        f"Probability of backtest overfitting {one['pbo']:.2f} over {len(one['pbo_logits']):,} splits (below 0.2 is asked for; "
        f"one number below 0.5 proves nothing). Hansen's test that nobody beats 1/N in mean return: p = {spa}."
    )
    return [heading("Would the winner have won again", note), figure("logits")]


def _foresight(exhibits: Exhibits, test: list, planners: list[str], pictures: dict, days: dict) -> Section:
    parts = []
    forecasts = exhibits.forecasts.filter(pl.col("block") == "test").to_dicts()
    if forecasts:
        pictures["rank_ic"] = draw.forecast_bars(forecasts)
        parts += [
            heading("Do forecasts order the assets", "Rank correlation with the return of the next decision step."),
            figure("rank_ic"),
        ]
    expected = exhibits.expectations.filter(pl.col("block") == "test")
    if not expected.is_empty():
        pictures["calibration"] = draw.calibration(expected)
        rows = []
        for (name,), one in expected.group_by("strategy", maintain_order=True):
            arrays = [one[c].to_numpy() for c in ("date", "imagined_growth", "imagined_volatility", "realised_growth")]
            found = calibration(Expectations(*arrays))
            rows.append([str(name), *("–" if v != v else f"{v:.2f}" for v in vars(found).values())])
        parts += [
            heading("Imagined and realised", "Growth of a decision step as the planner imagined it, and as it came."),
            figure("calibration"),
            table(["strategy", "correlation", "slope (1 is calibrated)", "within two imagined deviations"], rows),
        ]
    return parts


def _proofs(exhibits: Exhibits) -> Section:
    parts = [heading("Audit", "Null, planted, leak, delay and permutation tests.")]
    if exhibits.audit.is_empty():
        parts.append('<p class="dim">Not held yet: run finjepa audit.</p>')
    else:
        rows = [_proof(row, failed_before) for row, failed_before in _with_failures(exhibits.audit.to_dicts())]
        parts.append(table(["test", "strategy", "verdict", "finding"], rows))
    parts.append(heading("Data quality"))
    if exhibits.quality:
        parts.append(table(["rule", "severity", "rows", "examples"], exhibits.quality))
    else:
        parts.append('<p class="dim">No rule was broken.</p>')
    return parts


def _with_failures(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Each finding, and whether the same test failed before: a failure stands."""
    failed: set[tuple[str, str]] = set()
    found = []
    for row in rows:
        test = row["test"], row["strategy"]
        found.append((row, test in failed))
        if row["passed"] is False:
            failed.add(test)
    return found


def _proof(row: dict[str, Any], failed_before: bool) -> list[Any]:
    verdict = verdict_of(row["passed"], row["finding"])
    shown = {"passed": ("passed", "good"), "failed": ("FAILED", "bad")}.get(verdict, (verdict, "dim"))
    if failed_before and verdict != "failed":
        shown = (f"{verdict}, after a failure that stands", "bad")
    return [row["test"], row["strategy"], shown, (row["finding"], "text")]
