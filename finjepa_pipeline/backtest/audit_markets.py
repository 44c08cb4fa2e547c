"""Markets of known truth as a court of appeal: luck must look like luck, and nobody may know more than can be known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binom, t

from finjepa_pipeline.backtest.audit import Finding, Product
from finjepa_pipeline.backtest.inference import one_sided_p
from finjepa_pipeline.backtest.proving import Fraction, ProvingGround, fraction
from finjepa_pipeline.backtest.strategies import EqualWeight

LEVEL = 0.05
_SURPRISE = 0.01  # of the number of rejections, and of the mean gain, under luck alone


def null_market(product: Product, folder: Path, seeds: Sequence[int], channels: tuple[str, ...]) -> Finding:
    """On martingale markets no strategy beats 1/N: the rate of one-sided p-values below 5 %, before costs, is what chance
    gives, and after costs nothing is gained."""
    return judge_null([try_null(product, folder, seed, channels) for seed in seeds])


def try_null(product: Product, folder: Path, seed: int, channels: tuple[str, ...]) -> tuple[float, float]:
    """On one such market: the p-value before costs, and what is gained over 1/N a year after them."""
    panel = ProvingGround.of(folder / f"null-{seed}", "null", seed, channels).panel
    court = product.court(panel)
    views = court.views()
    mine, plain = (product.walk(s, court, views) for s in (product.strategy(panel), EqualWeight()))
    p = one_sided_p(mine.gross_T, plain.gross_T, samples=1000)
    return p, float((mine.net_T - plain.net_T).mean() * 252)


def judge_null(tried: Sequence[tuple[float, float]]) -> Finding:
    """Of what `try_null` found on each market."""
    ps, nets = (list(column) for column in zip(*tried, strict=True))
    rejected = int((np.array(ps) < LEVEL).sum())
    most = int(binom.ppf(1 - _SURPRISE, len(ps), LEVEL))
    luck = luckiest_mean(np.array(nets))
    text = (
        f"{rejected} of {len(ps)} null markets show p < {LEVEL:g} against 1/N before costs (up to {most} are luck); after "
        f"costs {np.mean(nets):+.2%} a year (up to {luck:+.2%} is luck)"
    )
    return Finding("null_market", rejected <= most and float(np.mean(nets)) <= luck, rejected / len(ps), text)


def luckiest_mean(gains_S: np.ndarray) -> float:
    """Largest mean gain that luck gives with probability 1 - `_SURPRISE` where the true one is zero: Student's t, since a
    handful of markets tells little of the spread."""
    if len(gains_S) < 2:
        return float("inf")
    return float(t.ppf(1 - _SURPRISE, len(gains_S) - 1) * gains_S.std(ddof=1) / np.sqrt(len(gains_S)))


def planted_market(product: Product, folder: Path, seeds: Sequence[int], channels: tuple[str, ...]) -> Finding:
    """On markets with a planted drift nobody gains more than an oracle that decides and is filled at the same times."""
    return judge_planted([try_planted(product, folder, seed, channels) for seed in seeds])


def try_planted(product: Product, folder: Path, seed: int, channels: tuple[str, ...]) -> Fraction:
    """The share of the oracle's gain on one such market."""
    ground = ProvingGround.of(folder / f"drift-{seed}", "drift", seed, channels)
    court = product.court(ground.panel)
    return fraction(ground, court, product.walk(product.strategy(ground.panel), court, None))


def judge_planted(scores: Sequence[Fraction]) -> Finding:
    """Of what `try_planted` found on each market."""
    clocked = [score.of_clock for score in scores]
    text = (
        f"{np.mean(clocked):+.2f} of the gain of an oracle with the same clock, {np.mean([s.of_oracle for s in scores]):+.2f} "
        f"of that of one that trades daily, {len(scores)} markets"
    )
    return Finding("planted_market", max(clocked) <= 1.0, float(np.mean(clocked)), text)
