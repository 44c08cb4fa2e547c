"""Pages need nothing but themselves, show names as they are written, and charts are drawn whatever their data."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from finjepa_pipeline.report.charts import MOST_POINTS, Series, chart, image
from finjepa_pipeline.report.figures import against, forecast_volatility, months, tail, worst_drawdowns
from finjepa_pipeline.report.page import link, styled, write_page
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.ui import OriginGuard, pages

MARKUP = "<img src=x onerror=alert(1)>"
DAYS = np.datetime64("2020-01-01") + np.arange(3000)


@pytest.mark.parametrize(
    ("series", "options"),
    [
        ([Series("a", DAYS, np.linspace(1, 2, 3000)), Series(MARKUP, DAYS, np.full(3000, 1.5))], {}),
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
    write_page(tmp_path / "history.html", "history.html", title=MARKUP, filters=[], labels=[], cells=[])
    page = (tmp_path / "history.html").read_text()
    assert "plotly" not in page
    assert "<img" not in page
    assert len(page) < 10_000


def test_the_worst_drawdowns_have_their_days():
    days = ["Mon", "Tue", "Wed", "Thu", "Fri"]
    assert worst_drawdowns(days, np.array([-0.1, 0.2, -0.5, 0.1, 0.2])) == [
        ("-50.0%", "Tue", "Wed", "not yet", "3"),
        ("-10.0%", "the beginning", "Mon", "Tue", "2"),
    ]
    assert worst_drawdowns(days, np.full(5, 0.01)) == []


def test_a_strategy_beside_one_over_n():
    base = np.random.default_rng(0).normal(0.001, 0.01, 1000)
    [(name, beta, correlation, error, ratio, var, cvar)] = against({"twice": 2 * base, "1/N": base}, ["twice"], "1/N")
    assert (name, beta, correlation) == ("twice", "2.00", "1.00")
    assert error == f"{base.std(ddof=1) * 252**0.5:.1%}"
    assert ratio == f"{base.mean() / base.std(ddof=1) * 252**0.5:+.2f}"
    assert (var, cvar) == tuple(f"{2 * loss:.2%}" for loss in tail(base))
    assert 0.01 < tail(base)[0] < tail(base)[1] < 0.03


def test_months_and_years_compound_and_forecasts_are_annualised():
    dates = pl.date_range(pl.date(2020, 12, 1), pl.date(2021, 2, 28), eager=True)
    returns = pl.DataFrame({"date": dates, "net_return": np.full(len(dates), 0.01)})
    heat = months(returns).data[0]
    assert list(heat.y) == ["2020", "2021"]
    assert heat.z[0][11] == heat.z[0][12] == pytest.approx(1.01**31 - 1, abs=1e-4)
    assert heat.z[1][12] == pytest.approx(1.01**59 - 1, abs=1e-4)
    steps = pl.DataFrame({"date": dates[::10], "imagined_volatility": np.full(9, 0.02)})
    forecast, came, _ = forecast_volatility(steps, returns).data
    assert forecast.y == pytest.approx(0.02 * (252 / 10) ** 0.5)
    assert len(came.y) == 8, "the last step is not over"


def test_the_ui_serves_pages_and_nothing_else_of_a_home(tmp_path):
    """A script in a page has no part in the UI: the browser gives it an origin of its own, which the guard refuses."""
    settings = Settings(home=tmp_path / "a home").ensure()
    page = settings.reports / "decisions" / "2020-01-02 #1.html"
    page.parent.mkdir()
    page.write_text("what is held")
    (settings.home / "warehouse.duckdb").write_text("prices")
    app = Starlette(routes=pages(settings), middleware=[Middleware(OriginGuard, url="https://x.org")])
    browser = TestClient(app, base_url="https://x.org")
    answer = browser.get(settings.address_of(page))
    assert (answer.status_code, answer.text) == (200, "what is held")
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert settings.address_of(page) in browser.get("/pages").text
    for path in ("warehouse.duckdb", "reports/../warehouse.duckdb", "reports/%2e%2e/warehouse.duckdb", "reports"):
        assert browser.get(f"/pages/{path}").status_code == 404
    assert browser.get(settings.address_of(page), headers={"Host": "evil.example"}).status_code == 403
    assert browser.get(settings.address_of(page), headers={"Origin": "null"}).status_code == 403
