"""Tests on markets of known truth: luck must look like luck, and nobody may know more than can be known.

Each audit has markets of its own, drawn from the checkpoint's id, so that no rule can have been fitted to them. What was found
on a market is stored and not computed again; a verdict is of all markets that were ever tried.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binom, norm

from finjepa_pipeline.backtest.audit import Finding, NotEnoughDataError, Product
from finjepa_pipeline.backtest.inference import one_sided_p
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR
from finjepa_pipeline.backtest.proving import Fraction, ProvingGround, fraction
from finjepa_pipeline.backtest.strategies import EqualWeight

LEVEL = 0.05
_SURPRISE = 0.001  # of a gain, or of a number of rejections, under luck alone; a failure stands, so it has to be rare
_POWER = 0.8
_LARGEST_RATIO = 2.0  # annual Sharpe ratio of the gain over 1/N; where only more would be found there is no verdict


@dataclass(frozen=True)
class Gain:
    """What a strategy gained over 1/N on one null market, a year, with standard errors.

    Attributes:
        p: one-sided, before costs. gross, net: before and after costs.
    """

    p: float
    gross: float
    gross_error: float
    net: float
    net_error: float
    years: float


def seeds_of(checkpoint: str, test: str, count: int) -> list[int]:
    """The first seeds of a checkpoint's own sequence of markets."""
    digests = (hashlib.sha256(f"{checkpoint} {test} {k}".encode()).digest() for k in range(count))
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def try_null(product: Product, folder: Path, seed: int, channels: tuple[str, ...]) -> Gain:
    """Trade the test block of one null market, beside 1/N."""
    panel = ProvingGround.of(folder, "null", seed, channels).panel
    court = product.court(panel)
    views = court.views()
    mine, plain = (product.walk(s, court, views) for s in (product.strategy(panel), EqualWeight()))
    p = one_sided_p(mine.gross_T, plain.gross_T, samples=1000)
    gross, gross_error = _a_year(mine.gross_T - plain.gross_T)
    net, net_error = _a_year(mine.net_T - plain.net_T)
    return Gain(p, gross, gross_error, net, net_error, len(mine.net_T) / SESSIONS_PER_YEAR)


def _a_year(gain_T: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, a year."""
    mean, error = gain_T.mean(), gain_T.std(ddof=1) / np.sqrt(len(gain_T))
    return float(mean * SESSIONS_PER_YEAR), float(error * SESSIONS_PER_YEAR)


def judge_null(tried: Sequence[Gain]) -> Finding:
    """On martingale markets no strategy beats 1/N: the pooled gain over it, before costs and after, and the number of markets
    with p < 5 %, are what luck gives.

    The spread of the pooled gain is that of all daily returns, so a few markets are enough. Each of the three bounds is passed
    by luck in one of a thousand audits. A gain whose annual Sharpe ratio is 3.93 / sqrt(years of all markets together) is found
    in 80 % of cases: 1.7 for four markets of 1.4 years. A leak of one session is worth several times that.

    Raises:
        NotEnoughDataError: if a Sharpe ratio of 2 would not be found in 80 % of cases.
    """
    surprise = float(norm.ppf(1 - _SURPRISE))
    detectable = (surprise + float(norm.ppf(_POWER))) / np.sqrt(sum(gain.years for gain in tried))
    rejected = sum(gain.p < LEVEL for gain in tried)
    most = int(binom.ppf(1 - _SURPRISE, len(tried), LEVEL))
    failed, pooled = rejected > most, []
    for when in ("gross", "net"):
        mean = float(np.mean([getattr(gain, when) for gain in tried]))
        error = float(np.sqrt(np.sum([getattr(gain, f"{when}_error") ** 2 for gain in tried])) / len(tried))
        failed |= mean > surprise * error + 1e-9
        pooled.append(
            f"{mean:+.1%} a year {'before' if when == 'gross' else 'after'} costs (luck gives up to {surprise * error:+.1%})"
        )
    text = (
        f"over 1/N on {len(tried)} null markets: {', '.join(pooled)}; p < {LEVEL:g} on {rejected} (luck gives up to {most}); a "
        f"gain with a Sharpe ratio of {detectable:.1f} is found in 80 % of cases"
    )
    if not failed and detectable > _LARGEST_RATIO:
        raise NotEnoughDataError(f"{len(tried)} null markets are too few: {text}")
    return Finding("null_market", not failed, rejected / len(tried), text)


def try_planted(product: Product, folder: Path, seed: int, channels: tuple[str, ...]) -> Fraction:
    """The share of the oracle's gain on one market with a planted drift."""
    ground = ProvingGround.of(folder, "drift", seed, channels)
    court = product.court(ground.panel)
    return fraction(ground, court, product.walk(product.strategy(ground.panel), court, None))


def judge_planted(tried: Sequence[Fraction]) -> Finding:
    """On markets with a planted drift nobody gains more than an oracle that decides and is filled at the same times.

    Gains are expected utilities under the market's truth, free of luck: one market on which the oracle is beaten is a fault, of
    whatever size. It is beaten by who knows expected returns after the decision; who only knows returns is not found here, but
    on null markets.
    """
    clocked = [score.of_clock for score in tried]
    text = (
        f"{np.mean(clocked):+.2f} of the gain of an oracle with the same clock, {np.mean([s.of_oracle for s in tried]):+.2f} "
        f"of that of one that trades daily, {len(tried)} markets"
    )
    failed = any(share > 1.0 for share in clocked)
    if not failed and not np.isfinite(clocked).all():
        raise NotEnoughDataError(f"the oracle gained nothing on a market: {text}")
    return Finding("planted_market", not failed, float(np.mean(clocked)), text)


# By test: what is found on one market (product, folder, seed, channels), its type, and what it says of all of them.
MARKETS: dict[str, tuple[Callable, type, Callable[[Sequence], Finding]]] = {
    "null_market": (try_null, Gain, judge_null),
    "planted_market": (try_planted, Fraction, judge_planted),
}


def try_market(product: Product, work: Path, test: str, seed: int) -> Gain | Fraction:
    """Make one market of a test, trade it, and leave nothing of it on disk."""
    folder = work / f"{test}-{seed}"
    try:
        return MARKETS[test][0](product, folder, seed, product.config.model.channels)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
