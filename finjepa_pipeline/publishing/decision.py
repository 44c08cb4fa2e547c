"""The forecast and the decision for a date: what the champion expects after that close, and does at it, from what is held.

A decision is the strategy's own `decide`, as the backtest asks it. It starts from the portfolio, the universe and the plan that
the decision before left. Between two decisions a book holds.
"""

from dataclasses import dataclass
from datetime import date as day
from typing import Any

import numpy as np

from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.decision import SIGNALS, Choice, trade_lines
from finjepa_model.errors import FinJEPAError
from finjepa_model.forecast import Tables, forecast_at
from finjepa_model.market_view import MarketView, next_universe, traded_text
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_pipeline.backtest.engine import decide_at
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.prices.calendar import session_after
from finjepa_pipeline.publishing.book import BookName, Holdings, record_of
from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.report.risk import in_words, read_scorecard
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import NamedCheckpoint, current_checkpoint, named_checkpoint
from finjepa_pipeline.warehouse import Warehouse


@dataclass(frozen=True)
class BookDecision(Choice):
    """What to hold after the next close. Weights are budgets and sum to 1; positions are what is held of them.

    Attributes:
        held: signed shares of wealth at the close, before the decision; `held_cash` and `held_hedge` beside it.
        wealth, peak: of the book, which began at 1.
        net_return, turnover: of the session that ended at this close, after costs; turnover is one-way.
        waiting: orders of the decision before that could not be filled yet, as shares of wealth.
        hold: nothing is ordered at this close, for `hold_reason`: no decision is due, or none that pays for its costs. Weights,
            signals, hedge and positions are those of the decision of `decided`.
        next_decision: the close of the next decision of this book; None for a trial, which has none.
        made_afterwards: a later close was known when the decision was made.
        same_return: the read-out expects the same return of every asset, so that the decision rests on risk and costs.
        changes: what differs from the decision before, in words.
        expected_return, expected_volatility: of the portfolio over the next decision step, a year.
        record: what the next decision needs, for the table; see `record_of`.
        why: cost of the plan by `terms`, lower is better; `path`, the forecast (log growth, volatility) of each decision step
            ahead, of `step_sessions` sessions.
        traded: how many assets are traded, of how many, and which; empty on a hold.
    """

    date: str
    assets: tuple[str, ...]
    planner: str
    checkpoint: str
    data_version: str
    feed: str
    book: BookName
    held: dict[str, float]
    held_cash: float
    held_hedge: float
    wealth: float
    peak: float
    previous_date: str | None
    net_return: float
    turnover: float
    waiting: dict[str, float]
    hold: bool
    decided: str
    next_decision: str | None
    made_afterwards: bool
    same_return: bool
    changes: tuple[str, ...]
    hold_reason: str = ""
    why: dict[str, Any] | None = None  # None where no decision is due, and where no asset has a price
    record: dict[str, Any] | None = None
    traded: str = ""

    def to_json(self) -> dict[str, Any]:
        first = {"date": self.date, "assets": list(self.assets)}
        rest = {name: value for name, value in vars(self).items() if name not in (*first, "record")}
        return first | rest | {"changes": list(self.changes)}


def decision_session(panel: Panel, as_of: str | None) -> int:
    """The session of the last close that is not after `as_of`, or of the newest one; of a weekend it is Friday's. Raises where
    `as_of` is no date, or outside of the panel's sessions."""
    if as_of is None:
        return len(panel.dates) - 1
    try:
        date = np.datetime64(day.fromisoformat(as_of))
    except ValueError as error:
        raise FinJEPAError(f"{as_of!r} is not a date; write it as YYYY-MM-DD") from error
    if not panel.dates[0] <= date <= panel.dates[-1]:
        raise FinJEPAError(
            f"there are no prices on {as_of}: the sessions are {panel.dates[0]} to {panel.dates[-1]}; ingest newer prices, or "
            "leave --as-of out for the last one"
        )
    return panel.date_index(date)


