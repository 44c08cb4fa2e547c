"""The rules of prices, declared once, and how a row is judged by them.

A rule has a scope. `row`: its condition is SQL over the columns of `sql/prices/scan.sql`, evaluated for all rules in one pass
into the bits of `broken`. `set`: found after loading, from more than one row. `history`: found when whole histories are derived;
it has no bit in the rows. A `hard` rule moves the row to `quarantined_prices`. Above the threshold, a share of the rows, a rule
warns; what refuses a delivery is in `contract.py`.
"""

from dataclasses import dataclass
from typing import Literal

JUDGEMENT = 2  # raise it when a stored row would be judged otherwise: the next ingestion judges all rows again


@dataclass(frozen=True)
class Rule:
    """`number` is the rule's bit in stored rows and is never given to another rule; from 40 on there is no bit."""

    number: int
    name: str
    scope: Literal["row", "set", "history"]
    severity: Literal["hard", "soft"]
    threshold: float
    reason: str
    condition: str | None = None

    @property
    def bit(self) -> int:
        return 1 << self.number


RULES = (
    Rule(
        0, "unreadable_date", "row", "hard", 0.0, "a row without a day belongs nowhere; dates are written YYYY-MM-DD",
        "date IS NULL",
    ),
    Rule(
        1, "date_out_of_range", "row", "hard", 0.0,
        "daily electronic prices begin in 1962, and nobody knows tomorrow's (a day is allowed for time zones)",
        "date < DATE '1962-01-01' OR date > current_date + 1",
    ),
    Rule(
        2, "unreadable_number", "row", "hard", 0.0, "text where a number belongs",
        "unreadable IS NOT NULL AND date IS NOT NULL",
    ),
    Rule(
        3, "bad_symbol", "set", "hard", 0.0,
        "a symbol has 1 to 64 characters, no control character, and does not end in #2 or another number",
    ),
    Rule(
        4, "close_not_positive", "row", "hard", 0.0001,
        "a null, NaN, infinite, zero or negative close has no return; no share ever cost 1e12",
        "NOT coalesce(close > 0 AND close < 1e12, false)",
    ),
    Rule(
        5, "adj_close_not_positive", "row", "hard", 0.0001,
        "the adjustment factor adj_close/close must be positive and finite; null or NaN is missing",
        "NOT coalesce(isnan(adj_close) OR (adj_close > 0 AND adj_close < 1e15), true)",
    ),
    Rule(
        6, "ohlc_order", "row", "hard", 0.0001,
        "high is the highest and low the lowest price of a day; more than 1 % off is a bad tick",
        "high_ok < 0.99 * greatest(open_ok, close, low_ok) OR low_ok > 1.01 * least(open_ok, close, high_ok)",
    ),
    Rule(
        7, "volume_not_a_count", "row", "hard", 0.0001,
        "a volume is not negative, and no market trades 1e18 units a day; fractions are fine",
        "volume < 0 OR volume > 1e18",
    ),
    Rule(
        8, "duplicate", "set", "hard", 0.0,
        "one row a symbol and day; the one with the fewest broken rules, then the smallest values, stays",
    ),
    Rule(
        9, "missing_ohlc", "row", "soft", 0.0005, "a null, zero or negative open, high or low is read as missing",
        "(open_ok IS NULL OR high_ok IS NULL OR low_ok IS NULL) AND has_ohlc",
    ),
    Rule(
        10, "ohlc_order_slight", "row", "soft", 0.0001, "rounding of adjusted prices; the row stays",
        "high_ok < (1 - 1e-6) * greatest(open_ok, close, low_ok) OR low_ok > (1 + 1e-6) * least(open_ok, close, high_ok)",
    ),
    Rule(
        11, "zero_volume", "row", "soft", 0.05, "nobody traded: the close is a quotation, and the day is not tradable",
        "volume = 0",
    ),
    Rule(
        12, "impossible_move", "set", "hard", 0.0001,
        "more than +300 % or -90 %, and back within five rows: a bad tick; until it comes back it is sound, and not tradable",
    ),
    Rule(
        13, "missing_adj_close", "row", "soft", 0.0005, "the factor of the day is unknown, and so is its return",
        "coalesce(isnan(adj_close), has_adj_close)",
    ),
    Rule(
        14, "factor_step", "set", "hard", 0.0001,
        "adj_close/close moved by more than a hundredfold, and came back within five rows",
    ),
    Rule(29, "stray_session", "set", "hard", 0.0001, "the exchange of the symbol was closed that day"),
    # A rule of a whole session: rows that come later release it.
    Rule(
        30, "thin_session", "set", "hard", 0.0001,
        "fewer than a fifth of the symbols of the sessions before: the vendor's file is a fragment",
    ),
    Rule(
        31, "late_session", "set", "hard", 0.0001,
        "the newest session has fewer than nine tenths of the symbols of those before: the vendor is late",
    ),
    Rule(40, "large_return", "history", "soft", 0.001, "an adjusted close moved by more than 50 % in a day"),
    Rule(
        41, "suspected_split", "history", "soft", 0.0,
        "the close jumps as a split would, and nothing adjusts it: not tradable that day, and not repaired; deliver an adj_close",
    ),
    Rule(
        42, "unexplained_jump", "history", "soft", 0.001,
        "a jump that is no split: a spin-off that is not adjusted, a merger, or news",
    ),
    Rule(43, "stale_close", "history", "soft", 0.02, "the close has not moved for five sessions: not tradable"),
    Rule(
        44, "busy_factor", "history", "soft", 0.0,
        "more than 14 dividends and splits of a symbol in a year: monthly payers are the ceiling",
    ),
    Rule(45, "sparse_ohlc", "history", "soft", 0.0, "a symbol whose open, high or low is missing on more than 1 % of its days"),
    Rule(
        46, "return_drift", "history", "soft", 0.0,
        "the returns of a month are distributed unlike those of the year before (PSI > 0.25)",
    ),
    Rule(
        47, "volume_drift", "history", "soft", 0.0,
        "the volumes of a month are distributed unlike those of the year before (PSI > 0.25)",
    ),
    Rule(48, "delisted", "history", "soft", 1.0, "a history that ends more than ten sessions before the last one"),
    Rule(
        49, "ticker_reused", "history", "soft", 1.0,
        "a symbol that came back after a year, or after more than 60 sessions at another price: another company",
    ),
    Rule(
        51, "price_step", "history", "soft", 0.0,
        "the close jumps as after a split or a change of unit, or fourfold on ordinary volume: is it one? Deliver an adj_close "
        "that says so, or prices in one unit; until then the history ends at the close before, at no loss, and another begins",
    ),
    Rule(
        52, "extreme_move", "history", "soft", 0.0,
        "a close beyond +300 % or -90 % in a day: it counts at its price and is not tradable that day; if it comes back "
        "within five rows, a later revision puts it into quarantine",
    ),
)  # fmt: skip
BY_NAME = {rule.name: rule for rule in RULES}
ROW_RULES = tuple(rule for rule in RULES if rule.scope != "history")


def bits(*names: str) -> int:
    """The bits of some rules."""
    return sum(BY_NAME[name].bit for name in names)


SESSION_BITS = bits("thin_session", "late_session")
TICK_BITS = bits("impossible_move", "factor_step")
# Of a row in quarantine, as in the views of schema.sql.
HARD_BITS = sum(rule.bit for rule in ROW_RULES if rule.severity == "hard")
# Of what a row is by itself; ticks and sessions depend on rows that may come later.
FIRM_BITS = HARD_BITS & ~SESSION_BITS & ~TICK_BITS
# A row that belongs to no symbol or no session.
UNPLACED_BITS = bits("unreadable_date", "date_out_of_range", "bad_symbol", "duplicate", "stray_session")
BROKEN_ROW = " | ".join(f"CASE WHEN {rule.condition} THEN {rule.bit} ELSE 0 END" for rule in RULES if rule.condition)
