"""A block of rows through all derivations: those of a run of symbols, or the tail of all of them.

The rows are in the temporary table block_prices, and what is known of their symbols in block_symbols.
"""

import duckdb

from finjepa_pipeline.warehouse import sql


def open_contest(con: duckdb.DuckDBPyConnection, fragments: dict[str, object]) -> None:
    """Before the first block: nobody leads anywhere."""
    con.execute(sql("best_contenders").format(**fragments))


def derive_block(con: duckdb.DuckDBPyConnection, fragments: dict[str, object]) -> None:
    """Events, actions, entities and histograms of a block; its contenders for the universe meet those of the blocks before."""
    fragments = {**fragments, "adjusted": sql("adjusted_rows").format(prices="block_prices")}
    for step in ("price_events", "corporate_actions", "entities", "universe", "price_histograms"):
        con.execute(sql(step).format(**fragments))


def crown(con: duckdb.DuckDBPyConnection) -> None:
    """After the last block: the contenders that are left are the universe."""
    con.execute("INSERT INTO universe SELECT date, entity FROM best_contenders ORDER BY date, entity")
    con.execute("DROP TABLE best_contenders")
    con.execute("DROP TABLE tie_breaks")