def decide(
    checkpoint: NamedCheckpoint,
    panel: Panel,
    planner: str,
    session: int,
    holdings: Holdings,
    book: BookName,
    n_assets: int,
    calendar: str,
) -> BookDecision:
    """Decide at a close.

    Args:
        session: as `decision_session` gives it.
        holdings: what is held at that close. Its universe and its plan are carried on as in a backtest, the plan where the same
            planner of the same checkpoint decided before; a trial chooses its universe anew.
        calendar: of the exchange, for the date of the next decision.
    """
    imagination = MarketImagination(checkpoint.folder)
    config, name = imagination.model.config, checkpoint.name
    history = history_needed(config)
    previous, carried = holdings.previous, None if book == "trial" else holdings.universe
    universe = next_universe(carried, panel, session, n_assets, history)
    view = MarketView(panel, session, universe.assets_N, history)
    strategy = FinJEPAStrategy(planner, imagination)
    if previous and holdings.universe and holdings.plan and (previous.checkpoint, previous.planner) == (name, planner):
        strategy.resume(tuple(panel.assets[asset] for asset in holdings.universe.assets_N), holdings.plan)
    holdings = holdings.over(panel, universe.assets_N)
    places_N = np.searchsorted(holdings.roster_R, universe.assets_N)
    action = decide_at(strategy, view, holdings.state, places_N)
    path = strategy.last[1].path if strategy.last and strategy.last[0] == view.assets else None
    same_return = not bool(imagination.model.readout.weights_Z.any())
    after = None if book == "trial" else date_of_session(panel, session + config.model.stride, calendar).isoformat()
    common = _of_book(panel, session, holdings, book) | {
        "planner": planner,
        "checkpoint": name,
        "decided": str(view.date),
        "next_decision": after,
        "made_afterwards": session < len(panel.dates) - 1,
        "same_return": same_return,
        "record": record_of(holdings, panel, universe, path, action is not None),
    }
    if strategy.last is None or (action is None and not strategy.held):
        return BookDecision(**common | _as_before(holdings, view.assets), changes=("No orders: no asset has a price.",))
    _, expected = strategy.expected[-1]
    eligible, has_volumes = len(panel.eligible_assets(session, history)), panel.liquidity is not None
    common |= {
        "why": {"terms": expected.terms, "path": expected.path, "step_sessions": config.model.stride},
        "traded": traded_text(len(view.assets), eligible, has_volumes=has_volumes),
    }
    if action is None:
        common |= _as_before(holdings, view.assets) | expected.a_year(config) | {"hold_reason": strategy.held}
        common["decided"] = previous.date if previous else common["decided"]
        return BookDecision(**common, changes=(f"Nothing is traded: {strategy.held}.",))
    action = PortfolioAction(action.weights_XN[:, places_N], action.signals_XN[:, places_N], action.hedge_X)
    choice = Choice.of(action, expected, view.assets, config)
    changes = _changes(holdings, choice) + strategy.notes
    return BookDecision(**common, assets=view.assets, **vars(choice), changes=changes)


def hold(panel: Panel, session: int, holdings: Holdings, book: BookName, stride: int, calendar: str) -> BookDecision:
    """What stands at a close: the decision before, and what is held of it now. At the close of that decision itself it is what
    the tables know of it."""
    previous = holdings.previous
    assert previous is not None
    after = date_of_session(panel, previous.session + stride, calendar).isoformat()
    lines = [f"The decision of {previous.date} stands; the next one is at the close of {after}."]
    lines += [
        f"{name}: the order for {share:.1%} waits until it can be traded" for name, share in holdings.waiting.items()
    ]
    holding = session > previous.session
    return BookDecision(
        **_of_book(panel, session, holdings, book) | {"hold": holding},
        hold_reason="no decision is due at this close" if holding else "",
        **_as_before(holdings, ()),
        planner=previous.planner,
        checkpoint=previous.checkpoint,
        decided=previous.date,
        next_decision=after,
        made_afterwards=previous.made_afterwards,
        same_return=previous.same_return,
        changes=tuple(lines),
    )


