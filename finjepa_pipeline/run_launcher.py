"""Where the dagster.yaml of homes of older versions finds the run launcher."""

from finjepa_pipeline.runs import WatchedRunLauncher

__all__ = ["WatchedRunLauncher"]
