"""What a series of daily returns looks like, as tables and figures of the report: months, drawdowns, tails, and 1/N beside it.

Shapes: T sessions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from finjepa_pipeline.report.figures import SESSIONS_PER_YEAR, line, of
from finjepa_pipeline.report.page import number

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_GAIN_AND_LOSS = [[0, "#d97706"], [0.5, "rgba(128,128,128,.12)"], [1, "#3b82f6"]]
_QUARTER = 63  # sessions
AGAINST = (
    "strategy",
    "beta to 1/N",
    "correlation",
    "tracking error, a year",
    "information ratio",
    "VaR 95 % of a day",
    "CVaR",
)
DRAWDOWNS = ("depth", "from", "lowest", "recovered", "sessions")


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
        error = over_T.std(ddof=1) * SESSIONS_PER_YEAR**0.5
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
    traces = [
        go.Scatter(
            name=name,
            x=middle,
            y=np.histogram(net[name], edges)[0],
            mode="lines",
            line={"shape": "hvh"},
            fill="tozeroy",
        )
        for name in names
    ]
    figure = of(
        traces, xaxis={"tickformat": ".1%", "title": "return of a day, net"}, yaxis={"title": "sessions", "type": "log"}
    )
    for label, loss, place in zip(
        ("VaR 95 %", "CVaR 95 %"), tail(net[names[0]]), ("top right", "top left"), strict=True
    ):
        figure.add_vline(
            -loss,
            line={"dash": "dot", "color": "#888"},
            annotation={"text": f"{label}: {loss:.1%}"},
            annotation_position=place,
        )
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
    forecast = made["imagined_volatility"].to_numpy() * (SESSIONS_PER_YEAR / step) ** 0.5
    realised = [
        net_T[start + 1 : start + 1 + step].std(ddof=1) * SESSIONS_PER_YEAR**0.5
        for start in starts
        if start + step < len(net_T)
    ]
    rolling = np.full(len(net_T), np.nan)
    if len(net_T) >= _QUARTER:
        windows = np.lib.stride_tricks.sliding_window_view(net_T, _QUARTER)
        rolling[_QUARTER - 1 :] = windows.std(axis=1, ddof=1) * SESSIONS_PER_YEAR**0.5
    at = [str(day) for day in made["date"]]
    traces = [
        go.Scatter(
            name=f"forecast for {step} sessions", x=at, y=forecast.astype(np.float32), mode="lines", line={"width": 3}
        ),
        go.Scatter(
            name="as it came",
            x=at[: len(realised)],
            y=np.array(realised, np.float32),
            mode="markers",
            marker={"size": 4},
        ),
        line(f"last {_QUARTER} sessions", rolling),
    ]
    return of(traces, yaxis={"title": "volatility a year", "tickformat": ".0%", "rangemode": "tozero"})