def date_of_session(panel: Panel, session: int, calendar: str) -> day:
    """The date of a session of the panel, or of one that lies ahead of it by the calendar of the exchange."""
    ahead = session - len(panel.dates) + 1
    return panel.dates[session].item() if ahead <= 0 else session_after(calendar, panel.dates[-1].item(), ahead)


def _of_book(panel: Panel, session: int, holdings: Holdings, book: BookName) -> dict[str, Any]:
    """What a book holds at a close."""
    state, ledger = holdings.state, holdings.session
    wealth = float(state.wealth_X)
    earned = 0.0 if ledger is None else float(ledger.pnl_X - ledger.cost_X)
    return {
        "date": str(panel.dates[session]),
        "data_version": str(panel.manifest["data_version"]),
        "feed": str(panel.manifest["feed"]),
        "book": book,
        "held": holdings.shares,
        "held_cash": float(state.cash_X) / wealth,
        "held_hedge": float(state.hedge_X) / wealth,
        "wealth": wealth,
        "peak": float(state.peak_X),
        "previous_date": holdings.previous.date if holdings.previous else None,
        "net_return": earned / (wealth - earned),
        "turnover": 0.0 if ledger is None else float(ledger.turnover_X),
        "waiting": holdings.waiting,
        "hold": False,
    }


def _as_before(holdings: Holdings, assets: tuple[str, ...]) -> dict[str, Any]:
    """The decision before, which stands; nothing held where there was none."""
    previous = holdings.previous
    if previous is None:
        shares = {"weights": 1 / len(assets), "signals": 0, "positions": 0.0}
        nothing = {"assets": assets, "hedge": False, "cash": 1.0, "expected_return": 0.0, "expected_volatility": 0.0}
        return nothing | {name: dict.fromkeys(assets, share) for name, share in shares.items()}
    names = ("weights", "signals", "positions", "hedge", "expected_return", "expected_volatility")
    kept = {name: getattr(previous, name) for name in names}
    return kept | {"assets": tuple(previous.weights), "cash": 1 - sum(previous.positions.values())}


def _changes(holdings: Holdings, choice: Choice) -> tuple[str, ...]:
    previous, signals = holdings.previous, choice.signals
    if previous is None:
        return (holdings.note or "The portfolio starts in cash.",)
    lines = [f"the hedge goes {'on' if choice.hedge else 'off'}"] if choice.hedge != previous.hedge else []
    for name in sorted({*signals, *previous.signals}):
        before, after = previous.signals.get(name, 0), signals.get(name, 0)
        if before != after:
            lines.append(f"{name}: signal {SIGNALS[before]} to {SIGNALS[after]}")
    lines += trade_lines(holdings.shares, choice.positions)
    return tuple(lines) or (f"nothing since {previous.date}",)


def forecast(settings: Settings, checkpoint: str | None, as_of: str | None, n_assets: int) -> dict[str, Any]:
    """Forecast by a checkpoint (by default the champion, or the newest where there is none) on the prices of the home: as
    `finjepa_model.forecast.Forecast.to_dict`, with checkpoint, data_version, and in words how good its forecasts were. Raises
    where there is no such checkpoint or date, or no asset has enough history by then."""
    panel = Panel.open(current_panel(settings))
    if checkpoint is None:
        with Warehouse.from_settings(settings).connect() as con:
            champion = current_champion(con)
        checkpoint = champion.checkpoint if champion is not None else None
    named = named_checkpoint(settings, checkpoint or current_checkpoint(settings))
    model = FinJEPA.from_pretrained(named.folder)
    session = decision_session(panel, as_of)
    assets_N = next_universe(None, panel, session, n_assets, history_needed(model.config)).assets_N
    tables = Tables(tuple(panel.assets[asset] for asset in assets_N))
    card = read_scorecard(settings.reports, named.name)
    return forecast_at(model, panel, session, assets_N, tables).to_dict() | {
        "checkpoint": named.name,
        "data_version": panel.manifest["data_version"],
        "scored": "Forecasts of this checkpoint were not scored in this home." if card is None else in_words(card),
    }
