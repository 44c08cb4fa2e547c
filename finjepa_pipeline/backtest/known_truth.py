"""Tests on known-truth markets: luck must look like luck, and nobody may know more than can be known.

A synthetic market goes through the whole pipeline, from prices to a panel, and decisions are scored on its true moments.

Shapes: T sessions, D decisions, R assets of the roster.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from finjepa_model.data.panel import Panel
from finjepa_model.planning.goals import RISK_AVERSION
from finjepa_pipeline.backtest.engine import BacktestSetup, StrategyResult, simulate
from finjepa_pipeline.backtest.leakage import AuditFinding, NotEnoughDataError, Product, build
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR
from finjepa_pipeline.backtest.strategies import one_over_n
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.prices import synthetic
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.settings import Settings

_ABSENT_MEAN, _ABSENT_VARIANCE = -1.0, 0.01  # for an oracle's eyes only: it buys nothing that is not there
_SURPRISE = 0.001  # of a gain under luck alone; a failure stands, so it has to be rare
_POWER = 0.8
_LARGEST_RATIO = 2.0  # annual Sharpe ratio of the gain over 1/N; where only more would be found there is no result
USUAL_SIZE = synthetic.SyntheticConfig.assets, synthetic.SyntheticConfig.sessions


@dataclass(frozen=True)
class KnownTruthMarket:
    """A synthetic market, and the panel that the pipeline makes of its bars."""

    market: synthetic.SyntheticMarket
    panel: Panel

    @classmethod
    def of(
        cls, home: Path, variant: str, seed: int, channels: tuple[str, ...] = (), size: tuple[int, int] = USUAL_SIZE
    ) -> "KnownTruthMarket":
        """Ingest, derive and build in a home of the market's own, or find it done: with these channels, all where empty, and of
        so many assets and sessions."""
        settings = Settings(home=home).ensure()
        made = {"variant": variant, "seed": seed, "assets": size[0], "sessions": size[1]}
        if not (settings.panels / "current.json").is_file():
            source = PriceSourceConfig(
                data_source="synthetic", **{f"synthetic_{name}": value for name, value in made.items()}
            )
            build(settings, source, channels)
        return cls(synthetic.generate(synthetic.SyntheticConfig(**made)), Panel.open(current_panel(settings)))

    def truth_of(self, setup: BacktestSetup, closes_T: np.ndarray) -> "Truth":
        """Expected returns and covariances of the roster: what is known at each close about the session after it."""
        sessions_T = np.searchsorted(self.market.dates, setup.panel.dates[closes_T])
        assets_R = [self._market_asset(setup.panel.assets[a], setup.panel, a) for a in setup.roster_R]
        present_TR = setup.panel.rows(closes_T[:, None] + 1, setup.roster_R[None]) >= 0
        decided_T = np.searchsorted(setup.decisions, closes_T, side="right") - 1
        for t, d in enumerate(decided_T):  # who is not in the universe of the day cannot be held
            present_TR[t] &= np.isin(np.arange(len(setup.roster_R)), setup.places(setup.decisions[d]))
        pairs_TRR = present_TR[:, :, None] & present_TR[:, None, :]
        covariance_TRR = self.market.covariance(sessions_T, assets_R)
        return Truth(
            np.where(present_TR, self.market.expected_DA[sessions_T][:, assets_R], 0.0),
            np.where(pairs_TRR, covariance_TRR, 0.0),
            present_TR,
        )

    def _market_asset(self, entity: str, panel: Panel, asset: int) -> int:
        """Symbols may have been taken over by another company: the one that was listed on the entity's first session."""
        day = int(np.searchsorted(self.market.dates, panel.dates[panel.first[asset]]))
        bearers = [i for i, name in enumerate(synthetic.symbols_of(self.market)) if name == entity.split("#")[0]]
        return min(bearers, key=lambda i: abs(int(self.market.alive_DA[:, i].argmax()) - day))


@dataclass(frozen=True)
class Truth:
    """What could be known at each close about the next session; assets that are absent there neither earn nor move."""

    mean_TR: np.ndarray
    covariance_TRR: np.ndarray
    present_TR: np.ndarray

    def score(self, held_TR: np.ndarray) -> float:
        """Expected utility a session of what was held, without costs."""
        return float(synthetic.expected_utility(held_TR, self.mean_TR, self.covariance_TRR, RISK_AVERSION).mean())

    def oracle(self) -> np.ndarray:
        """The best long-only weights by session, of the assets that are there."""
        absent_TR = ~self.present_TR
        mean_TR = np.where(absent_TR, _ABSENT_MEAN, self.mean_TR)
        covariance_TRR = self.covariance_TRR + np.eye(absent_TR.shape[1]) * absent_TR[:, :, None] * _ABSENT_VARIANCE
        return synthetic.oracle_weights(mean_TR, covariance_TRR, RISK_AVERSION)

    @property
    def equal_TR(self) -> np.ndarray:
        return self.present_TR / np.maximum(self.present_TR.sum(1, keepdims=True), 1)


@dataclass(frozen=True)
class Fraction:
    """How much of what can be known a strategy made use of.

    Attributes:
        of_oracle: (U - U(1/N)) / (U(oracle) - U(1/N)), on expected utility without costs; the oracle trades at every close.
        of_clock: the same against an oracle that decides and is filled when the strategy is.
    """

    of_oracle: float
    of_clock: float


