from finjepa_pipeline.features.panel import build_panel, current_panel

__all__ = ["build_panel", "current_panel"]
