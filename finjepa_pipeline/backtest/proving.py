"""Proving grounds: markets whose truth is known, brought through the whole house, and the score of what was decided there.

Shapes: T sessions, D decisions, R assets of the roster.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finjepa_model.data.panel import Panel
from finjepa_pipeline.backtest.engine import Court, Walk
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.prices.synthetic import SyntheticConfig, SyntheticMarket, generate
from finjepa_pipeline.prices.synthetic.oracle import share_of_gain, simplex, utility
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

RISK_AVERSION = 5.0  # the planners' own
_ABSENT_MEAN, _ABSENT_VARIANCE = -1.0, 0.01  # for an oracle's eyes only: it buys nothing that is not there

USUAL_SIZE = SyntheticConfig.assets, SyntheticConfig.sessions


@dataclass(frozen=True)
class ProvingGround:
    """A synthetic market and the panel that the house makes of its bars."""

    market: SyntheticMarket
    panel: Panel

    @classmethod
    def of(
        cls, home: Path, variant: str, seed: int, channels: tuple[str, ...] = (), size: tuple[int, int] = USUAL_SIZE
    ) -> "ProvingGround":
        """Ingest, derive and build, or find it done.

        Args:
            home: folder of this market's own FINJEPA_HOME.
            channels: of the panel; all where empty.
            size: assets and sessions.
        """
        settings = Settings(home=home).ensure()
        assets, sessions = size
        market = generate(SyntheticConfig(variant, seed, assets, sessions))
        if not (settings.panels / "current.json").is_file():
            build(
                settings,
                PriceSourceConfig(
                    data_source="synthetic",
                    synthetic_variant=variant,
                    synthetic_seed=seed,
                    synthetic_assets=assets,
                    synthetic_sessions=sessions,
                ),
                channels,
            )
        return cls(market, Panel.open(current_panel(settings)))

    def truth_of(self, court: Court, closes_T: np.ndarray) -> "Truth":
        """Expected returns and covariances of the roster: what is known at each close about the session after it."""
        sessions_T = np.searchsorted(self.market.dates, court.panel.dates[closes_T])
        assets_R = [self._market_asset(court.panel.assets[a], court.panel, a) for a in court.roster_R]
        present_TR = court.panel.rows(closes_T[:, None] + 1, court.roster_R[None]) >= 0
        decided_T = np.searchsorted(court.decisions, closes_T, side="right") - 1
        for t, d in enumerate(decided_T):  # who is not in the universe of the day cannot be held
            outside_R = np.ones(len(court.roster_R), bool)
            outside_R[court.places(court.decisions[d])] = False
            present_TR[t, outside_R] = False
        pairs_TRR = present_TR[:, :, None] & present_TR[:, None, :]
        covariance_TRR = self.market.covariance(sessions_T)[:, assets_R][:, :, assets_R]
        return Truth(
            np.where(present_TR, self.market.expected_DA[sessions_T][:, assets_R], 0.0),
            np.where(pairs_TRR, covariance_TRR, 0.0),
            present_TR,
        )

    def _market_asset(self, entity: str, panel: Panel, asset: int) -> int:
        """Symbols may have been taken over by another company: the one that was listed on the entity's first session."""
        from finjepa_pipeline.prices.synthetic.bars import symbols_of

        symbol, first = entity.split("#")[0], panel.dates[panel.first[asset]]
        day = int(np.searchsorted(self.market.dates, first))
        bearers = [i for i, name in enumerate(symbols_of(self.market)) if name == symbol]
        return min(bearers, key=lambda i: abs(int(self.market.alive_DA[:, i].argmax()) - day))


@dataclass(frozen=True)
class Truth:
    """What could be known at each close about the next session; assets that are absent there neither earn nor move."""

    mean_TR: np.ndarray
    covariance_TRR: np.ndarray
    present_TR: np.ndarray

    def score(self, held_TR: np.ndarray) -> float:
        """Expected utility a session of what was held, without costs."""
        return float(utility(held_TR, self.mean_TR, self.covariance_TRR, RISK_AVERSION).mean())

    def oracle(self) -> np.ndarray:
        """The best long-only weights by session, of the assets that are there."""
        absent_TR = ~self.present_TR
        mean_TR = np.where(absent_TR, _ABSENT_MEAN, self.mean_TR)
        covariance_TRR = self.covariance_TRR + np.eye(absent_TR.shape[1]) * absent_TR[:, :, None] * _ABSENT_VARIANCE
        return simplex(mean_TR, covariance_TRR, RISK_AVERSION)

    @property
    def equal_TR(self) -> np.ndarray:
        return self.present_TR / np.maximum(self.present_TR.sum(1, keepdims=True), 1)


@dataclass(frozen=True)
class Fraction:
    """How much of what can be known a strategy made use of.

    Attributes:
        of_oracle: (U - U(1/N)) / (U(oracle) - U(1/N)), on expected utility without costs; the oracle trades at every close.
        of_clock: the same against an oracle that decides and is filled when the strategy is.
        oracle_gain: U(oracle) - U(1/N) a year.
    """

    of_oracle: float
    of_clock: float
    oracle_gain: float


def fraction(ground: ProvingGround, court: Court, walk: Walk) -> Fraction:
    """Score a walk on the market's truth, hedge included."""
    decisions_D = np.array(court.decisions)
    closes_T = np.arange(decisions_D[0] + 1, court.end)  # from the first fill to the last return that is earned
    truth = ground.truth_of(court, closes_T)
    equal = truth.score(truth.equal_TR)
    best_TR = truth.oracle()
    # what the oracle knew at the close of each decision, held from the fill to the next fill
    clocked_DR = ground.truth_of(court, decisions_D).oracle()
    lengths = np.diff([*(decisions_D + 1), court.end])
    clocked_TR = np.repeat(clocked_DR, lengths, axis=0)
    best, clocked = truth.score(best_TR), truth.score(clocked_TR)
    mine = truth.score(held_exposures(court, walk, lengths))
    return Fraction(share_of_gain(mine, equal, best), share_of_gain(mine, equal, clocked), (best - equal) * 252)


def held_exposures(court: Court, walk: Walk, lengths: np.ndarray) -> np.ndarray:
    """Signed shares of wealth over the roster by session, as decided; a hedge is a short of the equal-weight market."""
    signals_DR = walk.signals_KR if court.costs.allow_short else np.maximum(walk.signals_KR, 0.0)
    exposure_DR = walk.weights_KR * signals_DR
    beta_D = exposure_DR.sum(1) * walk.hedges_K * court.costs.allow_hedge
    exposure_DR = exposure_DR - beta_D[:, None] / exposure_DR.shape[1]
    return np.repeat(exposure_DR, lengths, axis=0)


def build(settings: Settings, source: PriceSourceConfig, channels: tuple[str, ...] = ()) -> Path:
    """Prices to a panel by the house's own stages, without Dagster; returns the panel's folder."""
    warehouse = Warehouse.from_settings(settings)
    ingest(warehouse, settings, source)
    derive(warehouse, UniverseConfig())
    with warehouse.connect() as con:
        return build_panel(con, settings, channels)
