"""The rules of prices, read from where they are declared: `sql/price_rules.sql`."""

from dataclasses import dataclass

import duckdb

from finjepa_pipeline.warehouse import sql

JUDGEMENT = 2  # raise it when a stored row would be judged otherwise: the next ingestion judges all rows again


@dataclass(frozen=True)
class Rule:
    """A row of `price_rules`. `bit` is its place in `broken`; `threshold` the share of rows above which it warns."""

    bit: int
    rule: str
    scope: str
    severity: str
    threshold: float
    condition: str | None
    reason: str


def load_rules(con: duckdb.DuckDBPyConnection) -> list[Rule]:
    """The declared rules, without writing anything to the warehouse."""
    con.execute(sql("price_rules").format(temporary="TEMPORARY", name="declared_price_rules"))
    rows = con.execute(
        "SELECT bit, rule, scope, severity, threshold::DOUBLE, condition, reason FROM declared_price_rules ORDER BY number"
    ).fetchall()
    return [Rule(*row) for row in rows]


def broken_bits(rules: list[Rule]) -> str:
    """SQL for the bits of the row rules that a row of `price_scan` breaks."""
    return " | ".join(f"CASE WHEN {rule.condition} THEN {rule.bit} ELSE 0 END" for rule in rules if rule.condition)


def hard_bits(rules: list[Rule]) -> int:
    """The bits that move a row to quarantine (sessions that are dropped whole have none)."""
    return sum(rule.bit for rule in rules if rule.severity == "hard" and rule.scope in ("row", "set"))


def bit_of(rules: list[Rule], name: str) -> int:
    """The bit of one rule."""
    return next(rule.bit for rule in rules if rule.rule == name)