def fraction(ground: KnownTruthMarket, setup: BacktestSetup, result: StrategyResult) -> Fraction:
    """Score a result on the market's truth, hedge included: a hedge is a short of the equal-weight market."""
    decisions_D = np.array(setup.decisions)
    closes_T = np.arange(decisions_D[0] + 1, setup.end)  # from the first fill to the last return that is earned
    lengths_D = np.diff([*(decisions_D + 1), setup.end])
    truth = ground.truth_of(setup, closes_T)
    equal, best = truth.score(truth.equal_TR), truth.score(truth.oracle())
    # what the oracle knew at the close of each decision, held from the fill to the next fill
    clocked_DR = ground.truth_of(setup, decisions_D).oracle()
    signals_DR = result.signals_KR if setup.costs.allow_short else np.maximum(result.signals_KR, 0.0)
    mine_DR = result.weights_KR * signals_DR
    hedge_D = mine_DR.sum(1) * result.hedges_K * setup.costs.allow_hedge
    mine_DR = mine_DR - hedge_D[:, None] / mine_DR.shape[1]
    clocked, mine = (truth.score(np.repeat(held_DR, lengths_D, axis=0)) for held_DR in (clocked_DR, mine_DR))
    return Fraction(synthetic.share_of_gain(mine, equal, best), synthetic.share_of_gain(mine, equal, clocked))


def seeds_of(model: str, test: str, count: int) -> list[int]:
    """The first seeds of a model's own sequence of markets, so that no rule can have been fitted to them; `model` is
    a hash of its config and weights."""
    digests = (hashlib.sha256(f"{model} {test} {k}".encode()).digest() for k in range(count))
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def null_gain(product: Product, folder: Path, seed: int) -> np.ndarray:
    """Daily gain_T2 over 1/N, before and after costs, on the test block of one null market, which gets a home in an
    empty folder."""
    panel = KnownTruthMarket.of(folder, "null", seed, product.config.model.channels).panel
    setup = product.setup(panel)
    views = setup.views()
    mine, plain = (simulate(s, setup, views) for s in (product.strategy(panel), one_over_n()))
    return np.column_stack([mine.gross_T - plain.gross_T, mine.net_T - plain.net_T])


def null_finding(tried: Sequence[np.ndarray]) -> AuditFinding:
    """On martingale markets no strategy beats 1/N: the gain over it on all markets together, before costs and after, is what luck
    gives. Each of the two bounds is passed by luck in one of a thousand audits. A leak of one session is worth several times
    what is found in 80 % of cases."""
    gain_T2, surprise = np.concatenate(tried), NormalDist().inv_cdf(1 - _SURPRISE)
    detectable = (surprise + NormalDist().inv_cdf(_POWER)) / np.sqrt(len(gain_T2) / SESSIONS_PER_YEAR)
    mean_2 = gain_T2.mean(0) * SESSIONS_PER_YEAR
    luck_2 = surprise * gain_T2.std(0, ddof=1) / np.sqrt(len(gain_T2)) * SESSIONS_PER_YEAR
    failed = bool((mean_2 > luck_2 + 1e-9).any())
    pooled = ", ".join(
        f"{mean:+.1%} a year {when} costs (luck gives up to {luck:+.1%})"
        for mean, luck, when in zip(mean_2, luck_2, ("before", "after"), strict=True)
    )
    found = f"a gain with a Sharpe ratio of {detectable:.1f} is found in 80 % of cases"
    text = f"over 1/N on {len(tried)} null markets: {pooled}; {found}"
    if not failed and detectable > _LARGEST_RATIO:
        raise NotEnoughDataError(f"{len(tried)} null markets are too few: {text}")
    return AuditFinding("null_market", not failed, float(mean_2[0]), text)


def known_truth_score(product: Product, folder: Path, seed: int) -> Fraction:
    """The share of the oracle's gain on one market with a known drift; see `null_gain`."""
    ground = KnownTruthMarket.of(folder, "drift", seed, product.config.model.channels)
    setup = product.setup(ground.panel)
    return fraction(ground, setup, simulate(product.strategy(ground.panel), setup, None))


def known_truth_finding(tried: Sequence[Fraction]) -> AuditFinding:
    """On markets with a known drift nobody gains more than an oracle that decides and is filled at the same times. Gains are
    expected utilities under the market's truth, free of luck: one market on which the oracle is beaten is a fault."""
    clocked = [score.of_clock for score in tried]
    text = (
        f"{np.mean(clocked):+.2f} of the gain of an oracle with the same clock, {np.mean([s.of_oracle for s in tried]):+.2f} "
        f"of that of one that trades daily, {len(tried)} markets"
    )
    failed = any(share > 1.0 for share in clocked)
    if not failed and not np.isfinite(clocked).all():
        raise NotEnoughDataError(f"the oracle gained nothing on a market: {text}")
    return AuditFinding("known_truth", not failed, float(np.mean(clocked)), text)


# By test: what is measured on one market (product, folder, seed), and what all of them say.
MARKETS: dict[str, tuple[Callable[[Product, Path, int], Any], Callable[[Sequence[Any]], AuditFinding]]] = {
    "null_market": (null_gain, null_finding),
    "known_truth": (known_truth_score, known_truth_finding),
}
