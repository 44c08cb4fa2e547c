"""The interactive figures of the backtest report, as Plotly graph objects in single precision, and its tables of returns.

Traces over time share their dates by name: `meta` names a list that the page holds once. Shapes: T sessions, D decisions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from finjepa_pipeline.report.page import PALETTE, number

SESSIONS_PER_YEAR = 252
SHOWN_HELD = 0.005  # share of wealth; an asset that was never held above it is not drawn
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_GAIN_AND_LOSS = [[0, "#d97706"], [0.5, "rgba(128,128,128,.12)"], [1, "#3b82f6"]]
_YEAR = SESSIONS_PER_YEAR**0.5  # of daily volatility
_QUARTER = 63  # sessions
AGAINST = (
    "strategy", "beta to 1/N", "correlation", "tracking error, a year", "information ratio", "VaR 95 % of a day", "CVaR",
)  # fmt: skip
DRAWDOWNS = ("depth", "from", "lowest", "recovered", "sessions")


def of(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """A figure without Plotly's own template: the page brings colours and fonts, in light and dark."""
    return go.Figure(list(traces), layout={"template": {}, **layout})


def line(name: str, values: Any, dates: str = "test", **more: Any) -> go.Scatter:
    return go.Scatter(name=name, y=np.asarray(values, np.float32), meta=dates, mode="lines", **more)


def drawdown(net_T: np.ndarray) -> np.ndarray:
    """How far wealth is below its highest so far, in fractions."""
    wealth_T = np.cumprod(1 + net_T)
    return wealth_T / np.maximum.accumulate(np.maximum(wealth_T, 1.0)) - 1


def wealth_and_drawdown(net: Mapping[str, np.ndarray], shown: Sequence[str]) -> tuple[go.Figure, go.Figure]:
    """Wealth and drawdown of every strategy from its daily net returns; who is not in `shown` is a click away."""
    traces: tuple[list[Any], list[Any]] = ([], [])
    for place, name in enumerate([*shown, *(other for other in net if other not in shown)]):
        dash = "solid" if place < len(PALETTE) else "dash"  # a colour that comes again
        more: dict[str, Any] = {"line": {"width": 3 if name == shown[0] else 1.5, "dash": dash}}
        if name not in shown:
            more["visible"] = "legendonly"
        traces[0].append(line(name, np.cumprod(1 + net[name]), **more))
        traces[1].append(line(name, drawdown(net[name]), **more))
    return (
        of(traces[0], yaxis={"type": "log", "title": "wealth, net of costs"}),
        of(traces[1], yaxis={"tickformat": ".0%", "title": "below the highest wealth so far"}),
    )


def rolling(net: Mapping[str, np.ndarray], shown: Sequence[str]) -> tuple[go.Figure, go.Figure]:
    """Sharpe ratio and volatility over the last 252 sessions, or over the whole block where it is shorter."""
    ratios, volatilities = [], []
    for name in shown:
        window = min(SESSIONS_PER_YEAR, len(net[name]))
        windows_XT = np.lib.stride_tricks.sliding_window_view(net[name], window)
        spread_X = windows_XT.std(axis=1, ddof=1)
        ratio_X = np.where(spread_X > 1e-12, windows_XT.mean(1) / np.maximum(spread_X, 1e-12), np.nan)
        for traces, value_X in ((ratios, ratio_X), (volatilities, spread_X)):
            unknown = np.full(window - 1, np.nan)
            traces.append(line(name, np.concatenate([unknown, value_X * _YEAR])))
    last = f"last {SESSIONS_PER_YEAR} sessions"
    return (
        of(ratios, yaxis={"title": f"Sharpe ratio, {last}"}),
        of(volatilities, yaxis={"title": f"volatility, {last}", "tickformat": ".0%"}),
    )


def held(decisions: pl.DataFrame) -> go.Figure:
    """Shares of wealth by asset; those with the least are one area where there are more assets than colours."""
    by_asset = decisions.group_by("entity", maintain_order=True)
    all_held = {str(entity): one["held"].to_numpy() for (entity,), one in by_asset}
    drawn = {name: held_D for name, held_D in all_held.items() if np.abs(held_D).max() > SHOWN_HELD}
    largest = sorted(drawn, key=lambda name: -np.abs(drawn[name]).mean())
    if len(largest) > len(PALETTE) and len({len(held_D) for held_D in drawn.values()}) == 1:
        rest = largest[len(PALETTE) - 1 :]
        drawn = {name: drawn[name] for name in largest[: len(PALETTE) - 1]} | {
            f"{len(rest)} others": np.sum([drawn[name] for name in rest], axis=0)
        }
    traces = [line(name, held_D, "decisions", stackgroup="held", line={"width": 0}) for name, held_D in drawn.items()]
    return of(traces, yaxis={"tickformat": ".0%", "title": "share of wealth"})


