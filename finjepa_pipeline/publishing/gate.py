"""The champion gate: whether the newest checkpoint replaces the trusted one, and everything that it looks at.

A challenger must be whole, alive, fairly backtested and free of leakage, on sound data. A check that cannot be evaluated blocks
like one that failed; one that compares with luck and had not enough data does not, or a short history never had a champion.

Forecasts decide, by the rule of `finjepa_model.training.forecast_comparison`, on validation sessions, which no model that is
compared was trained on. A challenger whose forecasts are worse beyond chance than those of the analytic baseline (fixed HAR
volatility, correlations half of one factor and half of the sample) is refused. One whose forecasts are better beyond chance than
the champion's, on the sessions that are in the validation blocks of both, replaces it; otherwise the champion stays. One whose
forecasts have drifted by its live record gives way to every challenger that is not worse beyond chance. What planners earned
decides what the card may say, and not who is champion.
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import duckdb

from finjepa_model import FinJEPA
from finjepa_model.checkpoint import CHECKPOINT_FILES, read_config
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_blocks, checkpoint_splits
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_model.live_record.chain import FOLDER as LIVE_RECORD
from finjepa_model.live_record.drift import checkpoint_drift
from finjepa_model.training.forecast_comparison import (
    LEAST_DATES,
    ForecastComparison,
    ForecastLosses,
    compare_forecasts,
    forecast_losses,
)
from finjepa_model.training.risk_fit import RiskBlock
from finjepa_model.training.textbook import analytic_distribution
from finjepa_pipeline.backtest.audit import audit_of
from finjepa_pipeline.backtest.leaderboard import Acting, acting_planner
from finjepa_pipeline.backtest.metrics import BENCHMARK, SHORTEST
from finjepa_pipeline.backtest.results import BEFORE_THE_GATE, EXACT, NOT_ENOUGH_DATA, NOT_RUN, TESTS, status_of
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import checkpoint_here
from finjepa_pipeline.warehouse import Warehouse, insert, now, transaction

_RANKS = ("effective_rank_assets", "effective_rank_market")

Outcome = Literal["promoted", "kept", "refused"]


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
        return status_of(self.passed, self.detail)


@dataclass(frozen=True)
class Champion:
    """A checkpoint with the planner that acts for it."""

    checkpoint: str
    strategy: str


@dataclass(frozen=True)
class Verdict:
    """What the gate decided about a challenger.

    Attributes:
        challenger: checkpoint that was judged.
        champion: checkpoint that is trusted after the verdict; None when there is none yet.
        verdict: `kept`: the champion stays; `refused`: a check forbids a promotion.
        t_baseline, t_champion: t-value of the challenger's losses minus those of the analytic baseline and of the champion;
            negative where its forecasts are better, None where there was nothing to compare.
        findings: every check, whatever came of it.
        new: False when the same verdict stands in the table already.
    """

    challenger: str
    champion: str | None
    verdict: Outcome
    reasons: tuple[str, ...]
    strategy: str | None = None
    t_baseline: float | None = None
    t_champion: float | None = None
    findings: tuple[Finding, ...] = ()
    new: bool = True


def current_champion(con: duckdb.DuckDBPyConnection, until: datetime | None = None) -> Champion | None:
    """The champion of now, or of a moment in UTC."""
    rows = con.execute(
        "SELECT checkpoint, strategy FROM main.champions "
        "WHERE verdict = 'promoted' AND ($until::TIMESTAMP IS NULL OR created_at <= $until::TIMESTAMP) "
        "ORDER BY created_at DESC, rowid DESC LIMIT 1",
        {"until": until},
    ).fetchall()
    return Champion(*rows[0]) if rows else None


def champion_folder(settings: Settings, champion: Champion) -> Path:
    """Raises where it is gone."""
    folder = checkpoint_here(settings, champion.checkpoint)
    if folder is None:
        raise FinJEPAError(f"the champion {champion.checkpoint} is gone from {settings.checkpoints}; train it again")
    return folder


def judge(settings: Settings, warehouse: Warehouse, checkpoint: Path, panel: Panel, write: bool = True) -> Verdict:
    """Judge a challenger, and store the verdict in `champions` and every reason in `champion_checks`, unless they stand there.
    The champion forecasts on the same prices, those of the panel that the challenger reads."""
    data_version, challenger = str(panel.manifest["data_version"]), checkpoint.name
    with warehouse.connect() as con:
        champion, known = current_champion(con), known_findings(con, challenger)
        acting = acting_planner(con, challenger, data_version, settings.planner)
        if champion is not None and champion.checkpoint == challenger and acting.strategy in (None, champion.strategy):
            reason = ("it is the champion already",)
            return Verdict(challenger, challenger, "kept", reason, champion.strategy, findings=known, new=False)
        found = findings(con, checkpoint, data_version, acting)
    # with the warehouse closed: others may use it while forecasts are made
    verdict = _verdict(settings, checkpoint, panel, champion, acting.strategy, found)
    key = {"checkpoint": challenger, "data_version": data_version, "incumbent": champion and champion.checkpoint}
    outcome = {"verdict": verdict.verdict, "reasons": "\n".join(verdict.reasons)}
    with warehouse.connect() as con:
        stored = con.execute(
            "SELECT verdict, reasons FROM main.champions WHERE checkpoint = $checkpoint AND data_version = $data_version "
            "AND incumbent IS NOT DISTINCT FROM $incumbent ORDER BY created_at DESC, rowid DESC LIMIT 1",
            key,
        ).fetchone()
        if stored == tuple(outcome.values()):
            return replace(verdict, new=False)
        if write:
            key["created_at"] = now()
            numbers = {name: [getattr(verdict, name)] for name in ("strategy", "t_baseline", "t_champion")}
            columns = ("name", "passed", "blocking", "detail")
            with transaction(con):
                insert(con, "champions", key | outcome, numbers)
                rows = {name: [getattr(finding, name) for finding in verdict.findings] for name in columns}
                insert(con, "champion_checks", key, rows)
    return verdict


def known_findings(con: duckdb.DuckDBPyConnection, checkpoint: str) -> tuple[Finding, ...]:
    """What the gate found when it last judged a checkpoint."""
    rows = con.execute(
        "SELECT name, passed, detail, blocking FROM main.champion_checks WHERE checkpoint = $checkpoint AND created_at = "
        "(SELECT max(created_at) FROM main.champion_checks WHERE checkpoint = $checkpoint) ORDER BY rowid",
        {"checkpoint": checkpoint},
    ).fetchall()
    return tuple(Finding(*row) for row in rows)


def _verdict(
    settings: Settings,
    checkpoint: Path,
    panel: Panel,
    champion: Champion | None,
    strategy: str | None,
    found: tuple[Finding, ...],
) -> Verdict:
    incumbent, challenger = champion and champion.checkpoint, checkpoint.name
    text, compared = against_baseline(checkpoint, panel)
    t_baseline, passed = compared and compared.t_value, None if compared is None else not compared.worse
    found = (*found, Finding("forecasts", passed, text, blocking=passed is not None))
    drifted, record = checkpoint_drift(settings.home / LIVE_RECORD, challenger)
    calibrated = None if drifted is None else not drifted
    found = (*found, Finding("live record", calibrated, record, blocking=drifted is not None))

    def say(word: Outcome, *reasons: str, t_champion: float | None = None) -> Verdict:
        holder = challenger if word == "promoted" else incumbent
        return Verdict(challenger, holder, word, reasons, strategy, t_baseline, t_champion, found)

    forbidding = [finding for finding in found if finding.forbids]
    if forbidding or strategy is None:
        return say("refused", *(f"{finding.name}: {finding.detail}" for finding in forbidding))
    if champion is None:
        return say("promoted", "there was no champion")
    if incumbent == challenger:
        return say("promoted", f"from now on {strategy} acts for the champion, and {champion.strategy} no longer")
    folder = checkpoint.with_name(champion.checkpoint)
    unusable = why_unusable(folder)
    if unusable is not None:
        return say("promoted", f"the champion {incumbent} can no longer act: {unusable}")
    text, compared = against_champion(folder, checkpoint, panel)
    if compared is None:
        return say("kept", text)
    if compared.better:
        return say("promoted", text, t_champion=compared.t_value)
    drifted, record = checkpoint_drift(settings.home / LIVE_RECORD, champion.checkpoint)
    if drifted and not compared.worse:
        why = f"the forecasts of the champion {incumbent} have drifted: {record}"
        return say("promoted", why, text, t_champion=compared.t_value)
    return say("kept", text, t_champion=compared.t_value)


def why_unusable(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot act any more, as after an upgrade or when it was deleted; None where it can."""
    if not checkpoint.is_dir():
        return "its folder is gone"
    try:
        FinJEPA.from_pretrained(checkpoint)
        checkpoint_blocks(checkpoint)
    except FinJEPAError as error:
        return str(error)
    return None


