"""From a panel on disk to batches of observations."""
