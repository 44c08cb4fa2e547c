"""The model card: README.md of a release, made from what the checkpoint's own files and the leaderboard say."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from finjepa_model.files import to_json
from finjepa_pipeline.backtest.claim import DSR_GOAL, TOO_SHORT, claim_of, on_validation, same_return_for_all
from finjepa_pipeline.backtest.metrics import BENCHMARK, SHORTEST
from finjepa_pipeline.backtest.planner_strategies import WITH_UTILITY
from finjepa_pipeline.publishing.gate import PBO_LIMIT, Finding
from finjepa_pipeline.report.markdown import cell, code, plain, table
from finjepa_pipeline.report.page import number, render

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
    dsr: float | None = None


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
        corrections: for the number of configurations tried, of the test block.
        traded: how many assets were traded there, of how many.
        ended: how many of the assets of the prices ended before the last date, and how many there are; None where that is not
            known.
    """
    test = [standing for standing in standings if standing.block == "test"]
    acting = next((standing for standing in test if standing.strategy == planner), None)
    searcher, _, utility = planner.partition(WITH_UTILITY)
    data = lineage["data"]
    columns: set[str] = set(data.get("columns") or ())
    facts = [(label, data.get(key)) for key, label in _FACTS.items()]
    checked = [(c.name, c.verdict, "yes" if c.blocking else "no", cell(c.detail)) for c in checks]
    return render(
        "card.md",
        metadata=_metadata(tag, lineage, acting),
        tag=tag,
        remark=same_return_for_all(metrics),
        claim=claim_of(acting and vars(acting), code(planner)),
        on_validation=cell(on_validation([vars(one) for one in standings], planner)),
        first=test[0] if test else None,
        leaderboard=_leaderboard(test),
        corrected=_corrected(acting, planner, corrections),
        traded=traded,
        portfolio=config["portfolio"],
        model=config["model"],
        benchmark=BENCHMARK,
        planner_in_python=to_json(planner),
        options=f"--planner {shlex.quote(searcher)}" + (f" --utility {shlex.quote(utility)}" if utility else ""),
        verdict=[cell(reason) for reason in verdict],
        checks=table(("check", "result", "blocking", "found"), checked, numbers=False) if checked else "",
        provenance=[(label, cell(plain(fact))) for label, fact in facts if fact not in (None, (), [])],
        channels=", ".join(f"`{one['name']}`" for one in normalization.get("channels", [])) or "none given",
        diagnostics=_diagnostics(metrics),
        lineage=lineage,
        code=lineage["code"],
        libraries=", ".join(f"{name} {version}" for name, version in lineage["libraries"].items() if version),
        limits=[
            "It is a research artefact and no investment advice.",
            *_limits_of_prices(data, columns, ended),
            _limit_of_costs(config["portfolio"], "volume" in columns),
            *_limits_of_backtest(test, config["portfolio"]),
        ],
    )


def _leaderboard(test: Sequence[Standing]) -> str:
    """The test block as a table; empty where there is none."""
    rows = []
    for row in test:
        compared = row.strategy != BENCHMARK
        rows.append(
            (
                cell(row.strategy),
                number(row.sharpe),
                _interval(row.sharpe_low, row.sharpe_high),
                number(row.excess_sharpe if compared else None, "{:+.2f}"),
                _interval(row.excess_low, row.excess_high) if compared else "–",
                f"{row.annual_return:.1%}",
                f"{row.annual_volatility:.1%}",
                f"{row.max_drawdown:.1%}",
                f"{row.annual_turnover:.1f}",
            )
        )
    head = ("strategy", "Sharpe", "95 % interval", "minus 1/N", "95 % interval", "return a year", "volatility a year")
    return table((*head, "deepest drawdown", "turnover a year"), rows) if rows else ""


def _corrected(acting: Standing | None, planner: str, corrections: Corrections | None) -> str:
    """What is left of the claim after everything that was tried."""
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
            f"luckiest of them would be without skill, is {acting.dsr:.2f}: {word} ({DSR_GOAL:g} would be)."
        )
    if corrections.overfitting is not None:
        word = "low" if corrections.overfitting <= PBO_LIMIT else "high"
        lines.append(
            f"The probability of backtest overfitting (CSCV) is {corrections.overfitting:.2f}, which is {word}."
        )
    if corrections.spa_p is not None:
        lines.append(f"Hansen's SPA test that nobody beats 1/N has p = {corrections.spa_p:.2f}.")
    return " ".join(lines)


def _diagnostics(metrics: Mapping[str, Any]) -> str:
    groups = {"diagnostics": "", "validation": "validation loss: ", "readout": "read-out of returns: "}
    rows = [
        (f"{prefix}{cell(name)}", cell(plain(value)))
        for group, prefix in groups.items()
        for name, value in metrics.get(group, {}).items()
    ]
    return table(("", "value"), rows)


def _limits_of_prices(data: Mapping[str, Any], columns: set[str], ended: tuple[int, int] | None) -> list[str]:
    """What these prices cannot show."""
    limits = []
    if columns:
        known = ", ".join(sorted(columns))
        limits.append(f"All that it knows is the past, daily, in {known}: no news, no fundamentals, no order book.")
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


def _limit_of_costs(portfolio: Mapping[str, Any], has_volumes: bool) -> str:
    costs = f"Costs are assumed and not measured: {portfolio['cost_bps']:g} basis points one-way"
    if not has_volumes:
        return f"{costs}, without market impact, which flatters large portfolios."
    tiers = portfolio["tier_dollar_volume"]
    costs += f", and more for assets that trade less than {f'{tiers[0]:,.0f} dollars' if tiers else 'any'} a day"
    if portfolio["impact"] > 0:
        return f"{costs}; market impact for a portfolio of {portfolio['capital']:,.0f} dollars."
    return f"{costs}, without market impact, which flatters large portfolios."


def _limits_of_backtest(test: Sequence[Standing], portfolio: Mapping[str, Any]) -> list[str]:
    """What a backtest of this length and under these rules of trading cannot show."""
    limits = []
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


def _metadata(tag: str, lineage: Mapping[str, Any], acting: Standing | None) -> str:
    """The Hub's YAML. Its model-index has one result, that of the planner that acts: the Hub shows it as the model's own."""
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