# Checks of a challenger


def findings(
    con: duckdb.DuckDBPyConnection, checkpoint: Path, data_version: str, acting: Acting
) -> tuple[Finding, ...]:
    """Every check of a challenger but that of its forecasts."""
    key = {"checkpoint": checkpoint.name, "data_version": data_version}
    return (
        _files(checkpoint),
        _collapse(checkpoint),
        _data(con, data_version),
        _backtest(con, key, acting),
        *_audited(con, checkpoint.name, acting.strategy),
    )


def _files(checkpoint: Path) -> Finding:
    missing = [name for name in CHECKPOINT_FILES if name != "README.md" and not (checkpoint / name).is_file()]
    return Finding("files", not missing, f"the checkpoint has no {', '.join(missing)}" if missing else "all are there")


def _collapse(checkpoint: Path) -> Finding:
    try:
        diagnostics = read_json(checkpoint / "metrics.json")["diagnostics"]
        collapsed = bool(diagnostics["collapsed"])
    except (OSError, ValueError, KeyError):
        return Finding("collapse", None, "metrics.json has no collapse diagnostics")
    ranks = ", ".join(f"{name} {diagnostics[name]:.1f}" for name in _RANKS if diagnostics.get(name)) or "no ranks given"
    return Finding("collapse", not collapsed, f"the latents have {'' if collapsed else 'not '}collapsed ({ranks})")


