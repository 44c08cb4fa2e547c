"""FinJEPA as its users have it: the world model, and what it says of a frame of prices."""

from typing import Any

from finjepa_model.decision import Decision, decide_prices
from finjepa_model.forecast import Forecast, forecast_prices
from finjepa_model.world_model import WorldModel


class FinJEPA(WorldModel):
    """The world model of `finjepa_model.world_model`, for frames of prices: `forecast` and `decide`."""

    def forecast(self, prices: Any) -> Forecast:
        """Volatility, covariance, quantiles and expected returns after the newest session of a frame of prices.

        Args:
            prices: of pandas or Polars, long or wide; see `finjepa_model.features.read_prices`.

        Raises:
            FinJEPAError: if the frame cannot be understood, or no symbol has enough history.
        """
        return forecast_prices(self, prices)

    def decide(
        self, prices: Any, planner: str = "qp", utility: str | None = None, holdings: Any = None, seed: int = 0
    ) -> Decision:
        """What to hold after the newest session of a frame of prices.

        Args:
            prices: as of `forecast`; all symbols with enough history can be held.
            planner: one of `finjepa_model.planners.PLANNERS`.
            utility: what is maximised, such as "log_growth - 2.5*variance, gross <= 0.8"; that of the planner by default.
            holdings: signed shares of wealth by symbol, a Series or a mapping; the rest is cash. All cash by default.
            seed: of planners that sample.

        Raises:
            FinJEPAError: as `forecast`; or for an unknown planner, a utility that cannot be read, or holdings of unknown symbols.
        """
        return decide_prices(self, prices, planner, utility, holdings, seed)
