"""The tear sheet: one HTML page that needs nothing but itself, says in words what was found, and shows why."""

import html
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.files import write_text
from finjepa_pipeline.backtest.metrics import drawdowns
from finjepa_pipeline.backtest.strategies import BENCHMARK

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--dim:#667;--line:#ddd}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#14171a;--dim:#99a;--line:#333}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.verdict{font-size:1.15rem;border-left:4px solid #3b82f6;padding:.25rem 1rem}.dim{color:var(--dim);font-size:.9rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}
"""
_COLUMNS = (
    ("strategy", "strategy", "{}"),
    ("sharpe", "Sharpe", "{:.2f}"),
    ("sharpe_low", "95 % from", "{:.2f}"),
    ("sharpe_high", "to", "{:.2f}"),
    ("excess_sharpe", "minus 1/N", "{:+.2f}"),
    ("excess_low", "95 % from", "{:+.2f}"),
    ("excess_high", "to", "{:+.2f}"),
    ("annual_return", "return", "{:.1%}"),
    ("annual_volatility", "volatility", "{:.1%}"),
    ("max_drawdown", "drawdown", "{:.1%}"),
    ("annual_turnover", "turnover/yr", "{:.1f}"),
    ("cost_drag", "cost/yr", "{:.2%}"),
)


def write_report(
    path: Path,
    title: str,
    rows: list[dict[str, Any]],
    returns: pl.DataFrame,
    decisions: pl.DataFrame,
    planners: set[str],
) -> None:
    """Write the page beside its place and rename it into it.

    Args:
        rows: of `leaderboard_rows`.
        returns, decisions: as `sql/backtest_returns.sql` and `sql/backtest_decisions.sql` give them.
        planners: strategies that are planners on the world model; the others are baselines.
    """
    from plotly.offline import get_plotlyjs

    test = [row for row in rows if row["block"] == "test"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict">{html.escape(verdict(test, planners))}</p>',
        f'<p class="dim">Test block {test[0]["start_date"]} to {test[0]["end_date"]}, {test[0]["n_days"]} sessions, net of '
        "costs. Decided at a close, filled at the next one. Intervals are 95 % of a paired stationary bootstrap.</p>",
    ]
    for block, heading in (
        ("test", "Leaderboard, test block"),
        ("validation", "Validation block, which chooses the champion"),
    ):
        parts += [f"<h2>{heading}</h2>", _table([row for row in rows if row["block"] == block])]
    shown = returns.filter(pl.col("block") == "test")
    for figure in (_wealth(shown), _drawdown(shown), *_weights(decisions.filter(pl.col("block") == "test"), planners)):
        parts.append(
            figure.to_html(
                full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False}
            )
        )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body>{''.join(parts)}</body></html>"
    )
    write_text(path, page)


def verdict(test: list[dict[str, Any]], planners: set[str]) -> str:
    """One sentence: whether there is evidence of skill, and of which kind."""
    candidates = [row for row in test if row["strategy"] in planners and row["excess_low"] is not None]
    if not candidates:
        return "No planner was judged, so nothing can be said about skill."
    best = max(candidates, key=lambda row: row["excess_sharpe"])
    difference = (
        f"{best['strategy']}, the best of {len(candidates)} planners, has a Sharpe ratio {best['excess_sharpe']:+.2f} against "
        f"1/N, 95 % interval {best['excess_low']:+.2f} to {best['excess_high']:+.2f}"
    )
    if best["excess_low"] > 0:
        return f"There is a sign of skill, before any correction for the number of trials: {difference}."
    if best["excess_high"] < 0:
        return f"There is evidence against skill: {difference}."
    return f"There is no evidence of skill: {difference}, which covers zero."


def _table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{label}</th>" for _, label, _ in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row, key, form)}</td>" for key, _, form in _COLUMNS) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    against_itself = row["strategy"] == BENCHMARK and key.startswith("excess")
    return "–" if row[key] is None or against_itself else html.escape(form.format(row[key]))


def _wealth(returns: pl.DataFrame) -> Any:
    figure = _figure("Wealth, net of costs", "wealth")
    for (name,), walk in returns.group_by("strategy", maintain_order=True):
        figure.add_scatter(
            x=walk["date"].to_list(), y=np.round(walk["wealth"].to_numpy(), 4), name=str(name), mode="lines"
        )
    figure.update_yaxes(type="log")
    return figure


def _drawdown(returns: pl.DataFrame) -> Any:
    figure = _figure("Drawdown", "share of the highest wealth so far")
    for (name,), walk in returns.group_by("strategy", maintain_order=True):
        drawdown_T = np.round(drawdowns(walk["net_return"].to_numpy()), 4)
        figure.add_scatter(x=walk["date"].to_list(), y=drawdown_T, name=str(name), mode="lines")
    figure.update_yaxes(tickformat=".0%")
    return figure


def _weights(decisions: pl.DataFrame, planners: set[str]) -> list[Any]:
    figures = []
    for (name,), made in decisions.group_by("strategy", maintain_order=True):
        if name not in planners:
            continue
        figure = _figure(f"What {name} held (hedge on in {made['hedge'].mean():.0%} of decisions)", "share of wealth")
        for (entity,), line in made.group_by("entity", maintain_order=True):
            held = np.round(line["held"].to_numpy(), 4)
            figure.add_scatter(
                x=line["date"].to_list(), y=held, name=str(entity), mode="lines", stackgroup="held", line_width=0
            )
        figure.update_yaxes(tickformat=".0%")
        figures.append(figure)
    return figures


def _figure(title: str, unit: str) -> Any:
    import plotly.graph_objects as go

    clear = "rgba(0,0,0,0)"
    return go.Figure(
        layout=go.Layout(
            title=title,
            height=420,
            margin={"l": 55, "r": 10, "t": 50, "b": 30},
            paper_bgcolor=clear,
            plot_bgcolor=clear,
            font={"color": "#7a828e"},  # legible on light and on dark
            xaxis={"gridcolor": "rgba(128,128,128,.25)"},
            yaxis={"gridcolor": "rgba(128,128,128,.25)", "title": unit},
            legend={"orientation": "h", "y": -0.15},
            hovermode="x unified",
        )
    )
