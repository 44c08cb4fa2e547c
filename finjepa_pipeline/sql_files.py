"""Where the SQL of the product lies: `sql/` of a checkout, or inside an installed wheel."""

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
