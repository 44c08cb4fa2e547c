"""Small pictures in the metadata of assets, where a person would rather look than read."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(height: float) -> "Figure":
    """A figure as wide as a metadata column; `height` in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), layout="constrained")


def as_markdown(figure: "Figure", title: str) -> str:
    """The figure as a Markdown image that needs no file."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=80)
    return f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"
