"""The adjusted tables, read a run of assets at a time, so that memory does not grow with the market.

Shape suffixes: A assets, D sessions, N observations of a block in a row.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.features import kernels
from finjepa_pipeline.warehouse import sql

READ_OBSERVATIONS = 1_500_000  # of a query: few queries, and about 100 MB of them at a time
BLOCK_OBSERVATIONS = 40_000  # 300 kB a column: the working set of a block stays in the cache
PRICE_COLUMNS = ("open", "high", "low", "volume", "dollar_volume")


@dataclass(frozen=True)
class Span:
    """Which part of each asset's history is read and which of it is to be computed.

    Attributes:
        whole_A: whether all of the asset is read and computed.
        since_A: first session to read; from_A: first session to compute.
        skipped_A: observations of the asset before since_A.
    """

    whole_A: np.ndarray
    since_A: np.ndarray
    from_A: np.ndarray
    skipped_A: np.ndarray


@dataclass(frozen=True)
class Block:
    """Observations of the assets `assets.start` .. `assets.stop - 1`, in the order of asset and date.

    Attributes:
        counts: observations of each asset; skipped: those before the first that was read.
        new_N: whether the row is to be computed; the others are there to look back at.
    """

    assets: slice
    counts: np.ndarray
    skipped: np.ndarray
    session_N: np.ndarray
    new_N: np.ndarray
    tradable_N: np.ndarray
    columns: dict[str, np.ndarray]


class AdjustedPrices:
    """`adjusted_prices`, `universe` and `corporate_actions` behind an open connection.

    Attributes:
        assets: entities in ascending order; first_A, last_A: the sessions of their first and last observation.
        whole_A, known_A: fingerprints of what the prices stage concluded about each, of everything and of what is not
            after `known`.
        delisting_return_A: what a holder gets beyond the last close of one that has ended.
        dates: datetime64[D], the sessions; universe_D: fingerprints of the universe.
        columns: the price columns that hold anything, `close` included.

    Raises:
        FinJEPAError: if the tables are empty.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, known: str = "0001-01-01"):
        self._connection = connection
        table = connection.sql(sql("panel_assets"), params={"known": known}).pl()
        if table.is_empty():
            raise FinJEPAError("there are no adjusted prices to make features of; run `finjepa ingest` first")
        sessions = connection.sql(sql("panel_sessions")).pl()
        days_D = _days(sessions["date"])
        self.dates = days_D.astype(np.int64).astype("datetime64[D]")
        self._first_day = int(days_D[0])
        self._session_of_day = np.full(int(days_D[-1]) - self._first_day + 1, -1, np.int32)
        self._session_of_day[days_D - self._first_day] = np.arange(len(days_D))
        self.universe_D = sessions["universe"].to_numpy()
        self.assets: list[str] = table["entity"].to_list()
        self.first_A, self.last_A = self._sessions(table["first_date"]), self._sessions(table["last_date"])
        self.whole_A, self.known_A = table["whole"].to_numpy(), table["known"].to_numpy()
        self.delisting_return_A = table["delisting_return"].to_numpy()
        filled = connection.sql(sql("panel_columns")).pl().row(0, named=True)
        self.columns = frozenset({"close", *(name for name in PRICE_COLUMNS if filled[name])})
        index = table.select("entity", "symbol").with_row_index("asset")
        connection.register("panel_index_frame", index.to_arrow())
        connection.execute("CREATE OR REPLACE TEMP TABLE panel_index AS FROM panel_index_frame")
        connection.unregister("panel_index_frame")

    @property
    def universe_version(self) -> str:
        """Short hash of who was in the universe when."""
        return hashlib.sha256(self.universe_D.tobytes()).hexdigest()[:8]

    def everything(self) -> Span:
        """All rows of all assets."""
        return Span(np.ones(len(self.assets), bool), self.first_A, self.first_A, np.zeros_like(self.first_A))

    def restated(self, feed: str, data_version: str, known: str) -> np.ndarray | None:
        """Whether a price of each asset that is not after `known` came or went since that version; None if unknown."""
        facts = {"feed": feed, "data_version": data_version, "known": known}
        changed = self._connection.sql(sql("panel_restated"), params=facts).pl()["asset"]
        if changed.null_count():
            return None
        restated_A = np.zeros(len(self.assets), bool)
        restated_A[changed.to_numpy()] = True
        return restated_A

    def mark(self, table: str, span: Span, shift_A: np.ndarray, marks_R: np.ndarray) -> None:
        """Mark what a span computes of the `universe` or of the `events`: row `shift_A[asset] + session`."""
        since = int(np.min(span.from_A, where=span.from_A <= self.last_A, initial=len(self.dates) - 1))
        found = self._connection.sql(sql(f"panel_{table}"), params={"since": self.dates[since].item()}).pl()
        asset_X, day_X = found["asset"].to_numpy(), _days(found["date"]) - self._first_day
        kernels.mark(asset_X, day_X, self._session_of_day, shift_A, span.from_A, self.last_A, marks_R)

    def blocks(self, span: Span) -> Iterator[Block]:
        """The observations of a span with all columns, in runs of whole assets in ascending order."""
        columns = sorted(self.columns)
        query = sql("panel_block").format(columns=", ".join(f"prices.{name}" for name in columns))
        for run in self._runs(span):
            since = int(span.since_A[run].min())
            bounds = {
                "first": self.assets[run.start],
                "last": self.assets[run.stop - 1],
                "since": self.dates[since].item(),
            }
            frame = self._connection.sql(query, params=bounds).pl()
            asset_N, session_N = frame["asset"].to_numpy().astype(np.int64), self._sessions(frame["date"])
            key_N = asset_N * len(self.dates) + session_N
            wanted_N = session_N >= span.since_A[asset_N]
            if not (wanted_N.all() and (np.diff(key_N) > 0).all()):  # most stores hold them in this order
                order_N = np.argsort(key_N, kind="stable")
                order_N = order_N[wanted_N[order_N]]
                frame, asset_N, session_N = frame[order_N], asset_N[order_N], session_N[order_N]
            arrays = {name: frame[name].cast(pl.Float64).to_numpy() for name in columns}
            tradable_N = frame["tradable"].to_numpy().astype(bool)
            counts = np.bincount(asset_N - run.start, minlength=run.stop - run.start)
            ends = np.concatenate([[0], np.cumsum(counts)])
            for part in groups(counts, BLOCK_OBSERVATIONS):
                rows = slice(int(ends[part.start]), int(ends[part.stop]))
                assets = slice(run.start + part.start, run.start + part.stop)
                yield Block(
                    assets=assets,
                    counts=counts[part],
                    skipped=span.skipped_A[assets],
                    session_N=session_N[rows],
                    new_N=session_N[rows] >= np.repeat(span.from_A[assets], counts[part]),
                    tradable_N=tradable_N[rows],
                    columns={name: array[rows] for name, array in arrays.items()},
                )

    def _runs(self, span: Span) -> Iterator[slice]:
        """Runs of assets that are read from about the same session on, without those of which nothing is computed."""
        rows_A = np.maximum(self.last_A - span.since_A + 1, 0)
        breaks = np.flatnonzero(np.diff(span.whole_A)) + 1
        for stretch in np.split(np.arange(len(self.assets)), breaks):
            for part in groups(rows_A[stretch], READ_OBSERVATIONS):
                run = slice(int(stretch[part.start]), int(stretch[part.stop - 1]) + 1)
                if (span.from_A[run] <= self.last_A[run]).any():
                    yield run

    def _sessions(self, dates: pl.Series) -> np.ndarray:
        return self._session_of_day[_days(dates) - self._first_day].astype(np.int64)


def groups(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive runs whose sizes add up to at most `most`, or to one size that is larger."""
    start, total = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > start and total + size > most:
            yield slice(start, place)
            start, total = place, 0
        total += size
    yield slice(start, len(sizes))


def _days(dates: pl.Series) -> np.ndarray:
    return dates.cast(pl.Date).to_physical().to_numpy()
