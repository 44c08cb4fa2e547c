"""The champion gate: whether the checkpoint of the day replaces the one that is trusted.

Both are compared on the same validation sessions by a paired bootstrap of daily returns net of costs. A probability above
one half is enough to replace; it is not enough to say "better", and the model card does not say so.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np

from finjepa_model.data.batches import lineage_of, stored_blocks
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.metrics import SHORTEST
from finjepa_pipeline.backtest.store import best_planner, now, transaction
from finjepa_pipeline.publishing.checks import Finding, findings, summary
from finjepa_pipeline.sql_files import sql

REPLACE_ABOVE = 0.5  # probability
BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """What the gate decided about a challenger.

    Attributes:
        challenger: checkpoint that was judged.
        champion: checkpoint that is trusted after the verdict; None when there is none yet.
        verdict: `promoted`, `kept` (the champion stays) or `refused` (a check is red).
        probability_better: share of bootstrap samples in which the challenger's Sharpe ratio is the higher one.
        findings: every check, whatever came of it.
        new: False when the same verdict stands in the table already.
    """

    challenger: str
    champion: str | None
    verdict: Literal["promoted", "kept", "refused"]
    reasons: tuple[str, ...]
    strategy: str | None = None
    probability_better: float | None = None
    common_days: int | None = None
    findings: tuple[Finding, ...] = ()
    new: bool = True

    @property
    def winner(self) -> "Champion | None":
        """The challenger, if it was promoted."""
        return Champion(self.challenger, self.strategy) if self.verdict == "promoted" and self.strategy else None


@dataclass(frozen=True)
class Champion:
    """A checkpoint with the planner that acts for it."""

    checkpoint: str
    strategy: str


def current_champion(con: duckdb.DuckDBPyConnection, until: datetime | None = None) -> Champion | None:
    """The champion of now, or of a moment in UTC."""
    row = con.execute(sql("current_champion"), {"until": until}).fetchone()
    return Champion(*row) if row else None


def champion_since(con: duckdb.DuckDBPyConnection) -> tuple[str, datetime] | None:
    """The champion of now, and the moment of its promotion in UTC."""
    row = con.execute(sql("champion_since")).fetchone()
    return (row[0], row[1]) if row else None


def judge(con: duckdb.DuckDBPyConnection, checkpoint: Path, data_version: str, write: bool = True) -> Verdict:
    """Judge a challenger and store the verdict in `champions` and every reason in `champion_checks`, unless they stand there.

    Args:
        checkpoint: folder of the challenger.
        write: False to hear the verdict only; nothing is stored then.

    Raises:
        FinJEPAError: if no backtest has been stored yet.
    """
    champion = current_champion(con)
    challenger = checkpoint.name
    if champion is not None and champion.checkpoint == challenger:
        known = known_findings(con, challenger)
        reason = ("it is the champion already",)
        return Verdict(challenger, challenger, "kept", reason, champion.strategy, findings=known, new=False)
    verdict = _verdict(con, checkpoint, champion, data_version)
    incumbent = champion.checkpoint if champion else None
    key = {"checkpoint": challenger, "data_version": data_version, "incumbent": incumbent}
    outcome = {"verdict": verdict.verdict, "reasons": "\n".join(verdict.reasons)}
    if con.execute(sql("champion_verdict"), key).fetchone() == tuple(outcome.values()):
        return replace(verdict, new=False)
    if write:
        when = {"created_at": now()}
        numbers = {name: getattr(verdict, name) for name in ("strategy", "probability_better", "common_days")}
        with transaction(con):
            con.execute(sql("add_champion_verdict"), key | outcome | numbers | when)
            for finding in verdict.findings:
                con.execute(sql("add_champion_check"), key | vars(finding) | when)
    return verdict


def known_findings(con: duckdb.DuckDBPyConnection, checkpoint: str) -> tuple[Finding, ...]:
    """What the gate found when it last judged a checkpoint."""
    rows = con.execute(sql("champion_findings"), {"checkpoint": checkpoint}).fetchall()
    return tuple(Finding(name, passed, detail, blocking) for name, passed, blocking, detail in rows)


def _verdict(con: duckdb.DuckDBPyConnection, checkpoint: Path, champion: Champion | None, data_version: str) -> Verdict:
    incumbent, challenger = champion.checkpoint if champion else None, checkpoint.name
    strategy = best_planner(con, challenger, data_version)
    found = findings(con, checkpoint, data_version, strategy)

    def say(word: Literal["promoted", "kept", "refused"], *reasons: str, **numbers: Any) -> Verdict:
        holder = challenger if word == "promoted" else incumbent
        return Verdict(challenger, holder, word, reasons, strategy, findings=found, **numbers)

    red = [finding for finding in found if finding.forbids]
    if red or strategy is None:
        return say("refused", *(f"{finding.name}: {finding.detail}" for finding in red))
    if champion is None:
        return say("promoted", "there was no champion", summary(found))
    unusable = why_unusable(checkpoint.with_name(champion.checkpoint))
    if unusable is not None:
        return say("promoted", f"the champion {incumbent} can no longer act: {unusable}", summary(found))
    champion_T, challenger_T = _paired_returns(con, champion, checkpoint, strategy, data_version)
    days = len(champion_T)
    if days < SHORTEST:
        few = (
            f"only {days} validation sessions in common with the champion {incumbent}; {SHORTEST} are needed: train with "
            "training.train_share and training.validation_share that put the validation block on the champion's"
        )
        return say("kept", few, common_days=days)
    probability, sharpes = probability_better(champion_T, challenger_T)
    reason = (
        f"its Sharpe ratio is above the champion's in {probability:.0%} of the bootstrap samples "
        f"({strategy} {sharpes[1]:.2f}, champion {champion.strategy} {sharpes[0]:.2f}, {days} sessions)"
    )
    numbers = {"probability_better": probability, "common_days": days}
    if probability > REPLACE_ABOVE:
        return say("promoted", reason, summary(found), **numbers)
    return say("kept", reason, **numbers)


def why_unusable(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot act any more, as after an upgrade or when it was deleted; None where it can."""
    from finjepa_model import FinJEPA

    if not checkpoint.is_dir():
        return "its folder is gone"
    try:
        FinJEPA.from_pretrained(checkpoint)
    except FinJEPAError as error:
        return str(error)
    return None


