"""A decision: what to hold after a close, by a planner of the world model, in numbers, frames and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.splits import history_needed
from finjepa_model.forecast import FrameMarket, Tables, shares_of
from finjepa_model.market_view import MarketView
from finjepa_model.planner_strategies import Expectation, FinJEPAStrategy, MarketImagination, strategy_name
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.world_model import WorldModel

SAME_RETURN = "The model expects the same return of every asset: this decision rests on risk and costs alone."
SIGNALS = {-1: "short", 0: "flat", 1: "long"}


@dataclass(frozen=True)
class Choice:
    """What a plan chooses for its first step, by asset.

    Attributes:
        weights: budgets, which sum to 1; positions: what is held of them, signed shares of wealth, and cash the rest.
        expected_return, expected_volatility: of the portfolio over the next decision step, a year, by the model's own account.
    """

    weights: dict[str, float]
    signals: dict[str, int]
    hedge: bool
    positions: dict[str, float]
    cash: float
    expected_return: float
    expected_volatility: float

    @classmethod
    def of(
        cls, action: PortfolioAction, expected: Expectation, assets: Sequence[str], config: FinJEPAConfig
    ) -> "Choice":
        """Of an action on one date over these assets."""
        rules = config.portfolio
        positions_N = action.positions(rules.allow_short, rules.max_gross)[0].tolist()
        return cls(
            weights=dict(zip(assets, action.weights_XN[0].tolist(), strict=True)),
            signals={name: round(signal) for name, signal in zip(assets, action.signals_XN[0].tolist(), strict=True)},
            hedge=bool(action.hedge_X[0] > 0.5),
            positions=dict(zip(assets, positions_N, strict=True)),
            cash=1 - sum(positions_N),
            **expected.a_year(config),
        )


def trade_lines(held: Mapping[str, float], wanted: Mapping[str, float]) -> list[str]:
    """The ten largest trades of a tenth of a percent or more, in words; shares of wealth."""
    trades = {name: wanted.get(name, 0.0) - held.get(name, 0.0) for name in {*wanted, *held}}
    largest = sorted(trades.items(), key=lambda item: (-abs(item[1]), item[0]))[:10]
    return [
        f"{name}: {held.get(name, 0.0):.1%} held, {wanted.get(name, 0.0):.1%} wanted ({trade:+.1%})"
        for name, trade in largest
        if abs(trade) >= 0.001
    ]


class Decision:
    """What to hold from the close after `date` on; frames are of pandas or of Polars, as the prices were.

    Attributes:
        date: ISO, of the newest session. assets: symbols.
        hedge: whether the market proxy is sold against what is held long.
        cash: share of wealth that is not held in assets.
        expected_return, expected_volatility: a year, of the portfolio, by the model's own account.
        understood: what was read and what was left out, in words.
    """

    def __init__(
        self, choice: Choice, date: str, planner: str, tables: Tables, held: Mapping[str, float], terms: Mapping[str, float],
        understood: Sequence[str], notes: Sequence[str],
    ):  # fmt: skip
        self._choice, self._tables, self._held, self._terms = choice, tables, held, terms
        self._notes = notes
        self.date, self.planner, self.assets, self.understood = date, planner, tables.symbols, "; ".join(understood)
        self.hedge, self.cash = choice.hedge, choice.cash
        self.expected_return, self.expected_volatility = choice.expected_return, choice.expected_volatility

    def __repr__(self) -> str:
        return f"Decision after {self.date}\n{self.explain()}"

    @property
    def weights(self) -> Any:
        """Budgets, which sum to 1."""
        return self._tables.column("weight", list(self._choice.weights.values()))

    @property
    def signals(self) -> Any:
        """-1 short, 0 flat, 1 long."""
        return self._tables.column("signal", list(self._choice.signals.values()))

    @property
    def holdings(self) -> Any:
        """Signed shares of wealth to be held; `cash` is the rest."""
        return self._tables.column("holding", list(self._choice.positions.values()))

    def to_frame(self) -> Any:
        """weight, signal, holding, what was held, and the trade between them, a row for each asset."""
        columns = {
            "weight": list(self._choice.weights.values()),
            "signal": list(self._choice.signals.values()),
            "holding": list(self._choice.positions.values()),
            "held": [self._held.get(name, 0.0) for name in self.assets],
        }
        columns["trade"] = [wanted - held for wanted, held in zip(columns["holding"], columns["held"], strict=True)]
        return self._tables.columns(columns)

    def explain(self) -> str:
        """What is held and traded, what is expected, and the cost of the plan by term."""
        count = sum(abs(share) >= 0.001 for share in self._choice.positions.values())
        lines = [
            f"{self.planner}: {count} of {len(self.assets)} assets held, {self.cash:.1%} cash, "
            f"hedge {'on' if self.hedge else 'off'}.",
            f"Expected a year: volatility {self.expected_volatility:.1%}, log growth after costs {self.expected_return:+.1%}.",
        ]
        lines += self._notes
        lines += ["Largest trades:", *(f"  {line}" for line in trade_lines(self._held, self._choice.positions))]
        terms = ", ".join(f"{name} {value:.3g}" for name, value in self._terms.items())
        return "\n".join([*lines, f"Cost of the plan by term, lower is better: {terms}.", f"Read: {self.understood}."])


def decide_prices(
    model: WorldModel, prices: Any, planner: str, utility: str | None, holdings: Any, seed: int
) -> Decision:
    """See `FinJEPA.decide`."""
    strategy = FinJEPAStrategy(strategy_name(planner, utility), MarketImagination(model), seed=seed)
    market, config = FrameMarket.of(prices, model.config), model.config
    held = {} if holdings is None else shares_of(holdings, market.symbols)
    view = MarketView(market.panel, market.session, market.assets_N, history_needed(config))
    action = strategy.decide(view, _holding(PortfolioSimulator(config.portfolio), held, market.symbols))
    assert action is not None  # every asset of the market has a price
    _, expected = strategy.expected[-1]
    choice = Choice.of(action, expected, market.symbols, config)
    tables, notes = Tables.like(prices, market.symbols), strategy.notes
    notes += () if bool(model.readout.weights_Z.any()) else (SAME_RETURN,)
    return Decision(choice, str(view.date), strategy.name, tables, held, expected.terms, market.understood, notes)


def _holding(simulator: PortfolioSimulator, held: Mapping[str, float], symbols: Sequence[str]) -> PortfolioState:
    """Wealth 1, of which these shares are held."""
    positions_1N = torch.tensor([[held.get(name, 0.0) for name in symbols]], dtype=torch.float64)
    start = simulator.start((1, len(symbols)))
    return replace(start, positions_XN=positions_1N, signals_XN=positions_1N.sign(), cash_X=1 - positions_1N.sum(-1))
