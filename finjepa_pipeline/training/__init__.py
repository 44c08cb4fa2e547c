"""From a feature panel to a checkpoint."""
