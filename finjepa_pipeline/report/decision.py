"""A decision as one small HTML page that needs nothing but itself: what to hold, why, and what changed."""

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finjepa_pipeline.publishing.decision import Decision
    from finjepa_pipeline.publishing.reasons import Reasons

SAME_RETURN = "The model expects the same return of every asset: this decision rests on risk and costs alone."

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--dim:#667;--line:#ddd;--bar:#3b82f6;--short:#d97706}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#14171a;--dim:#99a;--line:#333}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:60rem;padding:1rem}
h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}.dim{color:var(--dim);font-size:.9rem}
.head{font-size:1.1rem;border-left:4px solid var(--bar);padding:.25rem 1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--line)}td{white-space:nowrap}
th:first-child,td:first-child{text-align:left}td[colspan]{white-space:normal}
td.bar{width:40%}td.bar div{background:var(--bar);height:.8rem;border-radius:2px}td.bar div.short{background:var(--short)}
svg{width:100%;height:auto;max-width:34rem}ul{margin:.3rem 0;padding-left:1.2rem}
@media(max-width:36rem){th:last-child:empty,td:last-child:empty,td.bar{display:none}th,td{padding:.2rem .3rem;font-size:.9rem}
td:first-child{white-space:normal}}
"""
_SIGNALS = {1: "long", 0: "flat", -1: "short"}


def decision_page(decision: "Decision") -> str:
    """The page, in light and dark, for a wide and a narrow window."""
    title = f"{'Hold' if decision.hold else 'Decision'} at the close of {decision.date}"
    later = [text for text, applies in _REMARKS if applies(decision)]
    remarks = "".join(f"<p class='dim'>{text}</p>" for text in later)
    same = f'<p class="head"><b>{SAME_RETURN}</b></p>' if decision.same_return else ""
    due = (
        f'Hold: the <a href="{decision.decided}.html">decision of {decision.decided}</a> stands, and the next one is at the '
        f"close of {decision.next_decision}."
        if decision.hold
        else "To be filled at the next close."
        + (f" The next decision is at the close of {decision.next_decision}." if decision.next_decision else "")
    )
    body = f"""<h1>{title}</h1>{same}
<p class="head">{html.escape(decision.planner)} {"wants" if decision.hold else "holds"} {_invested(decision):.0%} of wealth in
{_count(decision)} assets and {decision.cash:.0%} in cash, the hedge <b>{"on" if decision.hedge else "off"}</b>. {due}</p>
<p>Expected return {decision.expected_return:+.1%} and volatility {decision.expected_volatility:.1%} a year, by the model's own
account, which is no evidence of skill.</p>{remarks}
<p class="dim">Checkpoint {html.escape(decision.checkpoint)}, prices {html.escape(decision.feed)}
({html.escape(decision.data_version)}).{f" Traded: {decision.traded}." if decision.traded else ""}</p>
<h2>What is held</h2>{_weights(decision)}
<div class="grid"><section><h2>{_since(decision)}</h2>
{_list(decision.changes)}</section>
{"" if decision.why is None else _why(decision, decision.why)}</div>"""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


_REMARKS = (
    (
        "No checkpoint was champion on this date: the present one decides, and it has seen later prices.",
        lambda decision: decision.book == "hindsight",
    ),
    (
        "The decision was made after a later close was known: a run was missed, and the next one made up for it.",
        lambda decision: decision.made_afterwards and decision.book == "champion",
    ),
)


def _since(decision: "Decision") -> str:
    if decision.hold:
        return "What stands"
    return f"What changed since {decision.previous_date}" if decision.previous_date else "What changed"


def _why(decision: "Decision", why: "Reasons") -> str:
    return f"""<section><h2>Why: cost by term (lower is better)</h2>{_terms(why)}</section>
