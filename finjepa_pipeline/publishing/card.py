"""The model card: README.md of a release, made from what the checkpoint's own files and the leaderboard say."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import duckdb
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from finjepa_model.files import read_json, to_json
from finjepa_model.planner_strategies import WITH_UTILITY
from finjepa_pipeline.backtest.leaderboard import leaderboard_rows, traded_assets
from finjepa_pipeline.backtest.metrics import (
    BENCHMARK,
    DSR_GOAL,
    SHORTEST,
    TOO_SHORT,
    claim_of,
    on_validation,
    same_return_for_all,
)
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.publishing.gate import Champion, Finding, known_findings
from finjepa_pipeline.publishing.package import public, public_strategy
from finjepa_pipeline.report.backtest import leaderboard_table
from finjepa_pipeline.report.markdown import cell, code, numbers_table, plain, table
from finjepa_pipeline.report.page import number, render
from finjepa_pipeline.report.risk import in_words, read_scorecard, tables
from finjepa_pipeline.settings import Settings

PBO_LIMIT = 0.2  # up to which a low risk of overfitting is spoken of
_FACTS = {
    "feed": "feed",
    "source": "source",
    "version": "revision of the source",
    "data_version": "data version",
    "rows": "rows",
    "quarantined_rows": "rows in quarantine",
    "first_date": "first date",
    "last_date": "last date",
    "assets": "assets",
    "columns": "columns that hold data",
    "accepted": "findings that a person accepted",
}
Row = Mapping[str, Any]  # of the leaderboard
_CORRECTIONS = """
    SELECT trials, effective_trials, pbo, spa_p FROM main.backtest_inference
    WHERE checkpoint = $checkpoint AND block = 'test' ORDER BY created_at DESC LIMIT 1
"""
_REASONS = """
    SELECT reasons FROM main.champions WHERE checkpoint = $checkpoint AND verdict = 'promoted'
    ORDER BY created_at DESC, rowid DESC LIMIT 1
"""


def card_of(
    con: duckdb.DuckDBPyConnection,
    settings: Settings,
    tag: str,
    champion: Champion,
    places: Mapping[str, str],
    repo_id: str | None,
) -> str:
    """The model card of a champion, from the checkpoint's files, its newest leaderboard and the gate's reasons; `places`: see
    `public`."""
    key, folder = {"checkpoint": champion.checkpoint}, settings.checkpoints / champion.checkpoint
    files = {name: read_json(folder / f"{name}.json") for name in ("config", "metrics", "lineage", "normalization")}
    reasons = con.execute(_REASONS, key).fetchall()
    rows = leaderboard_rows(con, champion.checkpoint)
    return model_card(
        tag=tag,
        repository=repo_id or "owner/name",
        **files | {"lineage": public(files["lineage"], places)},
        rows=[row | {"strategy": public_strategy(row["strategy"])} for row in rows],
        planner=public_strategy(champion.strategy),
        verdict=public(reasons[0][0].split("\n") if reasons else [], places),
        checks=[replace(one, detail=public(one.detail, places)) for one in known_findings(con, champion.checkpoint)],
        corrections=corrections(con, champion.checkpoint),
        traded=traded_assets(con, champion.checkpoint),
        ended=_ended(con, files["lineage"]["data"]["data_version"]),
        scorecard=read_scorecard(settings.reports, champion.checkpoint),
    )


def corrections(con: duckdb.DuckDBPyConnection, checkpoint: str) -> Row | None:
    """What is said of the whole test block of a checkpoint's newest leaderboard."""
    rows = con.sql(_CORRECTIONS, params={"checkpoint": checkpoint}).to_arrow_table().to_pylist()
    return rows[0] if rows else None


def _ended(con: duckdb.DuckDBPyConnection, data_version: str) -> tuple[int, int] | None:
    """How many companies ended, and how many there are, in the prices of a checkpoint; None where others took their place."""
    revision = current_revision(con)
    if revision is None or revision.data_version != data_version:
        return None
    return con.execute("SELECT count(ended_because), count(*) FROM main.entities").fetchone()


