"""The frame of every page: Jinja templates, one palette, one style for phones, light and dark. A page needs nothing but itself.

Interactive figures are Plotly's; its library is inlined once a page, compressed, because it is larger than everything else. Small
static charts are SVG (`charts`): a decision's page has 20 kB instead of 1.9 MB.
"""

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from finjepa_model.files import to_json, write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

PALETTE = (
    "#3b82f6", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#a16207", "#dc2626", "#65a30d",
    "#c084fc", "#0f766e", "#94a3b8",
)  # fmt: skip

_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>')
_FEWEST_HEADINGS = 4  # from which a page has contents


def with_contents(body: str) -> str:
    """The body of a page with links to its headings before the first one, if it has several."""
    headings = _HEADING.findall(body)
    if len(headings) < _FEWEST_HEADINGS:
        return body
    links = " ".join(f'<a href="#{name}">{text}</a>' for name, text in headings)
    return _HEADING.sub(lambda first: f'<nav aria-label="contents">{links}</nav>\n{first[0]}', body, count=1)


def slug(text: str) -> str:
    """The name of a heading in an address."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=lambda name: bool(name and name.endswith(".html")),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"with_contents": with_contents, "slug": slug}


def link(text: str, target: str) -> dict[str, str]:
    """A cell of a table that leads to a file beside the page, or to the Dagster UI."""
    return {"text": text, "href": target}


def styled(text: object, style: str) -> dict[str, object]:
    """A cell of a table with a class of page.css: `text` (wraps), `good`, `bad`, `dim`."""
    return {"text": text, "style": style}


def number(value: float | None, form: str = "{:.2f}") -> str:
    """A number as a table shows it; a dash where there is none."""
    return "–" if value is None or value != value else form.format(value)


def duration(seconds: float) -> str:
    """In the unit that a person would take."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def render(template: str, **values: Any) -> str:
    """The text that a template of `templates/` gives."""
    return _TEMPLATES.get_template(template).render(**values)


def write_page(
    path: Path,
    template: str,
    figures: Mapping[str, "go.Figure"] | None = None,
    dates: Mapping[str, Sequence[str]] | None = None,
    **values: Any,
) -> None:
    """Write a page beside its place and rename it into it.

    Args:
        template: name in `templates/`; it extends `page.html` and calls `figure(name)` where a figure is drawn.
        figures: by name; a trace whose `meta` is the name of a list of dates gets it as its x.
        dates: lists of ISO dates that traces share.
        values: what the template reads.
    """
    drawing = {}
    if figures:
        content = ",".join(f"{to_json(name)}:{figure.to_json()}" for name, figure in figures.items())
        drawing = {
            "plotly": _plotly(),
            "figures": f"{{{content}}}".replace("</", "<\\/"),
            "dates": to_json(dates or {}),
            "palette": to_json(PALETTE),
        }
    write_text(path, render(template, drawing=drawing, **values))


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # read only when a page has figures

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6)).decode()