def _paired_returns(
    con: duckdb.DuckDBPyConnection, champion: Champion, checkpoint: Path, strategy: str, data_version: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of champion and challenger, on the sessions that are in the validation blocks of both: neither was trained on them.

    A champion of an older version, whose lineage has no dates, was judged on the right sessions with the prices of its own
    training only.
    """
    folder = checkpoint.with_name(champion.checkpoint)
    spans = [blocks["validation"] for blocks in map(stored_blocks, (folder, checkpoint)) if blocks]
    trained_on = None if stored_blocks(folder) else lineage_of(folder)["data"]["data_version"]
    pairs = con.execute(
        sql("paired_validation_returns"),
        {
            "champion": champion.checkpoint,
            "champion_strategy": champion.strategy,
            "trained_on": trained_on,
            "challenger": checkpoint.name,
            "challenger_strategy": strategy,
            "data_version": data_version,
            "first": max((first for first, _ in spans), default="0001-01-01"),
            "last": min((last for _, last in spans), default="9999-12-31"),
        },
    ).fetchnumpy()
    return np.asarray(pairs["champion"], float), np.asarray(pairs["challenger"], float)


def probability_better(champion_T: np.ndarray, challenger_T: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Share of paired stationary-bootstrap samples in which the challenger's Sharpe ratio is the higher one, and both ratios.

    Args:
        champion_T, challenger_T: daily net returns on the same sessions. Returns that never move (all in cash) have a
            ratio of 0 here, and equal returns are not better.
    """
    from arch.bootstrap import StationaryBootstrap

    from finjepa_pipeline.backtest.inference import block_length
    from finjepa_pipeline.backtest.metrics import sharpe

    def sharpes(returns_T2: np.ndarray) -> np.ndarray:
        return np.nan_to_num(sharpe(returns_T2))

    returns_T2 = np.column_stack([champion_T, challenger_T])
    bootstrap = StationaryBootstrap(block_length(challenger_T - champion_T), returns_T2, seed=0)
    sharpe_S2 = np.stack([sharpes(np.asarray(data[0])) for data, _ in bootstrap.bootstrap(BOOTSTRAP_SAMPLES)])
    champion, challenger = sharpes(returns_T2)
    return float((sharpe_S2[:, 1] > sharpe_S2[:, 0]).mean()), (float(champion), float(challenger))
