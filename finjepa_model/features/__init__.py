from finjepa_model.features.build import AdjustedPrices, choose, fill_panel
from finjepa_model.features.channels import CHANNELS, Channel
from finjepa_model.features.market import MARKET_CHANNELS

__all__ = ["CHANNELS", "MARKET_CHANNELS", "AdjustedPrices", "Channel", "choose", "fill_panel"]
