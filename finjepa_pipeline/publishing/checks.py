"""What the champion gate asks of a challenger before any comparison: is it whole, alive, fairly judged, and on sound data.

A check that cannot be evaluated is not known to hold, and blocks like one that does not. One that compares returns with luck
and had not enough data for a verdict does not block: a short history would otherwise never have a champion. It is not called
passed either.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_pipeline.backtest.charges import BEFORE_THE_GATE, EXACT, NOT_ENOUGH_DATA, NOT_RUN, TESTS, verdict_of
from finjepa_pipeline.backtest.claim import DSR_GOAL, TOO_SHORT
from finjepa_pipeline.sql_files import sql

PBO_LIMIT = 0.2
_RANKS = ("effective_rank_assets", "effective_rank_market")


@dataclass(frozen=True)
class Finding:
    """One thing that the gate looked at.

    Attributes:
        passed: None where it could not be said.
        blocking: whether it forbids a promotion unless it passed.
    """

    name: str
    passed: bool | None
    detail: str
    blocking: bool = True

    @property
    def forbids(self) -> bool:
        return self.blocking and self.passed is not True

    @property
    def verdict(self) -> str:
        """`passed`, `failed`, `not enough data` or `not run`."""
        return verdict_of(self.passed, self.detail)


def summary(found: Sequence[Finding]) -> str:
    """All checks in one line: that they are all green is only said where all were run and passed."""
    passed = [one for one in found if one.passed]
    if len(passed) == len(found):
        return f"all {len(found)} checks passed"
    others = [
        f"{verdict}: {', '.join(one.name for one in found if one.verdict == verdict)}"
        for verdict in ("failed", NOT_ENOUGH_DATA, NOT_RUN)
        if any(one.verdict == verdict for one in found)
    ]
    return f"no check forbids it; {len(passed)} of {len(found)} passed ({'; '.join(others)})"


def findings(
    con: duckdb.DuckDBPyConnection, checkpoint: Path, data_version: str, strategy: str | None
) -> tuple[Finding, ...]:
    """Every check of a challenger.

    Args:
        checkpoint: its folder.
        strategy: the planner that acts for it; None when it has no backtest on the validation block.
    """
    return (
        _whole(checkpoint),
        _alive(checkpoint),
        _data(con, data_version),
        _baseline(con, checkpoint, data_version, strategy),
        *_audited(con, checkpoint, strategy),
        *_corrected(con, checkpoint, data_version, strategy),
    )


def _whole(checkpoint: Path) -> Finding:
    missing = [name for name in CHECKPOINT_FILES if name != "README.md" and not (checkpoint / name).is_file()]
    return Finding("files", not missing, f"the checkpoint has no {', '.join(missing)}" if missing else "all are there")


def _alive(checkpoint: Path) -> Finding:
    try:
        diagnostics = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))["diagnostics"]
        collapsed = bool(diagnostics["collapsed"])
    except (OSError, ValueError, KeyError):
        return Finding("collapse", None, "metrics.json has no collapse diagnostics")
    ranks = ", ".join(f"{name} {diagnostics[name]:.1f}" for name in _RANKS if diagnostics.get(name)) or "no ranks given"
    return Finding("collapse", not collapsed, f"the latents have {'' if collapsed else 'not '}collapsed ({ranks})")


def _data(con: duckdb.DuckDBPyConnection, data_version: str) -> Finding:
    """The price contract, as it was held when these prices came in."""
    try:
        row = con.execute(sql("contract_outcomes"), {"data_version": data_version}).fetchone()
    except duckdb.CatalogException:
        row = None
    if row is None:
        return Finding("data", None, f"nothing is known of the prices {data_version}")
    outcomes = json.loads(row[0])
    broken = [o["column"] for o in outcomes if o["severity"] == "critical" and not o["success"]]
    warned = [o["column"] for o in outcomes if o["severity"] == "warning" and not o["success"]]
    if broken:
        return Finding("data", False, f"the price contract is broken: {', '.join(broken)}")
    warnings = f", with warnings on {', '.join(warned)}" if warned else ""
    return Finding("data", True, f"the price contract holds ({len(outcomes)} expectations{warnings})")


def _baseline(con: duckdb.DuckDBPyConnection, checkpoint: Path, data_version: str, strategy: str | None) -> Finding:
    """1/N was judged in the same court, and the planner is not known to be worse."""
    from finjepa_pipeline.backtest.strategies import BENCHMARK

    if strategy is None:
        return Finding("baseline", None, "it has no backtest on the validation block")
    key = {"checkpoint": checkpoint.name, "data_version": data_version, "strategy": strategy, "benchmark": BENCHMARK}
    try:
        rows = {row[0]: row[1:] for row in con.execute(sql("validation_standing"), key).fetchall()}
    except duckdb.CatalogException:
        rows = {}
    if strategy not in rows or BENCHMARK not in rows:
        return Finding("baseline", None, f"the leaderboard lacks {strategy} or {BENCHMARK} on the validation block")
    if rows[strategy][0] != rows[BENCHMARK][0]:
        return Finding("baseline", None, f"{strategy} and {BENCHMARK} were judged under different conditions")
    _, excess, low, high, days = rows[strategy]
    if excess is None or low is None:
        why = f"{strategy} never moved" if excess is None else f"{TOO_SHORT}, and it has {days}"
        return Finding("baseline", None, f"{NOT_ENOUGH_DATA}: {why}", blocking=False)
    interval = f"Sharpe ratio minus that of 1/N {excess:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, {days} sessions"
    worse = high < 0
    return Finding(
        "baseline", not worse, f"{strategy} is {'worse' if worse else 'not known to be worse'} than 1/N ({interval})"
    )


def audit_of(
    con: duckdb.DuckDBPyConnection, checkpoint: str, strategy: str | None
) -> dict[str, tuple[bool | None, str]]:
    """The standing verdict of each test that was ever run of a checkpoint's planner: whether it passed, None without a verdict,
    and what was found."""
    try:
        rows = con.execute(sql("audit_of_checkpoint"), {"checkpoint": checkpoint, "strategy": strategy}).fetchall()
    except duckdb.CatalogException:
        rows = []
    return {test: (passed, text) for test, passed, text in rows}


def _audited(con: duckdb.DuckDBPyConnection, checkpoint: Path, strategy: str | None) -> tuple[Finding, ...]:
    """The leak, null, planted, delay and permutation tests. Those of `BEFORE_THE_GATE` must have been run; one that failed
    forbids a promotion, whoever asked for it, and so does one of the exact ones that had not enough data."""
    held = audit_of(con, checkpoint.name, strategy)
    found = []
    for test in TESTS:
        command = "publish" if test in BEFORE_THE_GATE else "audit"
        passed, text = held.get(test, (None, f"{NOT_RUN}; `finjepa {command}` runs it"))
        undecided = verdict_of(passed, text) == NOT_ENOUGH_DATA and test not in EXACT
        blocking = passed is False or (test in BEFORE_THE_GATE and not undecided)
        found.append(Finding(f"audit: {test}", passed, text, blocking))
    return tuple(found)


def _corrected(
    con: duckdb.DuckDBPyConnection, checkpoint: Path, data_version: str, strategy: str | None
) -> tuple[Finding, ...]:
    """What is left of the planner's record after all that was ever tried. It decides what may be said of a champion, on the
    card and above the report, and not who is champion: a gate on it would trust the first model for ever."""
    try:
        key = {"checkpoint": checkpoint.name, "data_version": data_version, "strategy": strategy}
        row = con.execute(sql("corrected_standing"), key).fetchone()
    except duckdb.CatalogException:
        row = None
    if row is None:
        unknown = "the leaderboard has no inference for the validation block"
        return tuple(Finding(name, None, unknown, blocking=False) for name in ("deflated Sharpe ratio", "overfitting"))
    dsr, pbo, trials, effective, spa = row
    of = f"of {trials} configurations ever tried ({effective} different bets)"
    deflated = (
        Finding("deflated Sharpe ratio", None, f"{NOT_ENOUGH_DATA}: {strategy} never differed from 1/N", blocking=False)
        if dsr is None
        else Finding(
            "deflated Sharpe ratio",
            dsr >= DSR_GOAL,
            f"the probability that the return of {strategy} over 1/N is better than that of the luckiest {of} without skill is "
            f"{dsr:.2f} ({DSR_GOAL:g} is convincing)",
            blocking=False,
        )
    )
    tested = "" if spa is None else f"; nobody beats 1/N: p = {spa:.2f} (SPA)"
    overfitting = (
        Finding("overfitting", None, f"{NOT_ENOUGH_DATA}: the table is too small for PBO{tested}", blocking=False)
        if pbo is None
        else Finding(
            "overfitting",
            pbo <= PBO_LIMIT,
            f"the probability of backtest overfitting is {pbo:.2f} (up to {PBO_LIMIT:g} is convincing){tested}",
            blocking=False,
        )
    )
    return deflated, overfitting
