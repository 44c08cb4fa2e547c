"""The DuckDB file that holds every table, opened by one process at a time."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.migrations import migrate
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.sql_files import file_literal, literal, sql

__all__ = ["Warehouse", "file_literal", "literal", "sql"]

LOCK_PATIENCE_S = 30.0
_OTHER_HOME = "put a backup in its place, move it away and ingest again, or set FINJEPA_HOME to another folder"
# Of the memory limit, which is meant for the process: DuckDB keeps to what it is told with its own buffers, and Python and
# what is allocated outside of them come on top (0.4 GB in an ingestion, most of it imports).
DUCKDB_SHARE = 0.85


class Warehouse(dg.ConfigurableResource):
    """Opens the warehouse for as long as one piece of SQL needs it, never across a training."""

    path: str
    memory_limit: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Warehouse":
        return cls(path=str(settings.warehouse), memory_limit=settings.duckdb_memory_limit)

    @contextlib.contextmanager
    def connect(self, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that is closed at the end, whatever happens. Tables of an older version are brought up to this one.

        Raises:
            FinJEPAError: if another process keeps the file locked, it is not a DuckDB file, or `read_only` and there is none.
        """
        connection = self._open(read_only)
        try:
            if not read_only:
                migrate(connection)
            yield connection
        finally:
            connection.close()

    def _open(self, read_only: bool) -> duckdb.DuckDBPyConnection:
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
            except duckdb.IOException as error:
                if "lock" not in str(error):
                    raise FinJEPAError(f"cannot open {self.path}: {_first_line(error)}; {_OTHER_HOME}") from error
                if time.monotonic() > deadline:
                    raise FinJEPAError(
                        f"{self.path} is in use by {_holder(str(error))}; stop that process or wait, then try again"
                    ) from error
            except duckdb.Error as error:
                raise FinJEPAError(f"cannot open {self.path}: {_first_line(error)}; {_OTHER_HOME}") from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)


def _leave_room(connection: duckdb.DuckDBPyConnection) -> None:
    (text,) = connection.execute("SELECT current_setting('memory_limit')").fetchall()[0]
    number, unit = text.split()  # such as "1.8 GiB"
    connection.execute(f"SET memory_limit = '{DUCKDB_SHARE * float(number):.3f}{unit}'")


def _holder(message: str) -> str:
    found = re.search(r"PID (\d+)", message)
    return f"the process {found.group(1)}" if found else "another process"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
