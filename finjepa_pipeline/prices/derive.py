"""What follows from sound prices: sessions, corporate actions, entities, adjusted prices and the universe.

All of it is derived whole, from the rows that the views show. `adjusted_prices` is a view, the others are tables.
"""

import hashlib
from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices import history
from finjepa_pipeline.warehouse import Warehouse, sql

TABLES = ("corporate_actions", "entities", "adjusted_prices", "universe")
# Thresholds of reference tables, on sessions, logarithms of ratios, and ratios.
THRESHOLDS = {
    "schema": 6,  # raise it when what is derived changes: it is made again
    "long_gap": 60,  # sessions without a row after which a ticker may have been given to somebody else
    "patience": 10,  # sessions before the end of the data after which a history counts as ended
    "quarter": 63,  # sessions before its end by which a share is judged to have been falling apart
    "factor_step": 0.0005,  # 5 bp: less is rounding of adj_close
    "jump": 0.405,  # log(1.5): +50 % or -33 % in a day is listed
    "collapse": 0.1,  # a day's ratio of adjusted closes below, or
    "explosion": 4.0,  # above: a step of the price, or an extreme move
    "heavy": 5,  # times the usual volume, which a gain beyond `explosion` needs to be believed
    "year": 365,  # days without a row after which a ticker has been given to somebody else
}
# Where symbols have calendars of their own, a row stands at the first session of the clock whose close is not before its own: a
# decision there knows it, and none before does. Of several rows, the last one stands.
_ON_ONE_CLOCK = """
    SELECT symbol, clock_date AS date, open, high, low, close, volume, adj_close FROM prices
    JOIN (SELECT symbol, calendar FROM symbol_calendars WHERE feed_id = {feed_id}) USING (symbol)
    JOIN (SELECT calendar, date, clock_date FROM clock_sessions WHERE feed_id = {feed_id}) USING (calendar, date)
    QUALIFY row_number() OVER (PARTITION BY symbol, clock_date ORDER BY date DESC) = 1"""


class UniverseConfig(dg.Config):
    """Who is eligible for a decision, judged from trailing data only."""

    size: int = Field(default=500, ge=1, description="the first so many by dollar volume")
    min_dollar_volume: float = Field(default=5e6, ge=0, description="median over the window, dollars a day")
    min_history: int = Field(default=252, ge=1, description="sessions")
    window: int = Field(default=63, ge=1, description="sessions")


@dataclass(frozen=True)
class DeriveReport:
    """Rows of each derived table, and the version of what they follow from; `reused` if the tables were those already."""

    rows: dict[str, int]
    data_version: str
    reused: bool


def derive(warehouse: Warehouse, config: UniverseConfig, prices: tuple[str, str] | None = None) -> DeriveReport:
    """Make the derived tables those of the active view, in one transaction.

    Args:
        prices: feed and data version that the views must show; whatever they show where None.

    Raises:
        FinJEPAError: if there are no prices, or others.
    """
    with warehouse.connect() as con:
        revision = history.current_revision(con)
        if revision is None:
            raise FinJEPAError("there are no prices to derive from; run `finjepa ingest` first")
        if prices is not None:
            history.require_shown(con, *prices)
        thresholds = {**THRESHOLDS, **config.model_dump()}
        state = (revision.feed_id, revision.number, to_json(thresholds, sort_keys=True))
        reused = con.execute("FROM derived_state").fetchall() == [state]
        if not reused:
            several = con.execute("FROM symbol_calendars WHERE feed_id = ? LIMIT 1", [revision.feed_id]).fetchall()
            clocked = _ON_ONE_CLOCK.format(feed_id=revision.feed_id) if several else "FROM prices"
            has_volume = "volume" in revision.columns
            con.begin()
            con.execute(sql("prices/derived").format(**thresholds, clocked=clocked, has_volume=has_volume))
            con.execute("DELETE FROM derived_state")
            con.execute("INSERT INTO derived_state VALUES (?, ?, ?)", state)
            con.commit()
        counts = {name: f"count(*) FROM {name}" for name in TABLES}
        counts["adjusted_prices"] = (
            "coalesce(sum(observations), 0)::BIGINT FROM entities"  # the same, without making them
        )
        rows = {name: con.execute(f"SELECT {count}").fetchall()[0][0] for name, count in counts.items()}
        options = hashlib.sha256(state[-1].encode()).hexdigest()[:8]
        return DeriveReport(rows, f"{revision.data_version}-{options}", reused)
