"""Brings the tables of an older FinJEPA up to what this one reads, by the numbered files of `sql/migrations/`.

The statements that create a table are those of the newest version and say IF NOT EXISTS; a migration changes what an older
version has created. On an empty warehouse a migration finds nothing and does nothing. The first version had no number: 1.
"""

import re
from functools import cache
from pathlib import Path

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.sql_files import SQL_FOLDERS


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """The number and the SQL of each migration, ascending; the name of a file begins with its number."""
    folder: Path = next(folder for folder in SQL_FOLDERS if (folder / "migrations").is_dir()) / "migrations"
    return tuple((int(path.name[:4]), path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.sql")))


def newest_version() -> int:
    return migrations()[-1][0]


def schema_version(con: duckdb.DuckDBPyConnection) -> int:
    """The version of the tables; of a warehouse that carries no number, 1."""
    [(known,)] = con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_version'").fetchall()
    if not known:
        return 1
    [(version,)] = con.execute("SELECT max(version) FROM main.schema_version").fetchall()
    return int(version or 1)


def _is_foreign(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether there are tables, and not those that the first version of FinJEPA began with."""
    tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    return bool(tables) and not tables & {"revisions", "schema_version"}


def migrate(con: duckdb.DuckDBPyConnection) -> int:
    """Run every migration that is newer than the tables, all in one transaction.

    Returns:
        The version that the tables had.

    Raises:
        FinJEPAError: if the tables are of a newer FinJEPA, or hold something that a migration cannot move.
    """
    before = schema_version(con)
    if before == 1 and _is_foreign(con):
        raise FinJEPAError(
            "warehouse.duckdb is a database of another program; set FINJEPA_HOME to a folder of its own, or move it away"
        )
    if before == newest_version():
        return before
    if before > newest_version():
        raise FinJEPAError(
            f"the warehouse has version {before}, and this FinJEPA knows up to {newest_version()}; install the newer one again"
        )
    con.begin()
    try:
        con.execute(
            "CREATE TABLE IF NOT EXISTS main.schema_version (version INTEGER NOT NULL, migrated_at TIMESTAMP NOT NULL)"
        )
        for version, statements in migrations():
            if version > before:
                con.execute(statements)
                con.execute("INSERT INTO main.schema_version VALUES (?, now() AT TIME ZONE 'UTC')", [version])
    except duckdb.Error as error:
        con.rollback()
        first = re.sub(r"\s+", " ", str(error))
        raise FinJEPAError(
            f"the warehouse of version {before} cannot be upgraded ({first}); nothing was changed"
        ) from error
    con.commit()
    return before
