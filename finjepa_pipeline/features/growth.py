"""What of the panel before still holds, so that a new day costs a day and a restated symbol a symbol.

The rows that are kept and the rows that are computed are together what a rebuild would give, bit for bit: rolling.py
makes a value depend on its window alone, and market.py lets assets meet in float32 only.

Shape suffixes: A assets, D sessions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.panel import Panel
from finjepa_pipeline.features.channels import LOOKBACK, Channel
from finjepa_pipeline.features.market import market_inputs
from finjepa_pipeline.features.source import AdjustedPrices, Span

CODE_VERSION = "3"  # raise it when the same prices and the same table would give other numbers
WORTHWHILE = 0.5  # a part of the rows; beyond, a rebuild is as quick


class Base:
    """A finished panel with what was kept for growing it.

    Raises:
        FinJEPAError: if a file is missing.
    """

    def __init__(self, folder: Path):
        self.panel = Panel.open(folder)
        try:
            self.liquidity = np.load(folder / "liquidity.npy", mmap_mode="r")
            self.sums_DK = np.load(folder / "market_sums.npy")
            self.together_2D = np.load(folder / "market_together.npy")
            prints = np.load(folder / "fingerprints.npz")
        except OSError as error:
            raise FinJEPAError(f"the panel {folder} is not whole: {error}") from error
        self.assets_A, self.universe_D = prints["assets"], prints["universe"]
        self.last_date = str(self.panel.dates[-1])
        self.index = {name: asset for asset, name in enumerate(self.panel.assets)}


@dataclass(frozen=True)
class Growth:
    """How a panel grows from a base.

    Attributes:
        base: the panel before; since: first session on which anything but the restated assets is computed.
        span: what is read and computed of each asset.
        before_A: place of each asset in the base, -1 for a new one.
    """

    base: Base
    since: int
    span: Span
    before_A: np.ndarray


def growth(prices: AdjustedPrices, channels: tuple[Channel, ...], base: Base) -> Growth | None:
    """The way from `base` to these prices, or None where building anew is simpler or as quick."""
    panel = base.panel
    held = len(panel.dates)
    same = (
        panel.manifest["made_by"]["code"] == CODE_VERSION
        and panel.manifest["channels"] == [channel.row() for channel in channels]
        and panel.manifest["columns"] == sorted(prices.columns)
        and np.array_equal(prices.dates[:held], panel.dates)
        and set(panel.assets) <= set(prices.assets)
    )
    if not same:
        return None
    before_A = np.array([base.index.get(name, -1) for name in prices.assets])
    restated_A = (before_A >= 0) & (prices.known_A != base.assets_A[before_A])
    restated_A |= (before_A < 0) & (prices.first_A < held)
    since = _first(prices.universe_D[:held] != base.universe_D, held)
    since = min(since, _first_changed_input(prices, base, before_A, restated_A, held))
    span = _span(prices, base, before_A, restated_A, since)
    rows_A = prices.last_A - prices.first_A + 1
    work = np.maximum(prices.last_A - span.since_A + 1, 0)[span.from_A <= prices.last_A].sum()
    return Growth(base, since, span, before_A) if work <= WORTHWHILE * rows_A.sum() else None


def _first(changed_D: np.ndarray, otherwise: int) -> int:
    return int(np.argmax(changed_D)) if changed_D.any() else otherwise


def _first_changed_input(
    prices: AdjustedPrices, base: Base, before_A: np.ndarray, restated_A: np.ndarray, held: int
) -> int:
    """First session on which a restated asset brings something else to the market than it did."""
    since = held
    whole = Span(restated_A, prices.first_A, np.where(restated_A, prices.first_A, prices.last_A + 1), 0 * before_A)
    columns = ("close", "dollar_volume") if "dollar_volume" in prices.columns else ("close",)
    for block in prices.blocks(columns, whole):
        inputs = market_inputs(block)
        ends = np.cumsum(block.counts)
        for place, asset in enumerate(range(block.assets.start, block.assets.stop)):
            if not restated_A[asset]:
                continue
            rows = slice(ends[place] - block.counts[place], ends[place])
            now_4D = np.zeros((4, held))
            sessions = block.session_N[rows]
            old = sessions < held
            found = (inputs.returns_N, inputs.liquidity_N, block.eligible_N, np.ones(len(block.session_N)))
            now_4D[:, sessions[old]] = np.stack([column[rows][old] for column in found])
            then_4D = np.zeros((4, held))
            if before_A[asset] >= 0:
                panel, was = base.panel, int(before_A[asset])
                kept = panel.offsets[was] + np.arange(panel.lengths[was])
                stored = (panel.returns, base.liquidity, panel.eligible, panel.observed)
                first = int(panel.first[was])
                then_4D[:, first : first + len(kept)] = np.stack([column[kept] for column in stored])
            since = min(since, _first((now_4D != then_4D).any(axis=0), held))
    return since


def _span(prices: AdjustedPrices, base: Base, before_A: np.ndarray, restated_A: np.ndarray, since: int) -> Span:
    """Every restated asset whole; of the others the sessions from `since` on, read from where they can depend on."""
    tail_A = np.maximum(prices.first_A, since - LOOKBACK)
    skipped_A, whole_A = np.zeros_like(tail_A), restated_A | (tail_A == prices.first_A)
    panel = base.panel
    for asset in np.flatnonzero(~whole_A & (prices.last_A >= since)):
        was = int(before_A[asset])
        start = int(panel.offsets[was])
        observed = panel.observed[start : start + int(panel.lengths[was])]
        head = int(tail_A[asset] - prices.first_A[asset])
        skipped_A[asset] = np.count_nonzero(observed[:head])
        known = np.count_nonzero(observed[head : since - int(prices.first_A[asset])])
        while known < LOOKBACK and head > 0:  # gaps: reach further back, until as many observations are there
            head = max(head - LOOKBACK, 0)
            known = np.count_nonzero(observed[head : since - int(prices.first_A[asset])])
            skipped_A[asset] = np.count_nonzero(observed[:head])
        tail_A[asset] = prices.first_A[asset] + head
    since_A = np.where(restated_A, prices.first_A, tail_A)
    from_A = np.where(restated_A, prices.first_A, np.maximum(prices.first_A, since))
    return Span(restated_A, since_A, from_A, np.where(restated_A, 0, skipped_A))
