"""The model card: README.md of a release, made from what the checkpoint's own files and the leaderboard say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from finjepa_pipeline.backtest.claim import DSR_GOAL, claim_of
from finjepa_pipeline.backtest.metrics import BENCHMARK
from finjepa_pipeline.publishing.checks import PBO_LIMIT, Finding

HIGHEST_MODEL_INDEX_RESULTS = 8  # the Hub shows them beside the card


@dataclass(frozen=True)
class Standing:
    """A row of the leaderboard; Sharpe ratios are annualised, rates are fractions, None where nothing ever moved."""

    strategy: str
    block: str
    start_date: date
    end_date: date
    sharpe: float | None
    sharpe_low: float | None
    sharpe_high: float | None
    annual_return: float
    annual_volatility: float
    max_drawdown: float
    annual_turnover: float
    excess_sharpe: float | None
    excess_low: float | None
    excess_high: float | None
    n_days: int
    data_version: str
    dsr: float | None = None
    break_even_bps: float | None = None


@dataclass(frozen=True)
class Corrections:
    """What is said of a whole leaderboard; None where it is too small to say."""

    trials: int
    effective_trials: int
    overfitting: float | None
    spa_p: float | None


def model_card(
    *,
    tag: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
    normalization: Mapping[str, Any],
    standings: Sequence[Standing],
    planner: str,
    verdict: Sequence[str],
    checks: Sequence[Finding] = (),
    corrections: Corrections | None = None,
    traded: str = "",
) -> str:
    """The card as Markdown with the Hub's YAML metadata on top.

    Args:
        config, metrics, lineage, normalization: contents of the checkpoint's JSON files.
        standings: the leaderboard of this checkpoint, baselines included.
        planner: the strategy that acts for this checkpoint.
        verdict: reasons of the champion gate; `checks`: what it looked at.
        corrections: for the number of trials, of the test block.
        traded: how many assets were traded there, of how many.
    """
    test = [standing for standing in standings if standing.block == "test"]
    sections = [
        f"# FinJEPA {tag}",
        "A joint-embedding predictive world model of daily stock prices and of the portfolio that is held in them. Planners "
        "roll it forward to choose portfolio weights (a simplex), a signal for each asset (long, short, flat) and a hedge "
        "(on, off).",
        "## What it earned",
        _claim(test, planner),
        _table(test),
        _corrected(test, planner, corrections),
        f"{traded} {_reading_guide(test, config)}".strip(),
        "## How to use it",
        _usage(config, planner),
        "## Why it was released",
        "\n".join(f"- {reason}" for reason in verdict),
        _checks(checks),
        "## What it learned from",
        _provenance(lineage, normalization),
        "## Is the latent space alive",
        _diagnostics(metrics),
        "## How it was made",
        _lineage(lineage),
        "## Limits",
        _limits(test, config),
    ]
    return f"---\n{_metadata(tag, lineage, test)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _claim(test: Sequence[Standing], planner: str) -> str:
    acting = next((vars(standing) for standing in test if standing.strategy == planner), None)
    claim = claim_of(acting, f"`{planner}`")
    return f"**{claim.verdict}**: {claim.text}"


def _table(test: Sequence[Standing]) -> str:
    head = (
        "| strategy | Sharpe | 95 % interval | minus 1/N | 95 % interval | return a year | volatility a year | deepest "
        "drawdown | turnover a year |"
    )
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in test:
        sharpe_interval, excess_interval = _interval(row.sharpe_low, row.sharpe_high), "—"
        excess = "—"
        if row.strategy != BENCHMARK:
            excess, excess_interval = _number(row.excess_sharpe, "+.2f"), _interval(row.excess_low, row.excess_high)
        lines.append(
            f"| {row.strategy} | {_number(row.sharpe)} | {sharpe_interval} | {excess} | {excess_interval} "
            f"| {row.annual_return:.1%} | {row.annual_volatility:.1%} | {row.max_drawdown:.1%} | {row.annual_turnover:.1f} |"
        )
    return "\n".join(lines) if test else "There is no backtest on the test block."


def _corrected(test: Sequence[Standing], planner: str, corrections: Corrections | None) -> str:
    """What is left of the claim after everything that was tried."""
    acting = next((standing for standing in test if standing.strategy == planner), None)
    if corrections is None:
        return ""
    lines = [
        f"{corrections.trials} configurations were ever tried on some of these sessions, {corrections.effective_trials} of those "
        "still stored are different bets."
    ]
    if acting is not None and acting.dsr is not None:
        word = "convincing" if acting.dsr >= DSR_GOAL else "not convincing"
        lines.append(
            f"The deflated Sharpe ratio of the return of `{planner}` over 1/N, the probability that it is better than the "
            f"luckiest of them would be without skill, is "
            f"{acting.dsr:.2f}: {word} ({DSR_GOAL:g} would be)."
        )
    if corrections.overfitting is not None:
        word = "low" if corrections.overfitting <= PBO_LIMIT else "high"
        lines.append(
            f"The probability of backtest overfitting (CSCV) is {corrections.overfitting:.2f}, which is {word}."
        )
    if corrections.spa_p is not None:
        lines.append(f"Hansen's SPA test that nobody beats 1/N has p = {corrections.spa_p:.2f}.")
    return " ".join(lines)


def _checks(checks: Sequence[Finding]) -> str:
    words = {True: "passed", False: "failed", None: "unknown"}
    lines = [f"| {c.name} | {words[c.passed]} | {'yes' if c.blocking else 'no'} | {c.detail} |" for c in checks]
    return "\n".join(["| check | result | blocking | found |", "|---|---|---|---|", *lines]) if lines else ""


def _reading_guide(test: Sequence[Standing], config: Mapping[str, Any]) -> str:
    portfolio = config["portfolio"]
    days = f" over {test[0].n_days} sessions" if test else ""
    return (
        f"Daily returns{days}, decided at a close and filled at the next one, after costs of "
        f"{portfolio['cost_bps']:g} basis points one-way on assets and {portfolio['hedge_cost_bps']:g} on the hedge. Sharpe "
        "ratios and volatilities are annualised; turnover is one-way, in multiples of wealth. Intervals come from a paired "
        f"stationary bootstrap. `{BENCHMARK}` is 1/N."
    )


def _usage(config: Mapping[str, Any], planner: str) -> str:
    return (
        "Load it, and act on the newest close of the prices in your FINJEPA_HOME (`owner/name` is this repository, or a folder "
        "with these files):\n\n"
        "```python\n"
        "from finjepa_model import FinJEPA\n"
        "from finjepa_pipeline.publishing.daily import act\n\n"
        'model = FinJEPA.from_pretrained("owner/name")  # encode, predict, rollout, imagine\n'
        f'decision = act("owner/name", planner="{planner}")\n'
        'print(decision["weights"], decision["signals"], decision["hedge"])\n'
        "```\n\n"
        "The same from a terminal, prices included, as JSON:\n\n"
        "```bash\n"
        "pip install finjepa\n"
        "finjepa ingest --data-source files --path your/prices\n"
        f"finjepa decide --checkpoint owner/name --planner {planner} --json\n"
        "```\n\n"
        f"An observation is {config['model']['context_steps']} steps of {config['model']['stride']} sessions; at each step an "
        f"asset is seen through the {config['model']['window']} sessions that end there, in the channels of "
        "`normalization.json`."
    )


def _provenance(lineage: Mapping[str, Any], normalization: Mapping[str, Any]) -> str:
    data = lineage["data"]
    names = {
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
    }
    lines = [f"- {label}: {_plain(data[key])}" for key, label in names.items() if data.get(key) is not None]
    channels = ", ".join(f"`{channel['name']}`" for channel in normalization.get("channels", []))
    return "\n".join([*lines, f"- channels: {channels or 'none given'}"])


def _diagnostics(metrics: Mapping[str, Any]) -> str:
    diagnostics, losses, readout = (metrics.get(name, {}) for name in ("diagnostics", "validation", "readout"))
    lines = ["| | value |", "|---|--:|"]
    for group, values in (("", diagnostics), ("validation loss: ", losses), ("read-out of returns: ", readout)):
        lines += [f"| {group}{name} | {_plain(value)} |" for name, value in values.items()]
    return "\n".join(lines)


def _lineage(lineage: Mapping[str, Any]) -> str:
    code = lineage["code"]
    revision = f", revision `{code['revision']}`" + (" with local changes" if code["modified"] else "")
    libraries = ", ".join(f"{name} {version}" for name, version in lineage["libraries"].items() if version)
    return "\n".join(
        [
            f"- code: finjepa {code['finjepa']}{revision if code['revision'] else ''}",
            f"- seed {lineage['seed']}, on {lineage['device']}, Python {lineage['python']}",
            f"- feature panel `{lineage['panel_hash']}`",
            f"- Dagster run `{lineage['dagster']['run_id']}`",
            f"- libraries: {libraries}",
            "\n`lineage.json` says all of it, `config.json` every setting.",
        ]
    )


def _limits(test: Sequence[Standing], config: Mapping[str, Any]) -> str:
    years = test[0].n_days / 252 if test else 0.0
    limits = [
        "It is a research artefact and no investment advice.",
        "Past prices are all it knows: no news, no fundamentals, no order book.",
        "Backtests are not live trading. Fills at the close without market impact flatter large portfolios.",
        "Prices of companies that exist today are a survivors' sample, and their returns flatter every strategy above.",
    ]
    if years:
        error = math.sqrt(1 / years)
        limits.append(
            f"{years:.1f} years of test data measure a Sharpe ratio to about ±{error:.1f} (one standard error); smaller "
            "differences cannot be seen."
        )
    if not config["portfolio"]["allow_short"]:
        limits.append("It was traded without short selling of single assets: a short signal means flat.")
    return "\n".join(f"- {limit}" for limit in limits)


def _metadata(tag: str, lineage: Mapping[str, Any], test: Sequence[Standing]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data = lineage["data"]
    results = [
        EvalResult(
            task_type="portfolio-choice",
            dataset_type=str(data.get("source") or "prices"),
            dataset_name=f"{data.get('feed') or 'prices'}, test block {row.start_date} to {row.end_date}",
            metric_type="sharpe",
            metric_name=f"annualised net Sharpe ratio of {row.strategy}",
            metric_value=round(row.sharpe, 4),
        )
        for row in test[:HIGHEST_MODEL_INDEX_RESULTS]
        if row.sharpe is not None and math.isfinite(row.sharpe)
    ]
    return ModelCardData(
        license="apache-2.0",
        library_name="finjepa",
        pipeline_tag="time-series-forecasting",
        tags=["world-model", "jepa", "portfolio-optimization", "finance", "planning"],
        model_name=f"FinJEPA {tag}" if results else None,
        eval_results=results or None,
    ).to_yaml()


def _number(value: float | None, spec: str = ".2f") -> str:
    return "—" if value is None or math.isnan(value) else format(value, spec)


def _interval(low: float | None, high: float | None) -> str:
    return "—" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _plain(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
