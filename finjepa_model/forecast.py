"""A forecast in frames: volatilities, covariance, quantiles and expected returns after the newest session of some prices.

Shapes: N assets, V horizons of volatility, Q quantile levels, C portfolios; a leading 1 is the one date.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.errors import FinJEPAError
from finjepa_model.features.adjust import UniverseRule, adjust_prices, on_sessions
from finjepa_model.features.build import fill_panel
from finjepa_model.features.channels import available
from finjepa_model.features.frame import read_prices
from finjepa_model.nn.risk import HORIZONS, RETURN_HORIZONS, RiskForecast
from finjepa_model.world_model import WorldModel

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HORIZON = 21  # sessions, of covariances and expected returns
LOOKED_BACK = 1260  # sessions before the windows of a model: twice of what channels and forecasts of risk look back on
NOTHING_KNOWN = "of expected returns nothing is known: the same for every asset"


@dataclass(frozen=True)
class FrameMarket:
    """A market that lies in memory, and what can be decided on in it.

    Attributes:
        session: the newest.
        assets_N: int64, the panel's numbers of the assets with enough history that have a price on that session, ascending.
        symbols: what they are called.
        understood: in words, what was read and what was left out.
    """

    panel: Panel
    session: int
    assets_N: np.ndarray
    symbols: tuple[str, ...]
    understood: tuple[str, ...]

    @classmethod
    def of(cls, prices: Any, config: FinJEPAConfig) -> "FrameMarket":
        """The market of a frame, in the channels that a model reads.

        Raises:
            FinJEPAError: if the frame cannot be understood, or no symbol has enough history.
        """
        read = read_prices(prices)
        days = read.rows["date"].unique().sort()
        recent = days[max(len(days) - history_needed(config) - LOOKED_BACK, 0)]
        rows, notes = on_sessions(read.rows.filter(pl.col("date") >= recent))
        adjusted, lives = adjust_prices(rows)
        channels = tuple(channel for channel in available(adjusted.columns) if channel.name in config.model.channels)
        arrays: dict[str, np.ndarray] = {}

        def allocate(name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
            arrays[name] = np.zeros(shape, dtype)
            return arrays[name]

        panel = Panel(fill_panel(adjusted, channels, allocate), arrays)
        session = len(panel.dates) - 1
        symbols = lives["symbol"].to_list()
        rows_A = panel.rows(session, np.arange(len(panel.assets)))
        priced_A = (rows_A >= 0) & panel.observed[rows_A]
        needed = max(history_needed(config), UniverseRule.min_history)
        old_A = lives["observations"].to_numpy() >= needed
        young = [symbols[a] for a in np.flatnonzero(priced_A & ~old_A)]
        ended = sorted(set(read.rows["symbol"].unique()) - {symbols[a] for a in np.flatnonzero(priced_A)})
        if young:
            notes.append(f"{_left_out(young)}: fewer than {needed} sessions")
        if ended:
            notes.append(f"{_left_out(ended)}: no price on {panel.dates[-1]}")
        assets_N = np.flatnonzero(priced_A & old_A)
        if not len(assets_N):
            raise FinJEPAError(f"no symbol has {needed} sessions up to {panel.dates[-1]}: " + "; ".join(notes))
        shape, columns, *more = read.understood
        of = f"{columns}: {len(channels)} of {len(config.model.channels)} channels"
        return cls(panel, session, assets_N, tuple(symbols[a] for a in assets_N), (shape, of, *more, *notes))


@dataclass(frozen=True)
class Tables:
    """Makes what a user gets: frames of pandas, or of Polars, in which the symbol is a column."""

    symbols: tuple[str, ...]
    pandas: Any = None  # the module, where the prices were a frame of it

    @classmethod
    def like(cls, prices: Any, symbols: tuple[str, ...]) -> "Tables":
        is_polars = isinstance(prices, pl.DataFrame | pl.LazyFrame)
        return cls(symbols, None if is_polars else sys.modules.get("pandas"))

    def column(self, name: str, values: Sequence[Any]) -> Any:
        """A Series by symbol, or a frame of two columns."""
        if self.pandas is not None:
            return self.pandas.Series(values, self.pandas.Index(self.symbols, name="symbol"), name=name)
        return pl.DataFrame({"symbol": self.symbols, name: values})

    def columns(self, values: Mapping[Any, Any]) -> Any:
        """A frame with a row for each symbol, of named columns."""
        if self.pandas is not None:
            return self.pandas.DataFrame(dict(values), self.pandas.Index(self.symbols, name="symbol"))
        named = {f"{name:g}" if isinstance(name, float) else str(name): column for name, column in values.items()}
        return pl.DataFrame({"symbol": self.symbols, **named})

    def table(self, value_NX: Tensor, columns: Sequence[Any]) -> Any:
        """A frame with a row for each symbol."""
        return self.columns(dict(zip(columns, value_NX.double().numpy().T, strict=True)))


class Forecast:
    """After the close of `date`, in the order of `assets`; frames are of pandas or of Polars, as the prices were.

    Attributes:
        date: ISO. assets: symbols.
        horizon: sessions of `covariance` and `expected_return`.
        understood: what was read and what was left out, in words.
        returns_known: whether the model has found anything that tells expected returns apart.
    """

    horizon = HORIZON

    def __init__(
        self, risk: RiskForecast, mean_N: np.ndarray, date: str, tables: Tables, understood: Sequence[str], known: bool
    ):
        self._risk, self._mean_N, self._tables = risk, mean_N, tables
        self.date, self.assets, self.returns_known = date, tables.symbols, known
        self.understood = "; ".join(understood if known else [*understood, NOTHING_KNOWN])

    def __repr__(self) -> str:
        return f"Forecast after {self.date}: {self.understood}"

    @property
    def volatility(self) -> Any:
        """Daily standard deviation over 5, 21 and 63 sessions: rows symbols."""
        return self._tables.table(self._risk.volatility_BNV[0], HORIZONS)

    @property
    def correlation(self) -> Any:
        return self._tables.table(self._risk.correlation_BNN[0], self.assets)

    @property
    def covariance(self) -> Any:
        """Of daily returns over 21 sessions, symbols x symbols."""
        return self._tables.table(self._risk.covariance(HORIZON)[0], self.assets)

    @property
    def expected_return(self) -> Any:
        """Daily, over 21 sessions; see `understood` for whether anything is known of it."""
        return self._tables.column("expected_return", self._mean_N.tolist())

    def quantiles(self, q: float | Sequence[float] = QUANTILES, horizon: int = HORIZON) -> Any:
        """Of simple returns over 1, 5 or 21 sessions: rows symbols, columns levels.

        Raises:
            FinJEPAError: for another horizon, or a level outside of (0, 1).
        """
        levels = _levels(q, horizon)
        return self._tables.table(self._risk.quantiles(levels, horizon)[0], levels)

    def portfolio_quantiles(
        self, weights: Any = None, q: float | Sequence[float] = QUANTILES, horizon: int = HORIZON
    ) -> dict[float, float]:
        """Of a portfolio's simple return over 1, 5 or 21 sessions, by level.

        Args:
            weights: signed shares of wealth by symbol, a Series, a frame of two columns or a mapping; equal ones by default.

        Raises:
            FinJEPAError: as `quantiles`; or for a symbol that is not forecast.
        """
        levels = _levels(q, horizon)
        given = dict.fromkeys(self.assets, 1 / len(self.assets)) if weights is None else shares_of(weights, self.assets)
        weights_11N = torch.tensor([[[given.get(name, 0.0) for name in self.assets]]], dtype=torch.float32)
        found_Q = self._risk.portfolio_quantiles(weights_11N, levels, horizon)[0, 0].tolist()
        return dict(zip(levels, found_Q, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """As `finjepa forecast --json` prints it: numbers by asset, horizon and level."""
        volatility_NV, correlation_NN = self._risk.volatility_BNV[0].tolist(), self._risk.correlation_BNN[0].tolist()
        names = [f"{level:g}" for level in QUANTILES]
        by_horizon = {horizon: self._risk.quantiles(QUANTILES, horizon)[0].tolist() for horizon in RETURN_HORIZONS}
        return {
            "date": self.date,
            "assets": list(self.assets),
            "volatility": {
                name: dict(zip(map(str, HORIZONS), row, strict=True))
                for name, row in zip(self.assets, volatility_NV, strict=True)
            },
            "correlation": correlation_NN,
            "expected_return": dict(zip(self.assets, self._mean_N.tolist(), strict=True)),
            "returns_known": self.returns_known,
            "quantiles": {
                name: {str(h): dict(zip(names, rows[n], strict=True)) for h, rows in by_horizon.items()}
                for n, name in enumerate(self.assets)
            },
            "portfolio": {
                str(h): dict(zip(names, self.portfolio_quantiles(None, QUANTILES, h).values(), strict=True))
                for h in RETURN_HORIZONS
            },
        }

    def plot(self, weights: Any = None) -> Any:
        """A figure of plotly: the fan of a portfolio's return (see `portfolio_quantiles`), and the map of correlations.

        Raises:
            FinJEPAError: if plotly is not installed.
        """
        try:
            from plotly import graph_objects, subplots
        except ImportError as error:
            raise FinJEPAError("a plot needs plotly, which is not installed: pip install plotly") from error
        titles = ("Return of the portfolio, %", "Correlation of returns")
        figure = subplots.make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
        fans = {h: self.portfolio_quantiles(weights, QUANTILES, h) for h in RETURN_HORIZONS}
        sessions = [0, *RETURN_HORIZONS]
        for low, high, opacity in ((0.01, 0.99, 0.15), (0.05, 0.95, 0.25), (0.25, 0.75, 0.4)):
            edge = [0.0, *(100 * fans[h][high] for h in RETURN_HORIZONS)]
            edge += [0.0, *(100 * fans[h][low] for h in RETURN_HORIZONS)][::-1]
            figure.add_trace(
                graph_objects.Scatter(x=sessions + sessions[::-1], y=edge, fill="toself", mode="none", hoverinfo="skip",
                                      fillcolor=f"rgba(42, 93, 159, {opacity})", name=f"{high - low:.0%} of outcomes"), 1, 1,
            )  # fmt: skip
        middle = [0.0, *(100 * fans[h][0.5] for h in RETURN_HORIZONS)]
        figure.add_trace(graph_objects.Scatter(x=sessions, y=middle, name="median", line={"color": "#2a5d9f"}), 1, 1)
        correlation_NN = self._risk.correlation_BNN[0].numpy()
        figure.add_trace(
            graph_objects.Heatmap(z=correlation_NN, x=self.assets, y=self.assets, zmin=-1, zmax=1, colorscale="RdBu_r"),
            1,
            2,
        )
        figure.update_xaxes(title_text="sessions ahead", row=1, col=1)
        return figure.update_layout(title=f"After the close of {self.date}", legend={"orientation": "h", "y": -0.15})


def forecast_prices(model: WorldModel, prices: Any) -> Forecast:
    """See `FinJEPA.forecast`."""
    market = FrameMarket.of(prices, model.config)
    tables = Tables.like(prices, market.symbols)
    return forecast_at(model, market.panel, market.session, market.assets_N, tables, market.understood)


@torch.no_grad()
def forecast_at(
    model: WorldModel, panel: Panel, session: int, assets_N: np.ndarray, tables: Tables, understood: Sequence[str] = ()
) -> Forecast:
    """The forecast at the close of a session of a panel; nothing later is read."""
    observation = observe(panel, np.array([session]), assets_N[None], 1, model.config)
    assets_BSND, market_BSD = model.encode(observation)
    risk = model.risk(observation, assets_BSND[:, -1], market_BSD[:, -1])
    stride = model.config.model.stride
    steps = math.ceil(HORIZON / stride)
    mean_N = model.expected_returns(observation, assets_BSND[:, -1], steps)[0].sum(0).double().numpy() / (
        steps * stride
    )
    known = bool(model.readout.weights_Z.any())
    return Forecast(risk, mean_N, str(panel.dates[session]), tables, understood, known)


def shares_of(given: Any, assets: Sequence[str]) -> dict[str, float]:
    """Shares of wealth by symbol, from a Series, a Polars frame of two columns, or a mapping.

    Raises:
        FinJEPAError: for a symbol that is none of these, or a share that is no finite number.
    """
    if isinstance(given, pl.DataFrame) and given.width == 2:
        given = dict(given.iter_rows())
    if not isinstance(given, Mapping):
        items = getattr(given, "items", None)
        if items is None:
            raise FinJEPAError("shares are a Series by symbol, or a mapping such as {'AAPL': 0.5}")
        given = dict(items())
    unknown = [str(name) for name in given if name not in assets]
    if unknown:
        raise FinJEPAError(
            f"{', '.join(unknown[:5])} is none of the symbols with a forecast: {', '.join(assets[:8])} ..."
        )
    shares = {str(name): float(share) for name, share in given.items()}
    if not all(map(math.isfinite, shares.values())):
        raise FinJEPAError("a share of wealth is not a finite number")
    return shares


def _levels(q: float | Sequence[float], horizon: int) -> tuple[float, ...]:
    levels = tuple(map(float, [q] if isinstance(q, int | float) else q))
    if horizon not in RETURN_HORIZONS:
        raise FinJEPAError(
            f"quantiles are forecast over {', '.join(map(str, RETURN_HORIZONS))} sessions, not {horizon}"
        )
    if not all(0 < level < 1 for level in levels):
        raise FinJEPAError("a quantile level lies between 0 and 1")
    return levels


def _left_out(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} symbol{'s' * (len(names) > 1)} left out ({', '.join(names[:5])}{more})"