<section><h2>Predicted path of wealth</h2>{_path(why)}{_calibration(why)}</section>
<section><h2>How the plan was found</h2>{_search(decision)}</section>
<section><h2>Past closes most like this one</h2>{_regimes(why)}</section>"""


def _invested(decision: "Decision") -> float:
    return sum(abs(position) for position in decision.positions.values())


def _count(decision: "Decision") -> int:
    return sum(abs(position) >= 0.001 for position in decision.positions.values())


def _weights(decision: "Decision") -> str:
    moving = {name for name in decision.assets if abs(decision.positions[name]) >= 0.0005} | set(decision.held)
    names = sorted(moving, key=lambda name: (-abs(decision.positions.get(name, 0)), name))
    largest = max((abs(position) for position in decision.positions.values()), default=0) or 1
    rows = []
    for name in names:
        position, held = decision.positions.get(name, 0.0), decision.held.get(name, 0.0)
        width, side = 100 * abs(position) / largest, ' class="short"' if position < 0 else ""
        rows.append(
            f"<tr><td>{html.escape(name)}</td><td>{decision.weights.get(name, 0):.1%}</td>"
            f"<td>{_SIGNALS[decision.signals.get(name, 0)]}</td><td>{position:.1%}</td><td>{held:.1%}</td>"
            f'<td class="bar"><div{side} style="width:{width:.1f}%"></div></td></tr>'
        )
    rows.append(
        f"<tr><td>cash</td><td></td><td></td><td>{decision.cash:.1%}</td><td>{decision.held_cash:.1%}</td><td></td></tr>"
    )
    hedge = "on" if decision.hedge else "off"
    rows.append(
        f"<tr><td>hedge (market proxy)</td><td></td><td>{hedge}</td><td></td><td>{decision.held_hedge:.1%}</td><td></td></tr>"
    )
    others = [name for name in decision.assets if name not in moving]
    if others:
        rows.append(f'<tr><td colspan="6" class="dim">flat, and not held: {html.escape(", ".join(others))}</td></tr>')
    head = "<tr><th>asset</th><th>weight</th><th>signal</th><th>to hold</th><th>held now</th><th></th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _list(lines: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _terms(why: "Reasons") -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:+.5f}</td></tr>" for name, value in why.terms.items())
    return f"<table><tr><th>term</th><th>cost over {len(why.path)} decision steps</th></tr>{rows}</table>"


def _path(why: "Reasons") -> str:
    """Expected wealth with a band of one predicted standard deviation, as a drawing."""
    middle, variance, points = 0.0, 0.0, [(0, 1.0, 1.0, 1.0)]
    for step, (growth, volatility) in enumerate(why.path, start=1):
        middle, variance = middle + growth, variance + volatility**2
        spread = math.sqrt(variance)
        points.append((step, math.exp(middle - spread), math.exp(middle), math.exp(middle + spread)))
    low, high = min(point[1] for point in points), max(point[3] for point in points)
    reach = max(high - low, 1e-6)

    def at(step: float, value: float) -> str:
        return f"{50 + 300 * step / (len(points) - 1):.1f},{20 + 120 * (high - value) / reach:.1f}"

    band = " ".join([at(p[0], p[3]) for p in points] + [at(p[0], p[1]) for p in reversed(points)])
    line = " ".join(at(p[0], p[2]) for p in points)
    steps = "".join(
        f'<text x="{50 + 300 * p[0] / (len(points) - 1):.0f}" y="158" font-size="10" text-anchor="middle" fill="currentColor">'
        f"{p[0] * why.step_sessions}</text>"
        for p in points
    )
    return (
        '<svg viewBox="0 0 370 175" role="img" aria-label="predicted wealth">'
        f'<polygon points="{band}" fill="#3b82f6" opacity=".2"/>'
        f'<polyline points="{line}" fill="none" stroke="#3b82f6" stroke-width="2"/>'
        f'<text x="2" y="24" font-size="10" fill="currentColor">{high - 1:+.2%}</text>'
        f'<text x="2" y="143" font-size="10" fill="currentColor">{low - 1:+.2%}</text>{steps}'
        '<text x="200" y="172" font-size="10" text-anchor="middle" fill="currentColor">sessions ahead; band: one predicted '
        "standard deviation</text></svg>"
    )


def _calibration(why: "Reasons") -> str:
    found = why.calibration
    if found.within is None or found.ratio is None:
        return f'<p class="dim">Calibration: {found.predictions} predictions on unseen dates are too few to say anything.</p>'
    return (
        f'<p class="dim">Calibration on {found.predictions} earlier dates that no training has seen, for an equally weighted '
        f"portfolio: {found.within:.0%} came out within one predicted standard deviation (68 % is right), and the typical miss "
        f"was {found.ratio:.2f} of them (1 is right).</p>"
    )


def _search(decision: "Decision") -> str:
    from finjepa_pipeline.publishing.search import search_section

    return '<p class="dim">Not kept.</p>' if decision.search is None else search_section(decision.search)


def _regimes(why: "Reasons") -> str:
    if not why.regimes:
        return '<p class="dim">The history is too short to look back.</p>'
    rows = "".join(
        f"<tr><td>{regime.date}</td><td>{regime.similarity:.2f}</td><td>{regime.market_return:+.1%}</td></tr>"
        for regime in why.regimes
    )
    return (
        "<table><tr><th>close</th><th>similarity</th><th>market in the "
        f"{why.step_sessions} sessions after</th></tr>{rows}</table>"
    )
