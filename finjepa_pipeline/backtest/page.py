"""The shell of a page that needs nothing but itself: style for phones, light and dark, and figures that are drawn when they
come into view. Plotly travels compressed, as it would be larger than everything else."""

import base64
import gzip
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finjepa_model.files import to_json

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Link:
    """A cell that leads somewhere: to a file beside the page, or to the Dagster UI."""

    text: str
    target: str


def write_page(
    path: Path,
    title: str,
    parts: Sequence[str],
    figures: Mapping[str, Any],
    dates: Mapping[str, Sequence[str]],
    script: str = "",
) -> None:
    """Write the page beside its place and rename it into it.

    Args:
        parts: HTML of the body, in order; `<div class="figure" id=NAME>` is where a figure is drawn.
        figures: `data` and `layout` by name; a trace with `dates: NAME` gets that list as its x.
        dates: lists of days that traces share.
        script: JavaScript of the page's own.
    """
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    drawing = ""
    if figures:
        numbers = to_json({"f": figures, "d": dates}, separators=(",", ":")).replace("</", "<\\/")
        drawer = (_HERE / "page.js").read_text(encoding="utf-8")
        drawing = (
            f'<script type="text/plain" id="plotly">{_plotly()}</script>'
            f"<script>const NUMBERS={numbers};const FIGURES=NUMBERS.f,DATES=NUMBERS.d;\n{drawer}</script>"
        )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>"
        f"<body>{''.join(parts)}{drawing}<script>{script}</script></body></html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(page, encoding="utf-8")
    os.replace(beside, path)


def heading(text: str, note: str = "") -> str:
    """A section's title, and what to know to read it."""
    return f"<h2>{html.escape(text)}</h2>" + (f'<p class="dim">{html.escape(note)}</p>' if note else "")


def figure(name: str) -> str:
    """Where a figure is drawn."""
    return f'<div class="figure" id="{name}"></div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str = "") -> str:
    """A table that scrolls sideways on a narrow screen. A cell is text, (text, class of the cell), or a `Link`."""

    def cell(value: Any) -> str:
        if isinstance(value, Link):
            return f'<td><a href="{html.escape(value.target)}">{html.escape(value.text)}</a></td>'
        text, kind = value if isinstance(value, tuple) else (value, "")
        return f'<td class="{kind}">{html.escape(str(text))}</td>' if kind else f"<td>{html.escape(str(text))}</td>"

    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6)).decode()
