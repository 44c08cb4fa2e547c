"""How often a home whose strategies have no skill says "evidence of skill".

    python benchmarks/skill_claims.py [--homes 60] [--strategies 20]

Each home is a market of 20 assets with one common factor and a positive drift, over 1,200 sessions, and 20 long-only
strategies that are drawn at random: how concentrated they are, how long they keep their weights, how much they leave in
cash. None knows anything. Their returns go through the product's own tables and leaderboard; `has_skill` decides, as it does
for the card, the report and the terminal. A home claims skill if any one of its strategies does, which is stricter than the
headline: that speaks of the one planner that validation chose. Prints the shares with exact 95 % intervals.
"""

import argparse

import duckdb
import numpy as np
import polars as pl
from scipy.stats import binomtest

from finjepa_pipeline.backtest.inference import deflated_sharpe
from finjepa_pipeline.backtest.leaderboard import build_leaderboard, leaderboard_rows
from finjepa_pipeline.backtest.metrics import BENCHMARK, DSR_GOAL, has_skill
from finjepa_pipeline.warehouse import insert, migrate, now, sql

ASSETS, SESSIONS = 20, 1200


def market(rng: np.random.Generator) -> np.ndarray:
    """Daily returns_TN: a common factor of 1 % a day with a drift of 4 basis points, fat tails, specific risk of 1.5 %."""
    factor_T = 0.0004 + 0.01 * rng.standard_t(5, SESSIONS) / np.sqrt(5 / 3)
    specific_TN = 0.015 * rng.standard_t(5, (SESSIONS, ASSETS)) / np.sqrt(5 / 3)
    return factor_T[:, None] * rng.normal(1, 0.3, ASSETS) + specific_TN


def skill_less(returns_TN: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Daily returns_T of weights that are drawn anew every few sessions, fully or partly invested."""
    keep, concentration, invested = int(rng.integers(5, 400)), rng.uniform(0.05, 2.0), rng.uniform(0.5, 1.0)
    weights_KN = rng.dirichlet(np.full(ASSETS, concentration), -(-SESSIONS // keep))
    return invested * (np.repeat(weights_KN, keep, axis=0)[:SESSIONS] * returns_TN).sum(1)


def home(rng: np.random.Generator, strategies: int) -> duckdb.DuckDBPyConnection:
    """A warehouse with the walks of 1/N and of strategies without skill, on one test block."""
    con = duckdb.connect()
    migrate(con)
    returns_TN = market(rng)
    dates_T = np.datetime64("2015-01-01") + np.arange(SESSIONS)
    walks = {BENCHMARK: returns_TN.mean(1)} | {f"planner_{k}": skill_less(returns_TN, rng) for k in range(strategies)}
    key = {"checkpoint": "c", "data_version": "d", "block": "test", "setup": "k"}
    tried = {"n_days": SESSIONS, "created_at": now(), "start_date": dates_T[0].item(), "end_date": dates_T[-1].item()}
    for name, net_T in walks.items():
        nothing_T = np.zeros(SESSIONS)
        columns = {
            "date": dates_T,
            "gross_return": net_T,
            "net_return": net_T,
            "cost": nothing_T,
            "turnover": nothing_T,
        }
        insert(
            con, "backtest_returns", key | {"strategy": name},
            columns | {"wealth": np.cumprod(1 + net_T), "hedge": nothing_T.astype(bool)},
        )  # fmt: skip
        con.execute(sql("backtest_trials"), key | tried | {"strategy": name})
        held = key | {"strategy": name, "entity": "A", "weight": 1.0, "signal": 1.0, "held": 1.0, "hedge": 0.0}
        insert(con, "backtest_decisions", held, {"date": dates_T[:1]})
    con.execute(sql("score_trials"), {"setup": "k", "benchmark": BENCHMARK})
    return con


def over_cash(con: duckdb.DuckDBPyConnection) -> dict[str, float]:
    """The deflated Sharpe ratio of the return over cash, which says nothing of 1/N: for comparison."""
    frame = con.sql("FROM backtest_returns").pl().pivot("strategy", index="date", values="net_return").drop("date")
    names = [name for name in frame.columns if name != BENCHMARK]
    net_TK = frame.select(names).to_numpy()
    ratios_K = net_TK.mean(0) / net_TK.std(0, ddof=1)
    return {name: deflated_sharpe(net_TK[:, k], ratios_K) for k, name in enumerate(names)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--homes", type=int, default=60)
    parser.add_argument("--strategies", type=int, default=20)
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.homes):
        with home(np.random.default_rng(seed), arguments.strategies) as con:
            build_leaderboard(con, "c", "d")
            rows = [row for row in leaderboard_rows(con, "c") if row["strategy"] != BENCHMARK]
            cash = over_cash(con)
        above = [row for row in rows if row["excess_low"] > 0]
        found.append(
            {
                "interval and DSR of the return over 1/N (the product)": any(map(has_skill, rows)),
                "interval alone": bool(above),
                "interval and DSR of the return over cash": any(cash[row["strategy"]] >= DSR_GOAL for row in above),
            }
        )
    print(
        f"{arguments.homes} homes of {arguments.strategies} strategies without skill: a home says that one of them has some\n"
    )
    print("| rule | homes | share (95 %) |\n|---|--:|--:|")
    for rule, hits in pl.DataFrame(found).sum().to_dicts()[0].items():
        low, high = binomtest(hits, arguments.homes).proportion_ci(0.95)
        print(f"| {rule} | {hits} of {arguments.homes} | {hits / arguments.homes:.1%} ({low:.1%} to {high:.1%}) |")


if __name__ == "__main__":
    main()
