"""What of the panel before still holds, so that a new day costs a day and a restated symbol a symbol.

The rows that are kept and the rows that are computed are together what a rebuild would give, bit for bit: kernels.py
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
from finjepa_pipeline.features.slots import Slots
from finjepa_pipeline.features.source import AdjustedPrices, Span

CODE_VERSION = "4"  # raise it when the same prices and the same table would give other numbers
WORTHWHILE = 0.5  # a part of the rows; beyond, a rebuild is as quick
GROWN = "grown"  # lies in the folder of a panel whose room another panel has filled


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
            self.whole_A, self.universe_D = prints["assets"], prints["universe"]
            self.slots = Slots(self.panel.offsets, prints["room"], int(prints["used"]), len(self.panel.observed))
        except (OSError, KeyError) as error:
            raise FinJEPAError(f"the panel {folder} cannot be grown: {error}") from error
        self.last_date = str(self.panel.dates[-1])
        self.index = {name: asset for asset, name in enumerate(self.panel.assets)}
        self.grown = (folder / GROWN).exists()


@dataclass(frozen=True)
class Growth:
    """How a panel grows from a base.

    Attributes:
        base: the panel before; since: first session on which anything but the assets that moved is computed.
        span: what is read and computed of each asset.
        before_A: place of each asset in the base, -1 for a new one.
        moved_A: assets that are computed whole, in a new place.
        slots: where the rows of each asset go.
    """

    base: Base
    since: int
    span: Span
    before_A: np.ndarray
    moved_A: np.ndarray
    slots: Slots

    @property
    def in_place(self) -> bool:
        """Whether no row of the base is written again, so that both panels can share its files."""
        return self.since == len(self.base.panel.dates) and not self.base.grown


def growth(prices: AdjustedPrices, channels: tuple[Channel, ...], base: Base) -> Growth | None:
    """The way from `base` to these prices, or None where building anew is simpler or as quick."""
    panel, held = base.panel, len(base.panel.dates)
    same = (
        panel.manifest["made_by"]["code"] == CODE_VERSION
        and panel.manifest["channels"] == [channel.row() for channel in channels]
        and panel.manifest["columns"] == sorted(prices.columns)
        and np.array_equal(prices.dates[:held], panel.dates)
        and set(panel.assets) <= set(prices.assets)
    )
    restated_A = (
        prices.restated(panel.manifest["feed"], panel.manifest["data_version"], base.last_date) if same else None
    )
    if restated_A is None:
        return None
    before_A = np.array([base.index.get(name, -1) for name in prices.assets])
    lengths_A = prices.last_A - prices.first_A + 1
    restated_A |= (prices.known_A != base.whole_A[before_A]) | (prices.first_A != panel.first[before_A])
    restated_A = np.where(before_A < 0, prices.first_A < held, restated_A)
    moved_A = (before_A < 0) | restated_A | (lengths_A > base.slots.room_A[before_A])
    slots = base.slots.moved(before_A, lengths_A, moved_A)
    if slots is None or lengths_A[moved_A].sum() > WORTHWHILE * lengths_A.sum():
        return None
    since = min(
        _first(prices.universe_D[:held] != base.universe_D, held),
        _first_changed_input(prices, base, before_A, restated_A, held),
    )
    span = _span(prices, base, before_A, moved_A, since)
    work = np.maximum(prices.last_A - span.since_A + 1, 0)[span.from_A <= prices.last_A].sum()
    return Growth(base, since, span, before_A, moved_A, slots) if work <= WORTHWHILE * lengths_A.sum() else None


def _first(changed_D: np.ndarray, otherwise: int) -> int:
    return int(np.argmax(changed_D)) if changed_D.any() else otherwise


def _first_changed_input(
    prices: AdjustedPrices, base: Base, before_A: np.ndarray, restated_A: np.ndarray, held: int
) -> int:
    """First session on which a restated asset brings something else to the market than it did."""
    since = held
    from_A = np.where(restated_A, prices.first_A, prices.last_A + 1)
    span = Span(restated_A, prices.first_A, from_A, np.zeros_like(from_A))
    shift_A = (np.cumsum(restated_A) - 1) * len(prices.dates)
    eligible = np.zeros(int(restated_A.sum()) * len(prices.dates), bool)
    prices.mark("universe", span, shift_A, eligible)
    for block in prices.blocks(span) if restated_A.any() else ():
        asset_N = np.repeat(np.arange(block.assets.start, block.assets.stop), block.counts)
        eligible_N = eligible[shift_A[asset_N] + block.session_N] & restated_A[asset_N]
        inputs = market_inputs(block, eligible_N)
        now = (inputs.returns_N, inputs.liquidity_N, eligible_N, np.ones(len(asset_N)))
        for asset in np.flatnonzero(restated_A[block.assets]) + block.assets.start:
            mine_N = (asset_N == asset) & (block.session_N < held)
            now_4D, then_4D = np.zeros((2, 4, held))
            now_4D[:, block.session_N[mine_N]] = np.stack([column[mine_N] for column in now])
            if (was := int(before_A[asset])) >= 0:
                panel, first, length = base.panel, int(base.panel.first[was]), int(base.panel.lengths[was])
                rows = slice(int(panel.offsets[was]), int(panel.offsets[was]) + length)
                then = (panel.returns, base.liquidity, panel.eligible, panel.observed)
                then_4D[:, first : first + length] = np.stack([column[rows] for column in then])
            since = min(since, _first((now_4D != then_4D).any(axis=0), held))
    return since


def _span(prices: AdjustedPrices, base: Base, before_A: np.ndarray, moved_A: np.ndarray, since: int) -> Span:
    """Every asset that moved whole; of the others the sessions from `since` on, read from where they can depend on."""
    tail_A = np.where(moved_A, prices.first_A, np.maximum(prices.first_A, since - LOOKBACK))
    skipped_A = np.zeros_like(tail_A)
    panel = base.panel
    for asset in np.flatnonzero((tail_A > prices.first_A) & (prices.last_A >= since)):
        start, first = int(panel.offsets[before_A[asset]]), int(prices.first_A[asset])
        observed = panel.observed[start : start + since - first]
        head = int(tail_A[asset]) - first
        while head > 0 and np.count_nonzero(observed[head:]) < LOOKBACK:  # gaps: reach further back
            head = max(head - LOOKBACK, 0)
        tail_A[asset], skipped_A[asset] = first + head, np.count_nonzero(observed[:head])
    from_A = np.where(moved_A, prices.first_A, np.maximum(prices.first_A, since))
    return Span(moved_A, tail_A, from_A, skipped_A)
