"""docs/channels.md, written from the tables of channels: `make docs`."""

import ast
from pathlib import Path
from types import ModuleType

from finjepa_model.features import channels, market

PAGE = Path(__file__).parents[2] / "docs" / "channels.md"


def page() -> str:
    """The page as Markdown."""
    return f"""# The channels of the feature panel

Made by `make docs` from `finjepa_model/features/channels.py` and `market.py`; a test compares. An expression is evaluated over
the observations of one asset in order of date; `mean(x, n)` and `volume_shock(n)` are over the last n observations, at least two
thirds of which must be known. *Scored* values are stored as the trailing z-score: (x - mean) / deviation over 252 observations,
at least 60 known. A channel is left out where the source lacks what it needs. Every value depends on its own day and the
`lookback` observations before it, is computed in float64, clipped to +-{channels.CLIP:g}, stored as float32, and 0 where it is
unknown (`observed` tells).

## Of an asset

{_table(channels, "CHANNELS")}

## Of the market

One value a session. The universe of the session before decides who counts.

{_table(market, "MARKET_CHANNELS")}
"""


def _table(module: ModuleType, name: str) -> str:
    """The table of a module with the expressions as they are written there."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    [table] = [
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(node.value, ast.Tuple)
    ]  # fmt: skip
    written = [ast.unparse(entry.args[5]) for entry in table.elts if isinstance(entry, ast.Call)]
    head = "| channel | unit | source | needs | lookback | scored | expression |\n|---|---|---|---|---|---|---|"
    lines = (
        f"| {c.name} | {c.unit} | {c.source} | {', '.join(c.needs)} | {c.lookback} | {'yes' if c.scored else ''} | `{text}` |"
        for c, text in zip(getattr(module, name), written, strict=True)
    )
    return "\n".join([head, *lines])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