def _data(con: duckdb.DuckDBPyConnection, data_version: str) -> Finding:
    """The price contract, as it was checked when these prices came in."""
    query = "SELECT outcomes_json FROM main.revisions WHERE data_version = $data_version ORDER BY revision DESC LIMIT 1"
    rows = con.execute(query, {"data_version": data_version}).fetchall()
    if not rows:
        return Finding("data", None, f"nothing is known of the prices {data_version}")
    outcomes = json.loads(rows[0][0])
    broken, warned = (
        ", ".join(o["column"] for o in outcomes if o["severity"] == severity and not o["success"])
        for severity in ("critical", "warning")
    )
    if broken:
        return Finding("data", False, f"the price contract is broken: {broken}")
    warnings = f", with warnings on {warned}" if warned else ""
    return Finding("data", True, f"the price contract holds ({len(outcomes)} expectations{warnings})")


def _backtest(con: duckdb.DuckDBPyConnection, key: dict[str, str], acting: Acting) -> Finding:
    """The planner that acts and 1/N were backtested under the same conditions."""
    strategy = acting.strategy
    if strategy is None:
        return Finding("backtest", None, acting.text)
    query = (
        "SELECT strategy, setup FROM main.leaderboard WHERE checkpoint = $checkpoint AND data_version = $data_version "
        "AND block = 'validation' AND strategy IN ($strategy, $benchmark)"
    )
    setups = dict(con.execute(query, key | {"strategy": strategy, "benchmark": BENCHMARK}).fetchall())
    if len(setups) < 2 or len(set(setups.values())) > 1:
        return Finding("backtest", None, f"{strategy} and {BENCHMARK} were not both backtested alike on validation")
    return Finding("backtest", True, f"{acting.text} It and {BENCHMARK} were backtested alike.")


