"""The results page, its four plots and the verdict of README and home page, all from the JSON files beside this one.

    python -m docs.results.make                  # from the JSON files as they are
    python -m docs.results.make --home .finjepa  # return.json first, from the leaderboard of a home that `finjepa demo` has filled

A test compares what it would write with what is there, so page, README and pictures cannot disagree.
"""

import argparse
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import duckdb

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_BLOCK = re.compile(r"(<!-- written by docs/results/make.py -->\n).*?(<!-- end -->)", re.S)
_COLOURS = ("#4c78c8", "#e0803c", "#3a9d6e", "#b9558f")
_GREY = "#7a828c"
_WIDTH, _LABELS, _RIGHT, _ROW, _TOP = 720, 190, 24, 22, 30

Point = tuple[float, float | None, float | None, int]  # value, interval, number of the series


def outputs() -> dict[Path, str]:
    """Every file that follows from the results, with its text."""
    risk, decisions, returns, speed = (
        json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("risk", "decisions", "return", "speed")
    )
    files = {HERE / "index.md": page(risk, decisions, returns, speed)}
    files |= {HERE / f"{name}.svg": plot for name, plot in plots(risk, decisions, returns, speed).items()}
    said = verdict(risk, decisions, returns)
    for path, text in (
        (ROOT / "README.md", said.replace("(results/", "(docs/results/")),
        (ROOT / "docs" / "index.md", said),
        (HERE / "backtest.md", leaderboard(returns)),
    ):
        files[path] = _BLOCK.sub(lambda found, text=text: found[1] + text + found[2], path.read_text(encoding="utf-8"))
    return files


def verdict(risk: Any, decisions: Any, returns: Any) -> str:
    """Three bullets for README and home page."""
    change = [-x for x in risk["least_variance"]["change_percent"]]
    _, _, gain, low, high, _ = _strategy(returns, "qp")
    exact = [name for name, row in decisions["seeds"].items() if row["now"] == 0 and "goal" not in name]
    return f"""- **Risk: yes.** On symbols and years that it never saw, its volatility forecasts beat HAR (t {_span(risk["qlike_t"]["HAR with market"])}), EWMA
  (t {_span(risk["qlike_t"]["EWMA"])}) and 20-day history (t {_span(risk["qlike_t"]["20-day history"])}). Its minimum-variance portfolios have {min(change):.0f} to {max(change):.0f} % less volatility than
  those of Ledoit-Wolf.
- **Decisions: stable.** With a utility, {", ".join(exact[:-1])} and {exact[-1]} choose the same portfolio of 20 real stocks whatever
  the random seed.
- **Return: no evidence of skill.** On the 20 stocks of the demo the Sharpe ratio of `qp` minus that of 1/N is {gain:+.2f} (95 % interval {low:+.2f} to {high:+.2f}).
  The report says so, and so does the model card.

[All results](results/index.md), each with its command and with what is missed.
"""


def leaderboard(returns: Any) -> str:
    """The table of the sample, with what it was measured on."""
    rows = "\n".join(
        f"| {name} | {sharpe:.2f} | | | {turnover:.1f} |"
        if name == "equal_weight"
        else f"| {name} | {sharpe:.2f} | {gain:+.2f} | {low:+.2f} to {high:+.2f} | {turnover:.1f} |"
        for name, sharpe, gain, low, high, turnover in returns["strategies"]
    )
    return f"""`{returns["command"]}`, {returns["block"]}, {returns["sessions"]:,} sessions. A Sharpe ratio is known to ±{returns["known_to"]}; a gain below {returns["detectable"]} over 1/N (`equal_weight`) would be missed
in more than one of five cases.

| strategy | Sharpe | minus 1/N | 95 % interval | turnover a year |
|---|--:|--:|--:|--:|
{rows}
"""


