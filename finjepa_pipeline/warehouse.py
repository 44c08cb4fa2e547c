"""The DuckDB file that holds every table: its schema, its migrations, and who may open it.

`sql/<stage>/schema.sql` creates the tables of a stage as the newest version has them. `sql/migrations/NNNN_*.sql`, the first of
which will be 0013, changes tables that an older version created. Both run when the warehouse is opened for writing, and nowhere
else.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.settings import Settings

_HERE = Path(__file__).parent  # in a checkout or in an installed wheel
SQL_FOLDER = next(folder for folder in (_HERE.parent / "sql", _HERE / "sql") if (folder / "prices").is_dir())
OLDEST_VERSION = 12  # of the tables that can be opened: what `schema.sql` made before the first migration
LOCK_PATIENCE_S = 30.0
_OTHER_HOME = "put a backup in its place, move it away and ingest again, or set FINJEPA_HOME to another folder"
# Of the memory limit, which is meant for the process: DuckDB's own buffers keep to its setting, and Python and what is
# allocated outside of them come on top (0.4 GB in an ingestion, most of it imports).
DUCKDB_SHARE = 0.85


class Warehouse(dg.ConfigurableResource):
    """Opens the warehouse for as long as one piece of SQL needs it, never across a training; without a `path` that of the
    environment's home, as it is then."""

    path: str | None = None
    memory_limit: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Warehouse":
        return cls(path=str(settings.warehouse), memory_limit=settings.duckdb_memory_limit)

    @contextlib.contextmanager
    def connect(self, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that is closed at the end, whatever happens. Unless `read_only`, every table is there in its newest form.
        Raises where another process keeps the file locked, it is none of DuckDB, or its tables cannot be upgraded."""
        connection = self._open(read_only)
        try:
            schema_version(connection) if read_only else migrate(connection)
            yield connection
        finally:
            connection.close()

    def _open(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        if self.path is None:
            return Warehouse.from_settings(Settings.from_env())._open(read_only)
        if read_only and not Path(self.path).is_file():
            raise FinJEPAError(f"there are no prices yet at {self.path}; run `finjepa ingest` first")
        # A Python object that happens to carry the name of a table must never be read in its place.
        config: dict[str, str | bool | int | float | list[str]] = {"python_enable_replacements": False}
        if self.memory_limit:
            config["memory_limit"] = self.memory_limit
        deadline = time.monotonic() + LOCK_PATIENCE_S
        wait_s = 0.05
        while True:
            try:
                connection = duckdb.connect(self.path, read_only=read_only, config=config)
                connection.execute("SET TimeZone = 'UTC'")  # no day depends on the zone of the machine
                if self.memory_limit:
                    _leave_room(connection)
                return connection
            except duckdb.Error as error:
                if not isinstance(error, duckdb.IOException) or "lock" not in str(error):
                    reason = str(error).splitlines()[0]
                    raise FinJEPAError(f"cannot open {self.path}: {reason}; {_OTHER_HOME}") from error
                if time.monotonic() > deadline:
                    raise FinJEPAError(
                        f"{self.path} is in use by {_holder(str(error))}; stop that process or wait, then try again"
                    ) from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)


@cache
def _schemas() -> str:
    """The SQL that creates the tables of each stage, where they are missing."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(SQL_FOLDER.glob("*/schema.sql")))


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """The number and the SQL of each migration, ascending; the name of a file begins with its number."""
    files = sorted((SQL_FOLDER / "migrations").glob("*.sql"))
    return tuple((int(path.name[:4]), path.read_text(encoding="utf-8")) for path in files)


def newest_version() -> int:
    return max([OLDEST_VERSION, *(version for version, _ in migrations())])


def schema_version(con: duckdb.DuckDBPyConnection) -> int | None:
    """The version of the tables, None in an empty database; raises where they are of a newer FinJEPA, of one before
    OLDEST_VERSION, or of another program."""
    tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return None
    version = 0
    if "schema_version" in tables:
        version = con.execute("SELECT max(version) FROM main.schema_version").fetchall()[0][0] or 0
    if version > newest_version():
        raise FinJEPAError(
            f"the warehouse has version {version}, and this FinJEPA knows up to {newest_version()}; install the newer one again"
        )
    if version < OLDEST_VERSION:
        raise FinJEPAError(
            "warehouse.duckdb was made by an older FinJEPA or another program, and was left as it is; to begin anew from the "
            "same price files, move it away and run `finjepa ingest`, or set FINJEPA_HOME to another folder; to read it, "
            "install the FinJEPA that made it"
        )
    return version


def migrate(con: duckdb.DuckDBPyConnection) -> None:
    """Run the migrations that are newer than the tables, each in one transaction, then create the tables that are missing.
    Raises as `schema_version`, or where the tables hold something that a migration cannot move; nothing is changed then."""
    before = schema_version(con)
    for version, statements in migrations():
        if before is not None and version > before:
            try:
                _run(con, version, statements)
            except duckdb.Error as error:
                first = " ".join(str(error).split())
                raise FinJEPAError(
                    f"the warehouse cannot be upgraded to version {version} ({first}); its tables are as they were: "
                    "install the FinJEPA that made it, with a backup if it was upgraded in part, or move it away and ingest again"
                ) from error
    _run(con, newest_version() if before is None else None, _schemas())


def _run(con: duckdb.DuckDBPyConnection, version: int | None, statements: str) -> None:
    """Run statements in one transaction, and record the version that they lead to."""
    with transaction(con):
        con.execute(statements)
        if version is not None:
            con.execute(
                "CREATE TABLE IF NOT EXISTS main.schema_version (version INTEGER NOT NULL, migrated_at TIMESTAMP NOT NULL)"
            )
            con.execute("INSERT INTO main.schema_version VALUES (?, ?)", [version, now()])


def _leave_room(connection: duckdb.DuckDBPyConnection) -> None:
    (text,) = connection.execute("SELECT current_setting('memory_limit')").fetchall()[0]
    number, unit = text.split()  # such as "1.8 GiB"
    connection.execute(f"SET memory_limit = '{DUCKDB_SHARE * float(number):.3f}{unit}'")


def _holder(message: str) -> str:
    found = re.search(r"PID (\d+)", message)
    return f"the process {found.group(1)}" if found else "another process"


@contextlib.contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All or nothing."""
    con.begin()
    try:
        yield
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # of a database that has failed as a whole
            con.rollback()
        raise
    con.commit()


def insert(con: duckdb.DuckDBPyConnection, table: str, constants: dict[str, Any], columns: dict[str, Any]) -> None:
    """Append rows: `columns` are arrays of one length, `constants` are the same in every row."""
    length = len(next(iter(columns.values())))
    repeated = {name: pa.array([value] * length) for name, value in constants.items()}
    con.register("incoming_rows", pa.table({**repeated, **columns}))
    con.execute(f"INSERT INTO main.{table} BY NAME SELECT * FROM incoming_rows")
    con.unregister("incoming_rows")


def now() -> datetime:
    """UTC without a zone, as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


@cache
def sql(name: str) -> str:
    """The text of `sql/<name>.sql`. `{fragments}` in it are filled by `str.format`, `$values` by DuckDB."""
    return (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def literal(text: object) -> str:
    """A text as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"


def identifier(name: str) -> str:
    """The name of a column as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def file_literal(path: Path) -> str:
    """The path of a file for a reader of DuckDB, which takes every path for a pattern."""
    return literal(re.sub(r"[*?[]", r"[\g<0>]", str(path)))
