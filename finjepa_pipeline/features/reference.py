"""docs/channels.md, written from the one table of channels: `make docs`."""

from pathlib import Path

from finjepa_pipeline.features.channels import CHANNELS, CLIP
from finjepa_pipeline.features.market import MARKET_CHANNELS
from finjepa_pipeline.features.pictures import channel_table

PAGE = Path(__file__).parents[2] / "docs" / "channels.md"


def page() -> str:
    """The page as Markdown."""
    assets, market = (channel_table(channel.row() for channel in table) for table in (CHANNELS, MARKET_CHANNELS))
    return f"""# The channels of the feature panel

Made by `make docs` from `finjepa_pipeline/features/channels.py` and `market.py`; a test compares. Square brackets are
observations ago, `f(x, n)` is over the last n observations of the asset, at least two thirds of which must be known;
`market` is the return of the market proxy (the universe weighted by trailing dollar volume). A channel is left out where
the source lacks what it needs. Every value depends on its own day and the `lookback` observations before it, is computed
in float64, clipped to +-{CLIP:g}, stored as float32, and 0 where it is unknown (`observed` tells).

## Of an asset

{assets}

## Of the market

One value a session. The universe of the session before decides who counts.

{market}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