def signals(decisions: pl.DataFrame) -> go.Figure:
    """Long, flat or short by asset and decision; an asset without a budget is flat."""
    wide = decisions.pivot("date", index="entity", values="signal", aggregate_function="first")
    grid = go.Heatmap(
        z=np.nan_to_num(wide.drop("entity").to_numpy()).astype(np.int8),
        y=wide["entity"].to_list(),
        meta="decisions",
        zmin=-1,
        zmax=1,
        colorscale=_GAIN_AND_LOSS,
        showscale=False,
        hovertemplate="%{x} %{y}: %{z}<extra></extra>",
    )
    return of([grid], hovermode="closest", yaxis={"dtick": 1})


def hedge_share(decisions: Mapping[str, pl.DataFrame]) -> go.Figure:
    """Whether the hedge was on, and the running share of decisions with it on."""
    traces = []
    for name, made in decisions.items():
        on_D = made.group_by("date", maintain_order=True).agg(pl.col("hedge").first())["hedge"].to_numpy() > 0.5
        traces.append(line(f"{name}: share so far", np.cumsum(on_D) / np.arange(1, len(on_D) + 1), "decisions"))
        traces.append(line(f"{name}: on", on_D, "decisions", line={"shape": "hv", "width": 0.7}))
    return of(traces, yaxis={"tickformat": ".0%", "range": [0, 1.05], "title": "hedge on"})


def attribution(growth: Mapping[tuple[str, str], float], names: Sequence[str], benchmark: str) -> go.Figure:
    """Annual return over 1/N without costs, part by part."""
    before = dict.fromkeys(names, growth[benchmark, "hedge"])
    traces = []
    for part, replay in (("weights", "weights"), ("signals", "signals"), ("hedge", "hedge"), ("costs", "net")):
        traces.append(go.Bar(name=part, x=list(names), y=[growth[name, replay] - before[name] for name in names]))
        before = {name: growth[name, replay] for name in names}
    above = {"orientation": "h", "y": 1.12}  # names of strategies are long, and stand below
    return of(traces, barmode="relative", legend=above, yaxis={"tickformat": ".1%", "title": "a year, over 1/N"})


def cost_curves(
    ratio: Mapping[tuple[str, str], float | None], names: Sequence[str], grid: Sequence[float], shown: Sequence[str]
) -> go.Figure:
    """Sharpe ratio by one-way cost in basis points; who is not in `shown` is a click away."""
    traces = [
        go.Scatter(
            name=name,
            x=list(grid),
            y=[ratio.get((name, f"cost_{bps:g}")) for bps in grid],
            mode="lines+markers",
            visible=True if name in shown else "legendonly",
        )
        for name in sorted(names, key=lambda name: name not in shown)
    ]
    return of(traces, xaxis={"title": "one-way cost, bp"}, yaxis={"title": "Sharpe ratio, net"})


