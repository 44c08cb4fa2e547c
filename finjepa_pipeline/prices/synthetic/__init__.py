from finjepa_pipeline.prices.synthetic.bars import write_bars
from finjepa_pipeline.prices.synthetic.market import VARIANTS, SyntheticConfig, SyntheticMarket, generate

__all__ = ["VARIANTS", "SyntheticConfig", "SyntheticMarket", "generate", "write_bars"]
