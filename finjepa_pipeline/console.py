"""What the commands say: the results of a run, for a person at a terminal. Results go to `out`, progress to `err`."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.settings import Settings

# lines are left to the terminal to wrap, so that a path can be copied and a pipe sees whole lines
# what is printed is text, not markup: paths have brackets and colons
out, err = (
    Console(stderr=error, soft_wrap=True, highlight=False, markup=False, emoji=False) for error in (False, True)
)
out.width = max(out.width, 100)

# An asset's name to the metadata of what a run made of it.
Assets = dict[str, Any]


def say_prices(assets: Assets) -> None:
    raw, prices, bad = (assets.get(name, {}) for name in ("raw_prices", "prices", "quarantined_prices"))
    new = raw.get("new_rows", 0)
    out.print(
        f"\nPrices: {prices.get('dagster/row_count', 0):,} rows of {raw.get('feed')} ({raw.get('dates')}), "
        f"{bad.get('dagster/row_count', 0):,} in quarantine; " + (f"{new:,} new rows" if new else "no new row"),
    )


def say_sweep(made: dict[str, Any]) -> None:
    table = Table(title="Sweep, best first", title_justify="left", box=None)
    for name in ("training", "validation", "steps", "checkpoint"):
        table.add_column(name, justify="right" if name in ("validation", "steps") else "left")
    for row in made["rows"]:
        table.add_row(*row)
    out.print(table)


def say_cleaned(plan: Any, dry_run: bool) -> None:
    table = Table("", "removed" if not dry_run else "would go", "MB", "kept", title_justify="left", box=None)
    for kind in sorted({*plan.kept, *(one.kind for one in plan.removals)}):
        gone = [one for one in plan.removals if one.kind == kind]
        kept = ", ".join(f"{count} ({why})" for why, count in plan.kept.get(kind, {}).items() if count)
        table.add_row(kind, str(len(gone)), f"{sum(one.bytes for one in gone) / 1e6:,.1f}", kept)
    out.print(table)
    total = sum(one.bytes for one in plan.removals) / 1e6
    out.print(f"{total:,.1f} MB {'would be freed; nothing was removed' if dry_run else 'freed'}")


def say_quality(assets: Assets) -> None:
    from finjepa_pipeline.prices.quality import quality_summary
    from finjepa_pipeline.prices.store import require_shown
    from finjepa_pipeline.warehouse import Warehouse

    with Warehouse.from_settings(Settings.from_env()).connect() as connection:
        require_shown(connection, assets["prices"]["feed"], assets["prices"]["data_version"])
        findings = quality_summary(connection)
    if not findings:
        out.print("Quality: no rule was broken")
        return
    table = Table(title="Quality", title_justify="left", box=None)
    for name in ("rule", "severity", "rows", "allowed", "examples"):
        table.add_column(name, justify="right" if name in ("rows", "allowed") else "left")
    for finding in findings:
        over = "yellow" if finding.allowed is not None and finding.rows > finding.allowed else None
        counts = f"{finding.rows:,}", "any" if finding.allowed is None else f"{finding.allowed:,}"
        table.add_row(finding.rule, finding.severity, *counts, ", ".join(finding.examples), style=over)
    out.print(table)


def say_model(assets: Assets) -> None:
    made, seen = assets["world_model"], assets["world_model_evaluation"]
    how = "trained before, nothing to retrain" if made["reused"] else f"trained in {made['seconds']:.0f} s"
    out.print(
        f"Checkpoint: {made['checkpoint']} ({how}; validation loss {made['validation_loss']:.3f}, effective rank of the "
        f"latents {seen['effective_rank_assets']:.1f})\n  {made['path']}",
    )


def say_leaderboard(assets: Assets) -> None:
    from finjepa_pipeline.backtest.leaderboard import leaderboard_rows
    from finjepa_pipeline.backtest.strategies import BENCHMARK
    from finjepa_pipeline.warehouse import Warehouse

    made = assets["leaderboard"]
    with Warehouse.from_settings(Settings.from_env()).connect() as connection:
        rows = [row for row in leaderboard_rows(connection, made["checkpoint"]) if row["block"] == "test"]
    span = f"{rows[0]['start_date']} to {rows[0]['end_date']}" if rows else "no sessions"
    table = Table(title=f"Leaderboard, test block {span}, net of costs", title_justify="left", box=None)
    for name in ("strategy", "Sharpe", "minus 1/N (95 %)", "DSR", "return", "volatility", "drawdown", "turnover"):
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    for row in rows:
        compared = row["excess_sharpe"] is not None and row["strategy"] != BENCHMARK
        table.add_row(
            row["strategy"],
            "–" if row["sharpe"] is None else f"{row['sharpe']:.2f}",
            _difference(row) if compared else "",
            "" if row["dsr"] is None else f"{row['dsr']:.2f}",
            *(f"{100 * row[name]:.1f} %" for name in ("annual_return", "annual_volatility", "max_drawdown")),
            f"{row['annual_turnover']:.1f}",
        )
    out.print()
    out.print(table)
    if made.get("traded"):
        out.print(made["traded"])
    out.print(made["verdict"])
    out.print(f"Report: {made['report']}")


def _difference(row: dict[str, Any]) -> str:
    if row["excess_low"] is None:
        return f"{row['excess_sharpe']:+.2f} (too short)"
    return f"{row['excess_sharpe']:+.2f} ({row['excess_low']:+.2f}, {row['excess_high']:+.2f})"


def say_release(assets: Assets) -> None:
    champion, release = assets["champion"], assets["hub_release"]
    out.print(
        f"Champion: {champion['champion'] or 'none'} ({champion['verdict']}: {champion['reasons']})", highlight=False
    )
    out.print(f"Release: {release['outcome']}")


def read_decision(assets: Assets) -> dict[str, Any]:
    made = assets["daily_decision"]
    if "path" not in made:
        raise FinJEPAError(
            "there is no champion yet, so nothing is decided; run `finjepa publish`, or name a --checkpoint"
        )
    return json.loads(Path(made["path"]).read_text(encoding="utf-8"))


def say_decision(decision: dict[str, Any]) -> None:
    hedge = "on" if decision["hedge"] else "off"
    words = {1: "long", 0: "flat", -1: "short"}
    table = Table(title=f"Decision at the close of {decision['date']}, hedge {hedge}", title_justify="left", box=None)
    for name in ("asset", "weight", "signal"):
        table.add_column(name, justify="right" if name == "weight" else "left")
    for asset, weight in sorted(decision["weights"].items(), key=lambda item: -item[1]):
        if weight >= 0.005:
            table.add_row(asset, f"{100 * weight:.1f} %", words[decision["signals"][asset]])
    out.print()
    out.print(table)
    out.print(
        f"expected return {100 * decision['expected_return']:.2f} %, volatility {100 * decision['expected_volatility']:.2f} %"
        " a year; by the model's own account, which is no evidence of skill",
    )
    since = f"since {decision['previous_date']}" if decision["previous_date"] else "to begin with"
    out.print(f"What changed {since}: {'; '.join(decision['changes'])}", highlight=False, markup=False)
