"""How a plan was found: what the search had reached after each iteration, where it stood, and how widely it looked."""

from dataclasses import dataclass

from finjepa_model.planning import Plan


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
