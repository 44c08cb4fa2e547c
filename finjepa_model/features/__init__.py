from finjepa_model.features.build import AdjustedPrices, choose, fill_panel
from finjepa_model.features.channels import CHANNELS, Channel
from finjepa_model.features.frame import Prices, read_prices
from finjepa_model.features.market import MARKET_CHANNELS

__all__ = ["CHANNELS", "MARKET_CHANNELS", "AdjustedPrices", "Channel", "Prices", "choose", "fill_panel", "read_prices"]
