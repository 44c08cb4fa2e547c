"""Prices: sources, ingestion, validation, quarantine, adjustment, entities and the universe."""

from finjepa_pipeline.prices.history import Revision, current_revision

__all__ = ["Revision", "current_revision"]
