"""How a plan was found: what the search had reached after each iteration, where it stood, and how widely it looked."""

import html
from dataclasses import dataclass
from typing import Any

from finjepa_model.planning import Plan
from finjepa_pipeline.pictures import as_markdown, new_figure

_SHOWN = 8  # assets with a line of their own
_COLOURS = ("#3b82f6", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#a16207", "#64748b")


@dataclass(frozen=True)
class Search:
    """One decision's search, by iteration. A planner that solves has its candidate solutions in place of iterations.

    Attributes:
        cost: lowest seen so far; lower is better.
        weights: of the first step, by asset: where the search stood.
        effective: effective number of candidates that the next iteration was fitted to; empty where nothing is sampled.
    """

    cost: tuple[float, ...]
    weights: dict[str, tuple[float, ...]]
    effective: tuple[float, ...]

    @classmethod
    def of(cls, plan: Plan, assets: tuple[str, ...]) -> "Search":
        """Of a plan of one date."""
        weights = {name: tuple(plan.weights_IBN[:, 0, i].tolist()) for i, name in enumerate(assets)}
        return cls(tuple(plan.cost_IB[:, 0].tolist()), weights, tuple(plan.effective_samples_IB[:, 0].tolist()))

    @property
    def leading(self) -> list[str]:
        """The assets with the largest final weights, largest first."""
        return leading(self.weights)


def leading(weights: dict[str, Any]) -> list[str]:
    """The assets with the largest final weights, largest first; ties by name."""
    return sorted(weights, key=lambda name: (-weights[name][-1], name))[:_SHOWN]


def search_picture(search: dict[str, Any]) -> str:
    """Cost and weights by iteration, for a column of metadata.

    Args:
        search: a `Search` as JSON has it.
    """
    figure = new_figure(2.8)
    left, right = figure.subplots(1, 2)
    left.step(range(1, len(search["cost"]) + 1), search["cost"], where="post")
    left.set_ylabel("lowest cost seen")
    names = leading(search["weights"])
    for name, colour in zip(names, _COLOURS, strict=False):
        right.plot(range(1, len(search["cost"]) + 1), search["weights"][name], label=name, color=colour, linewidth=1.2)
    right.set_ylabel("weight, share of budget")
    right.legend(frameon=False, fontsize=6)
    for axes in (left, right):
        axes.set_xlabel("iteration")
    return as_markdown(figure, "how the plan was found")


def search_section(search: Search) -> str:
    """The same on the decision's page, with the effective sample size."""
    names = search.leading
    lines = {name: search.weights[name] for name in names}
    legend = " ".join(
        f'<span style="color:{colour}">{html.escape(name)}</span>'
        for name, colour in zip(names, _COLOURS, strict=False)
    )
    spread = ""
    if search.effective:
        spread = (
            f'<p class="dim">Each iteration was fitted to {min(search.effective):.0f} to {max(search.effective):.0f} '
            "effective candidates.</p>"
        )
    return (
        f"<p class='dim'>Lowest cost seen, by iteration: {search.cost[0]:+.5f} to {search.cost[-1]:+.5f}</p>"
        f"{_chart({'cost': search.cost}, 'lowest cost by iteration')}"
        f"<p class='dim'>Weights that the search stood at, by iteration: {legend}</p>"
        f"{_chart(lines, 'weights by iteration')}{spread}"
    )


def _chart(lines: dict[str, tuple[float, ...]], label: str) -> str:
    values = [value for line in lines.values() for value in line]
    low, high = min(values), max(values)
    reach = max(high - low, 1e-12)
    drawn = []
    for line, colour in zip(lines.values(), _COLOURS, strict=False):
        last = max(len(line) - 1, 1)
        points = " ".join(f"{60 + 300 * i / last:.1f},{10 + 120 * (high - y) / reach:.1f}" for i, y in enumerate(line))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    marks = "".join(
        f'<text x="2" y="{y}" font-size="10" fill="currentColor">{value:.3g}</text>'
        for y, value in ((14, high), (134, low))
    )
    count = len(next(iter(lines.values())))
    axis = (
        '<text x="60" y="148" font-size="10" fill="currentColor">1</text>'
        f'<text x="360" y="148" font-size="10" text-anchor="end" fill="currentColor">{count} iterations</text>'
    )
    return f'<svg viewBox="0 0 370 152" role="img" aria-label="{label}">{"".join(drawn)}{marks}{axis}</svg>'