def page(risk: Any, decisions: Any, returns: Any, speed: Any) -> str:
    """The results in fifteen lines, and the plots."""
    run, seeds = f"`{risk['command']}`", decisions["seeds"]
    qp, mppi = _strategy(returns, "qp"), _strategy(returns, "mppi")
    planted, claims, ingestion, training = returns["planted"], returns["claims"], speed["ingestion"], speed["training"]
    polars, pandas, vectorbt, worldmodel = speed["rows"]
    lines = [
        ("Volatility over 21 sessions against HAR with the market", f"better on 4 of 4 blocks, t {_span(risk['qlike_t']['HAR with market'])}", run),
        ("... against EWMA", f"t {_span(risk['qlike_t']['EWMA'])}", run),
        ("... against 20-day history", f"t {_span(risk['qlike_t']['20-day history'])}", run),
        ("... against LightGBM on the same inputs", f"t {_span(risk['qlike_t']['LightGBM, same inputs'])}: not better", run),
        ("What the network adds to a ridge regression, within a date", f"t {_span(risk['r2_t']['ridge, same inputs'])}: nothing on small caps", run),
        ("Volatility of minimum-variance portfolios against Ledoit-Wolf", f"{_span(risk['least_variance']['change_percent'], '+.1f')} %, t {_span(risk['least_variance']['t'])}", run),
        ("Outcomes inside 90 % intervals, 21 sessions", f"{_span(risk['coverage_90']['assets, 21 sessions'])} %", run),
        ("Difference between two seeds, with a utility", f"{max(row['now'] for name, row in seeds.items() if 'goal' not in name):.3f} of wealth for all planners (before: up to {max(row['before'] for name, row in seeds.items() if 'goal' not in name):.3f})", f"`{decisions['command']}`"),
        ("... of `cem` with its latent goal", f"{seeds['cem, latent goal']['now']:.3f} (before: {seeds['cem, latent goal']['before']:.3f})", f"`{decisions['command']}`"),
        ("Sharpe ratio minus 1/N, 20 stocks, 4.8 years: `qp`", f"{qp[2]:+.2f} ({qp[3]:+.2f} to {qp[4]:+.2f}): no evidence of skill", f"`{returns['command']}`"),
        ("... `mppi`", f"{mppi[2]:+.2f} ({mppi[3]:+.2f} to {mppi[4]:+.2f})", f"`{returns['command']}`"),
        ("Homes without skill that claim some", f"{claims['claim']} of {claims['homes']} (at most {claims['high_percent']:.0f} %; with the interval alone {claims['interval_alone']})", f"`{claims['command']}`"),
        ("Share of an oracle's gain on a market with a planted signal: `qp`", f"{planted['qp'][0]:.2f} ({planted['qp'][1]:.2f} to {planted['qp'][2]:.2f}); with shuffled actions {planted['twin'][0]:.2f}", f"`{planted['command']}`"),
        (f"Features: {polars['what']}", f"{polars['ours']}, {polars['times']:g} times faster (pandas: {pandas['times']:g})", f"`{polars['command']}`"),
        ("Training of the preset `small` on one core", f"{training['seconds']} seconds with its fits ({training['rows']}), steps at {training['share_of_matmul']:.0%} of the speed of matrix products", f"`{training['command']}`"),
    ]  # fmt: skip
    rows = "\n".join(f"| {what} | {found} | {command} |" for what, found, command in lines)
    blocks = "; ".join(f"{name}: {text}" for name, text in risk["blocks"].items())
    return f"""# Results

Fifteen lines, four plots. Everything was measured on two CPU cores, in {returns["measured"]} unless a page says otherwise; where something was chosen with test data in view, its page says so. t-values above 2 mean
that such an advantage would rarely arise by luck. The pages of this section have the tables, the conditions, and what was **not** reached.

| measured | found | command |
|---|---|---|
{rows}

## Risk

![t-values of the model's advantage](risk.svg)

Advantage in QLIKE of volatility over 21 sessions, on four blocks of symbols and years that nothing was fitted to ({blocks}). Right of the dashed line the model is better
beyond chance. [More](risk.md).

## Decisions

![Difference between decisions of two seeds](decisions.svg)

How much of the wealth differs between the decisions of two random seeds. [More](decisions.md).

## Return

![Sharpe ratio minus that of 1/N](return.svg)

Net of costs, {returns["block"]}, {returns["sessions"]:,} sessions, 95 % intervals. Only an interval right of zero could support a claim of skill, and none is. A Sharpe ratio is known to
±{returns["known_to"]} here; a gain below {returns["detectable"]} would usually not be detected. [More](backtest.md).

## Speed

![Times faster](speed.svg)

Same work on the same machine. Ingestion of 25 million rows takes {ingestion["times_bare"]} times a bare sort of the same files and {ingestion["peak_gb"]} GB. More:
[features]({polars["page"]}), [mechanics and planners]({vectorbt["page"]}), [ingestion]({ingestion["page"]}), [training]({training["page"]}), [a cluster](cluster.md).
A CEM decision takes {worldmodel["ours"]}.

---

Made by `python -m docs.results.make` from the JSON files of `docs/results/`; do not edit it by hand.
"""


