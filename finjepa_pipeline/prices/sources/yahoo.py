"""Yahoo Finance, through the library yfinance: no token and no files, for as long as Yahoo answers."""

import contextlib
import datetime
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.frame import rows_of
from finjepa_model.files import to_json, written_whole
from finjepa_pipeline.prices.sources.base import PriceSource, Snapshot, SourceFile

BATCH = 25  # symbols of a request
WAITS_S = (5.0, 30.0, 120.0)  # before a batch is asked for again
PAUSE_S = 1.0  # between batches
# UTC: New York has closed, in summer and in winter; before, its last row is not complete
DAY_ENDS = datetime.time(22, 0)
FIRST = "1962-01-02"


@dataclass(frozen=True)
class YahooSource(PriceSource):
    """Daily prices of some symbols up to the last day that is over: closes adjusted for splits, and closes adjusted for dividends
    too. Yahoo restates adjusted closes, so a new day is a whole download; batches that have come are kept in `folder`, and an
    ingestion that was ended goes on after them.
    """

    symbols: tuple[str, ...]
    start: str | None
    end: str | None
    folder: Path

    @property
    def place(self) -> str:
        return "yfinance"

    def snapshot(self) -> Snapshot:
        last = _last_day(datetime.datetime.now(datetime.UTC))
        until = min(last, self.end) if self.end else last
        batches = [self.symbols[at : at + BATCH] for at in range(0, len(self.symbols), BATCH)]
        asked = [to_json({"symbols": batch, "start": self.start or FIRST, "until": until}) for batch in batches]
        files = (SourceFile(text, hashlib.sha256(text.encode()).hexdigest()) for text in asked)
        return Snapshot(f"until {until}", tuple(files))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        paths = [self.folder / f"{file.sha256[:16]}.parquet" for file in snapshot.files]
        until = snapshot.version.removeprefix("until ")
        for place, path in enumerate(paths):
            if not path.is_file():
                rows = self._downloaded(self.symbols[place * BATCH : (place + 1) * BATCH], until)
                with written_whole(path) as beside:
                    rows.write_parquet(beside)
                time.sleep(PAUSE_S)
        for old in self.folder.glob("*.parquet"):  # of earlier days
            if old not in paths:
                old.unlink()
        return paths

    def _downloaded(self, symbols: tuple[str, ...], until: str) -> pl.DataFrame:
        """The rows of some symbols, asked for again where they did not come.

        Raises:
            FinJEPAError: if Yahoo does not give some of them.
        """
        yfinance = _library(self.folder / "cache")
        after = datetime.date.fromisoformat(until) + datetime.timedelta(days=1)
        parts: list[pl.DataFrame] = []
        missing = list(symbols)
        for wait_s in (0.0, *WAITS_S):
            time.sleep(wait_s)
            frame = None
            with contextlib.suppress(Exception):  # of the network, in classes of several libraries
                frame = yfinance.download(
                    missing, start=self.start or FIRST, end=after.isoformat(), auto_adjust=False, actions=False,
                    group_by="column", progress=False, threads=False, multi_level_index=True,
                )  # fmt: skip
            if frame is not None and not frame.empty:
                parts.append(rows_of(frame))
                missing = [name for name in missing if name not in set(parts[-1]["symbol"])]
            if not missing:
                return pl.concat(parts, how="diagonal_relaxed").sort("symbol", "date")
        raise FinJEPAError(
            f"Yahoo gives no prices of {', '.join(missing[:10])} from {self.start or FIRST} to {until}; check the spelling on "
            "finance.yahoo.com, leave them out of --symbols, or check the network; if Yahoo limits requests, run the same "
            "command again in an hour: it goes on with what has come"
        )


def _library(cache: Path) -> Any:
    try:
        import yfinance  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FinJEPAError(
            "the source `yfinance` needs the library yfinance, which is not installed: pip install 'finjepa[yfinance]'"
        ) from error
    cache.mkdir(parents=True, exist_ok=True)
    yfinance.set_tz_cache_location(str(cache))  # it would write into the user's home
    logging.getLogger("yfinance").disabled = True  # each failure is asked for again, or named in the end
    return yfinance


def _last_day(now: datetime.datetime) -> str:
    return (now.date() if now.time() >= DAY_ENDS else now.date() - datetime.timedelta(days=1)).isoformat()
