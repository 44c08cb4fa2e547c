"""What the UI shows of a backtest."""

import polars as pl

from finjepa_pipeline.pictures import as_markdown, new_figure


def wealth_picture(returns: pl.DataFrame) -> str:
    """Wealth net of costs by strategy on the test block, on a logarithmic axis."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    for (name,), walk in returns.filter(block="test").group_by("strategy", maintain_order=True):
        axes.plot(walk["date"].to_list(), walk["wealth"].to_numpy(), label=str(name), linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("wealth, net of costs")
    axes.legend(frameon=False, fontsize=7)
    return as_markdown(figure, "wealth on the test block")


def calibration_picture(expectations: pl.DataFrame) -> str:
    """Log growth of a decision step as each planner imagined it, against what came, on the test block."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    for (name,), one in expectations.filter(block="test").group_by("strategy", maintain_order=True):
        axes.scatter(
            one["imagined_growth"].to_numpy(), one["realised_growth"].to_numpy(), s=6, alpha=0.6, label=str(name)
        )
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    axes.set_xlabel("imagined log growth of a step")
    axes.set_ylabel("realised")
    axes.legend(frameon=False, fontsize=7)
    return as_markdown(figure, "calibration on the test block")