def plots(risk: Any, decisions: Any, returns: Any, speed: Any) -> dict[str, str]:
    """The four plots as SVG, by name."""
    advantage = {name: [(t, None, None, i) for i, t in enumerate(values)] for name, values in risk["qlike_t"].items()}
    seeds = {
        name: [(row["before"], None, None, 1), (row["now"], None, None, 0)] for name, row in decisions["seeds"].items()
    }
    sharpe = {
        name: [(gain, low, high, 1 if name in ("qp", "mppi") else 0)]
        for name, _, gain, low, high, _ in returns["strategies"]
        if name != "equal_weight"
    }
    names = ("features, Polars", "features, pandas", "portfolios, vectorbt", "CEM, stable-worldmodel")
    times = {name: [(row["times"], None, None, 0)] for name, row in zip(names, speed["rows"], strict=True)}
    return {
        "risk": plot(advantage, "t-value of the model's advantage", (-4, 13, 4), 2, [*risk["blocks"]]),
        "decisions": plot(seeds, "share of wealth that differs", (0, 0.4, 0.1), 0, ["now", "before"]),
        "return": plot(sharpe, "Sharpe ratio minus that of 1/N", (-1.6, 0.8, 0.4), 0, ["baselines", "planners"]),
        "speed": plot(times, "times faster than the other", (0, 500, 100), 1, []),
    }


def plot(
    rows: Mapping[str, Sequence[Point]],
    title: str,
    axis: tuple[float, float, float],
    reference: float,
    series: Sequence[str],
) -> str:
    """Dots, and intervals where there are any, a row a name, as SVG that reads on light and dark pages.

    Args:
        axis: first value, last value and step of the ticks.
        reference: where a dashed line stands.
        series: names for the legend, by the number of the series.
    """
    low, high, step = axis
    height = _TOP + _ROW * len(rows) + 40

    def at(value: float) -> str:
        return f"{_LABELS + (_WIDTH - _LABELS - _RIGHT) * (value - low) / (high - low):.1f}"

    bottom = _TOP + _ROW * len(rows)
    parts = []
    for i in range(round((high - low) / step) + 1):
        tick = low + i * step
        if tick <= high:
            parts.append(
                f'<line x1="{at(tick)}" x2="{at(tick)}" y1="{_TOP}" y2="{bottom}" stroke="{_GREY}" opacity=".2"/>'
            )
            parts.append(f'<text x="{at(tick)}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<line x1="{at(reference)}" x2="{at(reference)}" y1="{_TOP}" y2="{bottom}" stroke="{_GREY}" stroke-dasharray="4 3"/>'
    )
    parts.append(
        f'<text x="{(_LABELS + _WIDTH - _RIGHT) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(title)}</text>'
    )
    for i, name in enumerate(series):
        parts.append(f'<circle cx="{_LABELS + 6 + 90 * i}" cy="12" r="4" fill="{_COLOURS[i]}"/>')
        parts.append(f'<text x="{_LABELS + 15 + 90 * i}" y="16">{escape(name)}</text>')
    for i, (name, points) in enumerate(rows.items()):
        y = _TOP + _ROW * (i + 0.5)
        parts.append(f'<text x="{_LABELS - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for value, first, last, number in points:
            colour = _COLOURS[number]
            if first is not None and last is not None:
                parts.append(
                    f'<line x1="{at(first)}" x2="{at(last)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
                )
            parts.append(f'<circle cx="{at(value)}" cy="{y}" r="4.5" fill="{colour}"><title>{value:g}</title></circle>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" '
        f'fill="{_GREY}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _span(values: Sequence[float], form: str = ".1f") -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def _strategy(returns: Any, name: str) -> Any:
    return next(row for row in returns["strategies"] if row[0] == name)


def update_return(home: Path) -> None:
    """Write the leaderboard of a home's newest checkpoint into return.json, without controls and strategies of the user's own."""
    file = HERE / "return.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    newest = json.loads((home / "checkpoints" / "current.json").read_text(encoding="utf-8"))
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as warehouse:
        rows = warehouse.execute(
            "SELECT strategy, sharpe, excess_sharpe, excess_low, excess_high, annual_turnover, start_date, end_date, n_days, detectable "
            "FROM leaderboard "
            "WHERE checkpoint = $checkpoint AND block = 'test' AND sharpe IS NOT NULL AND kind IN ('planner', 'baseline') "
            "ORDER BY sharpe DESC, strategy",
            newest,
        ).fetchall()
        [(error,)] = warehouse.execute(
            "SELECT sharpe_error FROM backtest_inference WHERE checkpoint = $checkpoint AND block = 'test'", newest
        ).fetchall()
    first, last, sessions, detectable = next(row[6:] for row in rows if row[0] == "qp")
    found |= {
        "measured": f"{datetime.date.today():%Y-%m}",
        "block": f"test block, {first} to {last}",
        "sessions": sessions,
        "known_to": round(error, 2),
        "detectable": round(detectable, 1),
        "strategies": [[row[0], *(round(value, 2) + 0.0 for value in row[1:6])] for row in rows],
    }
    text = re.sub(
        r"\[[^\[\]{}]+\]", lambda row: " ".join(row[0].split()), json.dumps(found, indent=2)
    )  # a line a strategy
    file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path)
    if home := parser.parse_args().home:
        update_return(home)
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")
