"""Where the SQL of the product lies: `sql/` of a checkout, or inside an installed wheel; and texts and paths inside of SQL."""

import re
from functools import cache
from pathlib import Path

SQL_FOLDERS = (Path(__file__).parent.parent / "sql", Path(__file__).parent / "sql")


@cache
def sql(name: str) -> str:
    """The text of `sql/<name>.sql`. `{fragments}` in it are filled by `str.format`, `$values` by DuckDB."""
    for folder in SQL_FOLDERS:
        path = folder / f"{name}.sql"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"sql/{name}.sql")


def literal(text: object) -> str:
    """A text as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"


def file_literal(path: Path) -> str:
    """The path of a file for a reader of DuckDB, which takes every path for a pattern."""
    return literal(re.sub(r"[*?[]", r"[\g<0>]", str(path)))
