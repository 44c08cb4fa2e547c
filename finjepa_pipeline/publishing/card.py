"""The model card: README.md of a release, made from what the checkpoint's own files and the leaderboard say."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from finjepa_model.files import to_json
from finjepa_pipeline.backtest.claim import DSR_GOAL, TOO_SHORT, claim_of, on_validation, same_return_for_all
from finjepa_pipeline.backtest.finjepa_strategy import WITH_UTILITY
from finjepa_pipeline.backtest.metrics import BENCHMARK, SHORTEST
from finjepa_pipeline.publishing.checks import PBO_LIMIT, Finding
from finjepa_pipeline.report.markdown import cell, code


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
    ended: tuple[int, int] | None = None,
) -> str:
    """The card as Markdown with the Hub's YAML metadata on top.

    Args:
        config, metrics, lineage, normalization: contents of the checkpoint's JSON files.
        standings: the leaderboard of this checkpoint, baselines included.
        planner: the strategy that acts for this checkpoint.
        verdict: reasons of the champion gate; `checks`: what it looked at.
        corrections: for the number of trials, of the test block.
        traded: how many assets were traded there, of how many.
        ended: how many of the assets of the prices ended before the last date, and how many there are; None where that is not
            known.
    """
    test = [standing for standing in standings if standing.block == "test"]
    acting = next((standing for standing in test if standing.strategy == planner), None)
    sections = [
        f"# FinJEPA {tag}",
        f"**{remark}**" if (remark := same_return_for_all(metrics)) else "",
        "A joint-embedding predictive world model of daily stock prices and of the portfolio that is held in them. Planners "
        "roll it forward to choose portfolio weights (a simplex), a signal for each asset (long, short, flat) and a hedge "
        "(on, off).",
        "## What it earned",
        f"{_claim(test, planner)} {cell(on_validation([vars(one) for one in standings], planner))}".strip(),
        _table(test),
        _corrected(test, planner, corrections),
        f"{traded} {_reading_guide(test, config)}".strip(),
        "## How to use it",
        _usage(config, planner),
        "## Why it was released",
        "\n".join(f"- {cell(reason)}" for reason in verdict),
        _checks(checks),
        "## What it learned from",
        _provenance(lineage, normalization),
        "## Is the latent space alive",
        _diagnostics(metrics),
        "## How it was made",
        _lineage(lineage),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(test, config, lineage["data"], ended)),
    ]
    return f"---\n{_metadata(tag, lineage, acting)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _claim(test: Sequence[Standing], planner: str) -> str:
    acting = next((vars(standing) for standing in test if standing.strategy == planner), None)
    claim = claim_of(acting, code(planner))
    return f"**{claim.verdict}**: {claim.text}"


def _table(test: Sequence[Standing]) -> str:
    head = (
        "| strategy | Sharpe | 95 % interval | minus 1/N | 95 % interval | return a year | volatility a year | deepest "
        "drawdown | turnover a year |"
    )
    span = f"Test block, {test[0].start_date} to {test[0].end_date}:\n" if test else ""
    lines = [span, head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in test:
        sharpe_interval, excess_interval = _interval(row.sharpe_low, row.sharpe_high), "—"
        excess = "—"
        if row.strategy != BENCHMARK:
            excess, excess_interval = _number(row.excess_sharpe, "+.2f"), _interval(row.excess_low, row.excess_high)
        lines.append(
            f"| {cell(row.strategy)} | {_number(row.sharpe)} | {sharpe_interval} | {excess} | {excess_interval} "
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
            f"The deflated Sharpe ratio of the return of {code(planner)} over 1/N, the probability that it is better than the "
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
    lines = [f"| {c.name} | {c.verdict} | {'yes' if c.blocking else 'no'} | {cell(c.detail)} |" for c in checks]
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
    searcher, _, utility = planner.partition(WITH_UTILITY)
    options = f"--planner {shlex.quote(searcher)}" + (f" --utility {shlex.quote(utility)}" if utility else "")
    return (
        "Load it, and act on the newest close of the prices in your FINJEPA_HOME (`owner/name` is this repository, or a folder "
        "with these files):\n\n"
        "```python\n"
        "from finjepa_model import FinJEPA\n"
        "from finjepa_pipeline.publishing.daily import act\n\n"
        'model = FinJEPA.from_pretrained("owner/name")  # encode, predict, rollout, imagine\n'
        f'decision = act("owner/name", planner={to_json(planner)})\n'
        'print(decision["weights"], decision["signals"], decision["hedge"])\n'
        "```\n\n"
        "The same from a terminal, prices included, as JSON:\n\n"
        "```bash\n"
        "pip install finjepa\n"
        "finjepa ingest --data-source files --path your/prices\n"
        f"finjepa decide --checkpoint owner/name {options} --json\n"
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
        "accepted": "findings that a person accepted",
    }
    facts = {label: data.get(key) for key, label in names.items()}
    lines = [f"- {label}: {cell(_plain(fact))}" for label, fact in facts.items() if fact not in (None, (), [])]
    channels = ", ".join(f"`{channel['name']}`" for channel in normalization.get("channels", []))
    return "\n".join([*lines, f"- channels: {channels or 'none given'}"])


def _diagnostics(metrics: Mapping[str, Any]) -> str:
    diagnostics, losses, readout = (metrics.get(name, {}) for name in ("diagnostics", "validation", "readout"))
    lines = ["| | value |", "|---|--:|"]
    for group, values in (("", diagnostics), ("validation loss: ", losses), ("read-out of returns: ", readout)):
        lines += [f"| {group}{cell(name)} | {cell(_plain(value))} |" for name, value in values.items()]
    return "\n".join(lines)


def _lineage(lineage: Mapping[str, Any]) -> str:
    made_by = lineage["code"]
    revision = f", revision `{made_by['revision']}`" + (" with local changes" if made_by["modified"] else "")
    libraries = ", ".join(f"{name} {version}" for name, version in lineage["libraries"].items() if version)
    return "\n".join(
        [
            f"- code: finjepa {made_by['finjepa']}{revision if made_by['revision'] else ''}",
            f"- seed {lineage['seed']}, on {lineage['device']}, Python {lineage['python']}",
            f"- feature panel `{lineage['panel_hash']}`",
            f"- Dagster run `{lineage['dagster']['run_id']}`",
            f"- libraries: {libraries}",
            "\n`lineage.json` says all of it, `config.json` every setting.",
        ]
    )


def _limits(
    test: Sequence[Standing], config: Mapping[str, Any], data: Mapping[str, Any], ended: tuple[int, int] | None
) -> list[str]:
    """What these prices, these rules of trading and this length of time cannot show."""
    portfolio = config["portfolio"]
    columns: set[str] = set(data.get("columns") or ())
    limits = ["It is a research artefact and no investment advice.", *_limits_of_prices(data, columns, ended)]
    costs = f"Costs are assumed and not measured: {portfolio['cost_bps']:g} basis points one-way"
    if "volume" in columns:
        costs += f", and more for assets that trade less than {_dollars(portfolio['tier_dollar_volume'])} a day"
    impact = portfolio["impact"] > 0 and "volume" in columns
    limits.append(
        f"{costs}; market impact for a portfolio of {portfolio['capital']:,.0f} dollars."
        if impact
        else f"{costs}, without market impact, which flatters large portfolios."
    )
    if test and test[0].n_days < SHORTEST:
        limits.append(f"Nothing is said of skill: {TOO_SHORT}, and the test block has {test[0].n_days}.")
    elif test:
        years = test[0].n_days / 252
        limits.append(
            f"{years:.1f} years of test data ({test[0].n_days} sessions) measure a Sharpe ratio to about "
            f"±{math.sqrt(1 / years):.1f} (one standard error); smaller differences cannot be seen."
        )
    if not portfolio["allow_short"]:
        limits.append("It was traded without short selling of single assets: a short signal means flat.")
    if not portfolio["allow_hedge"]:
        limits.append("It was traded without a hedge: hedge on means nothing.")
    return limits


def _limits_of_prices(data: Mapping[str, Any], columns: set[str], ended: tuple[int, int] | None) -> list[str]:
    limits = []
    if columns:
        limits.append(
            f"All that it knows is the past, daily, in {', '.join(sorted(columns))}: no news, no fundamentals, no order book."
        )
    if data.get("source") == "synthetic":
        limits.append("Its prices are generated: nothing here says anything of a real market.")
    elif ended is None:
        limits.append(
            "Whether the source holds companies that were delisted is not known; if not, every return is flattered."
        )
    elif ended[0] == 0:
        limits.append(
            f"None of the {ended[1]} assets ended before the last date: they are survivors, and their returns flatter every "
            "strategy above."
        )
    else:
        limits.append(
            f"{ended[0]} of {ended[1]} assets ended before the last date; what the source lacks of delisted companies flatters "
            "every strategy above."
        )
    if columns and "adj_close" not in columns:
        limits.append("The source has one price: whether splits and dividends are in it is the source's word.")
    if columns and not columns & {"open", "high", "low"}:
        limits.append("The source has no open, high or low: nothing is known of what happens within a session.")
    if columns and "volume" not in columns:
        limits.append("The source has no volumes: all assets are taken to be equally liquid.")
    if data.get("quarantined_rows"):
        limits.append(f"{data['quarantined_rows']:,} rows of the source were not believed and not used.")
    return limits


def _dollars(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:,.0f} dollars" if bounds else "any"


def _metadata(tag: str, lineage: Mapping[str, Any], acting: Standing | None) -> str:
    """The Hub's YAML. Its model-index has one result, that of the planner that acts: the Hub shows it as the model's own."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if acting is not None and acting.sharpe is not None and math.isfinite(acting.sharpe):
        name = f"net Sharpe ratio a year of {acting.strategy}, "
        if acting.excess_low is None:
            name += f"over {acting.n_days} sessions, too short for an interval"
        else:
            name += f"95 % interval {_interval(acting.sharpe_low, acting.sharpe_high)}; minus that of 1/N "
            name += f"{acting.excess_sharpe:+.2f}, 95 % interval {_interval(acting.excess_low, acting.excess_high)}"
        dataset = _dataset(lineage)
        results.append(
            EvalResult(
                task_type="time-series-forecasting",
                task_name="portfolio choice",
                dataset_type=dataset,
                dataset_name=f"{dataset}, test block {acting.start_date} to {acting.end_date}",
                dataset_split="test",
                metric_type="sharpe",
                metric_name=name,
                metric_value=round(acting.sharpe, 4),
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
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    source = lineage.get("build", {}).get("source", {})
    for name in (source.get("dataset_name"), lineage["data"].get("source")):
        try:
            validate_repo_id(str(name or ""))
        except HFValidationError:
            continue
        return str(name)
    return "prices"


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
