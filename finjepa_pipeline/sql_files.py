"""The SQL of the product, `sql/` of a checkout or of an installed wheel; and texts and paths inside of SQL."""

import re
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
SQL_FOLDER = next(folder for folder in (_HERE.parent / "sql", _HERE / "sql") if (folder / "prices").is_dir())


@cache
def sql(name: str) -> str:
    """The text of `sql/<name>.sql`. `{fragments}` in it are filled by `str.format`, `$values` by DuckDB."""
    return (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def literal(text: object) -> str:
    """A text as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"


def file_literal(path: Path) -> str:
    """The path of a file for a reader of DuckDB, which takes every path for a pattern."""
    return literal(re.sub(r"[*?[]", r"[\g<0>]", str(path)))
