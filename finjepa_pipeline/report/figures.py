"""The figures of the report, as plain Plotly traces: lines share their days by name, numbers are rounded.

Shapes: T sessions, S bootstrap samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from finjepa_pipeline.backtest.inference import block_length
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, SHORTEST, drawdowns

Figure = dict[str, Any]
_BAND_SAMPLES = 300
_ROLLING = 252


def numbers(values: Any, digits: int = 4) -> list[float | None]:
    """Rounded, with None for what is not a number."""
    array = np.round(np.asarray(values, float), digits)
    return [value if np.isfinite(value) else None for value in array.tolist()]


def line(name: str, values: Any, dates: str = "test", **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "y": numbers(values), "dates": dates, **more}


def bands(returns_T: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise 95 % bands of wealth and of drawdown, [2, T] each, from a stationary bootstrap of the returns."""
    from arch.bootstrap import StationaryBootstrap

    bootstrap = StationaryBootstrap(block_length(returns_T), returns_T, seed=seed)
    samples_ST = np.array([np.asarray(data[0]) for data, _ in bootstrap.bootstrap(_BAND_SAMPLES)])
    wealth_ST = np.cumprod(1 + samples_ST, axis=1)
    drawdown_ST = wealth_ST / np.maximum.accumulate(np.maximum(wealth_ST, 1.0), axis=1) - 1
    return tuple(np.percentile(x_ST, [2.5, 97.5], axis=0) for x_ST in (wealth_ST, drawdown_ST))  # type: ignore[return-value]


def wealth_and_drawdown(net: dict[str, np.ndarray], headline: str, shown: Sequence[str]) -> tuple[Figure, Figure]:
    """Both with the band of the headline strategy, where the block is long enough; who is not in `shown` is a click away."""
    wealth, drawdown = [], []
    if len(net[headline]) >= SHORTEST:
        wealth, drawdown = (_band(band_2T, headline) for band_2T in bands(net[headline]))
    for name in [*shown, *(other for other in net if other not in shown)]:
        net_T = net[name]
        more: dict[str, Any] = {} if name in shown else {"visible": "legendonly"}
        more |= {"line": {"width": 3 if name == headline else 1.5}}
        wealth.append(line(name, np.cumprod(1 + net_T), **more))
        drawdown.append(line(name, drawdowns(net_T), **more))
    return (
        {"data": wealth, "layout": {"yaxis": {"type": "log", "title": "wealth, net of costs"}}},
        {"data": drawdown, "layout": {"yaxis": {"tickformat": ".0%", "title": "below the highest wealth so far"}}},
    )


def _band(band_2T: np.ndarray, name: str) -> list[dict[str, Any]]:
    quiet: dict[str, Any] = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    return [
        line("", band_2T[0], **quiet),
        line(
            f"{name}, 95 % band",
            band_2T[1],
            **{**quiet, "showlegend": True},
            fill="tonexty",
            fillcolor="rgba(59,130,246,.15)",
        ),
    ]


def rolling(net: dict[str, np.ndarray], shown: Sequence[str], what: str) -> Figure:
    """Sharpe ratio or volatility over the last 252 sessions."""
    data = []
    for name in shown:
        windows_XT = np.lib.stride_tricks.sliding_window_view(net[name], min(_ROLLING, len(net[name])))
        spread_X = windows_XT.std(axis=1, ddof=1)
        value_X = spread_X * np.sqrt(SESSIONS_PER_YEAR)
        if what == "Sharpe ratio":
            value_X = np.where(spread_X > 1e-12, windows_XT.mean(1) / np.maximum(spread_X, 1e-12), np.nan)
            value_X = value_X * np.sqrt(SESSIONS_PER_YEAR)
        data.append(line(name, np.concatenate([np.full(len(net[name]) - len(value_X), np.nan), value_X])))
    form = {} if what == "Sharpe ratio" else {"tickformat": ".0%"}
    return {"data": data, "layout": {"yaxis": {"title": f"{what}, last {_ROLLING} sessions", **form}}}


def held(decisions: pl.DataFrame, dates: str) -> Figure:
    """Shares of wealth by asset."""
    data = [
        line(str(entity), one["held"].to_numpy(), dates, stackgroup="held", line={"width": 0})
        for (entity,), one in decisions.group_by("entity", maintain_order=True)
        if one["held"].abs().max() > 0.005  # type: ignore[operator]
    ]
    return {"data": data, "layout": {"yaxis": {"tickformat": ".0%", "title": "share of wealth"}}}


def signals(decisions: pl.DataFrame, dates: str) -> Figure:
    """Long, flat or short by asset and decision; an asset without a budget is flat."""
    wide = decisions.pivot("date", index="entity", values="signal", aggregate_function="first")
    grid = wide.drop("entity").to_numpy()
    colours = [[0, "#d97706"], [0.5, "rgba(128,128,128,.15)"], [1, "#2563eb"]]
    trace = {
        "type": "heatmap", "z": np.nan_to_num(grid).astype(int).tolist(), "y": wide["entity"].to_list(), "dates": dates,
        "zmin": -1, "zmax": 1, "colorscale": colours, "showscale": False, "hovertemplate": "%{x} %{y}: %{z}<extra></extra>",
    }  # fmt: skip
    return {"data": [trace], "layout": {"hovermode": "closest", "yaxis": {"dtick": 1}}}


