"""Pages need nothing but themselves, show names as they are written, and charts are drawn whatever their data."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import plotly.graph_objects as go
import pytest

from finjepa_pipeline.report.charts import MOST_POINTS, Series, chart, image
from finjepa_pipeline.report.markdown import cell, table
from finjepa_pipeline.report.page import link, styled, write_page
from finjepa_pipeline.report.prices import write_refusal

MARKUP = "<img src=x onerror=alert(1)>"
DAYS = np.datetime64("2020-01-01") + np.arange(3000)


@pytest.mark.parametrize(
    ("series", "options"),
    [
        ([Series("a", DAYS, np.linspace(1, 2, 3000)), Series(MARKUP, DAYS, np.full(3000, 1.5))], {"log": True}),
        ([Series("", [1], [0.0])], {"from_zero": True}),
        ([Series("", [1, 2], [float("nan"), 1.0])], {"x_label": MARKUP}),
        ([Series("", [0, 1], [1.0, 2.0], [0.5, 0.1]), Series("", [0, 1], [0.7, 1.0])], {}),
        ([], {"y_label": MARKUP}),
    ],
)
def test_a_chart_is_drawn_within_its_frame(series, options):
    svg = chart(series, **options)
    root = ET.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name, limit in (("x", width), ("y", height), ("cx", width), ("cy", height)):
            assert -1 <= float(element.attrib.get(name, 0)) <= limit + 1
        points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", element.attrib.get("d", ""))
        assert len(points) <= 2 * MOST_POINTS
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)
    assert "<img" not in svg
    assert image(svg, "title").startswith("![title](data:image/svg+xml;base64,")


def test_a_page_with_figures_loads_nothing_and_escapes_what_it_is_given(tmp_path):
    path = tmp_path / "page.html"
    rows = [(MARKUP, link(MARKUP, "a.html"), styled(MARKUP, "bad"))]
    values = {"note": MARKUP, "columns": ("a", "b", "c"), "rows": rows, "shown": ["coverage", "revisions"]}
    figures = {"coverage": go.Figure(go.Scatter(y=[1.0, 2.0], name=f"</script>{MARKUP}", meta="days"))}
    write_page(path, "prices.html", figures, {"days": ["2020-01-02"]}, title=MARKUP, **values)
    page = path.read_text()
    assert page.count('id="plotly"') == 1
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "<img" not in outside
    assert "alert(1)" in outside
    assert page.count("</script>") == page.count("<script")
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert "width=device-width" in page
    assert "prefers-color-scheme:dark" in page


def test_a_page_without_figures_has_no_plotly(tmp_path):
    write_refusal(tmp_path / "refused.html", "feed", MARKUP, [])
    page = (tmp_path / "refused.html").read_text()
    assert "plotly" not in page
    assert "<img" not in page
    assert len(page) < 10_000


def test_a_cell_of_markdown_stays_one_cell():
    assert table(("a", "b"), [(cell("x | y"), cell(MARKUP))]).splitlines()[2] == (
        r"| x \| y | &lt;img src=x onerror=alert(1)&gt; |"
    )
