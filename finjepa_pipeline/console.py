"""What the commands print, for a person at a terminal: results go to `out`, progress to `err`; and what they export to files, for
other programs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from rich.console import Console
from rich.table import Table

from finjepa_model.decision import SAME_RETURN
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_pipeline.backtest.leaderboard import leaderboard_rows
from finjepa_pipeline.backtest.strategies import BENCHMARK
from finjepa_pipeline.doctor import DoctorFinding
from finjepa_pipeline.prices.contract import docs_page, quality_summary
from finjepa_pipeline.prices.history import require_shown
from finjepa_pipeline.prices.ingest import ContractError
from finjepa_pipeline.publishing.reproduce import Reproduction
from finjepa_pipeline.report.backtest import SIDE_COLUMNS, cells, columns_of, side_rows
from finjepa_pipeline.report.risk import read_scorecard, tables
from finjepa_pipeline.retention import CleaningPlan
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

# Lines are left to the terminal to wrap, so that a path can be copied and a pipe sees whole lines. What is printed is text,
# not markup: paths have brackets and colons.
out, err = (
    Console(stderr=error, soft_wrap=True, highlight=False, markup=False, emoji=False) for error in (False, True)
)
out.width = max(out.width, 100)

# An asset's name to the metadata of what a run made of it.
Assets = dict[str, Any]

_RETURNS = """
    SELECT strategy, block, date, gross_return, net_return, cost, turnover, wealth, hedge FROM main.backtest_returns
    WHERE checkpoint = ? AND data_version = ? ORDER BY ALL"""
_DECISIONS = """
    SELECT strategy, block, date, entity AS asset, weight, signal, held, hedge FROM main.backtest_decisions
    WHERE checkpoint = ? AND data_version = ? ORDER BY ALL"""
_MOVED = {
    "withdrawn": "rows ended: they were there before and are not in this delivery",
    "kept": "rows of earlier deliveries are kept: this one does not cover them (--whole ends them)",
    "rejudged": "earlier rows went into quarantine or left it: the rows after them tell",
}

_LEADERBOARD = {
    "strategy": "strategy", "sharpe": "Sharpe", "excess_sharpe": "− 1/N", "excess_interval": "95 % interval", "dsr": "DSR",
    "annual_return": "return", "annual_volatility": "volatility", "max_drawdown": "drawdown", "annual_turnover": "turnover",
}  # fmt: skip


def _table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]] = (), right: Sequence[str] = ()
) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in right)
    for row in rows:
        table.add_row(*row)
    return table


def print_prices(assets: Assets) -> None:
    raw, prices, bad = (assets.get(name, {}) for name in ("raw_prices", "prices", "quarantined_prices"))
    new = raw.get("new_rows", 0)
    out.print(
        f"\nPrices: {prices.get('dagster/row_count', 0):,} rows of {raw.get('feed')} ({raw.get('dates')}), "
        f"{bad.get('dagster/row_count', 0):,} in quarantine; " + (f"{new:,} new rows" if new else "no new row"),
    )
    for name, what in _MOVED.items():
        if raw.get(name):
            out.print(f"  {raw[name]:,} {what}")
    if raw.get("calendar") not in (None, "XNYS"):
        out.print(f"  calendar: {raw['calendar']}")


def print_refusal(refusal: ContractError, settings: Settings) -> None:
    """What was found in prices that were refused, and where it can be read again."""
    table = _table("Refused prices", ("rule", "rows", "examples", "reason"), (), ("rows",))
    for found in refusal.outcomes:
        if not found.success:
            style = "red" if found.severity == "critical" else None
            cells = (found.column, f"{found.observed or 0:,.0f}", ", ".join(found.examples), found.reason)
            table.add_row(*cells, style=style)
    err.print(table)
    err.print(f"Data Docs: {docs_page(settings.home / 'contract')}")


def print_sweep(made: dict[str, Any]) -> None:
    columns = ("training", "validation", "steps", "checkpoint")
    out.print(_table("Sweep, best first", columns, made["rows"], ("validation", "steps")))


def print_cleaned(plan: CleaningPlan, dry_run: bool) -> None:
    table = _table(None, ("", "would go" if dry_run else "removed", "MB", "kept"))
    for kind in sorted({*plan.kept, *(one.kind for one in plan.removals)}):
        gone = [one for one in plan.removals if one.kind == kind]
        table.add_row(
            kind, str(len(gone)), f"{sum(one.bytes for one in gone) / 1e6:,.1f}", str(plan.kept.get(kind, ""))
        )
    out.print(table)
    total = sum(one.bytes for one in plan.removals) / 1e6
    out.print(f"{total:,.1f} MB {'would be freed; nothing was removed' if dry_run else 'freed'}")


def print_quality(assets: Assets) -> None:
    with Warehouse.from_settings(Settings.from_env()).connect() as connection:
        require_shown(connection, assets["prices"]["feed"], assets["prices"]["data_version"])
        findings = quality_summary(connection)
    if not findings:
        out.print("Quality: no rule was broken")
        return
    table = _table("Quality", ("rule", "severity", "rows", "allowed", "examples"), (), ("rows", "allowed"))
    for finding in findings:
        over = "yellow" if finding.allowed is not None and finding.rows > finding.allowed else None
        counts = f"{finding.rows:,}", "any" if finding.allowed is None else f"{finding.allowed:,}"
        table.add_row(finding.rule, finding.severity, *counts, ", ".join(finding.examples), style=over)
    out.print(table)


def print_model(assets: Assets) -> None:
    made = assets["world_model"]
    how = "trained before, nothing to retrain" if made["reused"] else f"trained in {made['seconds']:.0f} s"
    out.print(
        f"Checkpoint: {made['checkpoint']} ({how}; validation loss {made['validation_loss']:.3f}, effective rank of the "
        f"latents {made['effective_rank_assets']:.1f})\n  {made['path']}",
    )


def print_scorecard(assets: Assets) -> None:
    made = assets["risk_scorecard"]
    card = read_scorecard(Settings.from_env().reports, made["checkpoint"])
    out.print()
    for title, columns, rows in tables(card or {"scores": []}):
        shown = _table(title, columns, (), columns[1:])
        shown.columns[0].no_wrap = True
        for row in rows:
            shown.add_row(*row, style="bold" if row[0] == "model" else None)
        out.print(shown)
    out.print(made["found"])
    out.print("In brackets: t-value of the model's advantage; beyond chance from 2 on.")
    out.print(f"Scorecard: {made['path']}")


def print_forecast(found: dict[str, Any]) -> None:
    """Volatility a year, and the interval of returns over a month."""
    columns = ("asset", "5 sessions", "21 sessions", "63 sessions", "5 % quantile", "95 % quantile")
    title = f"After the close of {found['date']}: volatility, % a year; quantiles of the return over 21 sessions"
    shown = _table(title, columns, (), columns[1:])
    for name in found["assets"]:
        year = [f"{100 * 252**0.5 * value:.1f}" for value in found["volatility"][name].values()]
        month = found["quantiles"][name]["21"]
        shown.add_row(name, *year, *(f"{100 * month[level]:+.1f} %" for level in ("0.05", "0.95")))
    month = found["portfolio"]["21"]
    shown.add_row("equal weights", "", "", "", *(f"{100 * month[level]:+.1f} %" for level in ("0.05", "0.95")))
    out.print(shown)
    pairs = [
        (value, f"{one} and {other} {value:.2f}")
        for i, (one, row) in enumerate(zip(found["assets"], found["correlation"], strict=True))
        for other, value in zip(found["assets"][:i], row[:i], strict=True)
    ]
    if pairs:
        mean = sum(value for value, _ in pairs) / len(pairs)
        out.print(f"Correlations: mean {mean:.2f}, highest {max(pairs)[1]}, lowest {min(pairs)[1]}.")
    out.print(found["scored"])


def print_comparison(found: dict[str, Any], page: Path) -> None:
    """Differences with 95 % intervals, and the settings that differ."""
    span = f"{found['sessions']} sessions from {found['first']} to {found['last']}"
    title = f"{found['block']} block, {span}, net of costs"
    out.print(_table(title, SIDE_COLUMNS, side_rows(found), SIDE_COLUMNS[1:]))
    if found["settings"]:
        sides = ("setting", *(side["label"] for side in found["sides"]))
        out.print(_table("Settings that differ", sides, found["settings"]))
    out.print("An interval that holds 0 (for volatility, 1) is no evidence of a difference.")
    out.print(f"Curves: {page}")


def print_leaderboard(assets: Assets) -> None:
    made = assets["leaderboard"]
    with Warehouse.from_settings(Settings.from_env()).connect() as connection:
        rows = [row for row in leaderboard_rows(connection, made["checkpoint"]) if row["block"] == "test"]
    span = f"{rows[0]['start_date']} to {rows[0]['end_date']}" if rows else "no sessions"
    shown = cells(rows, BENCHMARK, columns_of(*_LEADERBOARD))
    names = [*_LEADERBOARD.values()]
    out.print()
    out.print(_table(f"Leaderboard, test block {span}, net of costs", names, shown, names[1:]))
    if made.get("traded"):
        out.print(made["traded"])
    out.print(made["verdict"])
    if made.get("acting"):
        out.print(made["acting"])
    out.print(f"Report: {made['path']}")


def print_audit(findings: Sequence[tuple[str, str, str]]) -> None:
    """The tests of an audit, their results and what was found."""
    words = {"passed": "ok", "failed": "FAILED"}
    rows = [(words.get(status, status), test, found) for test, status, found in findings]
    out.print(_table("Audit", ("", "test", "finding"), rows))
    without = [f"{test} ({status})" for test, status, _ in findings if status not in words]
    if all(status == "passed" for _, status, _ in findings):
        out.print("All tests passed.")
    elif without:
        out.print(f"No verdict: {', '.join(without)}")


def print_reproduction(report: Reproduction) -> None:
    out.print(f"{report.checkpoint} was rebuilt as {report.rebuilt}")
    for line in report.differences or ("equal, bit by bit",):
        out.print(f"  {line}")
    for line in report.surroundings:
        out.print(f"  not as it was: {line}")


def print_findings(findings: Sequence[DoctorFinding]) -> None:
    rows = [("ok" if one.good else "--", one.what, one.found, one.way_out) for one in findings]
    out.print(_table(None, ("", "what", "found", "way out"), rows))


def print_release(assets: Assets) -> None:
    champion, release = assets["champion"], assets["hub_release"]
    out.print(f"Champion: {champion['champion'] or 'none'} ({champion['verdict']}: {champion['reasons']})")
    out.print(f"Release: {release['outcome']}")


def read_decision(assets: Assets) -> dict[str, Any]:
    made = assets["daily_decision"]
    if "path" not in made:
        raise FinJEPAError(
            "there is no champion yet, so nothing is decided; run `finjepa publish`, or name a --checkpoint"
        )
    return read_json(Path(made["path"]))


def print_decision(decision: dict[str, Any]) -> None:
    """What is held first, cash included; between two decisions what is held at that close and the date of the next one."""
    out.print()
    if decision.get("same_return"):
        out.print(SAME_RETURN)
    holding = decision.get("hold", False)
    if holding:
        why, after = decision["hold_reason"], decision["next_decision"]
        out.print(f"Hold at the close of {decision['date']}: {why}; next decision on {after}.")
    out.print(_holdings_table(decision, holding))
    if decision.get("traded"):
        out.print(f"Traded: {decision['traded']}.")
    out.print(
        f"expected return {100 * decision['expected_return']:.2f} %, volatility {100 * decision['expected_volatility']:.2f} %"
        " a year; by the model's own account, which is no evidence of skill",
    )
    if decision.get("made_afterwards") and decision["book"] == "champion":
        out.print("The decision was made after a later close was known, for a run that was missed.")
    changes = "; ".join(decision["changes"])
    since = decision["previous_date"]
    out.print(changes if holding or since is None else f"What changed since {since}: {changes}")
    if decision.get("next_decision") and not holding:
        out.print(f"Next decision on {decision['next_decision']}.")


def _holdings_table(decision: dict[str, Any], holding: bool) -> Table:
    """Positions after signals and hedge, and cash; shares of wealth."""
    planner, hedge = decision["planner"], "on" if decision["hedge"] else "off"
    when = f"held at the close of {decision['date']}" if holding else "to hold after the next close"
    of = f", decision of {decision['decided']}" if holding else f", decision at the close of {decision['date']}"
    order = 1 if holding else -1  # what is held comes first, or what is wanted
    columns = ("held now", "wanted" if holding else "to hold")[::order]
    sides = (decision["held"], decision["positions"])[::order]
    names = sorted({*sides[0], *sides[1]}, key=lambda name: (-abs(sides[0].get(name, 0.0)), name))
    shares = [(name, *(side.get(name, 0.0) for side in sides)) for name in names]
    shown = [row for row in shares if max(map(abs, row[1:])) >= 0.0005]
    shown.append(("cash", *(decision["held_cash"], decision["cash"])[::order]))
    rows = [(name, *(f"{100 * share:.1f} %" for share in row)) for name, *row in shown]
    if abs(decision["held_hedge"]) >= 0.0005:
        rows.append(("hedge (market proxy)", *(f"{100 * decision['held_hedge']:.1f} %", hedge)[::order]))
    return _table(f"{planner}: {when}{of}, hedge {hedge}", ("asset", *columns), rows, columns)


# Exports


def export_path(text: str | None) -> Path | None:
    """Where to write; raises where that ends neither in .csv nor in .parquet, or its folder is not there."""
    path = Path(text).expanduser() if text else None
    if path is not None and path.suffix not in (".csv", ".parquet"):
        raise FinJEPAError(f"an export ends in .csv or .parquet, not {path.name}")
    if path is not None and not path.parent.is_dir():
        raise FinJEPAError(f"there is no folder {path.parent} to export to")
    return path


def export_backtest(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str, path: Path) -> list[Path]:
    """Write the daily returns of every strategy of a backtest, and beside them its decisions, as `<name>-decisions`."""
    beside = path.with_name(f"{path.stem}-decisions{path.suffix}")
    for query, file in ((_RETURNS, path), (_DECISIONS, beside)):
        _write(con.sql(query, params=[checkpoint, data_version]).pl(), file)
    return [path, beside]


def export_decision(decision: Mapping[str, Any], path: Path) -> None:
    """Write a decision, as its JSON file has it, a row for each asset that is held or wanted."""
    names = list(dict.fromkeys((*decision["assets"], *decision["weights"], *decision["held"])))
    columns = {"weight": "weights", "signal": "signals", "position": "positions", "held": "held"}
    values = {name: [decision[of].get(asset, 0) for asset in names] for name, of in columns.items()}
    constants = {name: [decision[name]] * len(names) for name in ("date", "checkpoint", "planner", "hedge")}
    _write(pl.DataFrame({**constants, "asset": names, **values}), path)


def _write(frame: pl.DataFrame, path: Path) -> None:
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
