"""Reference pages that are written from the code when the site is built: nothing of them is kept, so nothing can be out of date.

python -m docs.reference.generate      # prints them as JSON, for hooks.py
"""

import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

import click
import dagster as dg
import duckdb

from finjepa_model import config as model_config
from finjepa_model.features import channels, market
from finjepa_model.planning.utility import utility_help
from finjepa_pipeline.cli import COMMANDS, main
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import SQL_FOLDER, migrate

STAGES = ("prices", "backtest", "publishing")
_TABLE = re.compile(r"((?:^--.*\n)*)^CREATE (TABLE|VIEW) IF NOT EXISTS (\w+)", re.M)


def command_line() -> str:
    """Every command with its options, from the click commands."""
    parts = [
        "# Command line",
        "Hyphens and underscores both work. Exit status: 0 done, 1 failed, 2 wrong usage. Errors are one line on standard error; "
        "`finjepa --debug COMMAND` shows the trace. With `--json` a command prints one JSON object and nothing else.",
        "`--utility` takes a formula:",
        f"```text\n{utility_help().strip()}\n```",
    ]
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        parts += [f"## finjepa {name}", inspect.cleandoc(command.help or "")]
        rows = [
            (" ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts)), _help(option))
            for option in command.params
        ]
        parts.append(_table(("option", "meaning"), rows) if rows else "No options.")
    return _page(parts)


def _help(parameter: click.Parameter) -> str:
    return parameter.help or "" if isinstance(parameter, click.Option) else "an argument"


def configuration() -> str:
    """Environment variables, run config of the steps and the model's config, each with its default."""
    variables = [
        (f"`FINJEPA_{name.upper()}`", _default(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    parts = [
        "# Configuration",
        "## Environment variables",
        "Empty means the default.",
        _table(("variable", "default", "meaning"), variables),
        "## Run config",
        "What `FINJEPA_HOME/nightly.yaml` and the launchpad take: `ops: {STEP: {config: {NAME: VALUE}}}`.",
    ]
    for op, shape in _run_config().items():
        rows = [
            (f"`{name}`", _default(field.default_value) if field.default_provided else "", field.description or "")
            for name, field in shape.items()
        ]
        parts += [f"### {op}", _table(("name", "default", "meaning"), rows)]
    parts += [
        "## Model and training",
        "Set with `--set section.key=value`, or under `overrides` of `world_model`. Presets change the defaults: "
        + ", ".join(f"`{name}`" for name in model_config.PRESETS)
        + ".",
    ]
    comments = _comments(model_config)
    for section in fields(model_config.FinJEPAConfig):
        cls: Any = section.default_factory
        rows = [
            (
                f"`{section.name}.{f.name}`",
                _default(f.default),
                _bounds(f.metadata),
                comments.get((cls.__name__, f.name), ""),
            )
            for f in fields(cls)
        ]
        parts += [
            f"### {section.name}",
            inspect.getdoc(cls) or "",
            _table(("key", "default", "range", "meaning"), rows),
        ]
    return _page(parts)


def _run_config() -> dict[str, dict[str, dg.Field]]:
    """Name of an op to the fields of its config, of every job."""
    jobs = defs.get_repository_def().get_all_jobs()
    schemas = {node.name: node.definition.config_schema for job in jobs for node in job.nodes}
    shapes = {name: getattr(schema.config_type, "fields", {}) for name, schema in schemas.items() if schema}
    return {name: shape for name, shape in sorted(shapes.items()) if shape}


def _bounds(metadata: Any) -> str:
    return "{:g} to {:g}".format(*metadata["bounds"]) if "bounds" in metadata else ""


def _comments(module: ModuleType) -> dict[tuple[str, str], str]:
    """The comment of each field, by the names of its class and its own: beside it, or on the lines above it."""
    source = inspect.getsource(module)
    lines, found = source.splitlines(), {}
    for cls in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for item in (node for node in cls.body if isinstance(node, ast.AnnAssign)):
            text = [line.partition("#")[2].strip() for line in lines[item.lineno - 1 : item.end_lineno]]
            row = item.lineno - 2
            while not any(text) and lines[row].strip().startswith("# "):
                text.insert(0, lines[row].strip()[2:])
                row -= 1
            found[cls.name, ast.unparse(item.target)] = " ".join(filter(None, text))
    return found


def channel_tables() -> str:
    """The channels of an asset and of the market, with the expressions as they stand in the code."""
    return _page([
        "# Channels",
        "An expression is evaluated over the observations of one asset in order of date; `mean(x, n)` and `volume_shock(n)` are over "
        "the last n observations, at least two thirds of which must be known. *Scored* values are stored as the trailing z-score: "
        "(x - mean) / deviation over 252 observations, at least 60 known. A channel is left out where the source lacks what it needs. "
        "Every value depends on its own day and the `lookback` observations before it, is computed in float64, clipped to "
        f"±{channels.CLIP:g}, stored as float32, and 0 where it is unknown (`observed` tells).",
        "## Of an asset",
        _channels(channels, "CHANNELS"),
        "## Of the market",
        "One value a session. The universe of the session before decides who counts.",
        _channels(market, "MARKET_CHANNELS"),
    ])  # fmt: skip


def _channels(module: ModuleType, name: str) -> str:
    tree = ast.parse(inspect.getsource(module))
    [table] = [
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(node.value, ast.Tuple)
    ]  # fmt: skip
    written = [ast.unparse(entry.args[5]) for entry in table.elts if isinstance(entry, ast.Call)]
    rows = [
        (f"`{c.name}`", c.unit, c.source, ", ".join(c.needs), str(c.lookback), "yes" if c.scored else "", f"`{text}`")
        for c, text in zip(getattr(module, name), written, strict=True)
    ]
    return _table(("channel", "unit", "source", "needs", "lookback", "scored", "expression"), rows)


def tables() -> str:
    """Tables and views of the warehouse: the comments of the schema, and the columns as DuckDB has them."""
    parts = [
        "# Tables of the warehouse",
        "`FINJEPA_HOME/warehouse.duckdb` is a DuckDB file. Open it with the `duckdb` program or from Python, read-only and while no "
        "command is running:",
        '```python\nimport duckdb\n\nwith duckdb.connect(".finjepa/warehouse.duckdb", read_only=True) as warehouse:\n'
        '    print(warehouse.sql("SELECT symbol, max(date) FROM prices GROUP BY symbol"))\n```',
    ]
    warehouse = duckdb.connect(":memory:")
    migrate(warehouse)
    rows = warehouse.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY table_name, ordinal_position"
    ).fetchall()
    for stage in STAGES:
        parts.append(f"## {stage.capitalize()}")
        for comment, kind, name in _TABLE.findall((SQL_FOLDER / stage / "schema.sql").read_text(encoding="utf-8")):
            columns = [(f"`{column}`", kind_of) for table, column, kind_of in rows if table == name]
            text = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
            parts += [f"### {name}", f"*{kind.lower()}.* {text}", _table(("column", "type"), columns)]
    return _page(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _default(value: Any) -> str:
    return "" if value in (None, "", [], {}, ()) else f"`{value}`"


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli": command_line,
    "config": configuration,
    "channels": channel_tables,
    "warehouse": tables,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: write() for name, write in PAGES.items()}))
    sys.stdout.flush()
    os._exit(0)  # PyTorch outlives DuckDB's module at exit, which would be reported at length
