"""What is known at a close, and which assets may be traded: nothing here reads a row that is stamped later.

Shapes: N assets of the view, T sessions of a window, F channels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import Observation, observe
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import Liquidity

REBALANCE_UNIVERSE_EVERY = 252  # sessions
LIQUIDITY_WINDOW = 63  # sessions


class MarketView:
    """The market as a strategy may see it at the close of one session: every method looks back from there, and none takes a date.

    The assets keep their order for as long as the universe stays; those that have ended meanwhile are absent (`present_N`).
    """

    def __init__(self, panel: Panel, session: int, assets_N: np.ndarray, window: int):
        """
        Args:
            session: index of the decision's close in the panel's dates.
            assets_N: int64, the panel's asset indices of the universe.
            window: sessions that an asset must have behind it to be decided on.
        """
        self._panel = panel
        self._session = session
        self._assets_N = np.asarray(assets_N, np.int64)
        rows_N = panel.rows(session, self._assets_N)
        self.present_N: np.ndarray = (
            (rows_N >= 0) & panel.observed[rows_N] & (session - panel.first[self._assets_N] >= window - 1)
        )
        self.beta_N: np.ndarray = panel_beta(panel, session, self._assets_N)
        self.tradable_N: np.ndarray = (rows_N >= 0) & panel.tradable[rows_N]

    @property
    def date(self) -> np.datetime64:
        """The session whose close was just seen."""
        return self._panel.dates[self._session]

    @property
    def assets(self) -> tuple[str, ...]:
        return tuple(self._panel.assets[i] for i in self._assets_N)

    @property
    def asset_indices(self) -> np.ndarray:
        """int64 [N], the panel's numbers of the assets."""
        return self._assets_N

    def features(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """features_NTF float32 of the last `length` sessions, and observed_NT bool; zeros and False where there is no row."""
        features_1NTF, observed_1NT = self._panel.windows(np.array([self._session]), self._assets_N[None], length)
        return features_1NTF[0], observed_1NT[0]

    def market_features(self, length: int) -> np.ndarray:
        """The market's context over the same sessions, float32 [T, M]; zeros before the panel begins."""
        return self._panel.market_windows([self._session], length)[0]

    def observation(self, config: FinJEPAConfig) -> Observation:
        """What a world model sees at this close, made by the code that made its training batches; a batch of one date."""
        assets_1N = np.where(self.present_N, self._assets_N, -1)[None]
        return observe(self._panel, np.array([self._session]), assets_1N, config.model.context_steps, config)

    @property
    def session(self) -> int:
        """Number of the session whose close was just seen."""
        return self._session

    def liquidity(self) -> Liquidity | None:
        """How easily the assets are traded, a batch of one date; None where the source has no volumes."""
        return panel_liquidity(self._panel, self._session, self._assets_N)

    def returns(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Simple total returns_TN, float64, of the last `length` sessions, this close included, and observed_TN, bool; 0 and
        False where the asset was not observed, and on its first row."""
        days_T = self._session - length + 1 + np.arange(length)
        rows_TN = self._panel.rows(days_T[:, None], self._assets_N[None, :])
        known_TN = (
            (rows_TN >= 0) & (days_T[:, None] > self._panel.first[self._assets_N]) & self._panel.observed[rows_TN]
        )
        return np.where(known_TN, self._panel.returns[rows_TN], 0.0).astype(np.float64), known_TN

    def market_returns(self, length: int) -> np.ndarray:
        """Simple returns of the market proxy, float64, over the last `length` sessions; shorter where the panel is younger."""
        return self._panel.market_returns[max(0, self._session - length + 1) : self._session + 1].astype(np.float64)


def panel_beta(panel: Panel, session: int, assets_N: np.ndarray) -> np.ndarray:
    """Trailing beta_N to the market proxy at a close, float64; 1 where an asset has no row."""
    rows_N = panel.rows(session, assets_N)
    return np.where(rows_N >= 0, panel.beta[rows_N], 1.0).astype(np.float64)


def panel_liquidity(panel: Panel, session: int, assets_N: np.ndarray) -> Liquidity | None:
    """Liquidity [1, N], float64, from what was known at the close of a session; None where the source has no volumes."""
    if panel.liquidity is None:
        return None
    rows_N = panel.rows(session, assets_N)
    dollar_volume_N = np.where(rows_N >= 0, panel.liquidity[rows_N], np.nan).astype(np.float64)
    days = min(LIQUIDITY_WINDOW, session + 1)
    returns_1NT, _ = panel.returns_after(np.array([session - days]), assets_N[None], days)
    volatility_1N = returns_1NT.astype(np.float64).std(-1)
    return Liquidity(torch.from_numpy(dollar_volume_N)[None], torch.from_numpy(volatility_1N))


def most_traded(panel: Panel, session: int, assets_N: np.ndarray) -> np.ndarray:
    """Assets that are observed at a close, ordered by their trailing dollar volume; where the source has none, by the length of
    their history; then by a hash of their first returns, so that the name never decides."""
    volume_N = np.zeros(len(assets_N))
    if panel.liquidity is not None:
        volume_N = panel.liquidity[panel.rows(session, assets_N)].astype(np.float64)
    return assets_N[np.lexsort((_hashes(panel, session, assets_N), panel.first[assets_N], -volume_N))]


def traded_text(traded: int, eligible: int, has_volumes: bool) -> str:
    """How many of the eligible assets are traded, and which."""
    if traded >= eligible:
        return f"all {traded} eligible assets"
    return f"{traded} of {eligible} eligible assets: " + ("the most traded" if has_volumes else "the longest histories")


def _hashes(panel: Panel, session: int, assets_N: np.ndarray) -> np.ndarray:
    """A number of each asset that depends on its first month of returns alone, to a basis point: restated closes keep it."""
    found = []
    for asset in assets_N:
        month = min(21, session + 1 - int(panel.first[asset]))
        returns_T = panel.returns[panel.offsets[asset] : panel.offsets[asset] + month]
        digest = hashlib.sha256(np.rint(1e4 * returns_T.astype(np.float64)).astype("<i4").tobytes()).digest()
        found.append(int.from_bytes(digest[:8], "big"))
    return np.array(found, np.uint64)


@dataclass(frozen=True)
class Universe:
    """The assets that are traded from session `start` on, until the next universe begins."""

    start: int
    assets_N: np.ndarray  # int64, indices into the panel's assets


def universes(
    panel: Panel, decisions: Sequence[int], n_assets: int, window: int, allowed: np.ndarray | None = None
) -> list[Universe]:
    """The traded universes of a block, see `next_universe`."""
    chosen: dict[int, Universe] = {}
    newest = None
    for session in decisions:
        newest = next_universe(newest, panel, session, n_assets, window, allowed)
        chosen[newest.start] = newest
    return list(chosen.values())


def next_universe(
    before: Universe | None, panel: Panel, session: int, n_assets: int, window: int, allowed: np.ndarray | None = None
) -> Universe:
    """The universe of a decision: that of the decision before until it is `REBALANCE_UNIVERSE_EVERY` sessions old, or while
    nothing is eligible; then the first of `most_traded` among the assets that are eligible with a full window behind them.

    Args:
        allowed: bool by asset of the panel, which may be traded; all where None.

    Raises:
        FinJEPAError: if there was none before and no asset is eligible.
    """
    if before is not None and session < before.start + REBALANCE_UNIVERSE_EVERY:
        return before
    eligible_N = panel.eligible_assets(session, window)
    if allowed is not None:
        eligible_N = eligible_N[allowed[eligible_N]]
    if len(eligible_N):
        return Universe(session, np.sort(most_traded(panel, session, eligible_N)[:n_assets]))
    if before is not None:
        return before
    raise FinJEPAError(
        f"no asset is eligible on {panel.dates[session]} with {window} sessions of history; "
        "ingest a longer history or train with a shorter model.window"
    )