def _audited(con: duckdb.DuckDBPyConnection, checkpoint: str, strategy: str | None) -> list[Finding]:
    """The audit's tests. Those of `BEFORE_THE_GATE` must have been run; one that failed forbids a promotion, whoever asked for
    it, and so does one of the exact ones that had not enough data."""
    if strategy is None:
        return []  # it was not backtested, which is a finding of its own
    known = audit_of(con, checkpoint, strategy)
    found = []
    for test in TESTS:
        command = "publish" if test in BEFORE_THE_GATE else "audit"
        passed, text = known.get(test, (None, f"{NOT_RUN}; `finjepa {command}` runs it"))
        undecided = status_of(passed, text) == NOT_ENOUGH_DATA and test not in EXACT
        blocking = passed is False or (test in BEFORE_THE_GATE and not undecided)
        found.append(Finding(f"audit: {test}", passed, text, blocking))
    return found


# Forecasts of the challenger beside those of the champion and of the analytic baseline, on validation sessions


# In words, and of the challenger's losses minus the other's; None where there is too little to compare.
Match = tuple[str, ForecastComparison | None]


def against_baseline(checkpoint: Path, panel: Panel) -> Match:
    """On the checkpoint's own validation block."""
    try:
        sessions = checkpoint_splits(checkpoint, panel).validation
        ours = _losses(checkpoint, panel, sessions)
        baseline = forecast_losses(analytic_distribution, read_config(checkpoint), RiskBlock(panel, *sessions))
    except FinJEPAError as error:
        return f"{NOT_ENOUGH_DATA}: {error}", None
    compared = compare_forecasts(ours, baseline)
    if compared.dates < LEAST_DATES:
        length = sessions[1] - sessions[0]
        return f"{NOT_ENOUGH_DATA}: the validation block has {length} sessions, {SHORTEST} are needed", None
    words = "worse than" if compared.worse else "better than" if compared.better else "not known to be worse than"
    beside = "fixed HAR volatility with correlations of one factor and the sample"
    return f"{words} {beside} ({_in_words(compared, ours, baseline)})", compared


def against_champion(champion: Path, checkpoint: Path, panel: Panel) -> Match:
    """On the sessions that are in the validation blocks of both: neither was trained on them."""
    spans = [checkpoint_splits(folder, panel).validation for folder in (champion, checkpoint)]
    sessions = max(first for first, _ in spans), min(stop for _, stop in spans)
    if sessions[1] - sessions[0] < SHORTEST:
        return (
            f"only {max(sessions[1] - sessions[0], 0)} validation sessions in common with the champion {champion.name}; "
            f"{SHORTEST} are needed: train with training.train_share and training.validation_share that put the validation "
            "block on the champion's"
        ), None
    try:
        theirs, ours = _losses(champion, panel, sessions), _losses(checkpoint, panel, sessions)
    except FinJEPAError as error:
        return f"its forecasts cannot be compared with those of the champion {champion.name}: {error}", None
    compared = compare_forecasts(ours, theirs)
    if compared.dates < LEAST_DATES:
        return (
            f"only {compared.dates} dates in common with the champion {champion.name}; {LEAST_DATES} are needed",
            None,
        )
    words = "better than" if compared.better else "worse than" if compared.worse else "no better, beyond chance, than"
    numbers = _in_words(compared, ours, theirs)
    return f"its forecasts are {words} those of the champion {champion.name} ({numbers})", compared


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
