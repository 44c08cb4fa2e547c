"""Small static charts as SVG, for a decision's page and for what the Dagster UI shows of an asset.

They are a few kB each, need no JavaScript, and take the colours of the reader's light or dark theme.
"""

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finjepa_pipeline.report.page import PALETTE

MOST_POINTS = 600  # of a line; more cannot be seen
_LEFT, _TOP, _BOTTOM, _RIGHT = 58, 8, 22, 8
_STYLE = "<style>text{fill:#59636e}@media(prefers-color-scheme:dark){text{fill:#9aa4ae}}</style>"


@dataclass(frozen=True)
class Series:
    """A line of `x` and `y` of equal length; or a band, where `low` is its lower edge and `y` its upper one."""

    name: str
    x: Any
    y: Any
    low: Any = None


def chart(
    series: Sequence[Series],
    *,
    y_label: str = "",
    x_label: str = "",
    from_zero: bool = False,
    width: int = 560,
    height: int = 200,
) -> str:
    """One chart of series over numbers or over dates (datetime64), with a legend where it has several names."""
    series = [_thinned(one) for one in series if len(one.y)]
    if not series:
        return _svg(width, 40, f'<text x="8" y="24" font-size="11">{html.escape(y_label)}: no data</text>')
    dated = np.asarray(series[0].x).dtype.kind == "M"
    values = np.concatenate([np.asarray(v, float) for one in series for v in (one.y, one.low) if v is not None])
    xs = np.concatenate([_numbers(one.x) for one in series])
    x_range, y_range = (float(xs.min()), float(xs.max())), _range(values, from_zero)
    names = list(dict.fromkeys(one.name for one in series if one.name))
    top = _TOP + (16 if len(names) > 1 else 0)
    bottom = height - _BOTTOM - (14 if x_label else 0)

    def at_x(x: Any) -> np.ndarray:
        return _LEFT + (width - _LEFT - _RIGHT) * (_numbers(x) - x_range[0]) / max(x_range[1] - x_range[0], 1e-12)

    def at_y(y: Any) -> np.ndarray:
        return bottom - (bottom - top) * (np.asarray(y, float) - y_range[0]) / (y_range[1] - y_range[0])

    parts = [_y_axis(y_range, at_y, width), _label(y_label, x_label, top, bottom, width, height)]
    parts.append(_x_axis(x_range, at_x, bottom, dated))
    if len(names) > 1:
        parts.append(_legend(names, width))
    for one in series:
        colour = PALETTE[(names.index(one.name) if one.name else 0) % len(PALETTE)]
        x, y = at_x(one.x), at_y(one.y)
        if one.low is None:
            parts.append(f'<path d="{_path(x, y)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        else:
            outline = _path([*x, *x[::-1]], [*y, *at_y(one.low)[::-1]])
            parts.append(f'<path d="{outline}Z" fill="{colour}" opacity=".2"/>')
    return _svg(width, height, "".join(parts))


def image(svg: str, title: str) -> str:
    """The chart as a Markdown image that needs no file."""
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _svg(width: int, height: int, content: str) -> str:
    space = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui,sans-serif"'
    return f'<svg {space} viewBox="0 0 {width} {height}" width="{width}" role="img">{_STYLE}{content}</svg>'


def _thinned(one: Series) -> Series:
    y = np.asarray(one.y, float)
    kept = np.nonzero(np.isfinite(y))[0]
    if one.low is None and len(kept) > MOST_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, MOST_POINTS).astype(int)]
    low = None if one.low is None else np.asarray(one.low, float)[kept]
    return Series(one.name, np.asarray(one.x)[kept], y[kept], low)


def _numbers(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype("datetime64[D]").astype(float) if array.dtype.kind == "M" else array.astype(float)


def _range(values: np.ndarray, from_zero: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return low - (0 if from_zero and low == 0 else margin), high + margin


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two values."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _y_axis(y_range: tuple[float, float], at_y: Any, width: int) -> str:
    return "".join(
        f'<path d="M{_LEFT} {y:.1f}H{width - _RIGHT}" stroke="#888" opacity=".25"/>'
        f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" font-size="10" text-anchor="end">{value + 0.0:.3g}</text>'
        for value, y in ((value, float(at_y(value))) for value in _ticks(*y_range))
    )


def _x_axis(x_range: tuple[float, float], at_x: Any, bottom: float, dated: bool) -> str:
    if dated:
        days = np.linspace(*x_range, 5).astype("datetime64[D]")
        ticks = [(float(at_x(day)), str(day)) for day in days]
    else:
        ticks = [(float(at_x(value)), f"{value:g}") for value in _ticks(*x_range)] if x_range[1] > x_range[0] else []
    edge = float(at_x(x_range[1])) - 10  # where a label would be cut
    anchors = ["end" if x > edge else "start" if dated and i == 0 else "middle" for i, (x, _) in enumerate(ticks)]
    return "".join(
        f'<text x="{x:.1f}" y="{bottom + 14:.0f}" font-size="10" text-anchor="{anchor}">{text}</text>'
        for (x, text), anchor in zip(ticks, anchors, strict=False)
    )


def _label(y_label: str, x_label: str, top: float, bottom: float, width: int, height: int) -> str:
    middle = (top + bottom) / 2
    return (
        f'<text font-size="10" text-anchor="middle" transform="translate(11 {middle:.0f}) rotate(-90)">'
        f"{html.escape(y_label)}</text>"
        f'<text x="{(_LEFT + width) / 2:.0f}" y="{height - 4}" font-size="10" text-anchor="middle">{html.escape(x_label)}</text>'
    )


def _legend(names: Sequence[str], width: int) -> str:
    step = (width - _LEFT - _RIGHT) / len(names)
    return "".join(
        f'<rect x="{_LEFT + i * step:.0f}" y="4" width="8" height="8" fill="{PALETTE[i % len(PALETTE)]}"/>'
        f'<text x="{_LEFT + i * step + 11:.0f}" y="12" font-size="9">{html.escape(name)}</text>'
        for i, name in enumerate(names)
    )


def _path(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