def model_card(
    *,
    tag: str,
    repository: str = "owner/name",
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
    normalization: Mapping[str, Any],
    rows: Sequence[Row],
    planner: str,
    verdict: Sequence[str],
    checks: Sequence[Finding] = (),
    corrections: Row | None = None,
    traded: str = "",
    ended: tuple[int, int] | None = None,
    scorecard: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown with the Hub's YAML metadata on top.

    Args:
        repository: on the Hub, for the code that is shown.
        config, metrics, lineage, normalization: contents of the checkpoint's JSON files.
        rows: the leaderboard of this checkpoint, baselines included; `planner` is the strategy that acts.
        verdict: reasons of the champion gate; `checks`: what it looked at.
        corrections: for the number of configurations tried, of the test block; `traded`: how many assets were traded there.
        ended: how many of the assets of the prices ended before the last date, and how many there are, where that is known.
        scorecard: of the forecasts of risk, where there is one.
    """
    test = [row for row in rows if row["block"] == "test"]
    acting = next((row for row in test if row["strategy"] == planner), None)
    searcher, _, utility = planner.partition(WITH_UTILITY)
    data = lineage["data"]
    facts = [(label, data.get(key)) for key, label in _FACTS.items()]
    checked = [(c.name, c.verdict, "yes" if c.blocking else "no", cell(c.detail)) for c in checks]
    return render(
        "card.md",
        metadata=_metadata(tag, lineage, acting),
        tag=tag,
        repository=repository,
        remark=same_return_for_all(metrics),
        claim=claim_of(acting, code(planner)),
        on_validation=cell(on_validation(rows, planner)),
        first=test[0] if test else None,
        risk=cell(in_words(scorecard)) if scorecard else "",
        risk_tables=[(title, table(columns, rows)) for title, columns, rows in tables(scorecard or {"scores": []})],
        leaderboard=leaderboard_table(test, BENCHMARK) if test else "",
        acting=acting,
        corrections=corrections,
        planner=code(planner),
        dsr_goal=DSR_GOAL,
        pbo_limit=PBO_LIMIT,
        traded=traded,
        portfolio=config["portfolio"],
        model=config["model"],
        has_td=config["td"]["enabled"],
        benchmark=BENCHMARK,
        searcher_in_python=to_json(searcher),
        utility=utility,
        utility_in_python=to_json(utility),
        options=f"--planner {shlex.quote(searcher)}" + (f" --utility {shlex.quote(utility)}" if utility else ""),
        verdict=[cell(reason) for reason in verdict],
        checks=table(("check", "result", "blocking", "found"), checked, numbers=False) if checked else "",
        provenance=[(label, cell(plain(fact))) for label, fact in facts if fact not in (None, (), [])],
        channels=", ".join(f"`{one['name']}`" for one in normalization.get("channels", [])) or "none given",
        diagnostics=_diagnostics(metrics),
        lineage=lineage,
        data=data,
        columns=set(data.get("columns") or ()),
        ended=ended,
        shortest=SHORTEST,
        too_short=TOO_SHORT,
        code=lineage["code"],
        libraries=", ".join(f"{name} {version}" for name, version in lineage["libraries"].items() if version),
    )


def _diagnostics(metrics: Mapping[str, Any]) -> str:
    groups = {"diagnostics": "", "validation": "validation loss: ", "readout": "read-out of returns: "}
    return numbers_table(
        {f"{kind}{name}": value for of, kind in groups.items() for name, value in metrics.get(of, {}).items()}
    )


def _metadata(tag: str, lineage: Mapping[str, Any], acting: Row | None) -> str:
    """The Hub's YAML. Its model-index has one result, that of the planner that acts: the Hub shows it as the model's own."""
    results = []
    if acting is not None and acting["sharpe"] is not None and math.isfinite(acting["sharpe"]):
        name = f"net Sharpe ratio a year of {acting['strategy']}, "
        if acting["excess_low"] is None:
            name += f"over {acting['n_days']} sessions, too short for an interval"
        else:
            name += f"95 % interval {_interval(acting['sharpe_low'], acting['sharpe_high'])}; minus that of 1/N "
            name += f"{acting['excess_sharpe']:+.2f}, 95 % interval {_interval(acting['excess_low'], acting['excess_high'])}"
        dataset = _dataset(lineage)
        results.append(
            EvalResult(
                task_type="time-series-forecasting",
                task_name="portfolio choice",
                dataset_type=dataset,
                dataset_name=f"{dataset}, test block {acting['start_date']} to {acting['end_date']}",
                dataset_split="test",
                metric_type="sharpe",
                metric_name=name,
                metric_value=round(acting["sharpe"], 4),
            )
        )
    return ModelCardData(
        license="apache-2.0",
        library_name="finjepa",
        pipeline_tag="time-series-forecasting",
        tags=["world-model", "jepa", "portfolio-optimization", "finance", "planning"],
        model_name=f"FinJEPA {tag}" if results else None,
        eval_results=results or None,
    ).to_yaml()


def _dataset(lineage: Mapping[str, Any]) -> str:
    """An id that is valid on the Hub: the data set's own where the prices are from there, otherwise the kind of source."""
    source = lineage.get("build", {}).get("source", {})
    for name in (source.get("dataset_name"), lineage["data"].get("source")):
        try:
            validate_repo_id(str(name or ""))
        except HFValidationError:
            continue
        return str(name)
    return "prices"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{number(low)} to {number(high)}"
