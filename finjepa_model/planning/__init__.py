"""Utilities, the moments of the imagined market, and planners; `finjepa_model.planners` makes them by name."""