def forest(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Sharpe ratio minus that of 1/N with its interval; the difference alone where the block is too short for one."""
    ordered = sorted((row for row in rows if row["excess_sharpe"] is not None), key=lambda row: row["excess_sharpe"])
    low, middle, high = (
        np.array([row[f"excess_{name}"] for row in ordered], np.float32) for name in ("low", "sharpe", "high")
    )
    error = {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low}
    names = [row["strategy"] for row in ordered]
    points = go.Scatter(x=middle, y=names, error_x=error, mode="markers", showlegend=False)
    axis, height = {"title": "Sharpe ratio minus 1/N"}, 120 + 26 * len(ordered)
    return of([points], hovermode="closest", height=height, xaxis=axis).add_vline(
        0, line={"dash": "dot", "color": "#888"}
    )


# What a series of daily returns looks like


def worst_drawdowns(dates_T: Sequence[Any], net_T: np.ndarray, most: int = 5) -> list[tuple[str, ...]]:
    """The deepest falls below the highest wealth so far: depth, the day of the high, of the low and of the recovery, and how many
    sessions lie between the first and the last; rows of DRAWDOWNS, the deepest first."""
    wealth_T = np.concatenate([[1.0], np.cumprod(1 + net_T)])  # at the close before the first session, too
    below_T = wealth_T / np.maximum.accumulate(wealth_T) - 1
    edges = np.flatnonzero(np.diff(np.concatenate([[False], below_T < 0, [False]]).astype(int)))
    found = []
    for first, last in edges.reshape(-1, 2):  # below from `first`, and no more at `last`
        low = first + int(below_T[first:last].argmin())
        found.append((float(below_T[low]), first - 1, low, last))

    def day(place: int) -> str:
        return str(dates_T[place - 1]) if place else "the beginning"

    return [
        (
            f"{depth:.1%}",
            day(high),
            day(low),
            day(last) if last < len(wealth_T) else "not yet",
            f"{min(last, len(net_T)) - high}",
        )
        for depth, high, low, last in sorted(found)[:most]
    ]


def against(net: Mapping[str, np.ndarray], names: Sequence[str], benchmark: str) -> list[tuple[str, ...]]:
    """Strategies beside 1/N, rows of AGAINST; losses are positive."""
    base_T = net[benchmark]
    rows = []
    for name in names:
        net_T, over_T = net[name], net[name] - base_T
        error = over_T.std(ddof=1) * _YEAR
        spread = net_T.std(ddof=1) * base_T.std(ddof=1)
        both = np.cov(net_T, base_T)[0, 1]
        var, cvar = tail(net_T)
        rows.append((
            name,
            number(both / base_T.var(ddof=1)),
            number(both / spread if spread > 0 else None),
            number(error, "{:.1%}"),
            number(over_T.mean() * SESSIONS_PER_YEAR / error if error > 0 else None, "{:+.2f}"),
            number(var, "{:.2%}"),
            number(cvar, "{:.2%}"),
        ))  # fmt: skip
    return rows


def tail(net_T: np.ndarray, level: float = 0.05) -> tuple[float, float]:
    """Value at risk and expected shortfall of a day at a level, as positive losses."""
    quantile = np.quantile(net_T, level)
    return float(-quantile), float(-net_T[net_T <= quantile].mean())


def months(returns: pl.DataFrame) -> go.Figure:
    """Net return of every month, a row a year; the last column is the year."""
    compounded = ((1 + pl.col("net_return")).product() - 1).alias("net")
    year, month = pl.col("date").dt.year().alias("year"), pl.col("date").dt.month().alias("month")
    by_month = returns.group_by(year, month).agg(compounded)
    by_year = dict(returns.group_by(year).agg(compounded).iter_rows())
    years = sorted(by_year)
    grid = np.full((len(years), 13), np.nan)
    for of_year, of_month, net in by_month.iter_rows():
        grid[years.index(of_year), of_month - 1] = net
    grid[:, 12] = [by_year[one] for one in years]
    heat = go.Heatmap(
        z=np.round(grid, 5),
        x=[*_MONTHS, "year"],
        y=[str(one) for one in years],
        zmid=0,
        zmax=float(np.nanmax(np.abs(grid[:, :12]))),
        zmin=-float(np.nanmax(np.abs(grid[:, :12]))),
        colorscale=_GAIN_AND_LOSS,
        showscale=False,
        text=[["" if np.isnan(value) else f"{100 * value:.1f}" for value in row] for row in grid],
        texttemplate="%{text}",
        hovertemplate="%{y} %{x}: %{z:.1%}<extra></extra>",
    )
    return of(
        [heat], hovermode="closest", height=90 + 28 * len(years), yaxis={"autorange": "reversed", "type": "category"}
    )


def distribution(net: Mapping[str, np.ndarray], names: Sequence[str]) -> go.Figure:
    """Daily returns of strategies in the same bins, with value at risk and expected shortfall of the first."""
    edges = np.histogram_bin_edges(np.concatenate([net[name] for name in names]), bins=60)
    middle = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    shape: dict[str, Any] = {"mode": "lines", "line": {"shape": "hvh"}, "fill": "tozeroy"}
    traces = [go.Scatter(name=name, x=middle, y=np.histogram(net[name], edges)[0], **shape) for name in names]
    axis = {"tickformat": ".1%", "title": "return of a day, net"}
    figure = of(traces, xaxis=axis, yaxis={"title": "sessions", "type": "log"})
    var, cvar = tail(net[names[0]])
    for label, loss, place in (("VaR 95 %", var, "top right"), ("CVaR 95 %", cvar, "top left")):
        text, dotted = {"text": f"{label}: {loss:.1%}"}, {"dash": "dot", "color": "#888"}
        figure.add_vline(-loss, line=dotted, annotation=text, annotation_position=place)
    return figure


def forecast_volatility(expectations: pl.DataFrame, returns: pl.DataFrame) -> go.Figure:
    """The volatility that a planner forecast for its portfolio at each decision, and that of its returns since and over a
    quarter, a year each.

    Args:
        expectations: of one strategy; a step lasts from its date to the next one.
        returns: of the same strategy.
    """
    dates, net_T = returns["date"].to_list(), returns["net_return"].to_numpy()
    made = expectations.filter(pl.col("date").is_in(dates)).sort("date")
    starts = np.array([dates.index(day) for day in made["date"]])
    step = int(np.median(np.diff(starts)))
    forecast = (made["imagined_volatility"].to_numpy() * _YEAR / step**0.5).astype(np.float32)
    over = [net_T[start + 1 : start + 1 + step] for start in starts if start + step < len(net_T)]
    realised = np.array([some.std(ddof=1) * _YEAR for some in over], np.float32)
    rolling_T = returns["net_return"].rolling_std(_QUARTER).to_numpy() * _YEAR
    at = [str(day) for day in made["date"]]
    traces = [
        go.Scatter(name=f"forecast for {step} sessions", x=at, y=forecast, mode="lines", line={"width": 3}),
        go.Scatter(name="as it came", x=at[: len(realised)], y=realised, mode="markers", marker={"size": 4}),
        line(f"last {_QUARTER} sessions", rolling_T),
    ]
    return of(traces, yaxis={"title": "volatility a year", "tickformat": ".0%", "rangemode": "tozero"})