def hedge_share(decisions: dict[str, pl.DataFrame], dates: str) -> Figure:
    """Whether the hedge was on, and the running share of decisions with it on."""
    data = []
    for name, made in decisions.items():
        on_D = made.group_by("date", maintain_order=True).agg(pl.col("hedge").first())["hedge"].to_numpy() > 0.5
        data.append(line(f"{name}: share so far", np.cumsum(on_D) / np.arange(1, len(on_D) + 1), dates))
        data.append(line(f"{name}: on", on_D.astype(float), dates, line={"shape": "hv", "width": 0.7}))
    return {"data": data, "layout": {"yaxis": {"tickformat": ".0%", "range": [0, 1.05], "title": "hedge on"}}}


def turnover_and_costs(returns: pl.DataFrame, shown: Sequence[str]) -> Figure:
    """Cumulated one-way turnover (left) and costs (right)."""
    data = []
    for name in shown:
        one = returns.filter(pl.col("strategy") == name)
        data.append(line(f"{name}: turnover", one["turnover"].cum_sum().to_numpy()))
        data.append(line(f"{name}: costs", one["cost"].cum_sum().to_numpy(), yaxis="y2", line={"dash": "dot"}))
    layout = {
        "yaxis": {"title": "turnover so far, times wealth"},
        "yaxis2": {"title": "costs so far", "overlaying": "y", "side": "right", "tickformat": ".1%", "showgrid": False},
        "margin": {"l": 55, "r": 60, "t": 16, "b": 36},
    }
    return {"data": data, "layout": layout}


def attribution(growth: dict[tuple[str, str], float], names: Sequence[str], benchmark: str) -> Figure:
    """Annual return over 1/N without costs, part by part."""
    base = growth[benchmark, "hedge"]
    parts = {
        "weights": [growth[name, "weights"] - base for name in names],
        "signals": [growth[name, "signals"] - growth[name, "weights"] for name in names],
        "hedge": [growth[name, "hedge"] - growth[name, "signals"] for name in names],
        "costs": [growth[name, "net"] - growth[name, "hedge"] for name in names],
    }
    data = [{"type": "bar", "name": part, "x": list(names), "y": numbers(values)} for part, values in parts.items()]
    return {
        "data": data,
        "layout": {"barmode": "relative", "yaxis": {"tickformat": ".1%", "title": "a year, over 1/N"}},
    }


def cost_curves(ratio: dict[tuple[str, str], float | None], names: Sequence[str], grid: Sequence[float]) -> Figure:
    """Sharpe ratio by one-way cost."""
    data = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(grid),
         "y": numbers([np.nan if (r := ratio.get((name, f"cost_{bps:g}"))) is None else r for bps in grid])}
        for name in names
    ]  # fmt: skip
    return {"data": data, "layout": {"xaxis": {"title": "one-way cost, bp"}, "yaxis": {"title": "Sharpe ratio, net"}}}


def _gap(row: dict[str, Any], low: str, high: str) -> float:
    return float("nan") if row[low] is None or row[high] is None else row[high] - row[low]


def forest(rows: Sequence[dict[str, Any]]) -> Figure:
    """Sharpe ratio minus that of 1/N with its interval; the difference alone where the block is too short for one."""
    ordered = sorted((row for row in rows if row["excess_sharpe"] is not None), key=lambda row: row["excess_sharpe"])
    x = [row["excess_sharpe"] for row in ordered]
    trace = {
        "type": "scatter", "mode": "markers", "x": numbers(x), "y": [row["strategy"] for row in ordered], "showlegend": False,
        "error_x": {
            "type": "data", "symmetric": False,
            "array": numbers([_gap(row, "excess_sharpe", "excess_high") for row in ordered]),
            "arrayminus": numbers([_gap(row, "excess_low", "excess_sharpe") for row in ordered]),
        },
    }  # fmt: skip
    line_at_0 = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "color": "#888"},
    }
    return {
        "data": [trace],
        "layout": {"hovermode": "closest", "shapes": [line_at_0], "height": 120 + 26 * len(ordered),
                   "xaxis": {"title": "Sharpe ratio minus 1/N"}},
    }  # fmt: skip


def histogram(values: Sequence[float], title: str) -> Figure:
    counts, edges = np.histogram(values, bins=40)
    trace = {"type": "bar", "x": numbers((edges[1:] + edges[:-1]) / 2), "y": counts.tolist(), "showlegend": False}
    return {"data": [trace], "layout": {"bargap": 0.02, "xaxis": {"title": title}, "yaxis": {"title": "splits"}}}


def calibration(expectations: pl.DataFrame) -> Figure:
    """Imagined against realised log growth of a decision step."""
    data = [
        {"type": "scatter", "mode": "markers", "name": str(name), "x": numbers(one["imagined_growth"]),
         "y": numbers(one["realised_growth"]), "marker": {"size": 5, "opacity": 0.6}}
        for (name,), one in expectations.group_by("strategy", maintain_order=True)
    ]  # fmt: skip
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": "imagined growth of a step", "tickformat": ".1%"},
        "yaxis": {"title": "realised", "tickformat": ".1%"},
    }
    return {"data": data, "layout": layout}


def forecast_bars(qualities: Sequence[dict[str, Any]]) -> Figure:
    """RankIC by forecaster, with Newey-West intervals."""
    rows = [row for row in qualities if row["measure"] == "rank_ic" and row["mean"] is not None]
    error = {"type": "data", "symmetric": False, "array": numbers([_gap(row, "mean", "high") for row in rows]),
             "arrayminus": numbers([_gap(row, "low", "mean") for row in rows])}  # fmt: skip
    trace = {"type": "bar", "x": [row["forecaster"] for row in rows], "y": numbers([row["mean"] for row in rows]),
             "error_y": error, "showlegend": False}  # fmt: skip
    return {"data": [trace], "layout": {"yaxis": {"title": "RankIC, 95 % interval"}}}
